# SPDX-License-Identifier: MIT
"""``pcgr-conda-link``: links package files into a prefix, and leaves no trace there of where they lay.

Reads from standard input one JSON object: ``prefix`` (the folder to make), ``cache`` (a folder on the same file system for
unpacked packages, which may be removed afterwards) and ``packages``, a list of ``path`` and ``url`` (where the file came
from). Link scripts are not run. One line on standard error and exit status 1 when it cannot be done.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

from rattler import install
from rattler.repo_data import RepoDataRecord


async def link(prefix: Path, cache: Path, packages: list[dict[str, str]]) -> None:
    """Make ``prefix`` from ``packages``."""
    records = [await RepoDataRecord.from_package_archive(package["path"]) for package in packages]
    sources = {record.url: package["url"] for record, package in zip(records, packages, strict=True)}
    # No installed packages are looked for: the prefix is new.
    await install(records, prefix, cache, installed_packages=[], execute_link_scripts=False, show_progress=False)
    for path in (prefix / "conda-meta").glob("*.json"):
        settle(path, sources)
    (prefix / "CACHEDIR.TAG").unlink(missing_ok=True)  # backups and copies for images would leave the folder out
    for path in prefix.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & 0o022:  # the library makes entry points writable for the group
            path.chmod(stat.S_IMODE(mode) & ~0o022)


def settle(path: Path, sources: dict[str, str]) -> None:
    """Let a package's entry name the address it came from in place of files that will be gone."""
    entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    entry["url"] = sources[entry["url"]]
    entry["channel"] = entry["url"].rsplit("/", 2)[0]
    entry.pop("extracted_package_dir", None)
    entry.pop("link", None)
    path.write_text(json.dumps(entry, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    path.chmod(0o644)


def main() -> None:
    """Entry point; ends the process."""
    work = json.load(sys.stdin)
    status = 0
    try:
        asyncio.run(link(Path(work["prefix"]), Path(work["cache"]), work["packages"]))
    except Exception as error:  # the library's exceptions have no common base; whatever it is, it is the one line
        print(f"{work['prefix']}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        status = 1
    # Without Python's own end: py-rattler 0.28's threads may outlive it and then crash (9 of 240 runs on a busy machine).
    os._exit(status)


if __name__ == "__main__":
    main()
