"""The loop: claim, work under a lease, finish or return; end on request, or when nothing is left to do."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from typing import Literal

from umccr_pcgr.samples.model import Claim, LeaseLost, Outcome, Stopped, Transient

from .attempt import Attempt, Context, End
from .lease import Lease
from .notes import Notes
from .queue import Queue
from .workspace import clear_leftovers

log = logging.getLogger(__name__)

Ending = Literal["stopped", "drained"]
Handled = Literal["done", "failed", "later", "back", "lost"]


@dataclass(frozen=True)
class Pace:
    """Times in seconds, shorter in tests."""

    wait: float = 10.0  # of a long poll; also the longest that a stop waits while idle
    pause: float = 1.0  # between polls of a queue that answers at once
    backoff: float = 30.0  # before the first retry; doubled for each further one
    backoff_max: float = 900.0


class Worker:
    """Handles one message at a time until :meth:`stop` is called or the queue has been empty for ``idle_seconds``."""

    def __init__(self, context: Context, queue: Queue, pace: Pace | None = None, notes: Notes | None = None) -> None:
        self._context = context
        self._notes = notes
        self._queue = queue
        self._pace = pace or Pace()
        self._stop = threading.Event()
        self._reason = ""
        self._lease: Lease | None = None

    def stop(self, reason: str) -> None:
        """Take no more work, kill the running tool and return its message. For other threads than that of :meth:`run`."""
        self._reason = self._reason or reason
        self._stop.set()
        if lease := self._lease:
            lease.stop(reason)

    def start(self) -> None:
        """Clean up before the first claim: nothing of an earlier process may still run or lie about."""
        clear_leftovers(self._context.runtime, self._context.settings.work_dir)
        self._context.settings.drained_file.unlink(missing_ok=True)

    def run(self) -> Ending:
        """Work until stopped or drained."""
        idle_since = time.monotonic()
        failures = 0
        while not self._stop.is_set():
            try:
                if self._step():
                    idle_since = time.monotonic()
                elif self._idle(idle_since):
                    if not self._final_check():
                        return self._drained()
                    idle_since = time.monotonic()
                failures = 0
            except Transient as error:
                failures += 1
                log.error("the queue failed (%s times in a row): %s", failures, error)
                self._stop.wait(min(60.0, self._pace.pause * 2.0 ** min(failures, 6)) * random.uniform(0.5, 1))  # noqa: S311
                idle_since = time.monotonic()  # an unreachable queue is not an empty one
        log.info("stopping: %s", self._reason)
        return "stopped"

    def once(self) -> Handled | None:
        """Handle at most one message; None when there was none."""
        claim = self._queue.claim(self._pace.wait)
        return self._handle(claim) if claim else None

    def _step(self) -> bool:
        started = time.monotonic()
        if self.once():
            return True
        self._stop.wait(max(0.0, self._pace.pause - (time.monotonic() - started)))
        return False

    def _idle(self, since: float) -> bool:
        limit = self._context.settings.idle_seconds
        return limit > 0 and time.monotonic() - since >= limit

    def _final_check(self) -> bool:
        """Poll once more, then count. True: there is work, or another worker has some that may return."""
        if self.once():
            return True
        if count := self._queue.unfinished():
            log.info("idle, but the queue still counts %s messages: staying", count)
            return True
        return False

    def _drained(self) -> Ending:
        file = self._context.settings.drained_file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        log.info("drained: nothing to do for %s seconds", self._context.settings.idle_seconds)
        return "drained"

    def _handle(self, claim: Claim) -> Handled:
        lease = Lease(self._queue, claim)
        self._lease = lease
        if self._stop.is_set():  # stop() was called between the claim and the line above
            lease.stop(self._reason)
        try:
            with lease:  # no heartbeat may follow after the message is returned: it would hide it again
                outcome = self._work(claim, lease)
        except Stopped as error:
            return self._return(claim, lease, str(error))
        except Exception as error:
            if isinstance(error, Transient):
                log.error("receive=%s will be tried again (%s): %s", claim.receives, error.stage, error)
            else:
                log.exception("receive=%s will be tried again: an error of the consumer itself", claim.receives)
            return self._later(claim, lease)
        finally:
            self._lease = None
        return self._finish(claim, outcome)

    def _work(self, claim: Claim, lease: Lease) -> Outcome:
        """Report all inputs of a message; those that are published already cost nothing when it is delivered again."""
        if claim.refusal:
            raise Transient("message", claim.refusal)  # there is no sample to report: the dead-letter queue takes it
        outcome: Outcome = "done"
        later: Exception | None = None
        last = self._queue.max_receives is not None and claim.receives >= self._queue.max_receives
        for ref in claim.jobs:
            attempt = Attempt(self._context, ref, lease, last=last)
            give_up = f"given up after {claim.receives - 1} attempts" if claim.exhausted else None
            log.info("sample=%s attempt=%s receive=%s begins", attempt.name, attempt.id, claim.receives)
            started = time.monotonic()
            try:
                end: End = attempt.run(give_up=give_up)
            except Stopped:
                raise
            except Exception as error:  # the other inputs of the message must not wait for this one
                log.error("sample=%s attempt=%s not done: %s", attempt.name, attempt.id, error)
                later = error
                continue
            seconds = time.monotonic() - started
            log.info("sample=%s attempt=%s %s in %.1f s", attempt.name, attempt.id, end, seconds)
            if end == "published" and self._notes:
                self._notes.sample(attempt.id, seconds)
            outcome = "failed" if end == "failed" else outcome
        if later:
            raise later
        return outcome

    def _return(self, claim: Claim, lease: Lease, why: str) -> Handled:
        log.warning("attempt stopped: %s", why)
        if lease.lost:
            return "lost"
        try:
            self._queue.release(claim, 0)
        except (Transient, LeaseLost) as error:
            log.error("cannot return the message, it is delivered again after its time-out: %s", error)
        return "back"

    def _later(self, claim: Claim, lease: Lease) -> Handled:
        if lease.lost:
            return "lost"
        pace = self._pace
        delay = min(pace.backoff_max, pace.backoff * 2.0 ** min(claim.receives - 1, 30)) * random.uniform(0.5, 1)  # noqa: S311
        try:
            self._queue.release(claim, delay)
        except (Transient, LeaseLost) as error:
            log.error("cannot set the back-off, the message is delivered again after its time-out: %s", error)
        return "later"

    def _finish(self, claim: Claim, outcome: Outcome) -> Handled:
        try:
            self._queue.finish(claim, outcome)
        except (Transient, LeaseLost) as error:
            # harmless: it is delivered again, its result is found, and it is deleted then
            log.error("cannot delete the message: %s", error)
        return outcome
