#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install PCGR's reference bundle and VEP cache."""

from __future__ import annotations

DOCUMENTATION = r"""
module: databundle
short_description: Install PCGR's reference bundle and VEP cache
version_added: 1.0.0
description:
  - Downloads the archives that a release names, for the given assemblies, by several connections at once, and unpacks them during the download,
    so that no archive needs space on the disk.
  - Broken connections are resumed. If a run is interrupted, even by a reboot, the next run resumes where it stopped.
  - All users can read what is installed, and only its owner can write it, whatever the umask. Other modes of what is installed already are corrected.
  - With O(seed), folders that are on the host already are copied, or kept as they are if they are at their final place.
  - Archives that are damaged, cut, or do not end as a tar file must are refused, as are members that would leave their folder, sparse files, devices and the
    like. The message names the member and its place in the archive. Hard links to files of the same tree are made.
  - "What was unpacked is checked (SHA-256, number and size of the files, the bundle's version file, the VEP cache's folder) and then
    put in place by one rename: after an interruption at any moment each folder is the old one or the new one."
  - "Each installed folder holds a stamp, C(.umccr.pcgr.json), that says what it was made from. The stamp decides whether there is anything to do."
requirements:
  - libisal2
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: linux}
options:
  root:
    description: Folder that gets C(bundles/<date>/data/<assembly>) and C(vep/<release>/homo_sapiens/<cache>).
    type: path
    required: true
  release:
    description: A release as the lookup P(umccr.pcgr.release#lookup) returns it; C(bundle) and C(vep) are used.
    type: dict
    required: true
  assemblies:
    description: Genome assemblies.
    type: list
    elements: str
    required: true
  seed:
    description:
      - Folder of the host that may hold data that are already unpacked; what it holds is not downloaded.
      - "Looked at are this collection's own layout and the one that PCGR documents: C(bundles/<date>/data/<assembly>), C(<date>/data/<assembly>),
        C(data/<assembly>); C(vep/<release>/homo_sapiens/<cache>), C(homo_sapiens/<cache>)."
      - The same folder as O(root) is allowed; data without a stamp are then checked and stay where they are.
    type: path
  space_factor:
    description: Free space required before a download starts, as a multiple of the archive's size.
    type: float
    default: 2.5
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.transfer
  - umccr.pcgr.transfer.connections
  - umccr.pcgr.transfer.checksums
"""

EXAMPLES = r"""
- name: Bring the data of PCGR 2.3.2 for GRCh38
  umccr.pcgr.databundle:
    root: /mnt/pcgr
    release: "{{ lookup('umccr.pcgr.release', '2.3.2') }}"
    assemblies: [grch38]
    mirror_url: https://mirror.example.org/pcgr
"""

RETURN = r"""
parts:
  description: One entry per folder, with its path, the archive, its SHA-256, whether it was installed now, and how many modes were corrected.
  type: list
  elements: dict
  returned: always
deferred:
  description: File that will hold the progress of the transfer; nothing was fetched because of O(defer).
  type: str
  returned: when O(defer) is set and 1 GB or more is to be fetched
"""


