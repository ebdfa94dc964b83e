"""From a user's files to a stored sample: the submission, the checks, the name and its number, the upload."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from umccr_pcgr.client import options, pack
from umccr_pcgr.client.store import Entry, Exists, Place, Progress, Refused
from umccr_pcgr.samples.naming import NUMBER_MAX, SUFFIX, Kind, NameRefused, Sample, parse

TARBALL = SUFFIX
TRIES = 20  # free numbers that others may take first


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
    notes: list[str]  # what was decided for the user


def prefix(text: str) -> str:
    """Parse a folder of the bucket or the inbox."""
    try:
        Sample(text, "x", 0, "somatic")
    except NameRefused:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, allowed folders of A-Z a-z 0-9 . _ = + @ -, each followed by '/', e.g. inbox/"
        ) from None
    return text


def prepare(submission: Submission, folder: Path) -> Prepared:
    """Pack the sample in the work folder `folder` and check it as the consumer will; Refused if it cannot be reported."""
    _check_files(submission)
    dialect = options.dialect(submission.release)
    notes: list[str] = []
    if submission.ready:
        tarball, sample = submission.file, _ready_name(submission)
    else:
        sample = _vcf_name(submission)
        request = pack.Request(
            submission.file, sample.kind, submission.assembly, submission.tables, submission.config, submission.settings
        )
        tarball = folder / "sample.tar.gz"
        (folder / "members").mkdir()
        notes = pack.pack(request, sample, dialect, folder / "members", tarball)
    members = pack.inspect(tarball, sample, submission.assembly, dialect, folder / "inspect")
    shutil.rmtree(folder / "inspect")
    return Prepared(tarball, sample, members, notes)


def _check_files(submission: Submission) -> None:
    named = [
        ("", submission.file),
        ("--config: ", submission.config),
        *((f"--{kind}: ", p) for kind, p in submission.tables.items()),
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


def _vcf_name(submission: Submission) -> Sample:
    base = pack.stem(submission.file)
    kind: Kind = submission.kind or "somatic"
    try:
        return Sample(submission.prefix, submission.batch or base, submission.number or 0, kind)
    except NameRefused as refusal:
        hint = "" if submission.batch else "; --batch gives the sample another name"
        raise Refused(f"{refusal}{hint}") from None


def _ready_name(submission: Submission) -> Sample:
    """Return the ready tarball's name, with the parts that the user chose; other options are refused."""
    others = {**submission.tables, "config": submission.config, "set": submission.settings}
    for option, value in others.items():
        if value:
            raise Refused(f"--{option}: {submission.file} is a ready tarball and is sent as it is; allowed: with a VCF")
    if submission.batch and submission.number is not None and submission.kind:
        return Sample(submission.prefix, submission.batch, submission.number, submission.kind)
    found = parse(submission.file.name)
    number = found.number if submission.number is None else submission.number
    return Sample(submission.prefix, submission.batch or found.batch, number, submission.kind or found.kind)


def send(
    place: Place, submission: Submission, prepared: Prepared, force: bool, progress: Callable[[Sample], Progress]
) -> tuple[Sample, Entry]:
    """Store the tarball under its name; finds a free number first when the user gave none."""
    sample = prepared.sample
    find_number = submission.number is None and not submission.ready
    for _unused in range(TRIES):
        if find_number:
            sample = Sample(sample.prefix, sample.batch, next_number(place, sample), sample.kind)
        try:
            return sample, place.put(prepared.tarball, sample, force=force, progress=progress(sample))
        except Exists:
            if not find_number:
                raise
    raise Refused(f"{sample.batch}: others took the next free number {TRIES} times; --number chooses one")


def next_number(place: Place, sample: Sample) -> int:
    """Return one more than the highest number of the batch, whatever objects of those samples remain."""
    start = f"{sample.prefix}{sample.batch}-"
    used = [
        of.number
        for of, _role, _entry in place.entries(start)
        if (of.prefix, of.batch) == (sample.prefix, sample.batch)
    ]
    if (number := max(used, default=0) + 1) > NUMBER_MAX:
        raise Refused(f"{sample.batch}: number {NUMBER_MAX} is taken; --batch or --number chooses another name")
    return number
