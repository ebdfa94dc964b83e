#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install PCGR's conda environments from lock files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_conda
short_description: Install PCGR's conda environments from lock files
version_added: 1.0.0
description:
  - Reads the explicit lock files that belong to a release, fetches every package that they name, compares its MD5 with the lock, and links the
    packages into one environment per lock. Nothing is solved, so the same locks give the same environments.
  - "The environments lie in C(<path>/<name>/envs/<environment>), where the name comes from the locks. Conda packages have the path of their
    environment written into them, so they are made at their final place: a folder without the stamp C(.umccr.pcgr.json) is unfinished, and is
    removed and made again. The record is replaced last, by a rename: after a cut at any moment the old runtime is in use or the new one."
  - Packages that were downloaded before an interruption are not downloaded again.
  - "O(record) gets C(kind), C(image) (the folder), C(prefixes) and C(locks). With O(prune), other runtimes below O(path) are removed."
  - O(mirror_url) holds the lock files; it is used in place of each lock's C(url).
  - Nothing in the environments names a place outside them, so the folder may be copied to another host, at the same path.
  - Post-link scripts run as in conda, in the order of the lock, but one that fails is an error. Those of Bioconductor's data packages (the genomes that
    PCGR's report needs) download what they install.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: linux}
options:
  locks:
    description:
      - The lock files, by the name of their environment, each with C(file) (its name on a mirror), C(url) and C(sha256).
      - A lock without C(sha256) needs a line in C(SHA256SUMS) of the mirror.
    type: dict
    required: true
  conda_mirror_url:
    description:
      - Address that takes the place of what precedes C(<channel>/<platform>/<file>) in the addresses of packages.
      - C(<conda_mirror_url>/bioconductor-data/<file>) is then where the post-link scripts of Bioconductor's data packages look first.
    type: str
  post_link:
    description: Whether post-link scripts are run, or packages that have one are refused.
    type: str
    choices: [run, refuse]
    default: run
  linker:
    description: The program C(pcgr-conda-link).
    type: path
    required: true
  connections:
    description: Packages downloaded at once.
    type: int
    default: 8
  space_factor:
    description: Free space required before the packages are unpacked, as a multiple of their size.
    type: float
    default: 5
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.transfer
  - umccr.pcgr.transfer.runtime
"""

EXAMPLES = r"""
- name: Make the conda environments of a release
  umccr.pcgr.runtime_conda:
    locks: "{{ lookup('umccr.pcgr.release', '2.3.2').conda }}"
    linker: /opt/pcgr-runtime/.linker/bin/pcgr-conda-link
"""

RETURN = r"""
image:
  description: The folder of the environments.
  type: str
  returned: always
removed:
  description: What was removed, or would be in check mode, because of O(prune).
  type: list
  elements: str
  returned: always
deferred:
  description: File that will hold the progress of the transfer; nothing was fetched because of O(defer).
  type: str
  returned: when O(defer) is set and 1 GB or more is to be fetched
"""

import concurrent.futures
import glob
import hashlib
import json
import os
import re
import shutil
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils._progress import Progress, defer, progress_file
from ansible_collections.umccr.pcgr.plugins.module_utils._state import (
    STAMP,
    BusyError,
    exclusive_lock,
    other_runtimes,
    read_json,
    remove,
    write_json,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.archive import sync
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.checksums import (
    NoChecksumError,
    resolve_checksums,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.download import (
    Download,
    DownloadError,
    address,
    check,
    ensure_space,
    readable,
    save,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.options import download_options, transfer_spec

# <anything>/<channel>/<platform>/<file>#<md5>, as `conda list --explicit --md5` and conda-lock write it.
LINE = re.compile(
    r"(?P<url>\S+/(?P<place>[^/\s]+/[^/\s]+/(?P<file>[A-Za-z0-9._+!-]+\.(?:conda|tar\.bz2))))#(?P<md5>[0-9a-f]{32})"
)
LOCK_BYTES = 16 << 20  # no lock file is larger; a server's answer may be
PLATFORMS = {"x86_64": "linux-64", "aarch64": "linux-aarch64", "ppc64le": "linux-ppc64le"}
# What Bioconductor's data packages take the addresses of their downloads from.
DATA_ADDRESSES = "share/bioconductor-data-packages/dataURLs.json"


class CondaError(Exception):
    """The environments cannot be made; the text is one line."""


class Package(NamedTuple):
    """A package of a lock: its address, its file below a mirror (`<channel>/<platform>/<file>`), its file name and MD5."""

    url: str
    place: str
    file: str
    md5: str

    @property
    def name(self) -> str:
        """The package's name: its file's, without version and build."""
        return self.file.rsplit("-", 2)[0]


def parse(text: str, where: str) -> list[Package]:
    """The packages of an explicit lock file; raises CondaError naming `where` and the line."""
    lines = [line.strip() for line in text.splitlines()]
    if "@EXPLICIT" not in lines:
        first = next((line for line in lines if line), "")[:60]
        raise CondaError(f"{where}: not an explicit lock file (no line @EXPLICIT); it begins with {first!r}")
    platform = next((line.split(":")[1].strip() for line in lines if line.startswith("# platform:")), None)
    here = PLATFORMS.get(os.uname().machine, os.uname().machine)
    if platform not in (None, here):
        raise CondaError(f"{where}: made for the platform {platform}, this machine is {here}")
    packages = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#") or line == "@EXPLICIT":
            continue
        match = LINE.fullmatch(line)
        if not match:
            raise CondaError(f"{where}: line {number}: found {line[:120]!r}, allowed ADDRESS/CHANNEL/PLATFORM/FILE#MD5")
        packages.append(Package(**match.groupdict()))
    if not packages:
        raise CondaError(f"{where}: names no package")
    return packages


def with_checksums(params: dict[str, Any], options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The locks, each with a SHA-256; raises CondaError when one has none."""
    locks = dict(sorted(params["locks"].items()))
    unknown = {lock["file"]: None for lock in locks.values() if not lock.get("sha256")}
    try:
        sums = resolve_checksums(unknown, params["mirror_url"], required=True, **options)
    except NoChecksumError as error:
        name = next(name for name, lock in locks.items() if lock["file"] == error.name)
        raise CondaError(
            f"lock {name} ({error.name}): the release knows no sha256, and neither does a mirror ({error.where})"
        ) from error
    return {name: {**lock, "sha256": lock.get("sha256") or sums[lock["file"]]} for name, lock in locks.items()}


