"""One sample, from the event to the published result: the states it passes, and what it leaves when it ends early."""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from umccr_pcgr import __version__
from umccr_pcgr.samples import checks, clock
from umccr_pcgr.samples.dialect import ConfigError, Inputs, arguments, assembly_of
from umccr_pcgr.samples.documents import FailureReport, ProgressNote, as_json, input_fields
from umccr_pcgr.samples.model import InputRef, InputVersion, Permanent, Stopped, Transient
from umccr_pcgr.samples.naming import InputKey, Sample
from umccr_pcgr.samples.notes import is_note
from umccr_pcgr.samples.unpack import unpack

from .config import Image, Settings
from .pack import pack
from .publish import Verdict, publish, standing
from .queue import Store
from .runtime import BUNDLE, INPUTS, OUTPUTS, VEP, WORK_PREFIX, Job, Run, Runtime
from .success import failure, shortcomings
from .workspace import disk_errors, wipe

log = logging.getLogger(__name__)

End = Literal["published", "duplicate", "superseded", "failed", "ignored"]
MARK = "processed-samples"  # in state_dir; no image is made of a host that has it
PATIENCE = 900.0  # seconds for which a finished result waits for a failing store
PAUSE = 5.0  # seconds between two attempts to publish it
LOGS_KEPT = 50  # logs of failed runs kept in log_dir


class LeaseView(Protocol):
    """The part of a lease that an attempt uses."""

    lost: bool

    def reason(self) -> str | None:
        """Return why work must stop now, or None."""


@dataclass(frozen=True)
class Context:
    """What all attempts of a worker share."""

    settings: Settings
    release: Mapping[str, Any]
    image: Image
    runtime: Runtime
    store: Store
    host: str = field(default_factory=socket.gethostname)


