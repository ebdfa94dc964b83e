#!/usr/bin/python
# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install PCGR's container image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_image
short_description: Install PCGR's container image
version_added: 1.0.0
description:
  - Pulls the image of a release from a registry, by digest where the release has one, or loads it from an archive on a mirror after its
    SHA-256 has been checked.
  - The digest of an image that was pulled by tag is remembered in O(checksums); a tag that names another one later is refused.
  - Writes the immutable image id to a JSON file. Samples run by that id, so a tag that moves cannot change what runs.
  - "O(record) gets C(kind), C(image) (the id), C(reference), C(digest), and C(archive) with C(archive_sha256) if it was loaded."
  - With O(prune), other images of the repository are removed, and the runtimes of other kinds below O(path).
  - O(mirror_url) is needed for O(archive). Images are pulled by the C(docker) command of the host.
author: University of Melbourne Centre for Cancer Research (@umccr)
attributes:
  check_mode: {support: full}
  diff_mode: {support: none}
  idempotent: {support: full}
  platform: {support: full, platforms: linux}
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
  registry_mirror:
    description: Host, with port and path if needed, to use in place of the registry in O(reference).
    type: str
  scratch:
    description: Folder with space for the archive while it is loaded.
    type: path
    default: /var/tmp
  space_factor:
    description:
      - Free space required in docker's folder of images, as a multiple of the compressed layers or of the archive; V(0) disables the check.
      - There is no check either if the registry does not report the layers' sizes without an account.
    type: float
    default: 3
