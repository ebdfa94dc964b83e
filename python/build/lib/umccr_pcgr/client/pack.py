"""Packs a user's own files into a sample's tarball, and inspects a tarball as the consumer will."""

from __future__ import annotations

import csv
import gzip
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pysam
import tomllib

from umccr_pcgr.client import options
from umccr_pcgr.client.store import Refused
from umccr_pcgr.samples.checks import check_vcf, read_toml, sort_files
from umccr_pcgr.samples.genome import LENGTHS
from umccr_pcgr.samples.limits import Limits
from umccr_pcgr.samples.model import Permanent
from umccr_pcgr.samples.naming import Kind, Sample
from umccr_pcgr.samples.unpack import unpack

VCF_ENDINGS = (".vcf.gz", ".vcf.bgz", ".vcf")
# PCGR's example data and its documentation use these INFO tags; each option asks for one type.
TAGS = {
    "tumor_dp_tag": ("TDP", "Integer"),
    "tumor_af_tag": ("TVAF", "Float"),
    "call_conf_tag": ("TAL", "String"),
}
# The columns that PCGR 2.3 asks of each table.
COLUMNS = {
    "cna": ["Chromosome", "Start", "End", "nMajor", "nMinor"],
    "fusions": ["FusionGene", "LeftBreakpoint", "RightBreakpoint", "SplitReads"],
    "expression": ["TargetID", "TPM"],
}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class Request:
    """What to pack."""

    vcf: Path
    kind: Kind
    assembly: str | None = None
    tables: dict[str, Path] = field(default_factory=dict)  # by kind: cna, fusions, expression
    config: Path | None = None
    settings: list[str] = field(default_factory=list)  # key=value


def stem(path: Path) -> str:
    """Return the VCF's name without its ending; Refused when it has none of the known endings."""
    for ending in VCF_ENDINGS:
        if path.name.endswith(ending):
            return path.name[: -len(ending)]
    raise Refused(f"{path}: not a sample; allowed: a tarball *.tar.gz, or a VCF *{', *'.join(VCF_ENDINGS)}")


def pack(request: Request, sample: Sample, dialect: Mapping[str, Any], folder: Path, tarball: Path) -> list[str]:
    """Create `tarball` in the work folder `folder`, its members called after the batch; returns notes for the user.

    `dialect` is the dialect that the options are checked against. Refused with one line when a file or an option is not what it
    should be.
    """
    notes: list[str] = []
    base = sample.batch
    members = [folder / f"{base}.vcf.gz", folder / f"{base}.vcf.gz.tbi"]
    document = _document(request)
    plain = _plain(request.vcf, folder / f"{base}.vcf")
    stated = _stated_assembly(request, document)
    with _about(request.vcf, plain.name):
        fitting = _fitting(plain, stated, request.kind)
    if len(fitting) == 1:
        document = {"genome_assembly": fitting[0], **document}
        if not stated:
            notes.append(f"assembly {fitting[0]}: the VCF's chromosome lengths or positions fit no other")
    else:
        notes.append("assembly not stated: the consumer's default is used (--assembly grch37 or grch38 states it)")
    header = _header(request.vcf, plain)
    _index(request.vcf, plain)
    plain.unlink()
    for kind, source in request.tables.items():
        members.append(_plain(source, folder / f"{base}.{kind}.tsv"))
        _check_table(source, members[-1], COLUMNS[kind])
    _complete(document, request.kind, header, notes)
    try:
        options.check(dialect, sample, document, {kind: f"{base}.{kind}.tsv" for kind in request.tables})
    except options.OptionRefused as refusal:
        raise Refused(f"{_origin(request, str(refusal))}: {refusal}") from None
    members.append(folder / f"{base}.toml")
    members[-1].write_text(toml_text(document), encoding="utf-8")
    _tar(members, tarball)
    return notes


