"""Modules runtime_image and runtime_sif with a docker daemon and registries of their own, all on loopback.

Needs the programs dockerd and docker-registry, and root.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.module_runner import record_progress, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("dockerd") or not shutil.which("docker-registry") or os.geteuid() != 0,
        reason="needs dockerd (package docker.io), docker-registry, and root",
    ),
]
REPOSITORY = "sigven/pcgr"
REFERENCE = f"ghcr.io/{REPOSITORY}:1"
# Not on Docker Hub, so that only the daemon's mirror can have it.
HUB = "docker.io/umccr-rehearsal/only-on-the-mirror:1"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, ready: Any) -> None:
    for _unused in range(300):
        try:
            ready()
        except (OSError, subprocess.CalledProcessError):
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{what} does not answer")


class Registry:
    """A docker-registry process that keeps its files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.files = folder / "registry"
        self.host = f"127.0.0.1:{free_port()}"
        settings = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.files)}},
            "http": {"addr": self.host},
        }
        (folder / "registry.yml").write_text(json.dumps(settings))  # JSON is YAML
        self.log = (folder / "registry.log").open("w")
        command = ["docker-registry", "serve", str(folder / "registry.yml")]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        wait_for("docker-registry", lambda: self.request("GET", "/v2/"))

    def request(self, method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> str:
        """Ask the registry; where the answer points to."""
        with closing(http.client.HTTPConnection(self.host)) as connection:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            answer.read()
            assert answer.status < 300, (method, path, answer.status)
            return answer.headers.get("Location", "").removeprefix(f"http://{self.host}")

    def put(self, repository: str, tag: str, blob: bytes, kind: str) -> None:
        """Store an artifact of one layer, as `oras push` does."""
        for content in (b"{}", blob):
            place = self.request("POST", f"/v2/{repository}/blobs/uploads/")
            digest = hashlib.sha256(content).hexdigest()
            self.request("PUT", f"{place}&digest=sha256:{digest}", content)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described(b"{}", "application/vnd.sylabs.sif.config.v1+json"),
            "layers": [described(blob, kind)],
        }
        self.request(
            "PUT", f"/v2/{repository}/manifests/{tag}", json.dumps(manifest).encode(), str(manifest["mediaType"])
        )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()


def described(content: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


class Machine:
    """A docker daemon with an empty store, a registry, and a machine's folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = Registry(folder)
        # A path of a socket must be short, and pytest's folders are not.
        self.short = Path(tempfile.mkdtemp())
        self.log = (folder / "dockerd.log").open("w")
        command = [
            "dockerd",
            f"--host=unix://{self.short}/docker.sock",
            f"--exec-root={self.short}/exec",
            f"--data-root={folder}/docker",
            f"--pidfile={self.short}/docker.pid",
            f"--registry-mirror=http://{self.registry.host}",
            "--iptables=false",
            "--ip6tables=false",
            "--bridge=none",
            "--storage-driver=vfs",
        ]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        os.environ["DOCKER_HOST"] = f"unix://{self.short}/docker.sock"
        wait_for("dockerd", lambda: self.docker("version"))

    def docker(self, *arguments: str, stdin: bytes | None = None) -> str:
        done = subprocess.run(["docker", *arguments], check=True, capture_output=True, input=stdin)
        return done.stdout.decode().strip()

    def push(self, mark: str, name: str = f"{REPOSITORY}:1") -> tuple[str, str]:
        """Make an image, push it, forget it; its id and the digest of its manifest."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            info = tarfile.TarInfo("mark")
            info.size = len(mark)
            tar.addfile(info, io.BytesIO(mark.encode()))
        there = f"{self.registry.host}/{name}"
        image = self.docker("import", "-", there, stdin=out.getvalue())
        self.docker("push", there)
        digest = json.loads(self.docker("image", "inspect", "--format", "{{json .RepoDigests}}", there))[0]
        self.forget()
        return image, digest.partition("@")[2]

    def forget(self) -> None:
        """Remove all images."""
        if images := self.docker("image", "ls", "--quiet", "--no-trunc").split():
            self.docker("image", "rm", "--force", *set(images))

    def provide(self, **more: Any) -> dict[str, Any]:
        arguments = {
            "reference": REFERENCE,
            "registry_mirror": self.registry.host,
            "record": str(self.folder / "etc/runtime.json"),
            "checksums": str(self.folder / "lib/checksums.json"),
            "path": str(self.folder / "opt"),
            "scratch": str(self.folder),
            "attempts": 2,
        }
        answer = run("runtime_image", **arguments | more)
        print(answer.get("msg", ""))  # pytest shows it when a test fails
        return answer

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "etc/runtime.json").read_text())
        return found

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()
        self.registry.close()
        shutil.rmtree(self.short, ignore_errors=True)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    before = os.environ.get("DOCKER_HOST")
    machine = Machine(tmp_path_factory.mktemp("machine"))
    yield machine
    machine.close()
    os.environ.pop("DOCKER_HOST")
    if before is not None:
        os.environ["DOCKER_HOST"] = before


@pytest.fixture
def machine(started: Machine) -> Machine:
    started.forget()
    for name in ("etc", "lib", "opt"):
        shutil.rmtree(started.folder / name, ignore_errors=True)
    return started


def test_pulled_by_digest_through_the_mirror(machine: Machine) -> None:
    """ghcr.io cannot be had here, and is not asked."""
    image, digest = machine.push("right")
    answer = machine.provide(digest=digest)
    assert (answer["changed"], answer["image"]) == (True, image)
    assert machine.record() == {"kind": "docker", "image": image, "reference": REFERENCE, "digest": digest}
    assert machine.provide(digest=digest)["changed"] is False


