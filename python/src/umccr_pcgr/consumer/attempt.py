"""One sample, from the event to the published result: the states it passes, and what it leaves when it ends early."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from umccr_pcgr import __version__
from umccr_pcgr.samples import checks, clock, naming
from umccr_pcgr.samples.dialect import ConfigError, Inputs, arguments, assembly_of
from umccr_pcgr.samples.model import InputRef, InputVersion, Permanent, Stopped, Transient
from umccr_pcgr.samples.unpack import unpack

from .config import Image, Settings
from .pack import as_json, pack
from .publish import Verdict, publish, standing
from .queue import Store
from .runtime import BUNDLE, INPUTS, OUTPUTS, VEP, WORK_PREFIX, Job, Run, Runtime, error_line, last_line, log_tail

log = logging.getLogger(__name__)

End = Literal["published", "duplicate", "superseded", "failed", "ignored"]
MARK = "processed-samples"  # in state_dir; a machine that has it is never made an image of
SIGNALLED = 128  # exit codes above it: ended by the signal `code - 128`
DISK_FULL = 64 << 20  # bytes; with less left on the work disk a failure of the tool proves nothing
PATIENCE = 900.0  # seconds for which a finished result waits for a store that fails
PAUSE = 5.0  # seconds between two tries of it
SHOWN = 80  # characters of a name off the convention that appear in logs and reports
LOGS_KEPT = 50  # logs of failed runs kept in log_dir


class Watch(Protocol):
    """What an attempt asks of its lease."""

    lost: bool

    def reason(self) -> str | None:
        """Why work must stop now, or None."""


@dataclass(frozen=True)
class Context:
    """What all attempts of a worker share."""

    settings: Settings
    release: Mapping[str, Any]
    image: Image
    runtime: Runtime
    store: Store
    host: str = field(default_factory=socket.gethostname)


def wipe(path: Path) -> None:
    """Remove a work folder whatever the tool did to its permissions; a failure is logged, never raised."""
    try:
        for folder, folders, _unused in os.walk(path):
            for name in folders:
                if not (inner := Path(folder, name)).is_symlink():
                    inner.chmod(0o700)
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.error("cannot wipe %s: %s", path, error)


def clear_leftovers(context: Context) -> None:
    """At start: end what an earlier life of this worker left running, then wipe what it left lying."""
    for name in context.runtime.clear():
        log.warning("killed the leftover run %s", name)
    for path in context.settings.work_dir.glob(f"{WORK_PREFIX}*"):
        log.warning("wiping the leftover folder %s", path)
        wipe(path)


@contextmanager
def _disk() -> Iterator[None]:
    """What this machine's own disk refuses is no fault of the sample."""
    try:
        yield
    except OSError as error:
        raise Transient("disk", f"{error.filename or 'work folder'}: {error.strerror or error}") from error


