"""Names of samples and of the objects that belong to one: the only place that knows them.

An input is ``{batch}-{6 digits}-somatic.tar.gz`` or ``{batch}-{6 digits}-normal.tar.gz``, in any folder of a bucket or a
spool. What belongs to it lies beside it, its name being the input's without ``.tar.gz`` plus one of the endings below.

The sample's name becomes PCGR's ``--sample_id``, which PCGR puts unquoted into shell commands and limits to 3-40
characters; so the characters are restricted here, before anything else sees a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["somatic", "normal"]
Role = Literal["input", "result", "failed", "running"]

SUFFIX = ".tar.gz"
ENDINGS: dict[Role, str] = {
    "input": SUFFIX,
    "result": "-output.tar.gz",
    "failed": "-failed.json",
    "running": "-running.json",
}
NAME_MAX = 40  # PCGR's limit for --sample_id
NUMBER_MAX = 999_999  # six digits
SHOWN = 80  # characters of a name off the convention that appear in logs and reports
KEY_MAX = 1024  # bytes of an S3 key

_BATCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME = re.compile(r"(?P<batch>[A-Za-z0-9][A-Za-z0-9._-]*)-(?P<number>[0-9]{6})-(?P<kind>somatic|normal)")
_FOLDER = re.compile(r"[A-Za-z0-9._=+@-]+")
_ALLOWED = (
    "allowed: <batch>-<6 digits>-somatic.tar.gz or <batch>-<6 digits>-normal.tar.gz, "
    "batch of A-Z a-z 0-9 . _ - starting with a letter or digit"
)


class NameRefused(ValueError):
    """The convention does not allow a key or a part of a name; the text is one line."""


def _refuse(subject: object, found: str, allowed: str) -> NameRefused:
    return NameRefused(f"{subject!r}: {found}; {allowed}")


def _check_prefix(prefix: str) -> None:
    if not prefix:
        return
    folders = prefix.split("/")
    if folders.pop() != "":
        raise _refuse(
            prefix, "the prefix does not end with '/'", "allowed: folders each followed by one '/', e.g. inbox/"
        )
    for folder in folders:
        if not _FOLDER.fullmatch(folder) or folder in (".", ".."):
            raise _refuse(
                prefix,
                f"found the folder {folder!r}",
                "allowed: folders of A-Z a-z 0-9 . _ = + @ -, none empty, none '.' or '..'",
            )


@dataclass(frozen=True, order=True)
class Sample:
    """One sample: ``prefix`` is "" or folders with a closing slash, ``number`` is 0-999999.

    Raises :class:`NameRefused` when a part breaks the convention.
    """

    prefix: str
    batch: str
    number: int
    kind: Kind

    def __post_init__(self) -> None:
        _check_prefix(self.prefix)
        if not _BATCH.fullmatch(self.batch):
            raise _refuse(self.batch, "the batch has characters that are not allowed or is empty", _ALLOWED)
        if not 0 <= self.number <= NUMBER_MAX:
            raise _refuse(self.number, "the number does not fit six digits", f"allowed: 0 to {NUMBER_MAX}")
        if self.kind not in ("somatic", "normal"):
            raise _refuse(self.kind, "the type is not known", "allowed: somatic, normal")
        if len(self.name) > NAME_MAX:
            raise _refuse(
                self.name, f"found {len(self.name)} characters", f"allowed: at most {NAME_MAX} (PCGR's sample_id)"
            )
        if max(len(self.key(role)) for role in ENDINGS) > KEY_MAX:
            raise _refuse(
                self.name, f"found a prefix of {len(self.prefix)} characters", f"allowed: keys of at most {KEY_MAX}"
            )

    @property
    def name(self) -> str:
        """The sample's name, also PCGR's sample id: ``demo-000001-somatic``."""
        return f"{self.batch}-{self.number:06d}-{self.kind}"

    def key(self, role: Role) -> str:
        """The key of one of the sample's objects."""
        return f"{self.prefix}{self.name}{ENDINGS[role]}"

    @property
    def input_key(self) -> str:
        """The key of the sample's tarball."""
        return self.key("input")

    @property
    def result_key(self) -> str:
        """The key of its result."""
        return self.key("result")

    @property
    def failed_key(self) -> str:
        """The key of its failure report."""
        return self.key("failed")

    @property
    def running_key(self) -> str:
        """The key of its progress note."""
        return self.key("running")

    @property
    def command(self) -> Literal["pcgr", "cpsr"]:
        """The tool that reports this sample."""
        return "pcgr" if self.kind == "somatic" else "cpsr"


def _sample(key: str, ending: str) -> Sample:
    prefix, slash, basename = key.rpartition("/")
    if not basename.endswith(ending):
        raise _refuse(key, f"the name does not end with {ending}", _ALLOWED)
    match = _NAME.fullmatch(basename[: -len(ending)])
    if not match:
        raise _refuse(key, f"found the name {basename!r}", _ALLOWED)
    kind: Kind = "somatic" if match["kind"] == "somatic" else "normal"
    try:
        return Sample(prefix + slash, match["batch"], int(match["number"]), kind)
    except NameRefused as refusal:
        raise NameRefused(f"{key!r}: {refusal}") from None


def parse(key: str) -> Sample:
    """The sample of an input's key (or file name); :class:`NameRefused` when it is not an input's."""
    return _sample(key, ENDINGS["input"])


def classify(key: str) -> tuple[Sample, Role] | None:
    """The sample a key belongs to and what it is of that sample; None if unrelated."""
    for role, ending in ENDINGS.items():
        try:
            return _sample(key, ending), role
        except NameRefused:
            continue
    return None


@dataclass(frozen=True)
class InputKey:
    """A key at which an input was stored, whether or not it follows the convention.

    Exactly one of ``sample`` and ``refusal`` is None. ``shown`` is a name for logs and reports: printable ASCII, because a key off the
    convention may hold anything. ``is_output`` is True for a key that ends like one of our own objects.
    """

    sample: Sample | None
    refusal: str | None
    shown: str
    failed_key: str
    is_output: bool

    @classmethod
    def read(cls, key: str) -> InputKey:
        """Parse `key`."""
        sample, refusal = None, None
        try:
            sample = parse(key)
        except NameRefused as error:
            refusal = str(error)
        shown = ascii(key.rpartition("/")[2].removesuffix(SUFFIX))[1:-1][:SHOWN]
        failed_key = key.removesuffix(SUFFIX) + ENDINGS["failed"]
        is_output = any(key.endswith(ending) for role, ending in ENDINGS.items() if role != "input")
        return cls(sample, refusal, shown, failed_key, is_output)
