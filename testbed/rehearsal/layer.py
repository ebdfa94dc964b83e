"""Write the only layer of the rehearsal image: Debian's Python, the wheels and the tool, byte-compiled. Needs no root."""

from __future__ import annotations

import io
import py_compile
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "opt/mambaforge/envs/pcgr"  # where PCGR's image has its tools
SITE = f"{PREFIX}/lib/rehearsal"
COMMANDS = ("pcgr", "cpsr")
CACHE_TAG = "cpython-311"  # Debian 12's Python

_SCRIPT = """\
#!/usr/bin/python3 -IS
import sys

sys.path.insert(0, "/{site}")
from pcgr_rehearsal.run import main

sys.exit(main("{command}"))
"""
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
_FOLDERS = {"proc": 0o555, "sys": 0o555, "dev": 0o755, "mnt": 0o755, "root": 0o700, "run": 0o755, "tmp": 0o1777}
# What the tool does not need to run. Copyright files stay.
_UNUSED = (
    "usr/share/locale/",
    "usr/share/man/",
    "usr/share/zoneinfo/",
    "usr/share/lintian/",
    "usr/share/bash-completion/",
    "usr/share/perl5/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/lib/python3.11/test/",
    "usr/lib/python3.11/unittest/",
    "usr/lib/python3.11/pydoc_data/",
    "usr/lib/python3.11/lib2to3/",
    "usr/lib/python3.11/idlelib/",
    "usr/lib/python3.11/turtle",
    "usr/lib/systemd/",
    "lib/systemd/",
    "var/",
    "usr/bin/dpkg",
    "usr/sbin/dpkg",
    "usr/libexec/dpkg/",
    "dev/",
)
# pip's metadata. RECORD differs between hosts, because it has the checksums of scripts that name pip's Python.
_NOTES = ("RECORD", "INSTALLER", "REQUESTED")
_UNUSED_ENDS = (".pxd", ".pyx", ".h", ".c", ".pyc", ".pyi")


def write_layer(target: Path, base: Path, wheels: Path, package: Path, epoch: int) -> int:
    """Write the layer as a tar file: members sorted, owned by root, not newer than `epoch` (seconds since 1970).

    `base` is mmdebstrap's tar, `wheels` a folder filled by ``pip install --target``, `package` the tool's package. Return
    the total size of the files in bytes.
    """
    members = dict(_debian(base))
    for source, below in ((wheels, SITE), (package, f"{SITE}/{package.name}")):
        members.update(_tree(source, below))
    for name, text in _FILES.items():
        members[name] = _file(name, text.encode())
    for command in COMMANDS:
        name = f"{PREFIX}/bin/{command}"
        members[name] = _file(name, _SCRIPT.format(site=SITE, command=command).encode(), 0o755)
    members["bin/sh"] = _link("bin/sh", "dash")
    members.update(_compiled(members))
    for name, mode in _FOLDERS.items():
        members[name] = _folder(name, mode)
    for name in list(members):
        for parent in Path(name).parents:
            if str(parent) != "." and str(parent) not in members:
                members[str(parent)] = _folder(str(parent), 0o755)
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(members):
            entry, data = members[name]
            entry.mtime = min(int(entry.mtime), epoch) or epoch
            entry.uname = entry.gname = ""
            entry.pax_headers = {}
            archive.addfile(entry, io.BytesIO(data) if entry.isreg() else None)
    return sum(len(data) for entry, data in members.values() if entry.isreg())


Member = tuple[tarfile.TarInfo, bytes]


def _debian(base: Path) -> Iterator[tuple[str, Member]]:
    with tarfile.open(base) as archive:
        for entry in archive:
            entry.name = entry.name.removeprefix("./").rstrip("/")
            document = entry.name.startswith("usr/share/doc/") and not entry.name.endswith("/copyright")
            if not entry.name or document or f"{entry.name}/".startswith(_UNUSED) or entry.name.startswith(_UNUSED):
                continue
            if entry.isreg():
                stream = archive.extractfile(entry)
                assert stream is not None
                yield entry.name, (entry, stream.read())
            elif entry.isdir() or entry.issym() or entry.islnk():
                yield entry.name, (entry, b"")


def _tree(source: Path, below: str) -> Iterator[tuple[str, Member]]:
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        unused = (
            path.suffix in _UNUSED_ENDS
            or relative.parts[0] == "bin"
            or {"tests", "include", *_NOTES} & set(relative.parts)
        )
        if path.is_file() and not unused:
            name = f"{below}/{relative}"
            yield name, _file(name, path.read_bytes(), 0o755 if path.suffix == ".so" else 0o644)


def _compiled(members: dict[str, Member]) -> Iterator[tuple[str, Member]]:
    """Compile to byte code that Python uses without comparing it to the source, and that does not depend on build time."""
    with tempfile.TemporaryDirectory() as folder:
        source, code = Path(folder, "source.py"), Path(folder, "code.pyc")
        for name, (entry, data) in list(members.items()):
            path = Path(name)
            if path.suffix != ".py" or not entry.isreg():
                continue
            source.write_bytes(data)
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            try:
                py_compile.compile(str(source), str(code), f"/{name}", doraise=True, invalidation_mode=mode)
            except py_compile.PyCompileError:  # a few files of the standard library do not compile, on purpose
                continue
            target = f"{path.parent}/__pycache__/{path.stem}.{CACHE_TAG}.pyc"
            yield target, _file(target, code.read_bytes())


def _file(name: str, data: bytes, mode: int = 0o644) -> Member:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    return entry, data


def _folder(name: str, mode: int) -> Member:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    return entry, b""


def _link(name: str, target: str) -> Member:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry, b""
