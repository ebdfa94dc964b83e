"""From a user's files to a stored sample: what is asked for, the checks, the name and its number, the upload."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from umccr_pcgr.client import options, pack
from umccr_pcgr.client.store import Entry, Exists, Place, Progress, Refused
from umccr_pcgr.samples.naming import NUMBER_MAX, Kind, NameRefused, Sample, parse

TARBALL = ".tar.gz"
TRIES = 20  # numbers that others may take from under us while we look for a free one


@dataclass
class Submission:
    """What the user asks to be sent: a ready tarball or a VCF, its name, and what goes with a VCF."""

    file: Path
    prefix: str = ""
    batch: str | None = None
    number: int | None = None  # None: the next free one
    kind: Kind | None = None
    assembly: str | None = None
    tables: dict[str, Path] = field(default_factory=dict)  # by kind: cna, fusions, expression
    config: Path | None = None
    settings: list[str] = field(default_factory=list)  # key=value
    release: str = "newest"  # whose options are checked

    @property
    def ready(self) -> bool:
        """Whether the file is a tarball that is sent as it is."""
        return self.file.name.endswith(TARBALL)


@dataclass(frozen=True)
class Prepared:
    """A tarball that the consumer will take. ``sample`` is numbered 0 where the number is still to be found."""

    tarball: Path
    sample: Sample
    members: list[tuple[str, int]]  # name, bytes
    notes: list[str]  # what was decided in the user's place


def prefix(text: str) -> str:
    """Parse a folder of the bucket or the inbox."""
    try:
        Sample(text, "x", 0, "somatic")
    except NameRefused:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, allowed folders of A-Z a-z 0-9 . _ = + @ -, each followed by '/', e.g. inbox/"
        ) from None
    return text


def prepare(wanted: Submission, folder: Path) -> Prepared:
    """Pack what is wanted in the work folder `folder` and check it with the eyes of the consumer; Refused if it cannot work."""
    _check_files(wanted)
    spoken = options.dialect(wanted.release)
    notes: list[str] = []
    if wanted.ready:
        tarball, sample = wanted.file, _ready_name(wanted)
    else:
        sample = _vcf_name(wanted)
        wish = pack.Wish(wanted.file, sample.kind, wanted.assembly, wanted.tables, wanted.config, wanted.settings)
        tarball = folder / "sample.tar.gz"
        (folder / "members").mkdir()
        notes = pack.pack(wish, sample, spoken, folder / "members", tarball)
    members = pack.look(tarball, sample, wanted.assembly, spoken, folder / "look")
    shutil.rmtree(folder / "look")
    return Prepared(tarball, sample, members, notes)


def _check_files(wanted: Submission) -> None:
    named = [
        ("", wanted.file),
        ("--config: ", wanted.config),
        *((f"--{kind}: ", p) for kind, p in wanted.tables.items()),
    ]
    for option, path in named:
        if path is None:
            continue
        try:
            if path.is_dir():
                raise Refused(f"{option}{path}: found a folder, allowed a file")
            if not path.exists():
                raise Refused(f"{option}{path}: no such file")
            if not path.is_file():
                raise Refused(f"{option}{path}: found a device or pipe, allowed a file")
        except OSError as error:  # a name that is too long, a folder that may not be entered
            raise Refused(f"{option}{path}: {error.strerror}") from None


def _vcf_name(wanted: Submission) -> Sample:
    base = pack.stem(wanted.file)
    kind: Kind = wanted.kind or "somatic"
    try:
        return Sample(wanted.prefix, wanted.batch or base, wanted.number or 0, kind)
    except NameRefused as refusal:
        hint = "" if wanted.batch else "; --batch gives the sample another name"
        raise Refused(f"{refusal}{hint}") from None


def _ready_name(wanted: Submission) -> Sample:
    """The ready tarball's name, with what the user wants otherwise; nothing else may be asked of it."""
    others = {**wanted.tables, "config": wanted.config, "set": wanted.settings}
    for option, value in others.items():
        if value:
            raise Refused(f"--{option}: {wanted.file} is a ready tarball and is sent as it is; allowed: with a VCF")
    if wanted.batch and wanted.number is not None and wanted.kind:
        return Sample(wanted.prefix, wanted.batch, wanted.number, wanted.kind)
    found = parse(wanted.file.name)
    number = found.number if wanted.number is None else wanted.number
    return Sample(wanted.prefix, wanted.batch or found.batch, number, wanted.kind or found.kind)


def send(
    place: Place, wanted: Submission, prepared: Prepared, force: bool, progress: Callable[[Sample], Progress]
) -> tuple[Sample, Entry]:
    """Store the tarball under its name; finds a free number first when the user left that to us."""
    sample = prepared.sample
    find_number = wanted.number is None and not wanted.ready
    for _ in range(TRIES):
        if find_number:
            sample = Sample(sample.prefix, sample.batch, next_number(place, sample), sample.kind)
        try:
            return sample, place.put(prepared.tarball, sample, force=force, progress=progress(sample))
        except Exists:
            if not find_number:
                raise
    raise Refused(f"{sample.batch}: others took the next free number {TRIES} times; --number chooses one")


def next_number(place: Place, sample: Sample) -> int:
    """Return one more than the highest number of the batch, whatever is left of those samples."""
    start = f"{sample.prefix}{sample.batch}-"
    used = [of.number for of, _, _ in place.entries(start) if (of.prefix, of.batch) == (sample.prefix, sample.batch)]
    if (number := max(used, default=0) + 1) > NUMBER_MAX:
        raise Refused(f"{sample.batch}: number {NUMBER_MAX} is taken; --batch or --number chooses another name")
    return number
