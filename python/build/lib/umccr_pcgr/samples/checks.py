"""What a sample must be before hours are spent on it: the right files, a whole VCF, the right assembly, a readable TOML."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .genome import CHROMOSOMES, DISPLAY, LENGTHS, primary
from .inflate import Inflater, Unreadable
from .model import Permanent
from .unpack import ending_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COLUMNS = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"]  # fixed by the VCF specification
CHUNK = 1 << 20
LINE_MAX = 16 << 20  # bytes; a line of a cohort of thousands is below 1 MB, PCGR takes single samples
# The empty block that ends a BGZF file (SAM specification, section 4.1.2): without it the file was cut at a block's edge.
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
BGZF_START = re.compile(rb"\x1f\x8b\x08\x04.{8}BC\x02\x00", re.DOTALL)
# Every expression and loop here takes time in proportion to the text: a sample may be hostile, and neither the lease nor a stop
# waits. Numbers are bounded because reading decimal digits takes the square of their count.
_VERSION = re.compile(r"##fileformat=VCFv4\.([0-9]{1,3})\s*")
CONTIG = "##contig=<"
DIGITS_MAX = 10  # of a position or length; VCF's are below 2^31
TOML_LINE_MAX = 1000  # characters; the parser's time for one dotted key grows with the square of its parts
VERSION_MIN = 2  # PCGR reads VCF 4.2 and newer


@dataclass(frozen=True)
class SampleFiles:
    """The names of a sample's files; ``toml`` and the tables are optional."""

    vcf: str
    cna: str | None
    fusion: str | None
    expression: str | None
    toml: str | None


def sort_files(names: list[str]) -> SampleFiles:
    """Assign each file its kind; Permanent unless there is exactly one VCF, with an index if packed, and at most one of the rest."""
    by_ending: dict[str, list[str]] = {}
    for name in names:
        by_ending.setdefault(ending_of(name) or "", []).append(name)

    def optional(ending: str) -> str | None:
        found = by_ending.get(ending, [])
        if len(found) > 1:
            raise _refusal(f"found {len(found)} files *{ending} ({', '.join(found)}); allowed: at most one")
        return found[0] if found else None

    vcfs = [*by_ending.get(".vcf.gz", []), *by_ending.get(".vcf", [])]
    if len(vcfs) != 1:
        raise _refusal(
            f"found {len(vcfs) or 'no'} VCF{'s' * (len(vcfs) > 1)}{f' ({chr(44).join(vcfs)})' if vcfs else ''}; "
            "allowed: exactly one *.vcf.gz with its *.vcf.gz.tbi, or one *.vcf"
        )
    vcf, index = vcfs[0], optional(".vcf.gz.tbi")
    if vcf.endswith(".gz") and not index:
        raise _refusal(f"{vcf}: its index {vcf}.tbi is missing")
    if index and index != f"{vcf}.tbi":
        raise _refusal(f"{index}: there is no {index.removesuffix('.tbi')} to it")
    return SampleFiles(
        vcf, optional(".cna.tsv"), optional(".fusions.tsv"), optional(".expression.tsv"), optional(".toml")
    )


def _refusal(reason: str) -> Permanent:
    return Permanent("check", reason)


def read_toml(path: Path) -> dict[str, Any]:
    """The sample's own settings; Permanent naming file, line and column for a syntax error, or a line that is too long."""
    try:
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.split("\n"), 1):
            if len(line) > TOML_LINE_MAX:
                raise _refusal(
                    f"{path.name}: line {number}: found {len(line)} characters, allowed: at most {TOML_LINE_MAX}"
                )
        return tomllib.loads(text)
    except ValueError as error:
        raise _refusal(f"{path.name}: not valid TOML: {error}") from None


def header_fields(line: str) -> Iterator[tuple[str, str]]:
    """The fields of a structured header line, ``##key=<ID=value,Description="value, quoted">``, in their order.

    A field without "=" has the value "". Quoted values come without their quotes, escapes as they are.
    """
    at, end = line.find("<") + 1, len(line)
    while 0 < at < end:
        stop = _found(line, ",", at)
        equals = line.find("=", at, stop)
        if equals < 0:
            yield line[at:stop].partition(">")[0], ""
        elif line.startswith('"', equals + 1):
            close = _closing_quote(line, equals + 2)
            yield line[at:equals], line[equals + 2 : close]
            stop = _found(line, ",", close)
        else:
            yield line[at:equals], line[equals + 1 : stop].partition(">")[0]
        at = stop + 1


