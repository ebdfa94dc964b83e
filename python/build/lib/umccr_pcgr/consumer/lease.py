"""Keeps a claimed message while its sample is worked on, and notices when it is lost."""

from __future__ import annotations

import logging
import threading

from umccr_pcgr.samples import clock
from umccr_pcgr.samples.model import Claim, LeaseLost, Transient

from .queue import Queue

log = logging.getLogger(__name__)
BEATS = 3  # heartbeats per visibility: two may fail before the lease runs out


class Lease:
    """Sends heartbeats in a thread. Work under the lease calls :meth:`reason` often."""

    def __init__(self, queue: Queue, claim: Claim) -> None:
        self._queue = queue
        self._claim = claim
        self._deadline = claim.received + queue.visibility
        self._reason: str | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.lost = False

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_unused: object) -> None:
        self._over.set()
        self._thread.join()

    def reason(self) -> str | None:
        """Return why work must stop now; None while the lease holds. Notices also that time ran out (host suspended)."""
        if not self.lost and clock.now() > self._deadline:
            self._lose("no heartbeat succeeded in time")
        return self._reason

    def stop(self, reason: str) -> None:
        """Stop the work although the lease holds (shutdown)."""
        self._reason = self._reason or reason

    def _lose(self, why: str) -> None:
        self.lost = True
        self._reason = f"lease lost: {why}"

    def _beat(self) -> None:
        interval = self._queue.visibility / BEATS
        pause = self._claim.received + interval - clock.now()
        while not self._over.wait(max(0.0, pause)):
            started = clock.now()
            if self.reason() and self.lost:
                return
            try:
                self._queue.extend(self._claim)
            except LeaseLost as error:
                self._lose(str(error))
                return
            except Transient as error:
                log.error("heartbeat failed, will be tried again: %s", error)
                pause = min(interval, 1.0)
            except Exception:
                log.exception("heartbeat failed, will be tried again")
                pause = min(interval, 1.0)
            else:
                self._deadline = started + self._queue.visibility
                pause = interval - (clock.now() - started)