class Attempt:
    """One try at one input. :meth:`run` ends with an End, or raises Transient (retry later) or Stopped."""

    def __init__(self, context: Context, ref: InputRef, lease: LeaseView, *, last: bool = False) -> None:
        """`last`: the queue will not deliver this message again, so that even a passing failure must be reported."""
        self.context = context
        self.ref = ref
        self.input = InputKey.read(ref.key)
        self.name = self.input.shown
        self.lease = lease
        self.last = last
        self.id = secrets.token_hex(8)
        self.work = context.settings.work_dir / f"{WORK_PREFIX}{self.id}"
        self.started = clock.utc()
        self.sha256: str | None = None
        self.version = InputVersion(ref.bucket, ref.key, ref.version_id, ref.etag, ref.size or 0, None)

    def run(self, *, give_up: str | None = None) -> End:
        """Report the sample; with `give_up`, report this as the failure instead of trying."""
        if self.context.store.echoes and (self.input.is_output or is_note(self.ref.key)):
            return "ignored"  # our own objects, seen through an event source without a filter
        try:
            with disk_errors():
                return self._run(give_up)
        except Permanent as error:
            self._halt()
            with disk_errors():
                return self._fail(error, permanent=True)
        except Transient as error:
            if self.last and not self.lease.reason():
                self._report_last(error)
            raise

    def _run(self, give_up: str | None) -> End:
        self._mark()
        found = self.context.store.head(self.ref)
        self.version = found or self.version
        if end := self._already():
            return end
        sample = self.input.sample
        if not sample:
            raise Permanent("name", self.input.refusal or "")
        if not found:
            raise Permanent("fetch", f"{self.ref.key}: the object does not exist any more")
        if give_up:
            report = self.context.store.published(self.version.bucket, self.input.failed_key)
            if report and report.identity == self.version.identity:
                return "failed"  # the last try has left a better reason
            return self._fail(Transient("queue", give_up), permanent=False)
        try:
            self.work.mkdir(mode=0o700)
            return self._report(sample)
        finally:
            wipe(self.work)

    def _already(self) -> End | None:
        """Return why this input needs no work: its result or refusal is published, or that of a newer version; None if it does."""
        store, version, failed_key = self.context.store, self.version, self.input.failed_key
        if sample := self.input.sample:
            stands = standing(store, store.published(version.bucket, sample.result_key), version)
            if stands in ("same", "newer"):
                return "duplicate" if stands == "same" else "superseded"
        report = store.published(version.bucket, failed_key)
        stands = standing(store, report, version)
        if stands == "newer":
            return "superseded"
        if stands == "same" and report:
            if report.last_modified == version.last_modified:
                return "duplicate"
            store.delete(version.bucket, failed_key)  # the same bytes stored again: a request to try again
        return None

    def _halt(self) -> None:
        if reason := self.lease.reason():
            raise Stopped(reason)

    def _mark(self) -> None:
        """Mark the host before anything else: once it is sent a sample it may hold patient data, if only in its spool folder."""
        mark = self.context.settings.state_dir / MARK
        if not mark.exists():
            mark.write_text(f"since {clock.iso(clock.utc())}\n", encoding="utf-8")

    def _report(self, sample: Sample) -> End:
        settings = self.context.settings
        free = shutil.disk_usage(settings.work_dir).free
        # three times: the tarball, its content, and the packed result, which holds about as much again
        if free < (needed := settings.limits.free_bytes + 3 * self.version.size):
            raise Transient("disk", f"{settings.work_dir}: {free} bytes free, {needed} needed")
        tarball = self.work / "input.tar.gz"
        self.sha256 = self.context.store.fetch(self.version, tarball, self.lease.reason)
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
            if not self.lease.lost:
                self._forget(sample.running_key)

    def _prepare(self, sample: Sample, names: list[str]) -> tuple[str, list[str]]:
        """Check the files; return the assembly and the tool's command."""
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

    def _tool(self, sample: Sample, assembly: str, argv: list[str]) -> End:
        settings = self.context.settings
        job = Job(self.id, argv, self.work / "inputs", self.work / "outputs", self.work / "pcgr.log")
        job.outputs.mkdir(mode=0o700)
        begun = time.monotonic()
        result = self.context.runtime.run(job, settings.timeout_seconds, self.lease.reason)
        seconds = time.monotonic() - begun
        if result.stopped:
            raise Stopped(result.stopped)
        self._verify(job, result, sample, assembly)
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
        """Publish the result, with patience: hours of work are not thrown away because the store is down for minutes."""
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

    def _verify(self, job: Job, result: Run, sample: Sample, assembly: str) -> None:
        settings = self.context.settings
        success = self.context.release["dialect"]["commands"][sample.command]["success"]
        prefix = success["prefix"].replace("{sample}", sample.name).replace("{assembly}", assembly)
        found = shortcomings(job, result, success, prefix)
        if not found and not result.overtime:
            return
        self._keep_log(job.log, sample)
        raise failure(
            sample.command, job, result, found, timeout=settings.timeout_seconds, memory=settings.limits.memory
        )

    def _keep_log(self, source: Path, sample: Sample) -> None:
        """Keep the whole log of a run that failed for the operator, and remove the oldest logs."""
        folder = self.context.settings.log_dir
        shutil.copyfile(source, folder / f"{sample.name}-{self.id}.log")
        logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        for path in logs[:-LOGS_KEPT]:
            path.unlink(missing_ok=True)

    def _input_fields(self) -> dict[str, Any]:
        return input_fields(self.version, self.sha256)

    def _provenance(self, sample: Sample, argv: list[str], seconds: float) -> dict[str, Any]:
        release, image = self.context.release, self.context.image
        return {
            "sample": sample.name,
            "input": self._input_fields(),
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

    def _progress(self, sample: Sample) -> None:
        note = ProgressNote.document(
            sample.name, self._input_fields(), attempt=self.id, host=self.context.host, started=self.started
        )
        self.context.store.put(self.version.bucket, sample.running_key, as_json(note))

    def _forget(self, key: str) -> None:
        try:
            self.context.store.delete(self.version.bucket, key)
        except Transient as error:
            log.warning("sample=%s attempt=%s cannot delete %s: %s", self.name, self.id, key, error)

    def _fail(self, error: Permanent | Transient, *, permanent: bool) -> End:
        """Publish the failure report, unless a result or a report of this version or a newer one came first."""
        if end := self._already():
            return end
        reason = " ".join(str(error).split())
        report = FailureReport.document(
            self.name,
            self._input_fields(),
            reason=reason,
            stage=error.stage,
            attempt=self.id,
            host=self.context.host,
            time=clock.utc(),
            permanent=permanent,
            log_tail=error.log_tail,
        )
        self.work.mkdir(mode=0o700, exist_ok=True)
        try:
            path = self.work / "failed.json"
            path.write_bytes(as_json(report))
            verdict = publish(self.context.store, self.input.failed_key, path, self.version, self.id, final=permanent)
        finally:
            wipe(self.work)
        log.error("sample=%s attempt=%s failed (%s): %s", self.name, self.id, error.stage, reason)
        return "failed" if verdict == "published" else verdict

    def _report_last(self, error: Transient) -> None:
        try:
            self._fail(error, permanent=False)
        except (Transient, OSError) as second:
            log.error("sample=%s attempt=%s cannot report the failure either: %s", self.name, self.id, second)
