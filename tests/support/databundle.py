"""A mirror of small archives on loopback, and the module databundle run against it."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from support.module_runner import load, run

DATE = "20260620"


def archive(members: dict[str, bytes], extra: list[tarfile.TarInfo] | None = None) -> bytes:
    """A gzipped tar file with regular files `members` and members of other types."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w|") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra or []:
            tar.addfile(info)
    return out.getvalue()


BUNDLE = {f"data/{asm}/.PCGR_BUNDLE_VERSION": f"{DATE}\n".encode() for asm in ("grch37", "grch38")} | {
    f"data/{asm}/big": bytes(range(256)) * 4096 for asm in ("grch37", "grch38")
}


VEP = {f"homo_sapiens/115_{asm}/info.txt": b"species homo_sapiens\n" for asm in ("GRCh37", "GRCh38")}


class Mirror:
    """A folder on loopback HTTP, with faults on demand."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_after: dict[str, list[int]] = {}  # bytes of the next answers to the name, then whole ones
        self.ranges = True
        self.sent = 0  # bytes of bodies
        self.busy = self.busiest = 0  # answers under way at once
        self.before_answer: Callable[[], None] = lambda: None
        self.requests: list[tuple[str, str | None]] = []
        self.errors: list[int] = []
        self.refusal = b""  # body of an answer 403 to everything
        self.type = "application/octet-stream"
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/").partition("?")[0]
                asked = self.headers.get("Range")
                mirror.requests.append((name, asked))
                if mirror.errors:
                    self.send_error(mirror.errors.pop(0))
                    return
                if mirror.refusal:
                    self.send_response(403)
                    self.send_header("Content-Length", str(len(mirror.refusal)))
                    self.end_headers()
                    self.wfile.write(mirror.refusal)
                    return
                if name not in mirror.files:
                    self.send_error(404)
                    return
                mirror.busy += 1
                mirror.busiest = max(mirror.busiest, mirror.busy)
                mirror.before_answer()
                whole = mirror.files[name]
                span = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "") if mirror.ranges else None
                first, last = (int(span[1]), min(int(span[2]), len(whole) - 1)) if span else (0, len(whole) - 1)
                if first >= len(whole):
                    self.send_response(416 if span else 200)
                else:
                    self.send_response(206 if span else 200)
                if span:
                    told = f"{first}-{last}" if first < len(whole) else "*"
                    self.send_header("Content-Range", f"bytes {told}/{len(whole)}")
                body = whole[first : last + 1]
                self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()[:8]}"')
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", mirror.type)
                self.end_headers()
                cuts = mirror.cut_after.get(name) if len(body) > 1 else None
                body = body[: cuts.pop(0)] if cuts else body
                with suppress(OSError):
                    self.wfile.write(body)
                    mirror.sent += len(body)
                mirror.busy -= 1

            def log_message(self, *_unused: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def sums(self) -> None:
        """Write SHA256SUMS for what is there now."""
        lines = [
            f"{hashlib.sha256(body).hexdigest()}  {name}\n" for name, body in self.files.items() if name != "SHA256SUMS"
        ]
        self.files["SHA256SUMS"] = "".join(lines).encode()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror on loopback, and retries without pauses."""
    monkeypatch.setattr(load("module_utils._transfer.download"), "LONGEST_PAUSE", 0)
    made = Mirror()
    made.files = {"bundle.tgz": archive(BUNDLE), "vep.tar.gz": archive(VEP)}
    made.sums()
    yield made
    made.server.shutdown()
    made.server.server_close()


def release(**changes: Any) -> dict[str, Any]:
    """A release whose assemblies share their archives."""
    entry = {"file": "bundle.tgz", "url": None, "sha256": None}
    cache = {"file": "vep.tar.gz", "url": None, "sha256": None}
    return {
        "release": "rehearsal",
        "assemblies": ["grch37", "grch38"],
        "bundle": {
            "date": DATE,
            "version_file": "data/{assembly}/.PCGR_BUNDLE_VERSION",
            "version_text": DATE,
            "archives": {"grch37": entry, "grch38": entry | changes},
        },
        "vep": {"release": 115, "location": "separate", "archives": {"grch37": cache, "grch38": cache}},
    }


def bring(root: Path, mirror: Mirror | None, assemblies: tuple[str, ...] = ("grch38",), **more: Any) -> dict[str, Any]:
    """Run the module on `root` with the archives of `mirror`; return its result."""
    more.setdefault("release", release())
    return run(
        "databundle",
        root=str(root),
        checksums=str(root.parent / "checksums.json"),
        assemblies=list(assemblies),
        **({"mirror_url": mirror.url} if mirror else {}),
        **more,
    )


def tree(root: Path) -> dict[str, bytes]:
    """Content by path of every file below `root`."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def refused(answer: dict[str, Any], root: Path, *words: str) -> None:
    """The module failed with one line that has the words, and left nothing but what a next run can go on with."""
    assert answer.get("failed"), answer
    assert "\n" not in answer["msg"]
    for word in words:
        assert word in answer["msg"], answer["msg"]
    assert not [name for name in tree(root) if not name.startswith(".databundle-")]
    assert "the next run goes on from there" in answer["msg"] or not list(root.glob(".databundle-*"))


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member of an archive that is no plain file, of tarfile's type `kind`."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def large(seed: int) -> dict[str, bytes]:
    """24 MB that hardly compress, in files of all sizes."""
    chance = random.Random(seed)
    sizes = [
        *(chance.randrange(3000) for _unused in range(500)),
        9_000_000,
        *(chance.randrange(3000) for _unused in range(500)),
    ]
    members = {f"data/grch38/{number:04}": chance.randbytes(size) for number, size in enumerate([*sizes, 12_000_000])}
    return {"data/grch38/.PCGR_BUNDLE_VERSION": f"{DATE}\n".encode()} | members


def unpacked(folder: Path, members: dict[str, bytes]) -> Path:
    """Members as files of `folder`."""
    for name, body in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder
