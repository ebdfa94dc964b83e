"""Module runtime_image with a docker command that keeps its images in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.databundle import Mirror
from support.docker_stand_in import DOCKER, ID
from support.module_runner import load, record_progress, run
from umccr_pcgr.consumer.config import read_image

REFERENCE = "umccr/tool:1"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "images").write_text("{}")
    (folder / "driver").write_text("overlay2")
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    return folder


def provide(tmp_path: Path, **more: Any) -> dict[str, Any]:
    arguments = {
        "reference": REFERENCE,
        "record": str(tmp_path / "etc/runtime.json"),
        "checksums": str(tmp_path / "lib/checksums.json"),
        "path": str(tmp_path / "opt"),
        "scratch": str(tmp_path),
    }
    return run("runtime_image", **arguments | more)


def record(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "etc/runtime.json").read_text())
    return found


def images(docker: Path, now: dict[str, str] | None = None) -> dict[str, str]:
    if now is not None:
        (docker / "images").write_text(json.dumps(now))
    found: dict[str, str] = json.loads((docker / "images").read_text())
    return found


def calls(docker: Path, word: str) -> list[str]:
    if not (docker / "calls").exists():
        return []
    return [line for line in (docker / "calls").read_text().splitlines() if line.startswith(word)]


def test_pulled_once_and_recorded_by_id(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(ID)
    answer = provide(tmp_path)
    assert (answer["changed"], answer["image"]) == (True, ID)
    assert record(tmp_path) == {"kind": "docker", "image": ID, "reference": REFERENCE, "digest": None}
    assert read_image(tmp_path / "etc/runtime.json").image == ID
    assert provide(tmp_path)["changed"] is False
    assert len(calls(docker, "pull")) == 1


DIGEST = "sha256:" + "a" * 64  # of ID
OTHER = "sha256:" + "2" * 64


def test_digest_replaces_the_tag(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(ID)
    (docker / "repository").write_text("umccr/tool")
    assert provide(tmp_path, digest=DIGEST)["changed"] is True
    assert calls(docker, "pull") == [f"pull umccr/tool@{DIGEST}"]
    assert record(tmp_path)["digest"] == DIGEST
    assert provide(tmp_path, digest=DIGEST)["changed"] is False


def test_what_was_fetched_has_the_digest(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(OTHER)
    (docker / "repository").write_text("umccr/tool")
    assert "fetched the digest sha256:bbb" in provide(tmp_path, digest=DIGEST)["msg"]
    assert not (tmp_path / "etc").exists()


def test_tag_that_moves_is_refused(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(ID)
    (docker / "repository").write_text("umccr/tool")
    provide(tmp_path)
    assert record(tmp_path)["digest"] == DIGEST
    images(docker, {})
    (docker / "registry").write_text(OTHER)
    for _unused in range(2):  # the second time the moved image is here already
        told = provide(tmp_path)["msg"]
        assert "sha256 is bbb" in told
        assert str(tmp_path / "lib/checksums.json") in told
    assert "bbb" in provide(tmp_path, check=True)["msg"]
    assert record(tmp_path)["image"] == ID
    assert provide(tmp_path, digest="sha256:" + "b" * 64)["image"] == OTHER


def test_tag_that_moves_on_the_machine_changes_nothing(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(ID)
    provide(tmp_path)
    images(docker, {REFERENCE: OTHER, "<none>": ID})
    answer = provide(tmp_path)
    assert (answer["changed"], answer["image"]) == (False, ID)


@pytest.mark.parametrize(
    ("reference", "mirror", "pulled", "repository"),
    [
        ("ghcr.io/sigven/pcgr:1", "mirror:5000", "mirror:5000/sigven/pcgr:1", "mirror:5000/sigven/pcgr"),
        ("docker.io/sigven/pcgr:1", "http://mirror/hub/", "mirror/hub/sigven/pcgr:1", "mirror/hub/sigven/pcgr"),
        ("debian:12", "mirror", "mirror/library/debian:12", "mirror/library/debian"),
        ("docker.io/sigven/pcgr:1", None, "docker.io/sigven/pcgr:1", "sigven/pcgr"),
        ("docker.io/library/debian:12", None, "docker.io/library/debian:12", "debian"),
        ("localhost/x:1", None, "localhost/x:1", "localhost/x"),
    ],
)
def test_names(reference: str, mirror: str | None, pulled: str, repository: str) -> None:
    module = load("modules.runtime_image")
    assert module.mirrored(reference, mirror) == pulled
    assert module.repository_of(pulled) == repository


def test_registry_mirror_is_asked(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(ID)
    (docker / "repository").write_text("mirror:5000/umccr/tool")
    provide(tmp_path, registry_mirror="mirror:5000", digest=DIGEST)
    assert calls(docker, "pull") == [f"pull mirror:5000/umccr/tool@{DIGEST}"]
    assert record(tmp_path)["reference"] == REFERENCE


def test_old_runtimes_stay_unless_asked(docker: Path, tmp_path: Path) -> None:
    (docker / "repository").write_text("umccr/tool")
    images(docker, {"old": OTHER})
    (docker / "registry").write_text(ID)
    old = [tmp_path / "opt" / name for name in ("0" * 16, "1" * 16 + ".sif", ".packages-" + "2" * 16)]
    for path in old:
        path.mkdir(parents=True)
    kept = tmp_path / "opt/.linker"
    kept.mkdir()
    assert provide(tmp_path)["removed"] == []
    names = sorted([OTHER, *map(str, old)])
    assert sorted(provide(tmp_path, check=True, prune=True)["removed"]) == names
    assert all(path.exists() for path in old)
    answer = provide(tmp_path, prune=True)
    assert answer["changed"] is True
    assert sorted(answer["removed"]) == names
    assert not any(path.exists() for path in old)
    assert kept.exists()
    assert images(docker) == {REFERENCE: ID}
    assert provide(tmp_path, prune=True)["changed"] is False
    assert record(tmp_path)["image"] == ID


def test_pull_is_tried_again(docker: Path, tmp_path: Path) -> None:
    (docker / "registry").write_text(ID)
    (docker / "broken").write_text("2")
    assert provide(tmp_path)["changed"] is True
    assert len(calls(docker, "pull")) == 3


def test_unknown_image_is_not_tried_again(docker: Path, tmp_path: Path) -> None:
    answer = provide(tmp_path)
    assert "manifest unknown" in answer["msg"]
    assert "\n" not in answer["msg"]
    assert len(calls(docker, "pull")) == 1
    assert not (tmp_path / "etc").exists()


def mirror(tmp_path: Path, text: str, sums: str | None = None, name: str = "image.tar") -> dict[str, Any]:
    folder = tmp_path / "mirror"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    found = sums or hashlib.sha256(text.encode()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{found}  {name}\n")
    return {"archive": name, "mirror_url": f"file://{folder}"}


def test_loaded_once_and_again_when_the_archive_is_another(docker: Path, tmp_path: Path) -> None:
    source = mirror(tmp_path, f"{REFERENCE} {ID}\n")
    assert provide(tmp_path, **source)["image"] == ID
    assert provide(tmp_path, **source)["changed"] is False
    other = "sha256:" + "2" * 64
    assert provide(tmp_path, **mirror(tmp_path, f"{REFERENCE} {other}\n"))["image"] == other
    assert record(tmp_path)["image"] == other
    assert not list(tmp_path.glob(".pcgr-image-*"))


def test_wrong_archives_are_refused(docker: Path, tmp_path: Path) -> None:
    answer = provide(tmp_path, **mirror(tmp_path, f"{REFERENCE} {ID}\n", sums="0" * 64))
    assert "expected " + "0" * 64 in answer["msg"]
    assert not calls(docker, "load")
    assert "does not hold" in provide(tmp_path, **mirror(tmp_path, f"other/tool:1 {ID}\n"))["msg"]
    assert not (tmp_path / "etc").exists()


def test_loaded_image_stays_when_the_mirror_is_gone(docker: Path, tmp_path: Path) -> None:
    source = mirror(tmp_path, f"{REFERENCE} {ID}\n")
    provide(tmp_path, **source)
    (tmp_path / "mirror/SHA256SUMS").unlink()
    assert provide(tmp_path, **source)["changed"] is False
    images(docker, {})
    assert provide(tmp_path, **source)["failed"]


def test_check_mode_with_and_without_docker(docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = mirror(tmp_path, f"{REFERENCE} {ID}\n")
    assert provide(tmp_path, check=True, **source)["changed"] is True
    monkeypatch.setattr(load("modules.runtime_image").AnsibleModule, "get_bin_path", lambda *_unused: None)
    assert provide(tmp_path, check=True, **source)["changed"] is True
    assert "umccr.pcgr.docker" in provide(tmp_path, **source)["msg"]
    assert not (tmp_path / "etc").exists()


def test_archive_without_a_mirror(docker: Path, tmp_path: Path) -> None:
    assert "pcgr_mirror_url" in provide(tmp_path, archive="image.tar")["msg"]


def test_archive_in_a_bucket(docker: Path, tmp_path: Path) -> None:
    server = Mirror()
    server.files = {"image.tar": f"{REFERENCE} {ID}\n".encode()}
    server.sums()
    source = {"archive": "image.tar", "mirror_url": "s3://site"}
    assert "s3://site/SHA256SUMS" in provide(tmp_path, **source)["msg"]
    signed = {f"s3://site/{name}": f"{server.url}/{name}" for name in server.files}
    assert provide(tmp_path, signed=signed, **source)["image"] == ID
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """Address of a registry that tells sizes: 600 MB for this machine, of an index that has another machine's, too."""
    folder = tmp_path / "registry/v2/umccr/tool/manifests"
    folder.mkdir(parents=True)
    here = load("modules.runtime_image").ARCHITECTURES[os.uname().machine]
    entries = [
        {"digest": "sha256:other", "platform": {"os": "linux", "architecture": "s390x"}},
        {"digest": "sha256:this", "platform": {"os": "linux", "architecture": here}},
    ]
    (folder / "1").write_text(json.dumps({"manifests": entries}))
    (folder / "sha256:other").write_text(json.dumps({"layers": [{"size": 9_000_000_000}]}))
    (folder / "sha256:this").write_text(json.dumps({"layers": [{"size": 400_000_000}, {"size": 200_000_000}]}))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "registry"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=size))


