"""What a tar file may do to lose or change data in silence: each is refused by name, and nothing that is right is."""

from __future__ import annotations

import json
import os
import random
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.databundle import BUNDLE, DATE, Mirror, archive, bring, large, member, mirror, refused, tree
from support.module_runner import load

__all__ = ["mirror"]  # a fixture

FINAL = f"bundles/{DATE}/data/grch38"
VERSION = {"data/grch38/.PCGR_BUNDLE_VERSION": f"{DATE}\n".encode()}
SMALL = VERSION | {f"data/grch38/{number}": bytes([65 + number]) * 700 * number for number in range(8)}
END = bytes(1024)


def compress(tar: bytes) -> bytes:
    work = zlib.compressobj(1, wbits=31)
    return work.compress(tar) + work.flush()


def file(name: str, content: bytes = b"", **fields: Any) -> bytes:
    """A member as it is in a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    form = fields.pop("format", tarfile.USTAR_FORMAT)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(form) + content + bytes(-len(content) % 512)


def summed(header: bytes) -> bytes:
    """The header with its checksum made right."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def records(flag: bytes, text: bytes) -> bytes:
    """An extended header that holds `text`."""
    info = tarfile.TarInfo("about")
    info.type, info.size = flag, len(text)
    return info.tobuf(tarfile.USTAR_FORMAT) + text + bytes(-len(text) % 512)


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = next(n for n in range(len(rest), len(rest) + 9) if len(str(n)) + len(rest) == n)
    return str(length).encode() + rest


def install(mirror: Mirror, root: Path, tar: bytes, **more: Any) -> dict[str, Any]:
    """Bring a bundle that is the tar file `tar`, with the right checksum published."""
    mirror.files["bundle.tgz"] = compress(tar)
    mirror.sums()
    return bring(root, mirror, **more)


def good(members: dict[str, bytes] = SMALL) -> bytes:
    return b"".join(file(name, body) for name, body in members.items())


