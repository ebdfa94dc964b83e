"""consumer.toml, release.json and runtime.json: read, checked, and refused with one clear line."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umccr_pcgr.samples.limits import Limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# SQS hides a message for at most 12 h in all (ChangeMessageVisibility); one hour of it remains for fetch and publish.
SQS_TIMEOUT_MAX = 11 * 3600


class SettingsError(ValueError):
    """A settings file is wrong; one line naming the file, the field, what was found and what is allowed."""


@dataclass(frozen=True)
class QueueSettings:
    """Where work comes from; ``visibility_seconds`` None means the queue's own (SQS) or 300 (spool)."""

    kind: str
    name: str | None = None
    region: str | None = None
    endpoint_url: str | None = None
    notes_bucket: str | None = None  # sqs only
    spool_dir: Path | None = None
    visibility_seconds: int | None = None
    max_receives: int = 5  # spool only; an SQS queue has its own redrive policy


@dataclass(frozen=True)
class Settings:
    """consumer.toml; times in seconds."""

    release_file: Path
    runtime_file: Path
    refdata_dir: Path
    vep_dir: Path
    work_dir: Path
    log_dir: Path
    state_dir: Path
    assemblies: tuple[str, ...]
    drained_file: Path
    queue: QueueSettings
    limits: Limits
    idle_seconds: int = 600
    timeout_seconds: int = 14400


@dataclass(frozen=True)
class Image:
    """What runs the tool. ``image``: a container image's local id (docker), a SIF file (apptainer), a folder (conda).

    ``reference`` and ``digest`` say where an image came from; ``sha256`` is the SIF file's; ``prefixes`` and ``locks`` are
    the conda environments, ``pcgr`` and ``pcgrr``, and the SHA-256 of the lock files that they were built from.
    """

    kind: str
    image: str
    reference: str | None = None
    digest: str | None = None
    sha256: str | None = None
    prefixes: Mapping[str, str] = field(default_factory=dict)
    locks: Mapping[str, str] = field(default_factory=dict)

    def provenance(self) -> dict[str, Any]:
        """Return what a result says about it."""
        known = {
            "kind": self.kind,
            "reference": self.reference,
            "id": self.image,
            "digest": self.digest,
            "sha256": self.sha256,
            "locks": dict(self.locks),
        }
        return {key: value for key, value in known.items() if value}


Check = Callable[[Any], "Any"]  # returns the value to keep, or raises ValueError saying what is allowed


def _path(value: Any) -> Path:
    # docker's -v splits at colons, and PCGR puts paths unquoted into shell commands
    if not isinstance(value, str) or not re.fullmatch(r"/[A-Za-z0-9._/+@=-]*", value):
        raise ValueError("an absolute path of A-Z a-z 0-9 . _ / + @ = -")
    return Path(value)


def _integer(minimum: int, maximum: int | None = None) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum or (maximum and value > maximum):
            raise ValueError(f"a whole number from {minimum}" + (f" to {maximum}" if maximum else ""))
        return value

    return check