def read_lock(lock: dict[str, Any], mirror_url: str | None, options: dict[str, Any]) -> list[Package]:
    """Fetch and check one lock file; its packages."""
    url = address(mirror_url, lock["file"]) if mirror_url else lock.get("url")
    if not url:
        raise CondaError(f"{lock['file']}: no public address is known; set pcgr_mirror_url to a folder that has it")
    download = Download(url, **options)
    text = b""
    for block in download.blocks():
        text += block
        if len(text) > LOCK_BYTES:
            raise CondaError(f"{url}: more than {LOCK_BYTES} bytes, no lock file")
    check(url, hashlib.sha256(text).hexdigest(), len(text), lock["sha256"], content_type=download.type)
    return parse(text.decode("utf-8", errors="replace"), url)


def fetch(packages: list[Package], folder: str, params: dict[str, Any], progress: Progress) -> None:
    """Fetch every package to `<folder>/<md5>/<file>`. Raises DownloadError; complete packages stay."""
    options = {"timeout": params["timeout"], "attempts": params["attempts"], "connections": 1}

    def one(package: Package) -> None:
        url = address(params["conda_mirror_url"], package.place) if params["conda_mirror_url"] else package.url
        path = os.path.join(folder, package.md5, package.file)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        save(url, path, package.md5, algorithm="md5", resume=True, count=progress.count, **options)

    pool = concurrent.futures.ThreadPoolExecutor(params["connections"])
    try:
        for progress.done, task in enumerate([pool.submit(one, package) for package in packages]):
            task.result()
    finally:
        pool.shutdown(cancel_futures=True)


def link(
    module: AnsibleModule, prefix: str, packages: list[Package], folder: str, cache: str, *, progress: Progress
) -> None:
    """Make the environment at `prefix` and run its post-link scripts."""
    params = module.params
    work = {
        "prefix": prefix,
        "cache": cache,
        "packages": [
            {"path": os.path.join(folder, package.md5, package.file), "url": package.url} for package in packages
        ],
    }
    code, out, err = module.run_command([params["linker"]], data=json.dumps(work))
    if code:
        raise CondaError(complaint(err, out, code))
    compile_python(module, prefix)
    scripts = [
        (package, script)
        for package in packages
        if os.path.exists(script := os.path.join(prefix, "bin", f".{package.name}-post-link.sh"))
    ]
    if scripts and params["post_link"] == "refuse":
        names = ", ".join(package.name for package, _script in scripts)
        raise CondaError(
            f"{prefix}: these packages have post-link scripts, which runtime_conda_post_link refuses: {names}"
        )
    if params["conda_mirror_url"]:
        prefer_mirror(os.path.join(prefix, DATA_ADDRESSES), params["conda_mirror_url"])
    for package, script in scripts:
        progress.begin(f"post-link script of {package.name}")
        version, build = re.sub(r"\.(conda|tar\.bz2)$", "", package.file).rsplit("-", 2)[1:]
        environment = {
            "PREFIX": prefix,
            "CONDA_PREFIX": prefix,
            "PATH": f"{prefix}/bin:/usr/bin:/bin",
            "PKG_NAME": package.name,
            "PKG_VERSION": version,
            "PKG_BUILDNUM": build.rpartition("_")[2],
        }
        code, out, err = module.run_command(["/bin/bash", script], cwd=prefix, environ_update=environment)
        if code:
            raise CondaError(f"{package.file}: its post-link script failed: {complaint(err, out, code)}")


