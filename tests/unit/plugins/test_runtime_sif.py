"""Module runtime_sif against a registry on loopback: tokens that end, blobs that lie elsewhere, tags that move, cuts."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from support.databundle import Mirror
from support.module_runner import load, record_progress, run
from umccr_pcgr.consumer.config import read_image

REFERENCE = "oras://registry.example.org/sigven/pcgr:1.singularity"
LAYER = "application/vnd.sylabs.sif.layer.v1.sif"


def sif(mark: bytes) -> bytes:
    """What begins as a SIF file does."""
    return b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + mark * (3 << 20)


class Registry:
    """A registry as ghcr.io: a token for every request, blobs on another host, which refuses the token."""

    def __init__(self) -> None:
        self.image = sif(b"a")
        self.media_type = LAYER
        self.token_uses = 3  # requests that a token serves
        self.tokens: dict[str, int] = {}
        self.scopes: list[str] = []
        self.needs_login = False
        self.blob_fault: Callable[[bytes], bytes] = lambda body: body
        self.ranges: list[int] = []  # first bytes that were asked for
        self.broken_after: int | None = None  # answers of the blob store, then errors
        self.store = self._serve(self._blob)
        self.front = self._serve(self._answer)
        self.url = f"http://127.0.0.1:{self.front.server_port}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.image).hexdigest()

    def _serve(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            do_HEAD = do_GET

            def log_message(self, *_unused: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path)
        if path.path == "/token":
            if self.needs_login:
                self._send(request, 403, b"denied")
                return
            self.scopes += parse_qs(path.query)["scope"]
            token = f"t{len(self.tokens)}"
            self.tokens[token] = self.token_uses
            # Half of it is used, so that the next request asks for another.
            self._send(request, 200, json.dumps({"token": token, "expires_in": 1e-6}).encode())
            return
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        if self.tokens.get(token, 0) <= 0:
            challenge = f'Bearer realm="{self.url}/token",service="registry",scope="repository:x:pull"'
            self._send(request, 401, b"", {"WWW-Authenticate": challenge})
            return
        self.tokens[token] -= 1
        if path.path == "/v2/sigven/pcgr/manifests/1.singularity":
            layer = {"mediaType": self.media_type, "digest": f"sha256:{self.sha256}", "size": len(self.image)}
            self._send(request, 200, json.dumps({"schemaVersion": 2, "layers": [layer]}).encode())
        elif path.path == f"/v2/sigven/pcgr/blobs/sha256:{self.sha256}":
            where = f"http://127.0.0.1:{self.store.server_port}/blob"
            self._send(request, 307, b"", {"Location": where})
        else:
            self._send(request, 404, b"not found")

    def _blob(self, request: BaseHTTPRequestHandler) -> None:
        if request.headers.get("Authorization"):
            self._send(request, 400, b"only one way to authenticate is allowed")
            return
        if self.broken_after is not None:
            self.broken_after -= 1
            if self.broken_after < 0:
                self._send(request, 503, b"")
                return
        body = self.blob_fault(self.image)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"])
        assert match
        first, last = int(match[1]), min(int(match[2]), len(body) - 1)
        self.ranges.append(first)
        span = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
        self._send(request, 206, body[first : last + 1], span)

    def _send(
        self, request: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        request.send_response(code)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def close(self) -> None:
        for server in (self.front, self.store):
            server.shutdown()
            server.server_close()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setattr(load("module_utils._transfer.download"), "LONGEST_PAUSE", 0)
    made = Registry()
    yield made
    made.close()


def provide(tmp_path: Path, registry: Registry | None = None, **more: Any) -> dict[str, Any]:
    arguments = {
        "path": str(tmp_path / "opt"),
        "record": str(tmp_path / "etc/runtime.json"),
        "checksums": str(tmp_path / "lib/checksums.json"),
        "attempts": 2,
    }
    if registry:
        arguments |= {"reference": REFERENCE, "registry_mirror": registry.url}
    answer = run("runtime_sif", **arguments | more)
    print(answer.get("msg", ""))  # pytest shows it when a test fails
    return answer


def record(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "etc/runtime.json").read_text())
    return found


def refused(tmp_path: Path, answer: dict[str, Any], *words: str) -> None:
    assert answer.get("failed"), answer
    assert "\n" not in answer["msg"]
    for word in words:
        assert word in answer["msg"], answer["msg"]
    assert not (tmp_path / "etc").exists()
    assert not list((tmp_path / "opt").glob("*.sif"))


def test_brought_once_with_new_tokens_and_recorded(registry: Registry, tmp_path: Path) -> None:
    answer = provide(tmp_path, registry)
    image = tmp_path / "opt" / f"{registry.sha256[:16]}.sif"
    assert (answer["changed"], answer["image"]) == (True, str(image)), answer
    assert image.read_bytes() == registry.image
    assert image.stat().st_mode & 0o777 == 0o644
    assert record(tmp_path) == {
        "kind": "apptainer",
        "image": str(image),
        "sha256": registry.sha256,
        "reference": REFERENCE,
    }
    assert read_image(tmp_path / "etc/runtime.json").image == str(image)
    assert len(registry.tokens) > 2
    assert set(registry.scopes) == {"repository:sigven/pcgr:pull"}
    assert list((tmp_path / "opt").iterdir()) == [image]
    registry.close()
    assert provide(tmp_path, registry)["changed"] is False


def test_tag_that_moves_is_refused(registry: Registry, tmp_path: Path) -> None:
    old = registry.sha256
    provide(tmp_path, registry)
    shutil.rmtree(tmp_path / "opt")
    registry.image = sif(b"b")
    for check in (True, False):
        told = provide(tmp_path, registry, check=check)["msg"]
        assert registry.sha256 in told
        assert old in told
        assert str(tmp_path / "lib/checksums.json") in told
    assert provide(tmp_path, registry, sha256=registry.sha256)["changed"] is True
    assert record(tmp_path)["sha256"] == registry.sha256


def test_wrong_checksum(registry: Registry, tmp_path: Path) -> None:
    registry.blob_fault = lambda body: body[:-1] + b"x"
    refused(tmp_path, provide(tmp_path, registry), "sha256 is", f"expected {registry.sha256}")
    assert not list((tmp_path / "opt").iterdir())
    refused(tmp_path, provide(tmp_path, registry, sha256="0" * 64), "404")


def test_cut_goes_on_where_it_was(registry: Registry, tmp_path: Path) -> None:
    registry.broken_after = 4  # the size, the first byte, and two ranges
    refused(tmp_path, provide(tmp_path, registry, connections=1), "503")
    (part,) = (tmp_path / "opt").iterdir()
    had = part.stat().st_size
    assert had >= 1 << 20
    registry.broken_after = None
    registry.ranges.clear()
    assert provide(tmp_path, registry)["changed"] is True
    assert min(first for first in registry.ranges if first) >= had


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("docker://x/y:1", ["docker://x/y:1", "oras://REGISTRY/REPOSITORY:TAG"]),
        ("oras://x/y", ["oras://REGISTRY/REPOSITORY:TAG"]),
        ("oras://x/sigven/other:1", ["404"]),
        (None, ["runtime_sif_reference"]),
    ],
)
def test_wrong_references(registry: Registry, tmp_path: Path, reference: str | None, words: list[str]) -> None:
    refused(tmp_path, provide(tmp_path, registry, reference=reference), *words)


def test_what_is_no_sif(registry: Registry, tmp_path: Path) -> None:
    registry.media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    refused(tmp_path, provide(tmp_path, registry), "found 0 layers", LAYER)
    registry.media_type = LAYER
    registry.image = b"<html>login</html>" * 100
    refused(tmp_path, provide(tmp_path, registry), "no Apptainer image", "<html>login")
    assert not list((tmp_path / "opt").iterdir())


def test_registry_that_wants_a_login(registry: Registry, tmp_path: Path) -> None:
    registry.needs_login = True
    refused(tmp_path, provide(tmp_path, registry), "no token without an account", "403")


def test_dead_registry(tmp_path: Path) -> None:
    answer = provide(tmp_path, reference=REFERENCE, registry_mirror="http://127.0.0.1:9")
    refused(tmp_path, answer, "http://127.0.0.1:9/v2/sigven/pcgr/manifests/1.singularity", "refused")


def test_mirror_below_a_path() -> None:
    module = load("modules.runtime_sif")
    registry = module.registry_of(REFERENCE, "mirror.example.org/ghcr/", 1)
    assert registry.url("blobs", "x") == "https://mirror.example.org/v2/ghcr/sigven/pcgr/blobs/x"
    registry = module.registry_of(REFERENCE, None, 1)
    assert registry.url("blobs", "x") == "https://registry.example.org/v2/sigven/pcgr/blobs/x"


def mirror(tmp_path: Path, image: bytes) -> dict[str, Any]:
    folder = tmp_path / "mirror"
    folder.mkdir(exist_ok=True)
    (folder / "pcgr.sif").write_bytes(image)
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(image).hexdigest()}  pcgr.sif\n")
    return {"archive": "pcgr.sif", "mirror_url": f"file://{folder}"}


def test_file_on_a_mirror(tmp_path: Path) -> None:
    source = mirror(tmp_path, sif(b"a"))
    assert provide(tmp_path, **source)["changed"] is True
    first = record(tmp_path)
    assert first["reference"] == "pcgr.sif"
    assert provide(tmp_path, **source)["changed"] is False
    assert provide(tmp_path, **mirror(tmp_path, sif(b"b")))["changed"] is True
    assert record(tmp_path)["image"] != first["image"]
    assert Path(first["image"]).exists()
    (tmp_path / "mirror/SHA256SUMS").unlink()
    assert provide(tmp_path, **source)["changed"] is False


def test_mirror_without_the_file_or_its_checksum(tmp_path: Path) -> None:
    source = mirror(tmp_path, sif(b"a"))
    (tmp_path / "mirror/SHA256SUMS").write_text(f"{'0' * 64}  other\n")
    refused(tmp_path, provide(tmp_path, **source), "SHA256SUMS", "pcgr.sif")
    refused(tmp_path, provide(tmp_path, archive="pcgr.sif"), "pcgr_mirror_url")


def test_old_runtimes_stay_unless_asked(tmp_path: Path) -> None:
    provide(tmp_path, **mirror(tmp_path, sif(b"a")))
    source = mirror(tmp_path, sif(b"b"))
    provide(tmp_path, **source)
    assert len(list((tmp_path / "opt").iterdir())) == 2
    assert len(provide(tmp_path, check=True, prune=True, **source)["removed"]) == 1
    assert len(list((tmp_path / "opt").iterdir())) == 2
    assert len(provide(tmp_path, prune=True, **source)["removed"]) == 1
    assert [str(path) for path in (tmp_path / "opt").iterdir()] == [record(tmp_path)["image"]]


def test_two_runs_at_once(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "opt").mkdir()
    with load("module_utils._state").exclusive_lock(str(tmp_path / "opt")):
        refused(tmp_path, provide(tmp_path, registry), "another run")


def test_check_mode(registry: Registry, tmp_path: Path) -> None:
    answer = provide(tmp_path, registry, check=True)
    assert answer["changed"] is True
    assert not list(tmp_path.iterdir())
    assert provide(tmp_path, registry)["image"] == answer["image"]
    assert provide(tmp_path, registry, check=True)["changed"] is False


def test_full_disk(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage._replace(free=1000))
    refused(tmp_path, provide(tmp_path, registry), "0.0 MB free, about 3.1 MB needed", str(tmp_path))


def test_file_in_a_bucket(tmp_path: Path) -> None:
    image = sif(b"a")
    server = Mirror()
    server.files = {"pcgr.sif": image}
    server.sums()
    source = {"archive": "pcgr.sif", "mirror_url": "s3://site"}
    refused(tmp_path, provide(tmp_path, **source), "s3://site/SHA256SUMS", "signed")
    signed = {f"s3://site/{name}": f"{server.url}/{name}" for name in server.files}
    assert provide(tmp_path, signed=signed, **source)["changed"] is True
    server.server.shutdown()
    server.server.server_close()


def test_a_large_transfer_is_deferred_and_reported(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("module_utils._progress")
    monkeypatch.setattr(module, "LARGE", len(registry.image))
    deferred = provide(tmp_path, registry, defer=True)
    assert (deferred["changed"], deferred["deferred"]) == (False, f"{tmp_path}/opt/.umccr.pcgr.progress")
    assert not (tmp_path / "opt").exists()
    registry.broken_after = 4
    refused(tmp_path, provide(tmp_path, registry, connections=1), "503")
    (part,) = (tmp_path / "opt").iterdir()
    had, registry.broken_after = part.stat().st_size, None
    told = record_progress(monkeypatch)
    assert provide(tmp_path, registry)["changed"] is True
    told = [one for one in told if one["done"]]
    assert {one["size"] for one in told} == {len(registry.image)}
    assert all(one["done"] == had + one["fetched"] for one in told)
    monkeypatch.setattr(module, "LARGE", len(registry.image) + 1)
    registry.image = sif(b"b")
    assert provide(tmp_path, registry, sha256=registry.sha256, defer=True)["changed"] is True
    assert [path.suffix for path in (tmp_path / "opt").iterdir()] == [".sif", ".sif"]