def test_pull_that_does_not_fit_is_refused(
    docker: Path, tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (docker / "registry").write_text(ID)
    free(monkeypatch, 1.7e9)
    told = provide(tmp_path, registry_mirror=registry, scratch="/nowhere")["msg"]
    name = f"{registry.removeprefix('http://')}/umccr/tool:1"
    assert told == f"{docker}: 1.7 GB free, about 1.8 GB needed for {name}"
    assert not calls(docker, "pull")
    assert not (tmp_path / "etc").exists()
    free(monkeypatch, 1.9e9)
    assert provide(tmp_path, registry_mirror=registry)["changed"] is True


@pytest.mark.parametrize("why", ["no registry", "not asked", "containerd", "no manifest", "an error page"])
def test_pull_of_which_the_room_is_unknown_goes_on(
    docker: Path, tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    (docker / "registry").write_text(ID)
    free(monkeypatch, 0)
    arguments: dict[str, Any] = {"registry_mirror": registry}
    manifest = tmp_path / "registry/v2/umccr/tool/manifests/1"
    if why == "no registry":
        arguments["registry_mirror"] = "http://127.0.0.1:9"
    elif why == "not asked":
        arguments["space_factor"] = 0
    elif why == "containerd":  # then docker does not tell where the images lie
        (docker / "driver").write_text("driver-type io.containerd.snapshotter.v1")
    elif why == "no manifest":
        manifest.write_text(json.dumps({"layers": "none"}))
    else:
        manifest.write_text("<html>please log in</html>")
    answer = provide(tmp_path, **arguments)
    assert answer.get("changed") is True, answer


@pytest.mark.parametrize(("name", "times"), [("image.tar", 1 + 1), ("image.tar.gz", 3 + 1)])
def test_archive_that_does_not_fit_is_refused(
    docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, times: int
) -> None:
    """Archive and images lie on the same disk here. What docker saves is not compressed, unless its name says so."""
    text = f"{REFERENCE} {ID}".ljust(2_000_000) + "\n"
    source = mirror(tmp_path, text, name=name)
    size = len(text)
    free(monkeypatch, times * size - 1)
    told = provide(tmp_path, **source)["msg"]
    assert told.startswith(f"{docker}: ")
    assert f"about {times * size / 1e6:.1f} MB needed for file://{tmp_path}/mirror/{name}" in told
    assert not calls(docker, "load")
    free(monkeypatch, times * size)
    assert provide(tmp_path, **source)["image"] == ID


def test_a_large_transfer_is_deferred_and_a_small_one_is_not(
    docker: Path, tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Much is 1 GB, or what nobody knows."""
    (docker / "registry").write_text(ID)
    deferred = provide(tmp_path, defer=True, registry_mirror="http://127.0.0.1:9")
    assert (deferred["changed"], deferred["deferred"]) == (False, f"{tmp_path}/lib/.umccr.pcgr.progress")
    assert not calls(docker, "pull")
    assert not (tmp_path / "etc").exists()
    assert "deferred" not in provide(tmp_path, defer=True, check=True, registry_mirror="http://127.0.0.1:9")
    assert "deferred" not in provide(tmp_path, defer=True, registry_mirror=registry)
    assert len(calls(docker, "pull")) == 1
    assert provide(tmp_path, defer=True, registry_mirror="http://127.0.0.1:9")["changed"] is False
    source = mirror(tmp_path, f"{REFERENCE} {OTHER}\n")
    monkeypatch.setattr(load("module_utils._progress"), "LARGE", 10)
    assert "deferred" in provide(tmp_path, defer=True, **source)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{docker}:/usr/bin:/bin")
    assert provide(tmp_path, defer=True, **source)["image"] == OTHER


def test_layers_and_bytes_are_told(docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = record_progress(monkeypatch)
    monkeypatch.setattr(load("module_utils._progress"), "REPORT_SECONDS", 0.005)
    (docker / "registry").write_text(ID)
    (docker / "slow").write_text("0.1")
    assert provide(tmp_path)["changed"] is True
    steps = [(one["done"], one["size"]) for one in told if one["part"] == REFERENCE and one["unit"] == "layers"]
    assert list(dict.fromkeys(step for step in steps if step[1] == 3)) == [(0, 3), (1, 3), (2, 3)]
    assert told[-1]["fetched"] == 0
    assert not (tmp_path / "lib/.umccr.pcgr.progress").exists()