def compile_python(module: AnsibleModule, prefix: str) -> None:
    """Compile Python packages, as conda does: those who run them may not write here, and would compile them every time."""
    python = os.path.join(prefix, "bin/python")
    for folder in glob.glob(os.path.join(glob.escape(prefix), "lib/python3*/site-packages")):
        if os.path.exists(python):
            # By hash and not by time, which a copy may not keep. Templates and the like that cannot be compiled do no harm.
            options = ["-q", "-j", "0", "--invalidation-mode", "checked-hash"]
            module.run_command([python, "-I", "-m", "compileall", *options, folder])


def prefer_mirror(path: str, mirror_url: str) -> None:
    """Let the data packages' post-link scripts look on the mirror first; they check what they get."""
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as handle:
        entries = json.load(handle)
    for entry in entries.values():
        entry["urls"] = [address(mirror_url, f"bioconductor-data/{entry['fn']}"), *entry["urls"]]
    write_json(path, entries)


def complaint(err: str, out: str, code: int) -> str:
    """A program's complaint in one line, without what `set -x` of a shell prints."""
    lines = [line.strip() for line in (*out.splitlines(), *err.splitlines())]
    lines = [line for line in lines if line and not line.startswith("+")]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else f"exit code {code}")


def downloads(image: str) -> str:
    """Folder to which the packages of `image` are downloaded."""
    return os.path.join(os.path.dirname(image), f".packages-{os.path.basename(image)}")


def install(
    module: AnsibleModule,
    image: str,
    locks: dict[str, dict[str, Any]],
    progress: Progress,
    options: dict[str, Any],
) -> None:
    """Make the folder `image` with an environment per lock, stamped last."""
    params = module.params
    packages = {name: read_lock(lock, params["mirror_url"], options) for name, lock in locks.items()}
    folder = downloads(image)
    cache = os.path.join(folder, "unpacked")
    shutil.rmtree(image, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    every = sorted({package for some in packages.values() for package in some})
    progress.begin("conda packages", len(every), "packages")
    fetch(every, folder, params, progress)
    size = sum(os.path.getsize(os.path.join(folder, package.md5, package.file)) for package in every)
    ensure_space(params["path"], size * params["space_factor"], f"{len(every)} packages of {readable(size)}, unpacked")
    try:
        for name, some in packages.items():
            progress.begin(f"conda environment {name}")
            prefix = os.path.join(image, "envs", name)
            os.makedirs(prefix, mode=0o755)
            link(module, prefix, some, folder, cache, progress=progress)
    except BaseException:
        shutil.rmtree(image, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)
        raise
    sync(image)  # the stamp must not reach the disk before what it is about
    write_json(os.path.join(image, STAMP), {"locks": {name: lock["sha256"] for name, lock in locks.items()}})


def name_of(locks: dict[str, dict[str, Any]]) -> str:
    """Name of the folder made from `locks`: 16 hexadecimal digits."""
    text = "".join(f"{lock['sha256']}  {name}\n" for name, lock in sorted(locks.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provide(module: AnsibleModule) -> None:
    """Do the module's work and leave through `exit_json`."""
    params = module.params
    os.umask(0o022)  # other users run what is installed here, whatever root's umask is
    options = download_options(params)
    locks = with_checksums(params, options)
    image = os.path.join(params["path"], name_of(locks))
    wanted = {
        "kind": "conda",
        "image": image,
        "prefixes": {name: f"{image}/envs/{name}" for name in locks},
        "locks": {name: lock["sha256"] for name, lock in locks.items()},
    }
    due = read_json(os.path.join(image, STAMP)).get("locks") != wanted["locks"]
    changed = due or read_json(params["record"]) != wanted
    # An interruption after the stamp leaves the packages.
    if (changed or os.path.exists(downloads(image))) and not module.check_mode:
        report = progress_file(params["path"])
        if due:
            defer(module, None, report)  # lock files hold no sizes
        os.makedirs(params["path"], mode=0o755, exist_ok=True)
        with exclusive_lock(params["path"]):
            if due:
                with Progress(report) as progress:
                    install(module, image, locks, progress, options)
            if changed:
                write_json(params["record"], wanted)
            shutil.rmtree(downloads(image), ignore_errors=True)
    old = other_runtimes(params["path"], image) if params["prune"] else []
    if old and not module.check_mode:
        with exclusive_lock(params["path"]):
            for path in old:
                remove(path)
    module.exit_json(changed=changed or bool(old), image=image, removed=old)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=transfer_spec(
            "runtime",
            locks={"type": "dict", "required": True},
            conda_mirror_url={"type": "str"},
            post_link={"type": "str", "choices": ["run", "refuse"], "default": "run"},
            linker={"type": "path", "required": True},
            connections={"type": "int", "default": 8},
            space_factor={"type": "float", "default": 5.0},
        ),
        supports_check_mode=True,
    )
    try:
        provide(module)
    except (BusyError, CondaError, DownloadError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['path']}: {error.strerror or error}")


if __name__ == "__main__":
    main()
