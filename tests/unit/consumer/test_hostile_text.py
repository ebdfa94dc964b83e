"""Text made to keep the consumer busy: what is read takes time in proportion to its size, or is refused.

A bound of a minute is no measurement: each of these inputs takes a fraction of a second where the time is linear, and from
minutes to years where it grows with the square.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from umccr_pcgr.consumer import spool_store
from umccr_pcgr.samples import checks, unpack
from umccr_pcgr.samples.model import Permanent, Stopped

pytestmark = pytest.mark.timeout(60)
GRCH38_1 = 248956422


def check(folder: Path, data: bytes, **options: Any) -> int:
    path = folder / "s.vcf"
    path.write_bytes(data)
    return checks.check_vcf(path, "grch38", single_sample=False, unpacked_bytes=1 << 30, ratio=200, **options)


def pax(*records: bytes) -> bytes:
    """An extension header with its block, without what it belongs to."""
    block = b"".join(records)
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(block)
    return info.tobuf(tarfile.USTAR_FORMAT) + block + bytes(-len(block) % 512)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    size = len(rest)
    while len(str(size)) + len(rest) != size:
        size = len(str(size)) + len(rest)
    return str(size).encode() + rest


def member(name: str = "s.vcf") -> bytes:
    return tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT)


def unpacked(folder: Path, tar: bytes, **options: Any) -> list[str]:
    path = folder / "t.tar.gz"
    path.write_bytes(gzip.compress(tar, 1))
    target = folder / f"x{len(list(folder.iterdir()))}"
    return unpack.unpack(path, target, members=16, unpacked_bytes=1 << 30, ratio=2000, label="t", **options)


# --- the VCF's header ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        ",ID=a",
        "ID=a,",
        ",length=",
        "=",
        ",",
        "<",
        '"',
        '="",',
        'a="\\",',
        "\\",
        'a="\\\\"',
        "ID=1,length",
        ",ID=1=length=",
        "length=1,length=",
    ],
)
def test_a_hostile_contig_line_takes_no_time(make: Any, tmp_path: Path, line: str) -> None:
    head = "##contig=<" + line * ((2 << 20) // len(line)) + "\n"
    assert check(tmp_path, make.vcf(head=head)) == 2


def test_the_time_for_a_header_line_does_not_grow_with_its_square() -> None:
    """Counted, not timed: every character of a line is handed out at most once."""
    for line in ("##contig=<" + ",ID=a" * 1000, '##contig=<a="' + '\\"' * 1000, "##contig=<" + "=" * 1000):
        found = list(checks.header_fields(line))
        assert sum(len(name) + len(value) for name, value in found) <= len(line)
        assert len(found) <= line.count(",") + 1


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("##contig=<ID=chr1,length=248956422>", [("ID", "chr1"), ("length", "248956422")]),
        ("##contig=<length=5,ID=1>", [("length", "5"), ("ID", "1")]),
        ('##x=<ID=1,Description="a, length=7 > \\"b\\" <c>",length=5>', [
            ("ID", "1"), ("Description", 'a, length=7 > \\"b\\" <c>'), ("length", "5"),
        ]),
        ('##x=<ID=1,URL="never closed,length=5>', [("ID", "1"), ("URL", "never closed,length=5>")]),
        ('##x=<a="ends in a backslash\\\\",ID=1>', [("a", "ends in a backslash\\\\"), ("ID", "1")]),
        ("##x=<flag,ID=1>", [("flag", ""), ("ID", "1")]),
        ("##x=<ID=1,md5=a=b>", [("ID", "1"), ("md5", "a=b")]),
        ("##x=<>", [("", "")]),
        ("##x=<", []),
        ("##x=plain", []),
    ],
)  # fmt: skip
def test_the_fields_of_a_header_line(line: str, fields: list[tuple[str, str]]) -> None:
    assert list(checks.header_fields(line)) == fields


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("##contig=<ID=1,length=5>", True),
        ("##contig=<ID=chr1,assembly=x,length=5>", True),
        ("##contig=<length=5,ID=chr1>", True),
        ('##contig=<ID=chr1,Description="one, two",length=5>', True),
        ('##contig=<ID=chr1,length="5">', True),
        (f"##contig=<ID=1,length={GRCH38_1}>", False),
        ('##contig=<ID=chr1,Description="length=5,length=5">', False),
        ("##contig=<ID=chr1_random,length=5>", False),
        ("##contig=<ID=1,length=unknown>", False),
        ("##contig=<ID=1>", False),
        ("##contig=<length=5>", False),
        ("##alt=<ID=1,length=5>", False),
    ],
)
def test_which_contig_lines_say_a_length(make: Any, tmp_path: Path, line: str, seen: bool) -> None:
    data = make.vcf(assembly=None, head=f"{line}\n")
    if seen:
        with pytest.raises(Permanent, match="the header gives chromosome 1 5 bases, of neither assembly"):
            check(tmp_path, data)
    else:
        assert check(tmp_path, data) == 2


@pytest.mark.parametrize("digits", [11, 5000, 2 << 20])
def test_numbers_of_many_digits_are_refused_by_line(make: Any, tmp_path: Path, digits: int) -> None:
    with pytest.raises(Permanent, match=f"line 2: length of contig 1: found {digits} digits, allowed: at most 10"):
        check(tmp_path, make.vcf(assembly=None, head=f"##contig=<ID=chr1,length={'9' * digits}>\n"))
    with pytest.raises(Permanent, match=r"line 3: POS b'9+', allowed: a whole number of at most 10 digits"):
        check(tmp_path, make.vcf("1 " + "9" * digits, assembly=None))
    with pytest.raises(Permanent, match=r"line 1: found '##fileformat=VCFv4\.9+'"):
        check(tmp_path, make.vcf(version="4." + "9" * digits))


def test_millions_of_columns_are_counted_not_kept(make: Any, tmp_path: Path) -> None:
    with pytest.raises(Permanent, match=r"line 2: found the columns"):
        check(tmp_path, b"##fileformat=VCFv4.2\n" + b"#CHROM\tPOS" + b"\t" * (8 << 20) + b"\n")
    head = make.vcf().split(b"\n")
    columns = next(line for line in head if line.startswith(b"#CHROM"))
    wide = columns + b"\tT" * (1 << 20)
    with pytest.raises(Permanent, match="columns, the header has 1048586"):
        check(tmp_path, make.vcf().replace(columns, wide))


def test_a_line_over_many_chunks_is_put_together_once(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of a few bytes: text that is joined anew for each of them would need a million times its size."""
    monkeypatch.setattr(checks, "CHUNK", 4)
    long = "##" + "x" * (4 << 20)
    assert check(tmp_path, make.vcf(head=f"{long}\n")) == 2


