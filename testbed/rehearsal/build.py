"""Build the rehearsal's three archives and SHA256SUMS into a folder: image, miniature bundle, empty VEP cache.

The build needs Python 3.11, pip, mmdebstrap, umoci and skopeo, and without root also uidmap, but no docker daemon. It
rebuilds nothing while the sources in this folder and the archives match the record.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localcloud import buildlock, hostapt
from rehearsal import bundle, layer
from rehearsal.pcgr_rehearsal import PCGR_VERSION

HERE = Path(__file__).resolve().parent

REFERENCE = f"umccr/pcgr-rehearsal:{PCGR_VERSION}"
IMAGE, BUNDLE, VEP = "pcgr-rehearsal.docker.tar.gz", "pcgr-rehearsal-bundle.tgz", "pcgr-rehearsal-vep.tar.gz"
RECORD = "pcgr-rehearsal.json"
PACKAGES = ("python3-minimal", "libpython3.11-stdlib", "dash")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64")  # Debian 12 has glibc 2.36
EPOCH = (
    1786320000  # 2026-08-10, when PCGR 2.3.2 was released: the newest date of any file, unless SOURCE_DATE_EPOCH is set
)


class BuildError(RuntimeError):
    """The archives cannot be built; the text is one line that names what is missing or failed."""


def build(out: Path, cache: Path) -> dict[str, Any]:
    """Build the archives in `out` unless they are up to date; return the record, which is also in ``pcgr-rehearsal.json``.

    Its keys: sources (hash), reference, image_id (``sha256:`` and 64 digits), unpacked_bytes, files {name: sha256}.
    """
    out.mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True, exist_ok=True)
    with buildlock.exclusive_lock(out / ".rehearsal.lock", _say, "the rehearsal image"):
        sources = source_hash()
        record = _recorded(out, sources)
        if record is None:
            record = _build(out, cache, sources)
        else:
            _say("nothing has changed")
        _write_sums(out, record["files"])
    return record


def source_hash() -> str:
    """Return a hash of everything in this folder that determines the content of the archives."""
    digest = hashlib.sha256(str(_epoch()).encode())
    for path in sorted([*HERE.rglob("*.py"), HERE / "requirements.txt"]):
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _build(out: Path, cache: Path, sources: str) -> dict[str, Any]:
    _check_host()
    for leftover in out.glob(".rehearsal-*"):  # of a killed build; the lock ensures that no other is running
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=out) as folder:
        work = Path(folder)
        for name, write in ((BUNDLE, bundle.write_bundle), (VEP, bundle.write_vep)):
            tree = work / f"{name}.tree"
            write(tree)
            _pack(work / name, tree)
        base, wheels = _base(cache), _wheels(cache)
        _say("image: one layer")
        size = layer.write_layer(work / "layer.tar", base, wheels, HERE / "pcgr_rehearsal", _epoch())
        image_id = _image(work)
        files = {name: _sha256(work / name) for name in (IMAGE, BUNDLE, VEP)}
        for name in files:
            _say(f"{name}: {(work / name).stat().st_size / 1e6:.1f} MB")
            (work / name).replace(out / name)
        record = {
            "sources": sources,
            "reference": REFERENCE,
            "image_id": image_id,
            "unpacked_bytes": size,
            "files": files,
        }
        _replace(
            out / RECORD, json.dumps(record, indent=2) + "\n"
        )  # written last, because it states that the others are complete
    return record


def _recorded(out: Path, sources: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((out / RECORD).read_text())
        same = record["sources"] == sources and all(_sha256(out / n) == s for n, s in record["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return record if same else None


def _base(cache: Path) -> Path:
    """Return mmdebstrap's tar of Debian's Python, from the host's Debian sources or else mmdebstrap's defaults."""
    target = cache / f"rehearsal-base-{_short(*PACKAGES, hostapt.SUITE)}.tar"
    if target.exists():
        return target
    _say("Debian packages")
    apt = hostapt.read()
    with tempfile.TemporaryDirectory() as folder:
        mirrors = []
        for name, text in apt.sources.items():
            mirrors.append(Path(folder, name))
            mirrors[-1].write_text(text)
        part = target.with_suffix(f".{os.getpid()}.part")
        options = [f"--aptopt={option}" for option in apt.options]
        # `extract` only unpacks and runs no package scripts: five seconds instead of forty, and no chroot
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=extract",
            "--architectures=amd64",
            f"--include={','.join(PACKAGES)}",
        ]
        try:
            with part.open("wb") as stream:
                _run([*command, *options, hostapt.SUITE, "-", *map(str, mirrors)], stdout=stream)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _wheels(cache: Path) -> Path:
    target = cache / f"rehearsal-wheels-{_short((HERE / 'requirements.txt').read_text(), *PLATFORMS)}"
    if target.exists():
        return target
    _say("wheels")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        part = Path(folder, "site")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-compile",
            "--no-deps",
        ]
        command += ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", f"--target={part}"]
        command += [f"--platform={platform}" for platform in PLATFORMS]
        _run([*command, "-r", str(HERE / "requirements.txt")])
        part.rename(target)
    return target


def _image(work: Path) -> str:
    """Turn work/layer.tar into work/IMAGE, an archive for `docker load`; return the id of the image."""
    layout = str(work / "oci")
    image, created = f"{layout}:rehearsal", datetime.fromtimestamp(_epoch(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = [f"--history.created={created}", "--history.author=umccr.pcgr"]
    _run(["umoci", "init", "--layout", layout])
    _run(["umoci", "new", "--image", image])
    _run(["umoci", "raw", "add-layer", "--image", image, *history, str(work / "layer.tar")])
    variables = (f"PATH=/{layer.PREFIX}/bin:/usr/bin:/bin", f"CONDA_PREFIX=/{layer.PREFIX}", "LANG=C.UTF-8")
    command = [
        "umoci",
        "config",
        "--image",
        image,
        *history,
        f"--created={created}",
        "--os=linux",
        "--architecture=amd64",
    ]
    command += [f"--config.env={variable}" for variable in variables]
    _run([*command, "--config.cmd=/bin/sh", "--config.label=umccr.pcgr.rehearsal=not for clinical use"])
    archive = work / "image.tar"
    _say("image: archive")
    _run(["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{image}", f"docker-archive:{archive}:{REFERENCE}"])
    with tarfile.open(archive) as stream:
        manifest = stream.extractfile("manifest.json")
        assert manifest is not None
        config = json.load(manifest)[0]["Config"]
    with (
        archive.open("rb") as plain,
        (work / IMAGE).open("wb") as packed,
        gzip.GzipFile("", "wb", 6, packed, 0) as zipped,
    ):
        shutil.copyfileobj(plain, zipped, 1 << 20)
    return "sha256:" + str(config).removesuffix(".json")


def _pack(target: Path, tree: Path) -> None:
    def clean(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mtime = _epoch()
        entry.mode = 0o755 if entry.isdir() else 0o644
        return entry

    with (
        target.open("wb") as packed,
        gzip.GzipFile("", "wb", 9, packed, 0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for path in sorted(tree.rglob("*")):
            archive.add(path, str(path.relative_to(tree)), recursive=False, filter=clean)


def _write_sums(out: Path, files: dict[str, str]) -> None:
    """Write the checksums into SHA256SUMS; lines of other files stay."""
    path = out / "SHA256SUMS"
    lines = {line.split(maxsplit=1)[1]: line for line in path.read_text().splitlines()} if path.exists() else {}
    lines |= {name: f"{digest}  {name}" for name, digest in files.items()}
    text = "".join(f"{lines[name]}\n" for name in sorted(lines))
    if not path.exists() or path.read_text() != text:
        _replace(path, text)


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)


def _check_host() -> None:
    if sys.implementation.cache_tag != layer.CACHE_TAG:
        raise BuildError(
            f"rehearsal image: needs Python 3.11 (Debian 12's, for its byte code), this is {sys.version.split()[0]}"
        )
    missing = [name for name in ("mmdebstrap", "umoci", "skopeo") if shutil.which(name) is None]
    if os.geteuid() != 0 and shutil.which("newuidmap") is None:
        missing.append("uidmap (to build without root)")
    if missing:
        raise BuildError(f"rehearsal image: not installed on this host: {', '.join(missing)}")


def _run(command: Sequence[str], stdout: Any = subprocess.DEVNULL) -> None:
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no output"])[-1]
        raise BuildError(f"rehearsal image: {Path(command[0]).name} failed with exit code {result.returncode}: {last}")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _short(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _epoch() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))


def _say(text: str) -> None:
    print(f"rehearsal: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m rehearsal.build`; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the archives and SHA256SUMS")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umccr.pcgr"
    parser.add_argument("--cache", type=Path, default=home, help="folder for downloaded parts (%(default)s)")
    args = parser.parse_args(argv)
    start = time.monotonic()
    try:
        record = build(args.out, args.cache)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _say(f"{record['reference']} {record['image_id']}, {record['unpacked_bytes'] / 1e6:.0f} MB unpacked")
    _say(f"ready after {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
