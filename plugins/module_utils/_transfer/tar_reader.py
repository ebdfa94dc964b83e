# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the members of a tar file strictly: whatever would be lost or changed in silence is an error.

Python's tarfile takes a damaged header for the end of the archive, stops at the first zero block, skips what it cannot read in
an extended header, and maps sparse files itself. Here each of them is an error that names the byte. Formats: V7, ustar, GNU and
pax (POSIX.1-2008, "pax Interchange Format"; GNU tar's manual, "Basic Tar Format" and "Storing Sparse Files").
"""

from __future__ import annotations

import os
import re
import tarfile
from dataclasses import dataclass, replace
from typing import Any, Protocol

BLOCK = tarfile.BLOCKSIZE
LONGEST_HEADER = 1 << 20  # bytes of an extended header; names and attributes need a few thousand
LATEST = 1 << 40  # seconds; no system call takes much more
FILE, FOLDER, SYMLINK, HARDLINK = "file", "folder", "symbolic link", "hard link"
KINDS = {b"0": FILE, b"\0": FILE, b"7": FILE, b"5": FOLDER, b"2": SYMLINK, b"1": HARDLINK}
ALLOWED = "files, folders, symbolic links and hard links"
REFUSED = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"S": "a sparse file",
    b"M": "a file continued from another volume",
    b"V": "a volume label",
}
# Type flags of what describes the member behind it.
PAX, PAX_OF_ALL, LONG_NAME, LONG_TARGET = b"x", b"g", b"L", b"K"
OLD_GNU = b"ustar  \0"  # its headers hold times where ustar's hold the beginning of a long name
RECORD = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
# Records with which the content that follows is not the file's content as it was; of GNU tar, Solaris and star.
SPARSE = re.compile(r"GNU\.sparse\..*|SUN\.holesdata|SCHILY\.realsize")
NUMBERS = {"size": re.compile(r"[0-9]{1,18}"), "mtime": re.compile(r"-?[0-9]{1,18}(\.[0-9]*)?")}
VOLUMES = re.compile(r"GNU\.volume\.(filename|size|offset)")


class UnpackError(Exception):
    """The archive is damaged or holds what must not be unpacked; the text is one line."""


class Source(Protocol):
    """A tar file that is read forwards; `position` counts the bytes that were given out."""

    position: int

    def take(self, size: int) -> memoryview:
        """At most `size` of the next bytes; empty at the end."""

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, fewer at the end."""

    def seek(self, position: int) -> int:
        """Skip to `position`; return the position reached, an earlier one at the end."""


@dataclass(frozen=True)
class Member:
    """One entry of a tar file: `kind` is one of `KINDS`, `changed` seconds since 1970, `offset` where its first header begins."""

    name: str
    kind: str
    target: str  # of a link
    size: int  # bytes of content; 0 except for files
    mode: int
    changed: int
    offset: int


class TarReader:
    """The members of the tar file `source`, which messages call `label`; goes on from an earlier `state` when it is given one."""

    def __init__(self, source: Source, label: str, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.source = source
        self.label = label
        self.next: int = state.get("next", 0)  # where the next member's first header begins
        self.last: str = state.get("last", "")  # name of the member before it
        self.common: dict[str, str] = dict(state.get("common", {}))  # records that hold for all members to come

    @property
    def state(self) -> dict[str, Any]:
        """What reading can go on with at `next`; can be written as JSON."""
        return {"next": self.next, "last": self.last, "common": self.common}

    def member(self) -> Member | None:
        """The next member, whose content the source then gives; None behind the last one, with the source at its end.

        Raises UnpackError, also when the archive does not end as it must: with two zero blocks and nothing but zeros behind.
        """
        if self.source.seek(self.next) < self.next:
            raise self.cut()
        start = self.next
        names: dict[str, str] = {}  # GNU's way of long names
        records: dict[str, str] = {}
        described = False
        while True:
            at = self.source.position
            block = self.source.read(BLOCK)
            if len(block) == BLOCK and not block.strip(b"\0"):
                if described:
                    raise self._error(at, "the end of the archive", "the member that the header before it describes")
                self._end(at)
                return None
            info = self._parse(block, at)
            flag = block[156:157]
            if flag in (LONG_NAME, LONG_TARGET):
                text = os.fsdecode(self._content(info, at).partition(b"\0")[0])
                names["path" if flag == LONG_NAME else "linkpath"] = text
            elif flag == PAX:
                records |= self._records(info, at)
            elif flag == PAX_OF_ALL:
                self.common |= self._records_of_all(info, at)
            else:
                return self._member(info, block, start, self.common | names | records)
            described = described or flag != PAX_OF_ALL

    def cut(self) -> UnpackError:
        """What to raise where the archive ends in the midst of the last member."""
        found = f"the end of the file at byte {self.source.position}"
        return UnpackError(
            f"{self.label}: damaged or cut archive: member {self.last!r}: found {found}, allowed {self.next}"
        )

    def refuse(self, member: Member, found: str, allowed: str) -> UnpackError:
        """What to raise for a member that must not be unpacked."""
        return UnpackError(
            f"{self.label}: refused: member {member.name!r} at byte {member.offset}: found {found}, allowed {allowed}"
        )

    def _error(self, at: int, found: str, allowed: str) -> UnpackError:
        where = f"byte {at}, after member {self.last!r}" if self.last else f"byte {at}"
        return UnpackError(f"{self.label}: damaged or cut archive: {where}: found {found}, allowed {allowed}")

    def _parse(self, block: bytes, at: int) -> tarfile.TarInfo:
        """The fields of a header; the checksum is right, the numbers are numbers."""
        if len(block) < BLOCK:
            raise self._error(at, "the end of the file", "a header or the two zero blocks that end an archive")
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._error(at, f"a damaged header ({error})", "a header with a right checksum") from None
        if info.size < 0:
            raise self._error(at, f"a size of {info.size}", "0 or more")
        return info

    def _content(self, info: tarfile.TarInfo, at: int) -> bytes:
        """What an extended header holds."""
        if info.size > LONGEST_HEADER:
            raise self._error(at, f"an extended header of {info.size} bytes", f"{LONGEST_HEADER}")
        padded = padded_to_blocks(info.size)
        data = self.source.read(padded)
        if len(data) < padded:
            raise self._error(at, f"an extended header cut at byte {self.source.position}", f"{info.size} bytes of it")
        return data[: info.size]

    def _records(self, info: tarfile.TarInfo, at: int) -> dict[str, str]:
        """The records of a pax header by keyword."""
        data, position, records = self._content(info, at), 0, {}
        while position < len(data):
            match = RECORD.match(data, position)
            end = position + int(match[1]) if match else 0
            if not match or not match.end() < end <= len(data) or not data.endswith(b"\n", position, end):
                shown = position + 40
                raise self._error(at, f"a damaged record {data[position:shown]!r}", "length, keyword=value")
            first, last = match.end(), end - 1
            records[os.fsdecode(match[2])] = os.fsdecode(data[first:last])
            position = end
        return records

    def _records_of_all(self, info: tarfile.TarInfo, at: int) -> dict[str, str]:
        records = self._records(info, at)
        if wrong := sorted(records.keys() & {"path", "linkpath", "size"}):
            raise self._error(at, f"{wrong[0]} in a header for all members", "it in the header of one member")
        return records

    def _member(self, info: tarfile.TarInfo, block: bytes, start: int, records: dict[str, str]) -> Member:
        """The member of a header and of the records before it; afterwards the source is at its content."""
        flag = block[156:157]
        name = records.get("GNU.sparse.name") or records.get("path", _name(block))
        target = records.get("linkpath", _text(block[157:257]))
        kind = KINDS.get(flag, "")
        if kind == FILE and name.endswith("/"):  # V7 has no type for folders
            kind = FOLDER
        member = Member(name, kind, target, info.size if kind == FILE else 0, info.mode, int(info.mtime), start)
        if not kind:
            raise self.refuse(member, REFUSED.get(flag, f"the unknown type {flag.decode('latin-1')!r}"), ALLOWED)
        if records:
            member = self._described(member, records)
        if not name:
            raise self.refuse(member, "no name", "a path inside the archive's folder")
        if abs(member.changed) >= LATEST:
            raise self.refuse(member, f"mtime {member.changed}", f"seconds since 1970, less than {LATEST}")
        if kind == FOLDER and flag != b"5" and info.size:
            raise self.refuse(member, f"a folder of {info.size} bytes", "0")
        self.last, self.next = name, self.source.position + padded_to_blocks(member.size)
        return member

    def _described(self, member: Member, records: dict[str, str]) -> Member:
        """The member with the numbers of its records; those that change what its content means are refused."""
        if any(map(SPARSE.fullmatch, records)) or records.get("SCHILY.filetype") == "sparse":
            raise self.refuse(member, REFUSED[b"S"], ALLOWED)
        if any(map(VOLUMES.fullmatch, records)):
            raise self.refuse(member, REFUSED[b"M"], ALLOWED)
        for key, number in NUMBERS.items():
            if key in records and not number.fullmatch(records[key]):
                raise self.refuse(member, f"{key} {records[key]!r}", "a number")
        if "mtime" in records:
            member = replace(member, changed=int(records["mtime"].partition(".")[0]))
        if "size" in records and member.kind == FILE:
            member = replace(member, size=int(records["size"]))
        return member

    def _end(self, at: int) -> None:
        """Read what follows the first zero block, which is at `at`."""
        allowed = "two zero blocks"
        second = self.source.read(BLOCK)
        if second.strip(b"\0"):
            raise self._error(at, "one zero block with data behind it", allowed)
        if len(second) < BLOCK:
            raise self._error(at, "one zero block and the end of the file", allowed)
        while part := bytes(self.source.take(1 << 20)):
            if rest := part.lstrip(b"\0"):
                found = f"the end of the archive with data behind it at byte {self.source.position - len(rest)}"
                raise self._error(at, found, "zeros only")


def padded_to_blocks(size: int) -> int:
    """`size` bytes rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> str:
    return os.fsdecode(field.partition(b"\0")[0])


def _name(block: bytes) -> str:
    """The name in a header; ustar splits a long one."""
    name, prefix = _text(block[:100]), ""
    if block[257:262] == b"ustar" and block[257:265] != OLD_GNU:
        prefix = _text(block[345:500])
    return f"{prefix}/{name}" if prefix else name