def test_pull_that_does_not_fit_is_refused(machine: Machine) -> None:
    """The registry tells the layers' sizes, the daemon where it keeps its images."""
    _image, digest = machine.push("x" * 100_000)
    registry = {"registry_mirror": f"http://{machine.registry.host}", "digest": digest}
    told = machine.provide(space_factor=1e15, **registry)["msg"]
    assert told.startswith(f"{machine.folder}/docker: ")
    assert " GB free, about " in told
    assert machine.registry.host in told
    assert not machine.docker("image", "ls", "--quiet")
    assert machine.provide(defer=True, **registry)["changed"] is True  # little, since its size is known


def test_layers_of_a_pull_are_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.push("layers")
    told = record_progress(monkeypatch)
    assert "deferred" in machine.provide(defer=True)  # asked by https, the registry tells no size
    assert not machine.docker("image", "ls", "--quiet")
    assert machine.provide()["changed"] is True
    assert (1, 1, "layers") in {(one["done"], one["size"], one["unit"]) for one in told}


def test_digest_that_the_registry_does_not_have(machine: Machine) -> None:
    machine.push("right")
    told = machine.provide(digest="sha256:" + "0" * 64)["msg"]
    assert "manifest unknown" in told
    assert "\n" not in told
    assert not (machine.folder / "etc").exists()


def test_registry_that_lies(machine: Machine) -> None:
    """The manifest in the registry's files is replaced by another image's: its digest is then another."""
    _image, digest = machine.push("right")
    _image, other = machine.push("wrong", f"{REPOSITORY}:2")
    blobs = machine.registry.files / "docker/registry/v2/blobs/sha256"
    right, wrong = (blobs / part[7:9] / part[7:] / "data" for part in (digest, other))
    before = right.read_bytes()
    right.write_bytes(wrong.read_bytes())
    try:
        assert machine.provide(digest=digest)["failed"]
    finally:
        right.write_bytes(before)
    assert not (machine.folder / "etc").exists()
    assert machine.provide(digest=digest)["changed"] is True


def test_registry_that_is_dead(machine: Machine) -> None:
    told = machine.provide(registry_mirror=f"127.0.0.1:{free_port()}")["msg"]
    assert "connection refused" in told
    assert "\n" not in told


def test_daemons_own_mirror_when_docker_hub_has_nothing(machine: Machine) -> None:
    image, digest = machine.push("hub", HUB.removeprefix("docker.io/"))
    assert machine.provide(reference=HUB, registry_mirror=None)["image"] == image
    assert machine.record()["digest"] == digest


def test_tag_that_moves_is_refused(machine: Machine) -> None:
    image, digest = machine.push("first")
    assert machine.provide()["changed"] is True
    assert machine.record()["digest"] == digest
    other, moved = machine.push("second")
    told = machine.provide()["msg"]
    assert digest[7:] in told
    assert moved[7:] in told
    assert machine.record()["image"] == image
    assert machine.provide(digest=moved)["image"] == other


def test_loaded_from_a_file_with_its_checksum(machine: Machine) -> None:
    image, _digest = machine.push("file")
    machine.docker("pull", "--quiet", f"{machine.registry.host}/{REPOSITORY}:1")
    machine.docker("tag", f"{machine.registry.host}/{REPOSITORY}:1", REFERENCE)
    mirror = machine.folder / "mirror"
    mirror.mkdir()
    machine.docker("save", "--output", str(mirror / "pcgr.tar"), REFERENCE)
    machine.forget()
    source = {"archive": "pcgr.tar", "mirror_url": f"file://{mirror}"}
    (mirror / "SHA256SUMS").write_text(f"{'0' * 64}  pcgr.tar\n")
    assert "expected " + "0" * 64 in machine.provide(**source)["msg"]
    assert not machine.docker("image", "ls", "--quiet")
    sha256 = hashlib.sha256((mirror / "pcgr.tar").read_bytes()).hexdigest()
    (mirror / "SHA256SUMS").write_text(f"{sha256}  pcgr.tar\n")
    assert machine.provide(**source)["image"] == image
    assert machine.provide(**source)["changed"] is False


def test_old_images_are_removed_on_request(machine: Machine) -> None:
    old, _digest = machine.push("old", f"{REPOSITORY}:0")
    image, digest = machine.push("new")
    machine.docker("pull", "--quiet", f"{machine.registry.host}/{REPOSITORY}:0")
    assert machine.provide(digest=digest)["removed"] == []
    assert machine.provide(digest=digest, prune=True, check=True)["removed"] == [old]
    assert machine.provide(digest=digest, prune=True)["removed"] == [old]
    assert machine.docker("image", "ls", "--quiet", "--no-trunc") == image
    assert machine.provide(digest=digest, prune=True)["changed"] is False


def test_apptainer_image_from_a_registry(machine: Machine) -> None:
    content = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + os.urandom(3 << 20)
    machine.registry.put(REPOSITORY, "1.singularity", content, "application/vnd.sylabs.sif.layer.v1.sif")
    arguments = {
        "reference": f"oras://ghcr.io/{REPOSITORY}:1.singularity",
        "registry_mirror": f"http://{machine.registry.host}",
        "path": str(machine.folder / "opt"),
        "record": str(machine.folder / "etc/runtime.json"),
        "checksums": str(machine.folder / "lib/checksums.json"),
    }
    answer = run("runtime_sif", **arguments)
    assert answer.get("changed") is True, answer
    assert Path(answer["image"]).read_bytes() == content
    assert run("runtime_sif", **arguments)["changed"] is False
