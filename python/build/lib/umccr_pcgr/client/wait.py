"""Waits for the result of a sample that was sent, through lost connections, and fetches it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from umccr_pcgr.client import archive
from umccr_pcgr.client.cli import shown
from umccr_pcgr.client.store import Entry, Place, Refused, Status, Unreachable, follow
from umccr_pcgr.samples.naming import NameRefused, Sample, classify, parse

POLL_SECONDS = 2.0  # a report takes minutes; a HEAD request costs next to nothing
PAUSE_MAX = 30.0  # seconds between tries when the store cannot be reached
SILENCE_SECONDS = 900.0  # without an answer of the store; longer than a restart of a router or of a cluster's gateway


class NotFetched(Exception):
    """The result was not fetched although the sample is stored; the text is one line. Exit code 3."""


def wait(
    place: Place,
    sample: Sample,
    source: Entry,
    show: Callable[[str], None],
    *,
    timeout: float | None,
    silence: float = SILENCE_SECONDS,
) -> Status:
    """Wait until the result of this very input is there, or its failure is final; returns that status.

    `show` is called with each poll's outcome. `timeout` is in seconds, None for no limit. NotFetched when that is over, when the store
    does not answer for `silence` seconds, or when it refuses.
    """
    start = heard = time.monotonic()
    pause = POLL_SECONDS
    while True:
        try:
            status = follow(place, sample, source)
        except Unreachable as lost:
            if time.monotonic() - heard > silence:
                raise NotFetched(str(lost)) from None
            text, pause = f"{lost}; trying again", min(2 * pause, PAUSE_MAX)
        except Refused as refusal:
            raise NotFetched(str(refusal)) from None
        else:
            if status.state in ("done", "failed"):
                return status
            heard, pause = time.monotonic(), POLL_SECONDS
            text = status.state + (f" on {status.host}" if status.host else "")
            text += f" ({status.reason})" if status.reason else ""
        show(text)
        left = None if timeout is None else start + timeout - time.monotonic()
        if left is not None and left <= 0:
            raise NotFetched(f"no result after {timeout:.0f} s; last seen: {text}")
        time.sleep(pause if left is None else min(pause, left))


def fetch(place: Place, sample: Sample, folder: Path, *, unpack: bool, silence: float = SILENCE_SECONDS) -> Path:
    """Copy the result into `folder`, unpacked there too if `unpack`; returns the tarball's or the unpacked folder's path.

    NotFetched when the disk or the store refuses, or when the store cannot be reached for `silence` seconds.
    """
    start, pause = time.monotonic(), POLL_SECONDS
    while True:
        try:
            tarball = place.download(sample, folder)
            if unpack:
                archive.extract(tarball, folder)
        except Unreachable as lost:
            if time.monotonic() - start > silence:
                raise NotFetched(str(lost)) from None
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX)
        except (Refused, archive.UnsafeArchive) as refusal:
            raise NotFetched(str(refusal)) from None
        except OSError as error:
            raise NotFetched(shown(error, folder)) from None
        else:
            return folder / sample.name if unpack else tarball


def check_folder(folder: Path) -> None:
    """Ensure that results can be written to `folder`, which is created; Refused otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise Refused(f"--out: {folder}: found a file, allowed a folder") from None
    except OSError as error:
        raise Refused(
            f"--out: {folder}: {os.strerror(error.errno or 0)}; allowed: a folder that can be written"
        ) from None


def sent_sample(place: Place, name: str, prefix: str) -> tuple[Sample, Entry]:
    """Return a stored sample and its input, by its name, or by the key or address of its input or its result."""
    found = _sample(place, name, prefix)
    source = place.entry(found, "input")
    if not source:
        raise Refused(f"--fetch: {place.address(found.input_key)}: no such sample")
    return found, source


def _sample(place: Place, name: str, prefix: str) -> Sample:
    root = place.address("")
    key = name.removeprefix(root) if name.startswith(root) else name
    if key != name and prefix:
        raise Refused(f"--prefix: found {prefix!r} beside the address {name}, allowed one of them")
    if known := classify(prefix + key):
        return known[0]
    try:
        return parse(f"{prefix}{key}.tar.gz")
    except NameRefused:
        raise Refused(
            f"--fetch: found {name!r}, allowed the name of a sample such as demo-000001-somatic, or its address"
        ) from None