class Attempt:
    """One try at one input. :meth:`run` ends with an End, or raises Transient (try again later) or Stopped."""

    def __init__(self, context: Context, ref: InputRef, watch: Watch, *, last: bool = False) -> None:
        """`last`: the queue will not bring this message again, so that even a passing failure must be reported."""
        self.context = context
        self.ref = ref
        self.watch = watch
        self.last = last
        self.id = secrets.token_hex(8)
        self.work = context.settings.work_dir / f"{WORK_PREFIX}{self.id}"
        self.started = clock.utc()
        self.sha256: str | None = None
        self.version = InputVersion(ref.bucket, ref.key, ref.version_id, ref.etag, ref.size or 0, None)
        # for logs and reports; a key off the convention may hold anything
        self.name = ascii(ref.key.rpartition("/")[2].removesuffix(naming.SUFFIX))[1:-1][:SHOWN]
        self.failed_key = ref.key.removesuffix(naming.SUFFIX) + naming.ENDINGS["failed"]

    def run(self, *, give_up: str | None = None) -> End:
        """`give_up`: report this as the failure instead of trying."""
        own = any(self.ref.key.endswith(naming.ENDINGS[role]) for role in ("result", "failed", "running"))
        if self.context.store.echoes and (own or naming.is_note(self.ref.key)):
            return "ignored"  # our own objects, seen through an event source without a filter
        try:
            with _disk():
                return self._run(give_up)
        except Permanent as error:
            self._halt()
            with _disk():
                return self._fail(error, permanent=True)
        except Transient as error:
            if self.last and not self.watch.reason():
                self._report_last(error)
            raise

    def _run(self, give_up: str | None) -> End:
        self._mark()
        found = self.context.store.head(self.ref)
        self.version = found or self.version
        try:
            sample = naming.parse(self.ref.key)
        except naming.NameRefused as error:
            if end := self._already(None):
                return end
            raise Permanent("name", str(error)) from None
        self.failed_key = sample.failed_key
        if end := self._already(sample):
            return end
        if not found:
            raise Permanent("fetch", f"{self.ref.key}: the object does not exist any more")
        if give_up:
            told = self.context.store.published(self.version.bucket, self.failed_key)
            if told and told.identity == self.version.identity:
                return "failed"  # the last try has left a better reason
            return self._fail(Transient("queue", give_up), permanent=False)
        try:
            self.work.mkdir(mode=0o700)
            return self._report(sample)
        finally:
            wipe(self.work)

    def _already(self, sample: naming.Sample | None) -> End | None:
        """Whether this input needs no work: its result or refusal is published, or that of a newer version."""
        store, version = self.context.store, self.version
        if sample:
            stands = standing(store, store.published(version.bucket, sample.result_key), version)
            if stands in ("same", "newer"):
                return "duplicate" if stands == "same" else "superseded"
        report = store.published(version.bucket, self.failed_key)
        stands = standing(store, report, version)
        if stands == "newer":
            return "superseded"
        if stands == "same" and report:
            if report.last_modified == version.last_modified:
                return "duplicate"
            store.delete(version.bucket, self.failed_key)  # the same bytes put there again: a wish to try again
        return None

    def _halt(self) -> None:
        if reason := self.watch.reason():
            raise Stopped(reason)

    def _mark(self) -> None:
        """Before anything is looked at: a machine that was sent a sample may hold patient data, if only in its spool folder."""
        mark = self.context.settings.state_dir / MARK
        if not mark.exists():
            mark.write_text(f"since {clock.iso(clock.utc())}\n", encoding="utf-8")

    def _report(self, sample: naming.Sample) -> End:
        settings = self.context.settings
        free = shutil.disk_usage(settings.work_dir).free
        # three times: the tarball, its content, and the packed result, which holds about as much again
        if free < (needed := settings.limits.free_bytes + 3 * self.version.size):
            raise Transient("disk", f"{settings.work_dir}: {free} bytes free, {needed} needed")
        tarball = self.work / "input.tar.gz"
        self.sha256 = self.context.store.fetch(self.version, tarball, self.watch.reason)
        self._halt()
        limits = settings.limits
        names = unpack(
            tarball,
            self.work / "inputs",
            members=limits.members,
            unpacked_bytes=limits.unpacked_bytes,
            ratio=limits.ratio,
            label=self.ref.key,
            pulse=self._halt,
        )
        tarball.unlink()
        assembly, argv = self._prepare(sample, names)
        self._halt()
        self._progress(sample)
        try:
            return self._tool(sample, assembly, argv)
        finally:
            if not self.watch.lost:
                self._forget(sample.running_key)

    def _prepare(self, sample: naming.Sample, names: list[str]) -> tuple[str, list[str]]:
        """The checks; then the assembly and the tool's command."""
        settings, inputs = self.context.settings, self.work / "inputs"
        files = checks.sort_files(names)
        config = checks.read_toml(inputs / files.toml) if files.toml else {}

        def inside(name: str | None) -> str | None:
            return f"{INPUTS}/{name}" if name else None

        paths = Inputs(
            vcf=inside(files.vcf),
            cna=inside(files.cna),
            fusion=inside(files.fusion),
            expression=inside(files.expression),
            configuration=inside(files.toml),
        )
        try:
            assembly = assembly_of(config, settings.assemblies[0], settings.assemblies)
            argv = arguments(
                self.context.release["dialect"],
                sample.command,
                config,
                sample_id=sample.name,
                assembly=assembly,
                inputs=paths,
                refdata_dir=BUNDLE,
                vep_dir=VEP,
                output_dir=OUTPUTS,
                pcgrr_conda=self.context.image.prefixes.get("pcgrr"),
            )
        except ConfigError as error:
            raise Permanent("arguments", f"{files.toml}: {error}" if files.toml else str(error)) from None
        checks.check_vcf(
            inputs / files.vcf,
            assembly,
            single_sample=sample.command == "cpsr",
            unpacked_bytes=settings.limits.unpacked_bytes,
            ratio=settings.limits.ratio,
            pulse=self._halt,
        )
        return assembly, argv

    def _tool(self, sample: naming.Sample, assembly: str, argv: list[str]) -> End:
        settings = self.context.settings
        job = Job(self.id, argv, self.work / "inputs", self.work / "outputs", self.work / "pcgr.log")
        job.outputs.mkdir(mode=0o700)
        begun = time.monotonic()
        result = self.context.runtime.run(job, settings.timeout_seconds, self.watch.reason)
        seconds = time.monotonic() - begun
        if result.stopped:
            raise Stopped(result.stopped)
        self._judge(job, result, sample, assembly)
        self._halt()
        packed = self.work / "result.tar.gz"
        provenance = self._provenance(sample, argv, seconds)
        modified = self.version.last_modified or self.started
        pack(packed, sample.name, job.outputs, job.log, provenance=provenance, modified=modified)
        self._halt()
        verdict = self._publish(sample.result_key, packed)
        if verdict == "published":
            self._forget(sample.failed_key)  # of an older version or an earlier try: there is a report now
        return verdict

    def _publish(self, key: str, packed: Path) -> Verdict:
        """Hours of work are not thrown away because the store is down for minutes."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return publish(self.context.store, key, packed, self.version, self.id)
            except Transient as error:
                if time.monotonic() > deadline:
                    raise
                log.error("sample=%s attempt=%s cannot publish yet: %s", self.name, self.id, error)
                time.sleep(PAUSE)
                self._halt()

    def _judge(self, job: Job, result: Run, sample: naming.Sample, assembly: str) -> None:
        """Success is looked at, not believed: PCGR exits 0 on many failures."""
        tail = log_tail(job.log)
        success = self.context.release["dialect"]["commands"][sample.command]["success"]
        closed = any(success["closing"] in line for line in tail)
        prefix = success["prefix"].replace("{sample}", sample.name).replace("{assembly}", assembly)
        missing = [end for end in success["files"] if not _is_filled(job.outputs / f"{prefix}{end}")]
        if result.code == 0 and closed and not missing and not result.overtime:
            return
        self._keep_log(job.log, sample)
        last = last_line(tail)
        if result.overtime:
            limit = self.context.settings.timeout_seconds
            raise Permanent("run", f"{sample.command} ran longer than {limit} s; last line: {last}", tail)
        if result.code > SIGNALLED or result.code < 0:
            raise Transient(
                "run",
                f"{sample.command} was killed by signal {abs(result.code) % SIGNALLED} (from outside, or for more memory than "
                f"{self.context.settings.limits.memory}); last line: {last}",
                tail,
            )
        full = shutil.disk_usage(self.work).free < DISK_FULL
        if full or any("No space left on device" in line for line in tail):
            raise Transient("run", f"{sample.command} failed on a full disk; last line: {last}", tail)
        faults = [f"exit code {result.code}"] if result.code else []
        faults += [] if closed else [f"no closing line {success['closing']!r}"]
        faults += [f"no {prefix}{end}" for end in missing]
        said = error_line(tail)
        why = f"error: {said}" if said else f"last line: {last}"
        raise Permanent("run", f"{sample.command} failed: {', '.join(faults)}; {why}", tail)

    def _keep_log(self, source: Path, sample: naming.Sample) -> None:
        """For the operator: the whole log of a run that failed; the oldest ones go."""
        folder = self.context.settings.log_dir
        shutil.copyfile(source, folder / f"{sample.name}-{self.id}.log")
        logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        for path in logs[:-LOGS_KEPT]:
            path.unlink(missing_ok=True)

    def _input(self) -> dict[str, Any]:
        version = self.version
        return {
            "bucket": version.bucket,
            "key": version.key,
            "version_id": version.version_id,
            "etag": version.etag,
            "bytes": version.size,
            "sha256": self.sha256,
            "last_modified": clock.iso(version.last_modified),
        }

    def _provenance(self, sample: naming.Sample, argv: list[str], seconds: float) -> dict[str, Any]:
        release, image = self.context.release, self.context.image
        return {
            "sample": sample.name,
            "input": self._input(),
            "release": release["release"],
            "image": image.provenance(),
            "bundle": {"date": release["bundle"]["date"]},
            "vep": {"release": release["vep"]["release"]},
            "command": argv,
            "consumer_version": __version__,
            "attempt": self.id,
            "host": self.context.host,
            "started": clock.iso(self.started),
            "finished": clock.iso(clock.utc()),
            "seconds": round(seconds, 3),
        }

    def _progress(self, sample: naming.Sample) -> None:
        note = {
            "sample": sample.name,
            "input": self._input(),
            "attempt": self.id,
            "host": self.context.host,
            "started": clock.iso(self.started),
        }
        self.context.store.put(self.version.bucket, sample.running_key, as_json(note))

    def _forget(self, key: str) -> None:
        try:
            self.context.store.delete(self.version.bucket, key)
        except Transient as error:
            log.warning("sample=%s attempt=%s cannot delete %s: %s", self.name, self.id, key, error)

    def _fail(self, error: Permanent | Transient, *, permanent: bool) -> End:
        """Publish the failure report, unless a result or a report of this version or a newer one came first."""
        if end := self._already(naming.parse(self.ref.key) if self._named() else None):
            return end
        reason = " ".join(str(error).split())
        report = {
            "sample": self.name,
            "input": self._input(),
            "reason": reason,
            "stage": error.stage,
            "attempt": self.id,
            "host": self.context.host,
            "time": clock.iso(clock.utc()),
            "permanent": permanent,
            "log_tail": list(error.log_tail),
        }
        self.work.mkdir(mode=0o700, exist_ok=True)
        try:
            path = self.work / "failed.json"
            path.write_bytes(as_json(report))
            verdict = publish(self.context.store, self.failed_key, path, self.version, self.id, final=permanent)
        finally:
            wipe(self.work)
        log.error("sample=%s attempt=%s failed (%s): %s", self.name, self.id, error.stage, reason)
        return "failed" if verdict == "published" else verdict

    def _named(self) -> bool:
        found = naming.classify(self.ref.key)
        return found is not None and found[1] == "input"

    def _report_last(self, error: Transient) -> None:
        try:
            self._fail(error, permanent=False)
        except (Transient, OSError) as second:
            log.error("sample=%s attempt=%s cannot report the failure either: %s", self.name, self.id, second)


def _is_filled(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size > 0
