"""Command line of the consumer."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from umccr_pcgr import __version__
from umccr_pcgr.samples.model import ConsumerError, Transient

from . import imds
from .attempt import Context
from .config import Image, Settings, SettingsError, read_image, read_release, read_settings
from .docker import DockerRuntime
from .notes import Notes
from .queue import Queue, Store
from .runtime import Runtime
from .sandbox import ApptainerRuntime, CondaRuntime
from .smoke import smoke
from .spool_queue import VISIBILITY, SpoolQueue
from .spool_store import SpoolStore
from .sqs import S3Store, SqsQueue
from .worker import Worker

log = logging.getLogger(__name__)
TEMPORARY = 75  # EX_TEMPFAIL of sysexits.h


def backend(settings: Settings) -> tuple[Queue, Store]:
    """Return the queue and the store that the settings name; Transient when the queue cannot be reached."""
    queue = settings.queue
    if queue.kind == "sqs":
        return SqsQueue(queue), S3Store(queue)
    assert queue.spool_dir  # noqa: S101  (checked when the settings were read)
    visibility = float(queue.visibility_seconds or VISIBILITY)
    return SpoolQueue(queue.spool_dir, visibility=visibility, max_receives=queue.max_receives), SpoolStore(
        queue.spool_dir
    )


def runtime_of(settings: Settings, image: Image) -> Runtime:
    """Return what runs the tool here, by the kind that runtime.json records."""
    if image.kind == "docker":
        return DockerRuntime(settings, image, f"{os.getuid()}:{os.getgid()}")
    return {"apptainer": ApptainerRuntime, "conda": CondaRuntime}[image.kind](settings, image)


def check(context: Context) -> None:
    """Ensure that a sample could be reported now; ConsumerError or SettingsError with one line if not."""
    settings = context.settings
    separate = context.release["vep"].get("location") != "in_bundle"  # PCGR 1.4.1 and older have it in the bundle
    for path in (settings.refdata_dir / "data", settings.vep_dir / "homo_sapiens"):
        if not path.is_dir() and (separate or path.parent != settings.vep_dir):
            raise SettingsError(f"{path}: no such folder; the reference data is not installed")
    for assembly in settings.assemblies:
        if not (path := settings.refdata_dir / "data" / assembly).is_dir():
            raise SettingsError(f"{path}: no such folder; assemblies names {assembly}")
    for path in (settings.work_dir, settings.log_dir, settings.state_dir):
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
            raise SettingsError(f"{path}: not a folder that this user can write to")
    context.runtime.check()


@contextmanager
def exclusive_lock(state_dir: Path) -> Iterator[None]:
    """Hold the lock of the one consumer per host, which kills at its start what carries an attempt's mark; Transient if it is taken."""
    try:
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise SettingsError(f"{state_dir}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Transient("start", f"{state_dir}/lock: another consumer runs on this host") from None
        yield


def interrupted(worker: Worker, notes: Notes | None, notice: str) -> None:
    """Handle an interruption notice: first the sample returns to the queue, then a note is written."""
    worker.stop(notice)
    if notes:
        notes.interrupted()


def _stop_on_signals(worker: Worker) -> None:
    def stop(number: int, _unused: object) -> None:
        # in a thread of its own: the handler runs in the main thread, which may hold the very lock that stop() needs
        threading.Thread(target=worker.stop, args=[signal.Signals(number).name], daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pcgr-consumer`; returns the exit code.

    0: stopped, drained, or (--check, --smoke) all good. 1: cannot run, or not good. 75 (--once): the message is delivered again.
    """
    parser = argparse.ArgumentParser(
        prog="pcgr-consumer", description="Report samples from a queue with PCGR and CPSR."
    )
    parser.add_argument("--config", type=Path, default=Path("/etc/pcgr/consumer.toml"), help="default: %(default)s")
    parser.add_argument("--once", action="store_true", help="handle at most one message, then exit")
    parser.add_argument("--check", action="store_true", help="check whether a sample could be reported now, then exit")
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="test the installed runtime without a sample, one line per question, then exit",
    )
    parser.add_argument("--version", action="version", version=f"pcgr-consumer {__version__}")
    options = parser.parse_args(argv)
    # the journal adds the time; a sample's name is all that may appear of a patient
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(message)s", force=True)
    os.umask(0o027)
    try:
        return _run(options)
    except (SettingsError, ConsumerError) as error:
        print(f"pcgr-consumer: {error}", file=sys.stderr)
        return 1


def _smoke(config: Path, settings: Settings, release: dict[str, Any], image: Image, runtime: Runtime) -> int:
    signal.signal(signal.SIGTERM, lambda *_unused: sys.exit(1))  # raises, so that what runs is killed and wiped
    good = True
    for fine, line in smoke(
        settings, release, image, runtime, [config.absolute(), settings.release_file, settings.runtime_file]
    ):
        print(f"{'ok' if fine else 'failed':8}{line}", flush=True)
        good = good and fine
    return 0 if good else 1


def _run(options: argparse.Namespace) -> int:
    settings = read_settings(options.config)
    release, image = read_release(settings.release_file), read_image(settings.runtime_file)
    runtime = runtime_of(settings, image)
    if options.smoke:
        return _smoke(options.config, settings, release, image, runtime)
    queue, store = backend(settings)
    context = Context(settings, release, image, runtime, store)
    check(context)
    if options.check:
        print(f"ready: PCGR {release['release']}, {', '.join(settings.assemblies)}, queue {settings.queue.kind}")
        return 0
    with exclusive_lock(settings.state_dir):
        watch = imds.InterruptionWatch(lambda notice: interrupted(worker, notes, notice))
        bucket = settings.queue.notes_bucket if settings.queue.kind == "sqs" else None
        notes = Notes(store, bucket, lambda: watch.instance) if bucket else None
        worker = Worker(context, queue, notes=notes)
        _stop_on_signals(worker)
        worker.start()
        if options.once:
            handled = worker.once()
            log.info("once: %s", handled or "nothing to do")
            return 0 if handled in (None, "done", "failed") else TEMPORARY
        if queue.max_receives is None:
            log.warning("the queue has no dead-letter queue: a message that always fails is delivered for ever")
        watch.start()
        log.info("waiting for samples: PCGR %s, queue %s", release["release"], settings.queue.kind)
        try:
            worker.run()
        finally:
            watch.close()
    return 0
