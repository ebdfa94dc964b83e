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
_CONTIG = re.compile(r"##contig=<(?:.*,)?ID=([^,>]+).*?[,<]length=(\d+)")
_VERSION = re.compile(r"##fileformat=VCFv4\.(\d+)\s*")
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
    """Which file is what; Permanent unless there is exactly one VCF, with an index if packed, and at most one of the rest."""
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
    """The sample's own settings; Permanent naming file, line and column for a syntax error."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _refusal(f"{path.name}: not valid TOML: {error}") from None


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
        rest = b""
        while chunk := self.stream.read(CHUNK):
            self.pulse()
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                self.number += 1
                yield line
            if len(rest) > LINE_MAX:
                raise Unreadable(f"line {self.number + 1}: longer than {LINE_MAX} bytes")
        if rest:
            self.number += 1
            yield rest

    def _header(self) -> None:
        for raw in self.lines:
            line = raw.decode("utf-8", "replace").rstrip("\r")
            if self.number == 1:
                self._check_version(line)
            elif line.startswith("##"):
                if (match := _CONTIG.match(line)) and (chromosome := primary(match[1])):
                    self.contigs[chromosome] = int(match[2])
            else:
                self._check_columns(line)
                return
        raise Unreadable("empty file" if not self.number else f"line {self.number}: the file ends within its header")

    @staticmethod
    def _check_version(line: str) -> None:
        match = _VERSION.fullmatch(line)
        if not match or int(match[1]) < VERSION_MIN:
            raise Unreadable(f"line 1: found {line[:60]!r}, allowed: ##fileformat=VCFv4.{VERSION_MIN} or newer")

    def _check_columns(self, line: str) -> None:
        columns = line.split("\t")
        if columns[: len(COLUMNS)] != COLUMNS or columns[len(COLUMNS) :][:1] not in ([], ["FORMAT"]):
            raise Unreadable(
                f"line {self.number}: found the columns {line[:80]!r}, "
                f"allowed: {' '.join(COLUMNS)} [FORMAT sample], separated by tabs"
            )
        samples = max(0, len(columns) - len(COLUMNS) - 1)
        if self.single_sample and samples > 1:
            raise Unreadable(f"line {self.number}: {samples} samples; allowed for a normal (CPSR): one")
        self.columns = len(columns)

    def _body(self) -> int:
        variants = 0
        known = {name.encode(): name for name in CHROMOSOMES} | {f"chr{name}".encode(): name for name in CHROMOSOMES}
        for line in self.lines:
            fields = line.split(b"\t", 2)
            if line.count(b"\t") + 1 != self.columns:
                raise Unreadable(
                    f"line {self.number}: {line.count(bytes([9])) + 1} columns, the header has {self.columns}"
                )
            if not fields[1].isdigit():
                raise Unreadable(f"line {self.number}: POS {fields[1][:20]!r}, allowed: a whole number")
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