def _found(line: str, what: str, at: int) -> int:
    place = line.find(what, at)
    return len(line) if place < 0 else place


def _closing_quote(line: str, at: int) -> int:
    """Where the quote ends whose text begins at `at`; the line's end if it never does."""
    while (close := _found(line, '"', at)) < len(line):
        text = line[at:close]
        if (len(text) - len(text.rstrip("\\"))) % 2 == 0:  # an odd number of backslashes escapes the quote
            break
        at = close + 1
    return close


def check_vcf(
    path: Path,
    assembly: str,
    *,
    single_sample: bool,
    unpacked_bytes: int,
    ratio: int,
    pulse: Callable[[], None] = lambda: None,
) -> int:
    """Read the whole VCF; returns its number of variants on primary chromosomes.

    Permanent with one line for anything that the tool would stumble over: not a VCF, cut short, damaged, wrong columns,
    an unusable index, another assembly than `assembly` ("grch37" or "grch38"). `pulse` is called once per MiB of text and may
    raise to break off.
    """
    packed = path.name.endswith(".gz")
    try:
        if packed:
            _check_bgzf(path)
            _check_index(path.with_name(path.name + ".tbi"), unpacked_bytes, ratio)
        with Inflater(path, unpacked_bytes, ratio, packed=packed) as stream:
            return _Vcf(stream, assembly, single_sample=single_sample, pulse=pulse).read()
    except Unreadable as error:
        raise _refusal(f"{path.name}: {error}") from None