extends_documentation_fragment:
  - umccr.pcgr.attributes
  - umccr.pcgr.transfer
  - umccr.pcgr.transfer.checksums
  - umccr.pcgr.transfer.runtime
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
import subprocess
import tempfile
import time
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
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.checksums import (
    resolve_checksums,
    trust_on_first_use,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.download import (
    Download,
    DownloadError,
    address,
    ensure_space,
    save,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.options import download_options, transfer_spec
from ansible_collections.umccr.pcgr.plugins.module_utils._transfer.registry import Registry

DOCKER_HUB = "registry-1.docker.io"
# The architectures as Go names them, and so manifests.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ASK_SECONDS = 10  # a registry that is asked for sizes only
LAYER_DONE = ("Pull complete", "Already exists")
# What a registry says when asking again will not help.
PERMANENT = ("manifest unknown", "not found", "denied", "unauthorized")


class ImageError(Exception):
    """The image cannot be installed; the text is one line."""


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

    def digests(self, name: str, repository: str) -> list[str]:
        """Digests that a local image has in `repository`; none if it did not come from there."""
        entries = json.loads(self.run("image", "inspect", "--format", "{{json .RepoDigests}}", name)) or []
        return [entry.partition("@")[2] for entry in entries if entry.partition("@")[0] == repository]

    def image_ids(self, repository: str) -> list[str]:
        """Ids of the local images of `repository`."""
        if not self.program:
            return []
        lines = self.run("image", "ls", "--no-trunc", "--format", "{{.Repository}} {{.ID}}").splitlines()
        return sorted({line.split()[1] for line in lines if line.split()[0] == repository})

    def data_root(self) -> str | None:
        """Folder of the images, or None where docker leaves them to containerd, whose folder it does not tell."""
        about = json.loads(self.run("info", "--format", "{{json .}}"))
        root = str(about.get("DockerRootDir"))
        return root if os.path.isdir(root) and "io.containerd" not in str(about.get("DriverStatus")) else None

    def pull(self, name: str, attempts: int, progress: Progress) -> None:
        """Pull `name`; complete layers are kept between attempts, so that a new attempt resumes."""
        for attempt in range(1, attempts):
            try:
                self._pull(name, progress)
            except ImageError as error:
                if any(word in str(error) for word in PERMANENT):
                    raise
            else:
                return
            time.sleep(min(2**attempt, 30))
        self._pull(name, progress)

    def _pull(self, name: str, progress: Progress) -> None:
        layers: dict[str, bool] = {}
        last = ""
        command = [str(self.program), "pull", name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout or ():
                last = line.strip() or last
                layer, _unused, state = last.partition(": ")
                if re.fullmatch("[0-9a-f]{12}", layer):
                    layers[layer] = state in LAYER_DONE
                    progress.size, progress.done = len(layers), sum(layers.values())
        if process.returncode:
            raise ImageError(f"docker pull {name}: {last or f'exit code {process.returncode}'}")


def split(reference: str) -> tuple[str, str]:
    """Registry ("" for Docker Hub) and the rest of an image reference, as docker reads it."""
    first, slash, rest = reference.partition("/")
    if slash and (re.search("[.:]", first) or first == "localhost"):
        return ("" if first == "docker.io" else first), rest
    return "", reference


def mirrored(reference: str, mirror: str | None) -> str:
    """`reference` with its registry replaced by `mirror` (host, port, path)."""
    if not mirror:
        return reference
    registry, rest = split(reference)
    official = "library/" if not registry and "/" not in rest else ""
    return f"{re.sub('^https?://', '', mirror).rstrip('/')}/{official}{rest}"


def repository_of(reference: str) -> str:
    """The repository as docker shows it: without tag, and without Docker Hub's own names."""
    registry, rest = split(reference)
    path = rest.partition(":")[0]
    return f"{registry}/{path}" if registry else path.removeprefix("library/")


def pinned(reference: str, digest: str | None) -> str:
    """`reference` without its tag, at `digest`; or as it is when there is no digest."""
    if not digest:
        return reference
    head, slash, name = reference.rpartition("/")
    return f"{head}{slash}{name.partition(':')[0]}@{digest}"


def layers_bytes(params: dict[str, Any]) -> int | None:
    """Bytes of the image's layers as its registry sends them, or None where it does not tell without an account."""
    registry, rest = split(mirrored(params["reference"], params["registry_mirror"]))
    repository, _unused, tag = rest.partition(":")
    plain = "http://" if str(params["registry_mirror"]).startswith("http://") else ""
    if not registry and "/" not in repository:
        repository = f"library/{repository}"
    asked = Registry(plain + (registry or DOCKER_HUB), repository, params["digest"] or tag or "latest", ASK_SECONDS)
    try:
        manifest = asked.manifest({"timeout": ASK_SECONDS, "attempts": 1}, ARCHITECTURES.get(os.uname().machine, ""))
        return sum(int(layer["size"]) for layer in manifest["layers"])
    except (DownloadError, LookupError, TypeError, ValueError, AttributeError):
        return None


def begin(module: AnsibleModule, docker: Docker, size: int | None, what: str, archive: int = 0) -> Progress:
    """Make sure that there is room for `what`, of `size` bytes while it is transferred; return its progress.

    `archive` is the size of a file that lies in the scratch folder meanwhile. Raises DownloadError, or ends the module to defer it.
    """
    params = module.params
    root = docker.data_root() if size else None
    if root and size:
        factor = 1 if archive and what.endswith(".tar") else params["space_factor"]  # docker save does not compress
        shared = archive and os.stat(root).st_dev == os.stat(params["scratch"]).st_dev
        ensure_space(root, size * factor + (archive if shared else 0), what)
    report = progress_file(os.path.dirname(params["checksums"]))
    defer(module, size, report)
    return Progress(report)


def load(module: AnsibleModule, docker: Docker, sha256: str | None) -> str:
    """Download the archive, check it, load it; return its SHA-256. The archive does not stay."""
    params = module.params
    url = address(params["mirror_url"], params["archive"])
    options = download_options(params)
    size = Download(url, **options).size
    with (
        begin(module, docker, size, url, size or 0) as progress,
        tempfile.TemporaryDirectory(dir=params["scratch"], prefix=".pcgr-image-") as folder,
    ):
        path = os.path.join(folder, "image.tar")
        progress.begin(params["archive"], size)
        found: str = save(url, path, sha256, count=progress.count, **options)
        progress.begin(f"docker load of {params['archive']}")
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
        raise ImageError("the docker command is not on this host; the role umccr.pcgr.docker installs it")
    before = read_json(params["record"])
    wanted = {"kind": "docker", "reference": params["reference"]}
    wanted |= from_archive(module, docker, before) if params["archive"] else from_registry(module, docker, before)
    fetched = wanted.pop("fetched")
    changed = fetched or before != wanted
    if changed and not module.check_mode:
        write_json(params["record"], wanted)
    removed = prune(module, docker, wanted["image"]) if params["prune"] else []
    module.exit_json(changed=changed or bool(removed), image=wanted["image"], removed=removed)


def prune(module: AnsibleModule, docker: Docker, image: str) -> list[str]:
    """Remove the repository's other images and the runtimes of other kinds; what was removed, or would be."""
    reference, path = module.params["reference"], module.params["path"]
    repositories = {repository_of(reference), repository_of(mirrored(reference, module.params["registry_mirror"]))}
    ids = sorted({one for repository in repositories for one in docker.image_ids(repository)} - {image})
    files: list[str] = other_runtimes(path, None)
    if not module.check_mode:
        for one in ids:
            docker.run("image", "rm", one)
        if files:
            with exclusive_lock(path):
                for file in files:
                    remove(file)
    return ids + files


def from_registry(module: AnsibleModule, docker: Docker, before: dict[str, Any]) -> dict[str, Any]:
    """Have the image from its registry; `image`, its `digest` there, and whether it was `fetched`."""
    params = module.params
    reference = mirrored(params["reference"], params["registry_mirror"])
    name = pinned(reference, params["digest"])
    image = None
    if not params["digest"] and before.get("reference") == params["reference"] and "archive" not in before:
        # What a tag names may have changed, here too; samples go on with what it named first.
        image = docker.image_id(before.get("image") or "-")
    image = image or docker.image_id(name)
    fetched = image is None
    if fetched and module.check_mode:
        return {"image": "", "digest": params["digest"], "fetched": True}
    if fetched:
        with begin(module, docker, layers_bytes(params), name) as progress:
            progress.begin(name, unit="layers")
            docker.pull(name, params["attempts"], progress)
        image = known(docker, name)
    digests = docker.digests(str(image), repository_of(reference))
    if params["digest"]:
        if params["digest"] not in digests:
            raise ImageError(f"{name}: docker fetched the digest {' '.join(digests) or 'of another repository'}")
        return {"image": image, "digest": params["digest"], "fetched": fetched}
    digest = before.get("digest") if before.get("digest") in digests else next(iter(digests), None)
    if digest:
        trust_on_first_use(
            params["checksums"], params["reference"], digest.partition(":")[2], remember=not module.check_mode
        )
    return {"image": image, "digest": digest, "fetched": fetched}


def from_archive(module: AnsibleModule, docker: Docker, before: dict[str, Any]) -> dict[str, Any]:
    """Ensure the image from the mirror's archive; `image`, the archive and its checksum, and whether it was `fetched`."""
    params = module.params
    archive = params["archive"]
    if not params["mirror_url"]:
        raise ImageError(
            f"{params['reference']} comes from the archive {archive}: set pcgr_mirror_url to a folder that has it"
        )
    sha256, unknown = checksum(params)
    image = docker.image_id(before["image"]) if before.get("image") else None
    same = before.get("archive") == archive and sha256 in (None, before.get("archive_sha256"))
    fetched = not (image and same)
    if unknown:
        if fetched and not module.check_mode:
            raise ImageError(unknown)
        module.warn(f"the image's checksum could not be compared: {unknown}")
    if not fetched:
        sha256 = before.get("archive_sha256")
    elif not module.check_mode:
        sha256 = load(module, docker, sha256)
        image = known(docker, params["reference"])
    return {
        "image": image or "",
        "digest": params["digest"],
        "archive": archive,
        "archive_sha256": sha256,
        "fetched": fetched,
    }


def known(docker: Docker, name: str) -> str:
    """Id of an image that was just fetched; raises ImageError when docker does not have it."""
    image = docker.image_id(name)
    if not image:
        raise ImageError(f"{name}: docker does not know the image after it was fetched")
    return image


def checksum(params: dict[str, Any]) -> tuple[str | None, str | None]:
    """The archive's checksum on the mirror, and why it is not known when it is not."""
    wanted = {params["archive"]: None}
    try:
        sums = resolve_checksums(wanted, params["mirror_url"], required=True, **download_options(params))
    except DownloadError as error:
        return None, str(error)
    return sums[params["archive"]], None


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec=transfer_spec(
            "checksums",
            "runtime",
            reference={"type": "str", "required": True},
            digest={"type": "str"},
            archive={"type": "str"},
            registry_mirror={"type": "str"},
            scratch={"type": "path", "default": "/var/tmp"},  # noqa: S108  (the folder inside it is private)
            space_factor={"type": "float", "default": 3.0},
        ),
        supports_check_mode=True,
    )
    try:
        provide(module)
    except (BusyError, DownloadError, ImageError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['scratch']}: {error.strerror or error}")


if __name__ == "__main__":
    main()
