# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Adopt reference data that someone has unpacked on the host already, instead of downloading it."""

from __future__ import annotations

import os
import shutil

from ansible_collections.umccr.pcgr.plugins.module_utils._progress import Progress
from ansible_collections.umccr.pcgr.plugins.module_utils._refdata.parts import (
    DatabundleError,
    Part,
    compare,
    measure,
    put_in_place,
    staging_of,
    verify,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._state import STAMP, write_json
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.archive import safe_name, sync


def find_seed(item: Part, seed: str) -> tuple[str | None, str | None]:
    """Folder below `seed` that holds the part, and why another one that seemed to was not taken."""
    date = os.path.basename(item.home)
    fault = None
    for base in (os.path.join(seed, item.home), os.path.join(seed, date), seed):
        folder = os.path.join(base, item.member)
        if os.path.isdir(folder):
            wrong = verify(item, base)
            if wrong is None:
                return folder, None
            fault = f"{base}: not the data of {item.label}: {wrong}"
    return None, fault


def adopt(item: Part, root: str, folder: str, progress: Progress) -> None:
    """Install the part from `folder`: copied, or only stamped if it is at its final place. Raises DatabundleError."""
    progress.begin(f"{item.label} from {folder}")
    size = measure(folder)
    stamp = {"part": item.label, "archive": item.archive, "sha256": None, "source": folder, "seed": True, **size}
    final = item.folder(root)
    if os.path.realpath(folder) == os.path.realpath(final):
        write_json(item.stamp(root), stamp)
        return
    need, free = size["unpacked_bytes"], shutil.disk_usage(root).free
    if free < need:
        raise DatabundleError(f"{root}: {free / 1e9:.1f} GB free, {need / 1e9:.1f} GB needed for {folder}")
    staging = staging_of(root, folder, [item])
    shutil.rmtree(staging, ignore_errors=True)
    new = os.path.join(staging, item.member)
    progress.begin(item.label, need)

    def copy(source: str, target: str) -> None:
        shutil.copyfile(source, target)
        about = os.stat(source)
        os.chmod(target, 0o755 if about.st_mode & 0o100 else 0o644)
        os.utime(target, ns=(about.st_mtime_ns, about.st_mtime_ns))
        progress.count(about.st_size)

    try:
        shutil.copytree(folder, new, symlinks=True, copy_function=copy, ignore=shutil.ignore_patterns(STAMP))
        for path, folders, files in os.walk(new):
            os.chmod(path, 0o755)  # noqa: S103  # the data are public
            for name in folders + files:
                link = os.path.join(path, name)
                if os.path.islink(link) and safe_name(os.readlink(link)) is None:
                    raise DatabundleError(f"{folder}: refused, link {name!r} leads to {os.readlink(link)!r}")
        compare(measure(new), size, folder)
        write_json(os.path.join(new, STAMP), stamp)
        sync(staging)
        put_in_place(new, final)
    except shutil.Error as error:
        raise DatabundleError(f"{folder}: cannot be copied: {error.args[0][0][-1]}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