def _cpus(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError("a number above 0")
    return value


def _matching(pattern: str, allowed: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(allowed)
        return value

    return check


def _assemblies(value: Any) -> tuple[str, ...]:
    known = ("grch37", "grch38")
    if not isinstance(value, list) or not value or any(item not in known for item in value):
        raise ValueError(f"a list of at least one of {', '.join(known)}")
    return tuple(value)


_LIMITS: dict[str, Check] = {
    "memory": _matching(r"[1-9][0-9]*[bkmg]?", 'docker\'s form, e.g. "6g"'),
    "cpus": _cpus,
    "pids": _integer(1),
    "members": _integer(1),
    "unpacked_bytes": _integer(1),
    "ratio": _integer(1),
    "free_bytes": _integer(0),
}
_QUEUE: dict[str, Check] = {
    "kind": _matching("sqs|spool", "sqs, spool"),
    "name": _matching(r"[A-Za-z0-9_-]{1,80}(\.fifo)?", "the name of an SQS queue"),
    "region": _matching(r"[a-z0-9-]+", 'a region, e.g. "ap-southeast-2"'),
    "endpoint_url": _matching(r"https?://\S+", "an http:// or https:// address"),
    "notes_bucket": _matching(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "the name of a bucket"),
    "spool_dir": _path,
    "visibility_seconds": _integer(1, 12 * 3600),
    "max_receives": _integer(1),
}
_TOP: dict[str, Check] = {
    **dict.fromkeys(
        ("release_file", "runtime_file", "refdata_dir", "vep_dir", "work_dir", "log_dir", "state_dir", "drained_file"),
        _path,
    ),
    "assemblies": _assemblies,
    "idle_seconds": _integer(0),
    "timeout_seconds": _integer(1),
}
_OPTIONAL = {"idle_seconds", "timeout_seconds"}
_REQUIRED_QUEUE = {"sqs": ("name", "region"), "spool": ("spool_dir",)}


def _table(path: Path, where: str, table: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: {where or 'file'}: found {table!r}, allowed: a table")
    kept = {}
    for key, value in table.items():
        if key not in checks:
            near = difflib.get_close_matches(key, checks, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"{path}: {where}{key}: unknown key, allowed: {', '.join(checks)}{hint}")
        try:
            kept[key] = checks[key](value)
        except ValueError as error:
            raise SettingsError(f"{path}: {where}{key}: found {value!r}, allowed: {error}") from None
    return kept


def read_settings(path: Path) -> Settings:
    """Parse and check consumer.toml; SettingsError with one line when anything is wrong."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # also covers UnicodeDecodeError
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    queue = _table(path, "queue.", document.pop("queue", None), _QUEUE)
    limits = _table(path, "limits.", document.pop("limits", {}), _LIMITS)
    top = _table(path, "", document, _TOP)
    for key in _TOP:
        if key not in top and key not in _OPTIONAL:
            raise SettingsError(f"{path}: {key}: missing, it is required")
    for key in ("kind", *_REQUIRED_QUEUE.get(queue.get("kind", ""), ())):
        if key not in queue:
            raise SettingsError(f"{path}: queue.{key}: missing, it is required")
    settings = Settings(queue=QueueSettings(**queue), limits=Limits(**limits), **top)
    if settings.queue.kind == "sqs" and settings.timeout_seconds > SQS_TIMEOUT_MAX:
        raise SettingsError(
            f"{path}: timeout_seconds: found {settings.timeout_seconds}, allowed: up to {SQS_TIMEOUT_MAX} "
            "(SQS hides a message for at most 12 hours)"
        )
    return settings


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise SettingsError(f"{path}: found {type(document).__name__}, allowed: a JSON object")
    return document


_SHA256 = _matching(r"[0-9a-f]{64}", "a SHA-256, 64 hex digits")


def _envs(check: Check) -> Check:
    """Exactly one value for each of the two conda environments."""

    def both(value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or set(value) != {"pcgr", "pcgrr"}:
            raise ValueError("an object with pcgr and pcgrr")
        return {name: str(check(item)) for name, item in value.items()}

    return both


# What runtime.json must hold, by kind; `reference` and `digest` may be there besides.
_RUNTIMES: dict[str, dict[str, Check]] = {
    "docker": {"image": _matching(r"(sha256:)?[0-9a-f]{64}", "the id of a local image, sha256:<64 hex digits>")},
    "apptainer": {"image": _path, "sha256": _SHA256},
    "conda": {"image": _path, "prefixes": _envs(_path), "locks": _envs(_SHA256)},
}


def read_image(path: Path) -> Image:
    """Parse runtime.json, written by the role ``runtime``."""
    document = _json(path)
    kind = document.get("kind")
    if kind not in _RUNTIMES:
        raise SettingsError(f"{path}: kind: found {kind!r}, allowed: {', '.join(_RUNTIMES)}")
    found = {}
    for key, check in _RUNTIMES[kind].items():
        try:
            found[key] = check(document.get(key))
        except ValueError as error:
            raise SettingsError(f"{path}: {key}: found {document.get(key)!r}, allowed: {error}") from None
    found["image"] = str(found["image"])
    return Image(kind, reference=document.get("reference"), digest=document.get("digest"), **found)


def read_release(path: Path) -> dict[str, Any]:
    """Parse release.json, the loaded release file with its dialect, written by the role ``runtime``."""
    release = _json(path)
    for keys in (("release",), ("bundle", "date"), ("vep", "release"), ("dialect",)):
        value: Any = release
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            raise SettingsError(f"{path}: {'.'.join(keys)}: missing, it is required")
    if release["dialect"].get("runs_in") == "host":
        raise SettingsError(
            f"{path}: release: found {release['release']}, allowed: 1.0.0 and newer "
            "(the command of older ones starts docker itself; their data can be installed, samples not reported)"
        )
    if not all("success" in command for command in release["dialect"].get("commands", {}).values()):
        raise SettingsError(
            f"{path}: dialect.commands: found one without success, which lists what a complete run leaves"
        )
    return release