def _check_bgzf(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(max(0, path.stat().st_size - len(BGZF_END)))
        end = file.read()
    if start[:2] != b"\x1f\x8b":
        raise Unreadable("not a gzip file")
    if not BGZF_START.match(start):
        raise Unreadable("packed with gzip; allowed: bgzip (an index needs its blocks)")
    if end != BGZF_END:
        raise Unreadable("truncated gzip: bgzip's end block is missing")


def _check_index(path: Path, limit: int, ratio: int) -> None:
    try:
        with Inflater(path, limit, ratio) as stream:
            magic = stream.read(4)
    except Unreadable as error:
        raise _refusal(f"{path.name}: {error}") from None
    if not path.stat().st_size or magic != b"TBI\1":
        found = "an empty file" if not path.stat().st_size else f"a file beginning {magic!r}"
        raise _refusal(f"{path.name}: found {found}, allowed: an index made by tabix")


class _Vcf:
    """One pass over a VCF's lines. Every refusal is an Unreadable; the caller adds the file's name."""

    def __init__(self, stream: Inflater, assembly: str, *, single_sample: bool, pulse: Callable[[], None]) -> None:
        self.stream = stream
        self.assembly = assembly
        self.single_sample = single_sample
        self.pulse = pulse
        self.lines = self._lines()
        self.number = 0
        self.contigs: dict[str, int] = {}
        self.columns = 0
        self.furthest: dict[str, tuple[int, int]] = {}  # chromosome -> (position, line number)

    def read(self) -> int:
        self._header()
        self._compare_contigs()
        variants = self._body()
        self._compare_positions()
        if not variants:
            raise Unreadable("no variants on the chromosomes 1-22, X and Y")
        return variants

    def _lines(self) -> Iterator[bytes]:
        parts: list[bytes] = []  # of a line that goes on in the next chunk; joined once
        held = 0  # bytes of `parts`
        while chunk := self.stream.read(CHUNK):
            self.pulse()
            *lines, rest = chunk.split(b"\n")
            if lines:
                lines[0] = b"".join([*parts, lines[0]])
                parts, held = [], 0
            for line in lines:
                self.number += 1
                yield line
            parts.append(rest)
            held += len(rest)
            if held > LINE_MAX:
                raise Unreadable(f"line {self.number + 1}: longer than {LINE_MAX} bytes")
        if last := b"".join(parts):
            self.number += 1
            yield last

    def _header(self) -> None:
        for raw in self.lines:
            line = raw.decode("utf-8", "replace").rstrip("\r")
            if self.number == 1:
                self._check_version(line)
            elif line.startswith("##"):
                if line.startswith(CONTIG):
                    self._note_contig(line)
            else:
                self._check_columns(line)
                return
        raise Unreadable("empty file" if not self.number else f"line {self.number}: the file ends within its header")

    def _note_contig(self, line: str) -> None:
        found: dict[str, str] = {}
        for name, value in header_fields(line):
            found.setdefault(name, value.strip())
            if "ID" in found and "length" in found:
                break
        chromosome, length = primary(found.get("ID", "")), found.get("length", "")
        if not chromosome or not (length.isascii() and length.isdigit()):
            return
        if len(length) > DIGITS_MAX:
            raise Unreadable(
                f"line {self.number}: length of contig {chromosome}: found {len(length)} digits, allowed: at most {DIGITS_MAX}"
            )
        self.contigs[chromosome] = int(length)

    @staticmethod
    def _check_version(line: str) -> None:
        match = _VERSION.fullmatch(line)
        if not match or int(match[1]) < VERSION_MIN:
            raise Unreadable(f"line 1: found {line[:60]!r}, allowed: ##fileformat=VCFv4.{VERSION_MIN} or newer")

    def _check_columns(self, line: str) -> None:
        columns = line.split("\t", len(COLUMNS) + 1)  # a hostile line may hold millions
        if columns[: len(COLUMNS)] != COLUMNS or columns[len(COLUMNS) :][:1] not in ([], ["FORMAT"]):
            raise Unreadable(
                f"line {self.number}: found the columns {line[:80]!r}, "
                f"allowed: {' '.join(COLUMNS)} [FORMAT sample], separated by tabs"
            )
        count = line.count("\t") + 1
        samples = max(0, count - len(COLUMNS) - 1)
        if self.single_sample and samples > 1:
            raise Unreadable(f"line {self.number}: {samples} samples; allowed for a normal (CPSR): one")
        self.columns = count

    def _body(self) -> int:
        variants = 0
        known = {name.encode(): name for name in CHROMOSOMES} | {f"chr{name}".encode(): name for name in CHROMOSOMES}
        for line in self.lines:
            fields = line.split(b"\t", 2)
            if line.count(b"\t") + 1 != self.columns:
                raise Unreadable(
                    f"line {self.number}: {line.count(bytes([9])) + 1} columns, the header has {self.columns}"
                )
            if not fields[1].isdigit() or len(fields[1]) > DIGITS_MAX:
                raise Unreadable(
                    f"line {self.number}: POS {fields[1][:20]!r}, allowed: a whole number of at most {DIGITS_MAX} digits"
                )
            if chromosome := known.get(fields[0]):
                variants += 1
                position = int(fields[1])
                if position > self.furthest.get(chromosome, (-1, 0))[0]:
                    self.furthest[chromosome] = (position, self.number)
        return variants

    def _other(self) -> str:
        return "grch37" if self.assembly == "grch38" else "grch38"

    def _compare_contigs(self) -> None:
        own, other = self.assembly, self._other()
        for chromosome, length in self.contigs.items():
            if length != LENGTHS[own][chromosome]:
                fits = f"that of {DISPLAY[other]}" if length == LENGTHS[other][chromosome] else "of neither assembly"
                raise Unreadable(
                    f"the header gives chromosome {chromosome} {length} bases, {fits}; the sample is to be reported as "
                    f"{DISPLAY[own]}, where it has {LENGTHS[own][chromosome]} ({DISPLAY[other]}: {LENGTHS[other][chromosome]})"
                )

    def _compare_positions(self) -> None:
        own, other = self.assembly, self._other()
        for chromosome in CHROMOSOMES:
            position, line = self.furthest.get(chromosome, (0, 0))
            if position > LENGTHS[own][chromosome]:
                fits = "fits" if position <= LENGTHS[other][chromosome] else "does not fit either"
                raise Unreadable(
                    f"line {line}: position {chromosome}:{position} is beyond the chromosome's end in {DISPLAY[own]} "
                    f"({LENGTHS[own][chromosome]}), for which the sample is to be reported; it {fits} "
                    f"{DISPLAY[other]} ({LENGTHS[other][chromosome]})"
                )