import os
import shutil
from collections import Counter
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils._progress import Progress, defer, progress_file
from ansible_collections.umccr.pcgr.plugins.module_utils._refdata.parts import (
    STAGING,
    DatabundleError,
    Part,
    compare,
    correct_modes,
    is_current,
    is_read_only,
    measure,
    plan,
    put_in_place,
    staging_of,
    verify,
    wrong_modes,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._refdata.seed import adopt, find_seed
from ansible_collections.umccr.pcgr.plugins.module_utils._state import (
    STAMP,
    BusyError,
    exclusive_lock,
    read_json,
    readable_by_others,
    write_json,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.archive import (
    Checkpoints,
    Transfer,
    Unpacker,
    sync,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.checksums import (
    resolve_checksums,
    trust_on_first_use,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.download import (
    Download,
    DownloadError,
    Interrupted,
    address,
    check,
    ensure_space,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.gunzip import GzipError
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.options import download_options, transfer_spec
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.tar_reader import UnpackError


def ensure_writable(due: list[Part], root: str) -> None:
    """Raise DatabundleError when a folder to install belongs on a volume that is mounted read-only."""
    for item in due:
        home = os.path.join(root, item.home)
        while not os.path.isdir(home):
            home = os.path.dirname(home)
        if is_read_only(home):
            raise DatabundleError(
                f"{item.label}: not on the volume at {home}, which is mounted read-only; mount one that holds it"
            )


def bytes_due(due: list[Part], release: dict[str, Any]) -> float:
    """Bytes of the archives of `due` as far as `release` knows them."""
    wanted = {item.archive for item in due}
    archives = [entry for part in ("bundle", "vep") for entry in release[part]["archives"].values() if entry]
    sizes = {entry["file"]: entry.get("bytes") or (entry.get("approx_gb") or 0) * 1e9 for entry in archives}
    return float(sum(size for file, size in sizes.items() if file in wanted))


def install(items: list[Part], root: str, url: str, options: dict[str, Any]) -> None:
    """Transfer the archive at `url` and put the folders of `items` in place. Raises DatabundleError and DownloadError.

    The next run continues what a broken connection or an interruption leaves; after any other fault it is removed.
    """
    staging = staging_of(root, url, items)
    download = Download(url, **options["download"])
    try:
        stamp = unpack(items, staging, download, options)
        for item in items:
            write_json(os.path.join(staging, item.member, STAMP), {"part": item.label, **stamp})
        sync(staging)  # a rename must not reach the disk before the data
        for item in items:
            put_in_place(os.path.join(staging, item.member), item.folder(root))
    except Interrupted as error:
        raise DownloadError(f"{error}; the next run goes on from there") from error
    except GzipError as error:
        shutil.rmtree(staging, ignore_errors=True)
        what = looks_like(url, options["download"])
        raise DatabundleError(f"{url}: {what or f'damaged or cut archive: {error}'}") from error
    except Exception:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging)


def unpack(items: list[Part], staging: str, download: Download, options: dict[str, Any]) -> dict[str, Any]:
    """Unpack the archive into `staging`, check it, and return the content of the stamp."""
    first, url = items[0], download.url
    if first.bytes and download.size not in (None, first.bytes):
        raise DownloadError(f"{url}: {download.size} bytes long, expected {first.bytes}")
    checkpoints = Checkpoints(staging, download)
    point = checkpoints.read()
    if not point:
        shutil.rmtree(staging, ignore_errors=True)
        ensure_space(os.path.dirname(staging), (download.size or 0) * options["space_factor"], url)
        os.mkdir(staging, 0o755)
    transfer = Transfer(download, point)
    try:
        # Its thread starts only now, after the process that fetches was forked.
        with Progress(progress_file(os.path.dirname(staging))) as progress:
            unpacker = Unpacker(transfer, first.label, [item.member for item in items], checkpoints, progress)
            unpacker.run(point)
            sha256 = transfer.finish()
    finally:
        transfer.close()
        checkpoints.finish()
    if first.sha256:
        check(url, sha256, download.size, first.sha256)
    else:
        trust_on_first_use(options["checksums"], first.archive, sha256)
    for item in items:
        if fault := verify(item, staging):
            other = f"; the archive holds {', '.join(sorted(unpacker.others))}" if unpacker.others else ""
            raise DatabundleError(f"{url}: not the data of {item.label}: {fault}{other}")
    found = [measure(os.path.join(staging, item.member)) for item in items]
    compare({key: sum(one[key] for one in found) for key in unpacker.count}, unpacker.count, url)
    stamp: dict[str, Any] = {
        "archive": first.archive,
        "sha256": sha256,
        "bytes": transfer.consumed,
        "source": url,
    }
    return {**stamp, **unpacker.count}


def looks_like(url: str, options: dict[str, Any]) -> str | None:
    """What is at `url` if it is not a gzip file."""
    download = Download(url, **options)
    head = bytes(next(download.blocks(), b""))[:512]
    if head[:2] == b"\x1f\x8b":
        return None
    what = "a web page" if head.lstrip()[:1] == b"<" else f"something that begins with {head[:16]!r}"
    return f"not a gzipped tar archive but {what} (type {download.type or 'not given'})"


def with_checksums(parts: list[Part], mirror_url: str | None, options: dict[str, Any]) -> tuple[list[Part], str | None]:
    """Fill in checksums that the release does not know from the mirror; also returns why that failed, if so."""
    try:
        sums = resolve_checksums({item.archive: None for item in parts if not item.sha256}, mirror_url, **options)
    except DownloadError as error:
        return parts, str(error)
    return [Part(**{**vars(item), "sha256": item.sha256 or sums[item.archive]}) for item in parts], None


def source(item: Part, mirror_url: str | None) -> str:
    """Where the archive comes from; raises DatabundleError when nowhere is known."""
    if mirror_url:
        return str(address(mirror_url, item.archive))
    if not item.url:
        raise DatabundleError(
            f"{item.archive} ({item.label}): no public address is known; set pcgr_mirror_url to a folder that has it"
        )
    return str(item.url)


def provide(module: AnsibleModule) -> None:
    """Do the module's work and leave through `exit_json`."""
    params = module.params
    root, mirror = params["root"], params["mirror_url"]
    download = download_options(params)
    parts, unknown = with_checksums(plan(params["release"], params["assemblies"]), mirror, download)
    due = [item for item in parts if not is_current(item, root)]
    ensure_writable(due, root)
    if unknown:
        if due and not module.check_mode:
            raise DatabundleError(unknown)
        module.warn(f"checksums could not be compared: {unknown}")
    jobs: dict[str, list[Part]] = {}
    seeds: list[tuple[Part, str]] = []
    for item in due:
        folder, fault = find_seed(item, params["seed"]) if params["seed"] else (None, None)
        if fault:
            module.warn(fault)
        if folder:
            seeds.append((item, folder))
        else:
            jobs.setdefault(source(item, mirror), []).append(item)
    # By path: folders above several parts count for the first, as when they are corrected.
    wrong = {path: item for item in reversed(parts) if item not in due for path, *_unused in wrong_modes(item, root)}
    corrected: dict[Part, int] = Counter(wrong.values())
    if (due or wrong) and not module.check_mode:
        if due:
            defer(module, bytes_due(due, params["release"]), progress_file(root))
        os.makedirs(root, mode=0o755, exist_ok=True)
        with exclusive_lock(root):
            if due:
                fetch_due(module, jobs, seeds)
            corrected = {item: correct_modes(item, root, module.warn) for item in parts}
    report = [
        {
            "part": item.label,
            "path": item.folder(root),
            "archive": item.archive,
            "sha256": read_json(item.stamp(root)).get("sha256")
            if not (module.check_mode and item in due)
            else item.sha256,
            "installed": item in due,
            "corrected": corrected.get(item, 0),
        }
        for item in parts
    ]
    module.exit_json(changed=bool(due or any(corrected.values())), parts=report)


def fetch_due(module: AnsibleModule, jobs: dict[str, list[Part]], seeds: list[tuple[Part, str]]) -> None:
    """Install the parts of `jobs` from the archives at its addresses, and those of `seeds` from their folders."""
    params = module.params
    root = params["root"]
    options = {
        "download": download_options(params) | {"connections": params["connections"]},
        "space_factor": params["space_factor"],
        "checksums": params["checksums"],
    }
    wanted = {staging_of(root, url, items) for url, items in jobs.items()}
    for name in os.listdir(root):
        path = os.path.join(root, name)
        if name.startswith(STAGING) and path not in wanted:  # of an interrupted run whose data are no longer due
            shutil.rmtree(path)
    with Progress(progress_file(root)) as progress:
        for item, folder in seeds:
            adopt(item, root, folder, progress)
    for url, items in jobs.items():
        install(items, root, url, options)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=transfer_spec(
            "connections",
            "checksums",
            root={"type": "path", "required": True},
            release={"type": "dict", "required": True},
            assemblies={"type": "list", "elements": "str", "required": True},
            seed={"type": "path"},
            space_factor={"type": "float", "default": 2.5},
        ),
        supports_check_mode=True,
    )
    try:
        with readable_by_others():
            provide(module)
    except (BusyError, DatabundleError, DownloadError, GzipError, UnpackError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['root']}: {error.strerror or error}")


if __name__ == "__main__":
    main()