def _plain(source: Path, target: Path) -> Path:
    """Copy a file, gunzipped if it is gzipped in any way."""
    try:
        with source.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(source) if packed else source.open("rb") as reader, target.open("wb") as out:
            shutil.copyfileobj(reader, out, 1 << 20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refused(f"{source}: damaged gzip file ({error})") from None
    except OSError as error:
        raise Refused(f"{source}: {error.strerror or error}") from None
    return target


def _header(source: Path, plain: Path) -> pysam.VariantHeader:
    try:
        with pysam.VariantFile(str(plain)) as vcf:
            return vcf.header
    except (OSError, ValueError) as error:
        reason = str(error).removesuffix(f": {plain}").replace(str(plain), "it")
        raise Refused(f"{source}: not a VCF ({reason})") from None


def _stated_assembly(request: Request, document: Mapping[str, Any]) -> str | None:
    found = document.get("genome_assembly")
    if found not in (None, *LENGTHS):
        raise Refused(f"{request.config}: genome_assembly: found {found!r}; allowed: {', '.join(LENGTHS)}")
    if request.assembly and found not in (None, request.assembly):
        raise Refused(f"{request.config}: genome_assembly is {found!r}, --assembly is {request.assembly!r}")
    return request.assembly or found


@contextmanager
def _about(source: Path, name: str) -> Iterator[None]:
    """Turn what the consumer's checks say of the copy `name` into Refused about the user's file."""
    try:
        yield
    except Permanent as error:
        raise Refused(f"{source}: {str(error).removeprefix(f'{name}: ')}") from None


def _fitting(vcf: Path, stated: str | None, kind: Kind) -> list[str]:
    """Return the assemblies that the VCF fits according to the consumer, at least one; Permanent otherwise."""
    limits, fitting, refusal = Limits(), [], None
    for assembly in [stated] if stated else LENGTHS:
        try:
            check_vcf(
                vcf,
                assembly,
                single_sample=kind == "normal",
                unpacked_bytes=limits.unpacked_bytes,
                ratio=limits.ratio,
            )
            fitting.append(assembly)
        except Permanent as error:
            refusal = error
    if refusal and not fitting:
        raise refusal
    return fitting


def _index(source: Path, plain: Path) -> None:
    packed = f"{plain}.gz"
    pysam.set_verbosity(0)  # htslib would print lines of its own on stderr
    pysam.tabix_compress(str(plain), packed, force=True)
    try:
        pysam.tabix_index(packed, preset="vcf", force=True)
    except OSError:
        raise Refused(f"{source}: not sorted by position; allowed: a sorted VCF (bcftools sort writes one)") from None


def _check_table(source: Path, path: Path, columns: list[str]) -> None:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            found = next(csv.reader(lines, delimiter="\t"), [])
    except (UnicodeDecodeError, csv.Error):
        raise Refused(f"{source}: not a text table") from None
    if missing := [name for name in columns if name not in found]:
        shown = ", ".join(found[:8])[:120] or "nothing"
        raise Refused(
            f"{source}: line 1: column {missing[0]} is missing: found {shown!r}; needed: {', '.join(columns)}"
        )


def _document(request: Request) -> dict[str, Any]:
    """Return the sample's TOML: the user's file, overridden by the values of --set."""
    document: dict[str, Any] = {}
    if request.config:
        try:
            document = tomllib.loads(request.config.read_text(encoding="utf-8"))
        except OSError as error:
            raise Refused(f"{request.config}: {error.strerror}") from None
        except ValueError as error:
            raise Refused(f"{request.config}: not valid TOML: {error}") from None
    table = "pcgr" if request.kind == "somatic" else "cpsr"
    for setting in request.settings:
        key, equals, value = setting.partition("=")
        key = key.strip().removeprefix(f"{table}.").lstrip("-").replace("-", "_")
        if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", key):
            raise Refused(f"--set {setting}: allowed: key=value with a key such as tumor_site")
        options = document.setdefault(table, {})
        if not isinstance(options, dict):
            raise Refused(f"{request.config}: {table}: found {options!r}; allowed: a table [{table}]")
        options[key] = _value(value.strip())
    return document


def _origin(request: Request, refusal: str) -> str:
    """Return where the user wrote the option that a refusal begins with."""
    key = refusal.partition(":")[0].rpartition(".")[2]
    spelt = [setting for setting in request.settings if key and key in setting.partition("=")[0].replace("-", "_")]
    if spelt:
        return f"--set {spelt[-1]}"
    return str(request.config) if request.config else str(request.vcf)


def _value(text: str) -> Any:
    """6 -> number, true -> flag, anything that is no TOML value -> text."""
    with suppress(tomllib.TOMLDecodeError):
        found = tomllib.loads(f"value = {text}")
        if list(found) == ["value"] and isinstance(found["value"], int | float | str | bool):
            return found["value"]
    return text


def _complete(document: dict[str, Any], kind: Kind, header: pysam.VariantHeader, notes: list[str]) -> None:
    """Add what the VCF's header says, and what CPSR requires, unless the user gave it."""
    options = document.setdefault("pcgr" if kind == "somatic" else "cpsr", {})
    if kind == "normal":
        if not {"panel_id", "custom_list"} & options.keys():
            options["panel_id"] = "0"
            notes.append("panel_id 0 (all genes), as none was given")
        return
    for option, (tag, wanted) in TAGS.items():
        if option in options or tag not in header.info:
            continue
        if header.info[tag].type == wanted:
            options[option] = tag
            notes.append(f"{option} {tag}, found in the VCF's header")
        else:
            notes.append(f"INFO tag {tag} not used for {option}: it is {header.info[tag].type}, needed: {wanted}")


def toml_text(document: Mapping[str, Any], table: str = "") -> str:
    """Return the TOML of values, and of tables of values to any depth (what tomllib reads, without dates)."""
    values = {key: value for key, value in document.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    lines = [f"{_key(key)} = {_literal(value, key)}" for key, value in values.items()]
    text = "\n".join([*([f"[{table}]"] if table else []), *lines])
    inner = [toml_text(value, f"{table}.{_key(key)}".lstrip(".")) for key, value in tables.items()]
    return "\n\n".join(part.rstrip("\n") for part in [text, *inner] if part) + "\n"


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _literal(key, key)


def _literal(value: object, key: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        escaped = re.sub(r'[\x00-\x1f\x7f"\\]', lambda match: f"\\u{ord(match[0]):04x}", value)
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{', '.join(_literal(item, key) for item in value)}]"
    raise Refused(f"{key}: found {value!r}; allowed: text, numbers, true, false and lists of them")


def _tar(members: list[Path], tarball: Path) -> None:
    """Write the tarball without owners and times: the same files give the same tarball."""
    with (
        tarball.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for path in members:
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            with path.open("rb") as data:
                archive.addfile(member, data)


def inspect(
    tarball: Path, sample: Sample, assembly: str | None, dialect: Mapping[str, Any], folder: Path
) -> list[tuple[str, int]]:
    """Unpack and check a tarball as the consumer will; returns its members (name, bytes).

    `folder` must not exist yet. Refused with the consumer's own words when it would refuse the sample.
    """
    limits = Limits()
    try:
        names = unpack(
            tarball,
            folder,
            members=limits.members,
            unpacked_bytes=limits.unpacked_bytes,
            ratio=limits.ratio,
            label=str(tarball),
        )
        files = sort_files(names)
        document = read_toml(folder / files.toml) if files.toml else {}
        stated = document.get("genome_assembly") or assembly
        if stated not in (None, *LENGTHS):
            raise Refused(f"{tarball}: {files.toml}: genome_assembly: found {stated!r}; allowed: {', '.join(LENGTHS)}")
        tables = {"cna": files.cna, "fusions": files.fusion, "expression": files.expression}
        options.check(dialect, sample, document, {kind: name for kind, name in tables.items() if name})
        _fitting(folder / files.vcf, stated, sample.kind)
    except options.OptionRefused as refusal:
        raise Refused(f"{tarball}: {files.toml or 'sample'}: {refusal}") from None
    except Permanent as error:
        raise Refused(f"{tarball}: {str(error).removeprefix(f'{tarball}: ')}") from None
    except OSError as error:
        raise Refused(f"{error.filename or tarball}: {os.strerror(error.errno or 0)}") from None
    return [(name, (folder / name).stat().st_size) for name in names]