def gnu_tar(folder: Path, *options: str) -> bytes:
    command = ["tar", "--create", "--file=-", "--sort=name", *options, "data"]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as someone may pack them, one with holes."""
    source = tmp_path / "source"
    for name, body in SMALL.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(body)
    return source


# ---- sparse files


@pytest.mark.parametrize(
    "options",
    [["--format=gnu"], *(["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0"))],
    ids=" ".join,
)
@pytest.mark.parametrize("pieces", [2, 60])  # with 60, GNU's old format continues the map behind the header
def test_sparse_files_are_refused(
    mirror: Mirror, tmp_path: Path, folder: Path, options: list[str], pieces: int
) -> None:
    with (folder / "data/grch38/5sparse").open("wb") as out:
        for number in range(pieces):
            out.seek(number * 100_000)
            out.write(b"x" * 4096)
        out.truncate(pieces * 100_000)
    tar = gnu_tar(folder, "--sparse", *options)
    answer = install(mirror, tmp_path / "root", tar)
    refused(answer, tmp_path / "root", "bundle.tgz", "'data/grch38/5sparse' at byte ", "found a sparse file")


@pytest.mark.parametrize(
    "text", [record("SCHILY.realsize", "9000"), record("SUN.holesdata", " 0 1 2"), record("SCHILY.filetype", "sparse")]
)
@pytest.mark.parametrize("flag", [b"x", b"g"])
def test_other_makers_sparse_files_are_refused(mirror: Mirror, tmp_path: Path, flag: bytes, text: bytes) -> None:
    tar = good() + records(flag, text) + file("data/grch38/odd", b"z" * 512) + END
    refused(install(mirror, tmp_path, tar), tmp_path, "'data/grch38/odd'", f"at byte {len(good())}", "a sparse file")


def test_unwanted_sparse_files_are_refused_too(mirror: Mirror, tmp_path: Path) -> None:
    """What follows them could not be found."""
    tar = good() + file("elsewhere/odd", b"", type=tarfile.GNUTYPE_SPARSE, format=tarfile.GNU_FORMAT) + END
    refused(install(mirror, tmp_path, tar), tmp_path, "'elsewhere/odd'", "a sparse file")


# ---- headers


@pytest.mark.parametrize("where", ["file", "pax header", "behind a pax header", "long name", "behind a long name"])
def test_damaged_headers_are_not_the_end(mirror: Mirror, tmp_path: Path, where: str) -> None:
    name = "data/grch38/" + "long" * 40
    form = tarfile.GNU_FORMAT if "long" in where else tarfile.PAX_FORMAT
    odd = file("data/grch38/odd", b"x") if where == "file" else file(name, b"x", format=form)
    place = 1024 if "behind" in where else 0
    broken = bytearray(odd)
    broken[place + 140] ^= 1
    at = len(good()) + place
    answer = install(mirror, tmp_path, good() + bytes(broken) + file("data/grch38/z", b"lost") + END)
    refused(answer, tmp_path, "bundle.tgz", f"byte {at}, after member 'data/grch38/7'", "damaged header")
    assert install(mirror, tmp_path, good() + odd + file("data/grch38/z", b"lost") + END)["changed"] is True
    assert (tmp_path / FINAL / "z").read_bytes() == b"lost"


@pytest.mark.parametrize(
    ("first", "field"), [(124, b"size\0"), (136, b"when?\0"), (100, b"mode!\0")], ids=["size", "mtime", "mode"]
)
def test_numbers_that_are_none(mirror: Mirror, tmp_path: Path, first: int, field: bytes) -> None:
    block = file("data/grch38/odd")
    block = summed(block[:first] + field + block[first + len(field) :])
    answer = install(mirror, tmp_path, good() + block + file("data/grch38/z") + END)
    refused(answer, tmp_path, "bundle.tgz", f"byte {len(good())}", "damaged header")


def test_a_size_below_zero(mirror: Mirror, tmp_path: Path) -> None:
    block = file("data/grch38/odd")
    block = summed(block[:124] + b"\xff" * 10 + b"\xfe\0" + block[136:])
    refused(install(mirror, tmp_path, good() + block + END), tmp_path, f"byte {len(good())}", "size of -512")


def test_a_time_no_system_knows(mirror: Mirror, tmp_path: Path) -> None:
    block = file("data/grch38/odd")
    block = summed(block[:136] + b"\x80" + b"\x7f" * 11 + block[148:])
    refused(
        install(mirror, tmp_path, good() + block + END),
        tmp_path,
        "'data/grch38/odd'",
        f"at byte {len(good())}",
        "mtime",
    )


@pytest.mark.parametrize("kind", "346SMVDNAX8z")
def test_other_types_are_refused(mirror: Mirror, tmp_path: Path, kind: str) -> None:
    block = file("data/grch38/odd")
    block = summed(block[:156] + kind.encode() + block[157:])
    answer = install(mirror, tmp_path, good() + block + file("data/grch38/z") + END)
    refused(answer, tmp_path, f"'data/grch38/odd' at byte {len(good())}", "allowed files, folders")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (record("path", "data/grch38/other")[:-1], "damaged record"),
        (b"999 path=data/grch38/other\n", "damaged record"),
        (b"0 path=data/grch38/other\n", "damaged record"),
        (b"\0" + record("path", "data/grch38/other"), "damaged record"),
        (record("size", "-1"), "size '-1'"),
        (record("size", "1e3"), "size '1e3'"),
        (record("mtime", "nan"), "mtime 'nan'"),
        (record("path", ""), "no name"),
        (record("GNU.volume.offset", "512"), "another volume"),
        (b"x" * ((1 << 20) + 1), "1048577 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_extended_headers_that_cannot_be_read(mirror: Mirror, tmp_path: Path, text: bytes, word: str) -> None:
    tar = good() + records(b"x", text) + file("data/grch38/odd") + END
    refused(install(mirror, tmp_path, tar), tmp_path, "bundle.tgz", f"byte {len(good())}", word)


@pytest.mark.parametrize("key", ["path", "linkpath", "size"])
def test_one_name_for_all_members(mirror: Mirror, tmp_path: Path, key: str) -> None:
    answer = install(mirror, tmp_path, good() + records(b"g", record(key, "1")) + file("data/grch38/odd") + END)
    refused(answer, tmp_path, f"byte {len(good())}", f"{key} in a header for all members")


@pytest.mark.parametrize("flag", [b"x", b"L", b"K"])
def test_extended_header_without_a_member(mirror: Mirror, tmp_path: Path, flag: bytes) -> None:
    tar = good() + records(flag, record("path", "data/grch38/lost"))
    refused(install(mirror, tmp_path, tar + END), tmp_path, f"byte {len(tar)}", "the end of the archive")


def test_what_describes_all_members_may_be_the_last(mirror: Mirror, tmp_path: Path) -> None:
    assert install(mirror, tmp_path, good() + records(b"g", record("comment", "x")) + END)["changed"] is True


# ---- the end


ENDS = {
    "nothing": b"",
    "one zero block": END[:512],
    "a part of the second": END[:1000],
    "one zero block and a member": END[:512] + file("data/grch38/z"),
    "another archive": END + file("data/grch38/z") + END,
    "another archive far behind": END + bytes(3 << 20) + file("data/grch38/z") + END,
    "data": END + bytes(9000) + b"data",
    "a part of a header": file("data/grch38/z")[:300],
    "a part of a zero block": END[:300],
}


@pytest.mark.parametrize("end", ENDS)
def test_ends_that_are_none(mirror: Mirror, tmp_path: Path, end: str) -> None:
    answer = install(mirror, tmp_path, good() + ENDS[end])
    refused(answer, tmp_path, "bundle.tgz: damaged or cut", f"byte {len(good())}, after member 'data/grch38/7'")


@pytest.mark.parametrize("more", [0, 1, 511, 512, 9216, 5 << 20])
def test_zeros_behind_the_end_are_padding(mirror: Mirror, tmp_path: Path, more: int) -> None:
    assert install(mirror, tmp_path, good() + END + bytes(more))["changed"] is True


class Memory:
    """A tar file in memory, as a source for the reader."""

    def __init__(self, content: bytes) -> None:
        self.content, self.position = content, 0

    def take(self, size: int) -> memoryview:
        part = self.content[self.position : self.position + size]
        self.position += len(part)
        return memoryview(part)

    def read(self, size: int) -> bytes:
        return bytes(self.take(size))

    def seek(self, position: int) -> int:
        self.position = max(self.position, min(position, len(self.content)))
        return self.position


def read(content: bytes) -> list[Any]:
    module = load("module_utils._transfer.tar_reader")
    reader, members = module.TarReader(Memory(content), "x.tgz"), []
    while found := reader.member():
        members.append(found)
    return members


def varied() -> bytes:
    """All kinds of headers."""
    name = "data/grch38/" + "long" * 40
    both = file(name, b"pax" * 300, format=tarfile.PAX_FORMAT) + file(name + "2", b"gnu", format=tarfile.GNU_FORMAT)
    links = file("data/h", type=tarfile.LNKTYPE, linkname=name, format=tarfile.GNU_FORMAT)
    links += file("data/s", type=tarfile.SYMTYPE, linkname="h")
    return records(b"g", record("comment", "x")) + file("data/", type=tarfile.DIRTYPE) + both + links + file("data/z")


def test_cut_anywhere() -> None:
    error = load("module_utils._transfer.tar_reader").UnpackError
    whole = varied() + END
    assert [found.name[-5:] for found in read(whole)] == ["data/", "glong", "long2", "ata/h", "ata/s", "ata/z"]
    for length in {*range(0, len(whole), 512), *range(1, len(whole), 97), len(whole) - 1}:
        with pytest.raises(error, match=r"^x\.tgz: damaged or cut archive: .*found .*, allowed "):
            read(whole[:length])


def test_any_wrong_byte_of_a_header_is_noticed() -> None:
    """A tar header's checksum is a sum of bytes: each change of one of them shows."""
    error = load("module_utils._transfer.tar_reader").UnpackError
    chance = random.Random(1)
    whole = varied() + END
    expected = read(whole)
    changed = 0
    for start in (found.offset for found in expected):
        for place in range(start, start + 512):
            broken = bytearray(whole)
            broken[place] ^= 1 << chance.randrange(8)
            try:
                found = read(bytes(broken))
            except error:
                changed += 1
            else:
                assert found == expected, place  # only what pads the checksum may differ
    assert changed > 500 * len(expected)


