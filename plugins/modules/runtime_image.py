#!/usr/bin/python
# SPDX-License-Identifier: MIT
"""Make PCGR's container image available on a machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_image
short_description: Make PCGR's container image available on a machine
version_added: 1.0.0
description:
  - Pulls the image of a release from a registry, by digest where the release has one, or loads it from an archive on a mirror after its SHA-256 has been checked.
  - Writes the immutable image id to a JSON file. Samples run by that id, so a tag that moves cannot change what runs.
  - Uses the C(docker) command of the machine; no Python library is needed there.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full, description: Can run in check mode and tell what would change.}
  diff_mode: {support: none, description: Shows a difference.}
options:
  reference:
    description: Image reference with tag.
    type: str
    required: true
  digest:
    description: Digest (C(sha256:...)) in the registry. The tag of O(reference) is then ignored.
    type: str
  archive:
    description: File name of an archive on the mirror, as C(docker save) writes it, to load instead of pulling.
    type: str
  mirror_url:
    description: Folder with the archive and C(SHA256SUMS), as C(http://), C(https://) or C(file://). Needed for O(archive).
    type: str
  record:
    description: JSON file that gets C(kind), C(image) (the id), C(reference), C(digest), and C(archive) with C(archive_sha256) when loaded.
    type: path
    default: /etc/pcgr/runtime.json
  scratch:
    description: Folder with room for the archive while it is being loaded.
    type: path
    default: /var/tmp
  timeout:
    description: Seconds of silence after which a connection to the mirror counts as broken.
    type: int
    default: 60
  attempts:
    description: Attempts without progress before giving up, for pulls and downloads.
    type: int
    default: 6
"""

EXAMPLES = r"""
- name: Pull an image by digest
  umccr.pcgr.runtime_image:
    reference: ghcr.io/sigven/pcgr:2.3.2
    digest: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef

- name: Load an image from a mirror
  umccr.pcgr.runtime_image:
    reference: umccr/pcgr-rehearsal:2.3.2
    archive: pcgr-rehearsal.docker.tar.gz
    mirror_url: https://mirror.example.org/pcgr
"""

RETURN = r"""
image:
  description: The image id; empty when check mode predicts an image that is not there yet.
  type: str
  returned: always
"""

import json
import os
import tempfile
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.umccr.pcgr.plugins.module_utils.download import DownloadError, address, mirror_checksums, save

# What a registry says when asking again will not help.
PERMANENT = ("manifest unknown", "not found", "denied", "unauthorized")


class ImageError(Exception):
    """The image cannot be had; the text is one line."""


class Docker:
    """The few docker commands needed; raises ImageError with docker's last line of complaint."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.program = module.get_bin_path("docker")

    def run(self, *arguments: str) -> str:
        """Output of `docker ARGUMENTS`."""
        code, out, err = self.module.run_command([self.program, *arguments])
        if code:
            complaint = (err.strip() or out.strip() or f"exit code {code}").splitlines()[-1]
            raise ImageError(f"docker {' '.join(arguments)}: {complaint}")
        return str(out)

    def image_id(self, name: str) -> str | None:
        """Id of a local image, or None."""
        if not self.program:
            return None
        code, out, _err = self.module.run_command([self.program, "image", "inspect", "--format", "{{.Id}}", name])
        return out.strip() if code == 0 else None

    def pull(self, name: str, attempts: int) -> None:
        """Pull `name`; layers that arrived are kept between attempts, so trying again resumes."""
        for attempt in range(1, attempts):
            try:
                self.run("pull", "--quiet", name)
            except ImageError as error:
                if any(word in str(error) for word in PERMANENT):
                    raise
            else:
                return
            time.sleep(min(2**attempt, 30))
        self.run("pull", "--quiet", name)


def pinned(reference: str, digest: str | None) -> str:
    """`reference` without its tag, at `digest`; or as it is when there is no digest."""
    if not digest:
        return reference
    head, slash, name = reference.rpartition("/")
    return f"{head}{slash}{name.partition(':')[0]}@{digest}"


def read_record(path: str) -> dict[str, Any]:
    """The record at `path`; empty when there is none that can be read."""
    try:
        with open(path, encoding="utf-8") as handle:
            record = json.load(handle)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(path: str, record: dict[str, Any]) -> None:
    """Replace the record by a rename."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".runtime.")
    with open(descriptor, "w", encoding="utf-8") as handle:
        json.dump(record, handle, indent=1, sort_keys=True)
        handle.write("\n")
        os.fchmod(descriptor, 0o644)
    os.replace(temporary, path)


