"""The sample tarball's own extractor: regular files with allow-listed names into a fresh folder, and nothing else.

The standard library decodes single headers only. Its archive loop is not used: it takes a damaged header in the middle for the
end of the archive, reads extension records of any size into memory, and its extraction filters have been bypassed
(CVE-2025-4517, CVE-2025-4138, CVE-2025-4330).
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from .inflate import Inflater, Unreadable
from .model import Permanent

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # 100: the name field of a tar header
# Kinds of files of a sample, longest ending first; and how large one may be (None: as large as the whole).
ENDINGS: dict[str, int | None] = {
    ".vcf.gz.tbi": 256 << 20,  # an index of a whole genome's VCF is a few MB
    ".vcf.gz": None,
    ".vcf": None,
    ".cna.tsv": None,
    ".fusions.tsv": None,
    ".expression.tsv": None,
    ".toml": 64 << 10,  # options take a few kB; the time of the parser may grow faster than the text
}
EXTENSION_MAX = 64 << 10  # bytes of one pax record block; real ones hold a few hundred
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE)
_TYPES = {
    tarfile.DIRTYPE: "a folder",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGNAME: "an entry with a long name",
    tarfile.GNUTYPE_LONGLINK: "a link with a long name",
}
EXTENSIONS_PER_MEMBER = 4  # tools write one, and one for the whole archive
_HARMFUL_PAX = (b"path", b"size", b"linkpath")
_SPARSE_PAX = b"GNU.sparse"
_LENGTH_DIGITS = len(str(EXTENSION_MAX))


def ending_of(name: str) -> str | None:
    """Which of the known endings `name` has."""
    return next((ending for ending in ENDINGS if name.endswith(ending) and name != ending), None)


def unpack(
    tarball: Path,
    target: Path,
    *,
    members: int,
    unpacked_bytes: int,
    ratio: int,
    label: str,
    pulse: Callable[[], None] = lambda: None,
) -> list[str]:
    """Unpack `tarball` into the new folder `target` (0700); returns the file names in the archive's order.

    Permanent (stage ``unpack``) with one line that calls the tarball `label` for everything that is not a small gzipped
    tar of regular files with allowed names; `target` may then hold some of the files. `pulse` is called at least once per MiB
    and may raise to break off.
    """
    if tarball.stat().st_size == 0:
        raise Permanent("unpack", f"{label}: the object is empty (0 bytes)")
    target.mkdir(mode=0o700)
    folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with Inflater(tarball, unpacked_bytes, ratio) as stream:
            return _Extraction(stream, folder, members=members, limit=unpacked_bytes, pulse=pulse).run()
    except Unreadable as error:
        raise Permanent("unpack", f"{label}: {error}") from None
    finally:
        os.close(folder)


class _Extraction:
    def __init__(self, stream: Inflater, folder: int, *, members: int, limit: int, pulse: Callable[[], None]) -> None:
        self.stream = stream
        self.folder = folder
        self.members = members
        self.limit = limit
        self.pulse = pulse
        self.names: list[str] = []
        self.extensions = 0

    def run(self) -> list[str]:
        while header := self._header():
            self.pulse()
            if header.type in _PAX:
                self._skip_pax(header)
            else:
                self._member(header)
        while rest := self.stream.read(CHUNK):  # to the end, for gzip's checksum; padding is zeros
            self.pulse()
            if rest.strip(b"\0"):
                raise Unreadable("data after the end of the tar archive")
        if not self.names:
            raise Unreadable("the archive holds no files")
        return self.names

    def _exactly(self, size: int) -> bytes:
        data = self.stream.read(size)
        if len(data) < size:
            raise Unreadable("truncated tar archive")
        return data

    def _header(self) -> tarfile.TarInfo | None:
        block = self._exactly(BLOCK)
        if not block.strip(b"\0"):
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            raise Unreadable("not a tar archive" if not self.names else "damaged tar header") from None

    def _skip_pax(self, header: tarfile.TarInfo) -> None:
        """Read over times and attributes; refuse what would rename or resize the next member behind its header."""
        if not 0 <= header.size <= EXTENSION_MAX:
            raise Unreadable(f"an extension record of {header.size} bytes; allowed: {EXTENSION_MAX}")
        self.extensions += 1
        if self.extensions > EXTENSIONS_PER_MEMBER * self.members:
            raise Unreadable(f"more than {EXTENSIONS_PER_MEMBER * self.members} extension records")
        for key in _pax_keys(self._exactly(_padded(header.size))[: header.size]):
            if key in _HARMFUL_PAX or key.startswith(_SPARSE_PAX):
                shown = ascii(key[:100].decode("utf-8", "replace"))
                raise Unreadable(f"an extension record sets {shown}; allowed: names of up to 100 characters")

    def _member(self, header: tarfile.TarInfo) -> None:
        name = header.name
        if header.type not in _REGULAR:
            what = _TYPES.get(header.type, f"of the unknown type {header.type!r}")
            self._refuse(name, f"is {what}; allowed: regular files at the top level")
        if not NAME.fullmatch(name):
            self._refuse(name, "allowed: names of A-Z a-z 0-9 . _ - without folders")
        ending = ending_of(name)
        if not ending:
            self._refuse(name, f"not a file of a sample; allowed: *{', *'.join(ENDINGS)}")
        if len(self.names) >= self.members:
            self._refuse(name, f"more than {self.members} files")
        most = min(self.limit, ENDINGS[ending] or self.limit)
        if not 0 <= header.size <= most:
            self._refuse(name, f"has {header.size} bytes; allowed: {most}")
        self._write(name, header.size)
        self.names.append(name)

    def _write(self, name: str, size: int) -> None:
        try:
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=self.folder)
        except FileExistsError:
            self._refuse(name, "is in the archive twice")
        with os.fdopen(file, "wb") as out:
            left = size
            while left:
                self.pulse()
                data = self._exactly(min(left, CHUNK))
                out.write(data)
                left -= len(data)
        self._exactly(_padded(size) - size)

    @staticmethod
    def _refuse(name: str, reason: str) -> NoReturn:
        raise Unreadable(f"member {name[:100]!a}: {reason}")


def _pax_keys(records: bytes) -> Iterator[bytes]:
    """The keys of a pax block of records ``<length> <key>=<value>\\n``, the length being the whole record's; Unreadable if damaged."""
    at = 0
    while at < len(records):
        blank = records.find(b" ", at, at + _LENGTH_DIGITS + 1)
        digits = records[at:blank] if blank > at else b""
        stop = at + int(digits) if digits.isdigit() else at
        equals = records.find(b"=", blank, stop)
        if equals < 0 or not blank < stop <= len(records) or records[stop - 1 : stop] != b"\n":
            raise Unreadable("damaged extension record")
        yield records[blank + 1 : equals]
        at = stop


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