@pytest.mark.parametrize("wanted", [True, False])
def test_cut_in_a_member(mirror: Mirror, tmp_path: Path, wanted: bool) -> None:
    name = "data/grch38/cut" if wanted else "elsewhere/cut"
    tar = good() + file(name, b"x" * 5000)
    for missing in (4000, 121, 1):  # in its content, and in what pads it
        answer = install(mirror, tmp_path, tar[:-missing])
        refused(answer, tmp_path, "bundle.tgz: damaged or cut", repr(name), f"byte {len(tar) - missing}", f"{len(tar)}")


# ---- what is right


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_as_gnu_tar_unpacks_it(mirror: Mirror, tmp_path: Path, folder: Path, form: str) -> None:
    place = folder / "data/grch38"
    (place / "1").chmod(0o755)
    (place / "folder/empty").mkdir(parents=True)
    (place / "folder/ünï").write_bytes(b"name")
    os.link(place / "2", place / "2hard")
    (place / "2soft").symlink_to("2hard")
    if form != "v7":  # which knows no long names
        name = "/".join(["n" * 60] * (2 if form == "ustar" else 4))
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(b"long")
        if form != "ustar":  # which knows no long targets
            os.link(place / name, place / (name[:-1] + "z"))
    tar = gnu_tar(folder, f"--format={form}")
    answer = install(mirror, tmp_path / "root", tar)
    assert answer["changed"] is True, answer
    (tmp_path / "root" / FINAL / ".umccr.pcgr.json").unlink()
    there = ["diff", "--recursive", "--no-dereference", str(place), str(tmp_path / "root" / FINAL)]
    assert subprocess.run(there, check=False, capture_output=True, text=True).stdout == ""
    same = (tmp_path / "root" / FINAL / "2").stat()
    assert same.st_ino == (tmp_path / "root" / FINAL / "2hard").stat().st_ino
    assert int(same.st_mtime) == int((place / "2").stat().st_mtime)