# --- the TOML -----------------------------------------------------------------------------------------------------------


def read_toml(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "s.toml"
    path.write_text(text)
    return checks.read_toml(path)


def test_a_key_of_thousands_of_parts_is_refused_by_line(tmp_path: Path) -> None:
    for text in (".".join("a" * 30_000) + " = 1", "[" + ".".join("a" * 30_000) + "]\nb = 1"):
        with pytest.raises(Permanent, match=r"s\.toml: line 2: found [0-9]+ characters, allowed: at most 1000"):
            read_toml(tmp_path, f"# first\n{text}\n")
    assert read_toml(tmp_path, f"a = '{'x' * 900}'\n")  # control


def test_the_worst_toml_that_is_allowed_takes_no_time(tmp_path: Path) -> None:
    most = unpack.ENDINGS[".toml"]
    assert most
    header = "[" + ".".join("a" * 499) + "]\n"
    keys = "".join(f"{number:x}=1\n" for number in range(0x1000, 0x1000 + (most - len(header)) // 7))
    assert len(header + keys) <= most
    assert read_toml(tmp_path, header + keys)
    dotted = [f"{number:x}" + ".a" * 497 + "=1\n" for number in range(0x1000, 0x1000 + most // 1001)]
    assert len(read_toml(tmp_path, "".join(dotted))) == len(dotted)


# --- extension records --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        b"1" * unpack.EXTENSION_MAX,
        b"1 " * (unpack.EXTENSION_MAX // 2),
        *(b"7 a=b\n", b"5 a=b\n", b" a=b\n", b"x a=b\n", b"6 a=bc", b"4 ab\n", b"99 a=b\n", b"0 a=b\n"),
        b"6 a=b\n6 a=",
        "² a=b\n".encode(),
    ],
)
def test_a_damaged_extension_record_is_refused(tmp_path: Path, block: bytes) -> None:
    for _unused in range(30):  # one of these took ten seconds
        with pytest.raises(Permanent, match="damaged extension record"):
            unpacked(tmp_path, pax(block) + member() + bytes(1024))


def test_good_extension_records_are_read_over(tmp_path: Path) -> None:
    """Also those whose value looks like another record."""
    good = pax(record(b"mtime", b"1.5"), record(b"comment", b"12 path=x\n9 size=1\n"), record(b"x" * 98, b"y" * 60000))
    assert unpacked(tmp_path, good + member() + bytes(1024)) == ["s.vcf"]
    assert unpacked(tmp_path, pax() + member() + bytes(1024)) == ["s.vcf"]


@pytest.mark.parametrize("key", [b"path", b"size", b"linkpath", b"GNU.sparse.map", b"GNU.sparse.\xff", b"GNU.sparse"])
def test_records_that_change_the_next_member_are_refused_in_one_short_line(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(Permanent, match="an extension record sets '") as caught:
        unpacked(tmp_path, pax(record(b"mtime", b"1"), record(key, b"1")) + member() + bytes(1024))
    long = pax(record(b"GNU.sparse" + b"y" * 60000, b"1"))
    with pytest.raises(Permanent) as longer:
        unpacked(tmp_path, long + member() + bytes(1024))
    for error in (caught, longer):
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 300


def test_extension_records_are_counted(tmp_path: Path) -> None:
    assert unpacked(tmp_path, pax(record(b"mtime", b"1")) * 64 + member() + bytes(1024)) == ["s.vcf"]
    with pytest.raises(Permanent, match="more than 64 extension records"):
        unpacked(tmp_path, pax(record(b"mtime", b"1")) * 65 + member() + bytes(1024))


@pytest.mark.parametrize("part", ["extension records", "padding"])
def test_a_stop_is_seen_in_every_part_of_an_archive(tmp_path: Path, part: str) -> None:
    looks = 0

    def pulse() -> None:
        nonlocal looks
        looks += 1
        if looks > 20:
            raise Stopped("requested")

    many = pax(record(b"mtime", b"1")) * 50
    tar = many + member() + bytes(1024) if part == "extension records" else member() + bytes(64 << 20)
    with pytest.raises(Stopped):
        unpacked(tmp_path, tar, pulse=pulse)


# --- what lies in done/ -------------------------------------------------------------------------------------------------


def test_a_foreign_result_with_hostile_records_belongs_to_no_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not read as an archive: older readers of the standard library take hours for its records, all keep them in memory."""
    path = tmp_path / "x-output.tar.gz"
    path.write_bytes(gzip.compress(pax(b"1" * (4 << 20)) + member("x/provenance.json") + bytes(1024)))
    monkeypatch.setattr(tarfile, "open", lambda *_unused, **__: pytest.fail("read as an archive"))
    assert spool_store._document(path) == {}


def test_a_result_is_recognised_by_its_first_member_only(tmp_path: Path) -> None:
    path = tmp_path / "x-output.tar.gz"

    def write(**content: bytes) -> dict[str, Any]:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz") as archive:
            for name, data in content.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        path.write_bytes(raw.getvalue())
        return spool_store._document(path)

    assert write(a=b'{"a": 1}', b=b"{}") == {"a": 1}
    assert write(a=b"", b=b'{"a": 1}') == {}
    assert write(a=b"[1]") == {}
    assert write(a=b'"' + b"x" * (2 << 20) + b'"') == {}
    assert write() == {}