def load(docker: Docker, params: dict[str, Any], sha256: str | None) -> str:
    """Download the archive, check it, load it; return its SHA-256. The archive does not stay."""
    url = address(params["mirror_url"], params["archive"])
    options = {"timeout": params["timeout"], "attempts": params["attempts"]}
    with tempfile.TemporaryDirectory(dir=params["scratch"], prefix=".pcgr-image-") as folder:
        path = os.path.join(folder, "image.tar")
        found: str = save(url, path, sha256, **options)
        answer = docker.run("load", "--input", path)
    if f"Loaded image: {params['reference']}" not in answer.splitlines():
        raise ImageError(
            f"{url}: does not hold {params['reference']} but: {'; '.join(answer.split(chr(10))).strip('; ')}"
        )
    return found


def provide(module: AnsibleModule) -> None:
    """Do the module's work and leave through `exit_json`."""
    params = module.params
    docker = Docker(module)
    if not docker.program and not module.check_mode:
        raise ImageError("the docker command is not on this machine; the role umccr.pcgr.docker installs it")
    before = read_record(params["record"])
    wanted = {"kind": "docker", "reference": params["reference"], "digest": params["digest"]}
    wanted |= from_archive(module, docker, before) if params["archive"] else from_registry(module, docker)
    brought = wanted.pop("brought")
    changed = brought or before != wanted
    if changed and not module.check_mode:
        write_record(params["record"], wanted)
    module.exit_json(changed=changed, image=wanted["image"])


def from_registry(module: AnsibleModule, docker: Docker) -> dict[str, Any]:
    """Have the image from its registry; `image` and whether it was `brought`."""
    name = pinned(module.params["reference"], module.params["digest"])
    image = docker.image_id(name)
    brought = image is None
    if brought and not module.check_mode:
        docker.pull(name, module.params["attempts"])
        image = known(docker, name)
    return {"image": image or "", "brought": brought}


def from_archive(module: AnsibleModule, docker: Docker, before: dict[str, Any]) -> dict[str, Any]:
    """Have the image from the mirror's archive; `image`, the archive and its checksum, and whether it was `brought`."""
    params = module.params
    archive = params["archive"]
    if not params["mirror_url"]:
        raise ImageError(
            f"{params['reference']} comes from the archive {archive}: set pcgr_mirror_url to a folder that has it"
        )
    sha256, unknown = checksum(params)
    image = docker.image_id(before["image"]) if before.get("image") else None
    same = before.get("archive") == archive and sha256 in (None, before.get("archive_sha256"))
    brought = not (image and same)
    if unknown:
        if brought and not module.check_mode:
            raise ImageError(unknown)
        module.warn(f"the image's checksum could not be compared: {unknown}")
    if not brought:
        sha256 = before.get("archive_sha256")
    elif not module.check_mode:
        sha256 = load(docker, params, sha256)
        image = known(docker, params["reference"])
    return {"image": image or "", "archive": archive, "archive_sha256": sha256, "brought": brought}


def known(docker: Docker, name: str) -> str:
    """Id of an image that was just brought; raises ImageError when docker does not have it."""
    image = docker.image_id(name)
    if not image:
        raise ImageError(f"{name}: docker does not know the image after it was brought")
    return image


def checksum(params: dict[str, Any]) -> tuple[str | None, str | None]:
    """The archive's checksum on the mirror, and why it is not known when it is not."""
    try:
        sums = mirror_checksums(params["mirror_url"], timeout=params["timeout"], attempts=params["attempts"])
    except DownloadError as error:
        return None, str(error)
    if params["archive"] not in sums:
        return None, f"{address(params['mirror_url'], 'SHA256SUMS')}: no line for {params['archive']}"
    return sums[params["archive"]], None


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "reference": {"type": "str", "required": True},
            "digest": {"type": "str"},
            "archive": {"type": "str"},
            "mirror_url": {"type": "str"},
            "record": {"type": "path", "default": "/etc/pcgr/runtime.json"},
            "scratch": {"type": "path", "default": "/var/tmp"},  # noqa: S108  (the folder inside it is private)
            "timeout": {"type": "int", "default": 60},
            "attempts": {"type": "int", "default": 6},
        },
        supports_check_mode=True,
    )
    try:
        provide(module)
    except (ImageError, DownloadError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['scratch']}: {error.strerror or error}")


if __name__ == "__main__":
    main()