def test_times_in_old_gnu_headers_are_no_names() -> None:
    block = file("data/z", format=tarfile.GNU_FORMAT)
    block = summed(block[:345] + b"14726542343\0" + block[357:])
    assert [found.name for found in read(block + END)] == ["data/z"]


def test_folders_of_v7_and_contiguous_files(mirror: Mirror, tmp_path: Path) -> None:
    block = file("data/grch38/old/")
    old = summed(block[:156] + b"\0" + block[157:])
    tar = good() + old + file("data/grch38/whole", b"x", type=tarfile.CONTTYPE) + END
    assert install(mirror, tmp_path, tar)["changed"] is True
    assert (tmp_path / FINAL / "old").is_dir()
    assert (tmp_path / FINAL / "whole").read_bytes() == b"x"
    long = "data/grch38/" + "d" * 98 + "/file"  # cut at 100 bytes, its header looks like a folder's
    block = file(long, b"y", format=tarfile.GNU_FORMAT)
    cut = summed(block[1024:1180] + b"\0" + block[1181:1536])
    header = records(b"L", long.encode() + b"\0")
    assert read(header + cut + block[1536:] + END)[0].kind == "file"


# ---- hard links


def test_hard_links_inside_are_made(mirror: Mirror, tmp_path: Path) -> None:
    links = [
        member("data/grch38/same", tarfile.LNKTYPE, "data/grch38/big"),
        member("data/grch38/again", tarfile.LNKTYPE, "./data/grch38/same"),
    ]
    mirror.files["bundle.tgz"] = archive(BUNDLE, links)
    mirror.sums()
    assert bring(tmp_path, mirror)["changed"] is True
    one, two, three = (tmp_path / FINAL / name for name in ("big", "same", "again"))
    assert three.read_bytes() == BUNDLE["data/grch38/big"]
    assert one.stat().st_ino == two.stat().st_ino == three.stat().st_ino
    assert json.loads((tmp_path / FINAL / ".umccr.pcgr.json").read_text())["files"] == 4
    assert bring(tmp_path, mirror)["changed"] is False


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "data/grch38/../../../outside",
        "data/grch37/big",
        "data/grch38/later",
        "data/grch38/folder",
        "",
        "data/grch38/hard",
    ],
)
def test_hard_links_to_anything_else_are_refused(mirror: Mirror, tmp_path: Path, target: str) -> None:
    odd = file("data/grch38/hard", type=tarfile.LNKTYPE, linkname=target)
    start = good() + file("data/grch37/big", b"x") + file("data/grch38/folder", type=tarfile.DIRTYPE)
    answer = install(mirror, tmp_path, start + odd + file("data/grch38/later", b"x") + END)
    refused(answer, tmp_path, f"'data/grch38/hard' at byte {len(start)}", f"a hard link to {target!r}")


