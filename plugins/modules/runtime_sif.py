#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install PCGR's Apptainer image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_sif
short_description: Install PCGR's Apptainer image
version_added: 1.0.0
description:
  - Downloads an Apptainer image (SIF) from a registry (C(oras://)) or from a mirror, by several connections at once. A later run resumes the download.
    The C(apptainer) program is not needed for that.
  - From a registry, the manifest names the image's SHA-256. The first one is remembered in O(checksums); a tag that names another one later is refused.
    From a mirror, C(SHA256SUMS) names it.
  - "O(record) gets C(kind), C(image) (the file), C(sha256) and C(reference). With O(prune), other runtimes below O(path) are removed."
  - O(mirror_url) is needed for O(archive).
  - The file's name comes from its SHA-256, and the record is replaced last, by a rename, so that the old image is in use or the new one.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: linux}
options:
  reference:
    description: Image reference C(oras://<registry>/<repository>:<tag>).
    type: str
  archive:
    description: File name of the image on the mirror, to take in place of O(reference).
    type: str
  sha256:
    description: The image must have this checksum.
    type: str
  registry_mirror:
    description: Host, with port and path where needed, that is asked in place of the registry in O(reference); C(http://) before it for a registry without TLS.
    type: str
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.transfer
  - umccr.pcgr.transfer.connections
  - umccr.pcgr.transfer.checksums
  - umccr.pcgr.transfer.runtime
"""

EXAMPLES = r"""
- name: Bring the Apptainer image of a release
  umccr.pcgr.runtime_sif:
    reference: oras://ghcr.io/sigven/pcgr:2.3.2.singularity

- name: Bring an Apptainer image from a mirror
  umccr.pcgr.runtime_sif:
    archive: pcgr-2.3.2.sif
    mirror_url: https://mirror.example.org/pcgr
"""

RETURN = r"""
image:
  description: The image's file.
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

import json
import os
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils._progress import Progress, defer, progress_file
from ansible_collections.umccr.pcgr.plugins.module_utils._state import (
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
    trust_on_first_use,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.download import (
    Download,
    DownloadError,
    address,
    save,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.options import download_options, transfer_spec
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.registry import Registry

LAYER = "application/vnd.sylabs.sif.layer.v1.sif"
SIF_MAGIC = b"SIF_MAGIC"
SIF_MAGIC_AT = 32


class SifError(Exception):
    """The image cannot be installed; the text is one line."""


def registry_of(reference: str, mirror: str | None, timeout: float) -> Registry:
    """The registry that has `reference`, or that `mirror` which is asked in its place."""
    match = re.fullmatch(r"oras://([^/@\s]+)/([^:@\s]+):([\w][\w.-]{0,127})", reference)
    if not match:
        raise SifError(f"{reference}: found no image reference, allowed oras://REGISTRY/REPOSITORY:TAG")
    return Registry(mirror or match[1], match[2], match[3], timeout)


def sha256_of(registry: Registry, options: dict[str, Any]) -> str:
    """SHA-256 of the image that the tag names now."""
    url, manifest = registry.url("manifests", registry.tag), registry.manifest(options)
    try:
        layers = [layer for layer in manifest["layers"] if layer["mediaType"] == LAYER]
    except (KeyError, TypeError) as error:
        raise SifError(f"{url}: found no image manifest but {json.dumps(manifest)[:40]}") from error
    if len(layers) != 1 or not re.fullmatch(r"sha256:[0-9a-f]{64}", str(layers[0].get("digest"))):
        raise SifError(f"{url}: found {len(layers)} layers of type {LAYER}, allowed exactly one, with a sha256 digest")
    return str(layers[0]["digest"]).partition(":")[2]


def expected(
    module: AnsibleModule, before: dict[str, Any], options: dict[str, Any]
) -> tuple[str, str, Registry | None]:
    """The image's SHA-256, its address ("" when the image of the record is to stay), and the registry it comes from."""
    params = module.params
    name = params["archive"] or params["reference"]
    if not name:
        raise SifError(
            "no Apptainer image is known: set runtime_sif_reference, or runtime_sif_archive and pcgr_mirror_url"
        )
    recorded: str = before.get("sha256", "") if before.get("reference") == name else ""
    stays = bool(recorded) and params["sha256"] in (None, recorded) and os.path.exists(before.get("image", ""))
    if params["archive"]:
        if not params["mirror_url"]:
            raise SifError(f"the image comes from the archive {name}: set pcgr_mirror_url to a folder that has it")
        try:
            sums = resolve_checksums({name: None}, params["mirror_url"], required=not params["sha256"], **options)
        except NoChecksumError:
            raise
        except DownloadError as error:
            if not stays:
                raise
            module.warn(f"the image's checksum could not be compared: {error}")
            return recorded, "", None
        return params["sha256"] or str(sums[name]), address(params["mirror_url"], name), None
    if stays:
        return recorded, "", None
    registry = registry_of(name, params["registry_mirror"], params["timeout"])
    sha256 = params["sha256"]
    if not sha256:
        sha256 = sha256_of(registry, options)
        trust_on_first_use(params["checksums"], name, sha256, remember=not module.check_mode)
    return sha256, registry.url("blobs", f"sha256:{sha256}"), registry


def fetch(path: str, url: str, sha256: str, progress: Progress, options: dict[str, Any]) -> None:
    """Fetch the image to `path`; raises SifError and DownloadError. The next run continues what an interruption leaves."""
    part = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.part")
    progress.done = os.path.getsize(part) if os.path.exists(part) else 0
    save(url, part, sha256, resume=True, count=progress.count, **options)
    with open(part, "rb") as file:
        head = file.read(SIF_MAGIC_AT + len(SIF_MAGIC))
    if head[SIF_MAGIC_AT:] != SIF_MAGIC:
        os.unlink(part)
        raise SifError(f"{url}: has the expected sha256, but is no Apptainer image; it begins with {head[:16]!r}")
    sync(os.path.dirname(path))
    os.replace(part, path)


def provide(module: AnsibleModule) -> None:
    """Do the module's work and leave through `exit_json`."""
    params = module.params
    os.umask(0o022)  # other users run what is installed here, whatever root's umask is
    before = read_json(params["record"])
    options = download_options(params)
    sha256, url, registry = expected(module, before, options)
    image = os.path.join(params["path"], f"{sha256[:16]}.sif")
    wanted = {
        "kind": "apptainer",
        "image": image,
        "sha256": sha256,
        "reference": params["archive"] or params["reference"],
    }
    due = not os.path.exists(image)
    changed = due or before != wanted
    old = other_runtimes(params["path"], image) if params["prune"] else []
    if (changed or old) and not module.check_mode:
        report = progress_file(params["path"])
        size = None
        if due:
            options |= {"connections": params["connections"], **({"headers": registry.headers} if registry else {})}
            size = Download(url, **options).size
            defer(module, size, report)
        os.makedirs(params["path"], mode=0o755, exist_ok=True)
        with exclusive_lock(params["path"]):
            if due:
                with Progress(report) as progress:
                    progress.begin(f"Apptainer image {wanted['reference']}", size)
                    fetch(image, url, sha256, progress, options)
            if changed:
                write_json(params["record"], wanted)
            for path in old:
                remove(path)
    module.exit_json(changed=changed or bool(old), image=image, removed=old)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=transfer_spec(
            "connections",
            "checksums",
            "runtime",
            reference={"type": "str"},
            archive={"type": "str"},
            sha256={"type": "str"},
            registry_mirror={"type": "str"},
        ),
        supports_check_mode=True,
    )
    try:
        provide(module)
    except (BusyError, SifError, DownloadError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:  # those of requests, too
        module.fail_json(msg=f"{error.filename or module.params['path']}: {error.strerror or error}")


if __name__ == "__main__":
    main()