def test_a_symbolic_link_to_nothing(mirror: Mirror, tmp_path: Path) -> None:
    odd = file("data/grch38/soft", type=tarfile.SYMTYPE)
    refused(install(mirror, tmp_path, good() + odd + END), tmp_path, f"'data/grch38/soft' at byte {len(good())}", "''")


# ---- after a cut


def interrupted(mirror: Mirror, root: Path, tar: bytes) -> None:
    """Have a run that breaks off far behind its last checkpoint."""
    mirror.files["bundle.tgz"] = compress(tar)
    mirror.sums()
    mirror.cut_after["bundle.tgz"] = [1 << 20] * 15 + [0] * 1000
    assert "the next run goes on" in bring(root, mirror, connections=1)["msg"]
    mirror.cut_after.clear()
    mirror.sent = 0


def test_links_and_what_holds_for_all_members_outlive_a_cut(mirror: Mirror, tmp_path: Path) -> None:
    members = large(6)
    tar = records(b"g", record("mtime", "1234567890.5"))
    for number, (name, body) in enumerate(members.items()):
        tar += file(name, body)
        if number % 20 == 0:  # made before the cut, behind the last checkpoint, and after the cut
            tar += file(f"data/grch38/hard{number}", type=tarfile.LNKTYPE, linkname=name)
    tar += END
    interrupted(mirror, tmp_path, tar)
    assert bring(tmp_path, mirror)["changed"] is True
    assert mirror.sent < len(mirror.files["bundle.tgz"]) - (3 << 20)
    found = [path for path in (tmp_path / FINAL).iterdir() if path.name != ".umccr.pcgr.json"]
    assert {int(path.stat().st_mtime) for path in found} == {1234567890}
    names = list(members)
    pairs = [(tmp_path / f"bundles/{DATE}" / names[n], tmp_path / FINAL / f"hard{n}") for n in range(0, len(names), 20)]
    assert len(pairs) > 50
    assert all(one.samefile(two) for one, two in pairs)
    assert all((tmp_path / f"bundles/{DATE}" / name).read_bytes() == body for name, body in members.items())


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no end": (lambda tar: tar, "the end of the file"),
    "header": (lambda tar: tar + b"x" * 512 + END, "damaged header"),
    "in a member": (lambda tar: tar[:-600], "the end of the file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_behind_a_cut_is_named_by_its_place_in_the_archive(mirror: Mirror, tmp_path: Path, damage: str) -> None:
    change, word = DAMAGE[damage]
    tar = good(large(7))
    interrupted(mirror, tmp_path, change(tar))
    answer = bring(tmp_path, mirror)
    place = len(tar) - (600 if damage == "in a member" else 0)
    refused(answer, tmp_path, f"byte {place}", "'data/grch38/1001'", word)


def test_checkpoints_of_the_older_reader_are_not_used(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was behind them may have lost something."""
    module = load("module_utils._transfer.archive")
    with monkeypatch.context() as older:
        older.setattr(module, "FORMAT", 1)
        interrupted(mirror, tmp_path, good(large(8)) + END)
    assert bring(tmp_path, mirror)["changed"] is True
    assert mirror.sent > len(mirror.files["bundle.tgz"])


def test_nothing_is_put_in_place_beside_a_refusal(mirror: Mirror, tmp_path: Path) -> None:
    assert install(mirror, tmp_path, good() + END)["changed"] is True
    before = tree(tmp_path)
    assert install(mirror, tmp_path, good(SMALL | {"data/grch38/new": b"x"}))["failed"]
    assert tree(tmp_path) == before
