"""The inbox of a spool as a queue (see :mod:`umccr_pcgr.samples.spool_layout`).

A tarball is never moved over a file: where its name is taken, the claim's version is put into it. What cannot be claimed (its
folder belongs to another user, say) is logged once and left where it is; it neither stops the others nor counts as work.

Claiming and taking over are renames, of which the file system lets one win.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from umccr_pcgr.samples import clock
from umccr_pcgr.samples.model import Claim, InputRef, LeaseLost, Outcome
from umccr_pcgr.samples.spool_layout import CLAIMED, FOLDERS, INBOX, free_places

from .spool_files import ERRORS_OF_ONE_FILE, ClaimFolder, Skipped, exclusive_lock, move, spool_errors

VISIBILITY = 300.0  # seconds without a heartbeat after which a claim may be taken over
SETTLE = 5.0  # seconds since the last write before a file in the inbox counts as complete
BUCKET = "spool"  # what stands for a bucket in reports


class SpoolQueue:
    """The inbox of a spool as a queue; missing folders are created."""

    def __init__(
        self, root: Path, *, visibility: float = VISIBILITY, max_receives: int = 5, settle: float = SETTLE
    ) -> None:
        self._root = root
        self._settle = settle
        self.visibility = visibility
        self.max_receives: int | None = max_receives
        self._skipped = Skipped()
        self._skipped_claims = Skipped()
        with spool_errors("queue"):
            for name in FOLDERS:
                (root / name).mkdir(mode=0o770, parents=True, exist_ok=True)

    def _now(self) -> float:
        """Return the file system's own time, which is the same for all hosts that share the spool."""
        probe = self._root / CLAIMED / f".clock-{os.getpid()}-{secrets.token_hex(4)}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    def claim(self, wait: float) -> Claim | None:
        """Take the oldest complete tarball of the inbox, or take over a claim that has run out."""
        del wait  # a folder answers at once; the worker sleeps between looks
        with spool_errors("queue"):
            now = self._now()
            return self._claim_waiting(now) or self._take_over(now)

    def _waiting(self) -> list[tuple[float, Path]]:
        """Return the inbox's files with their modification times. Not by os.walk: it is recursive before Python 3.12, and hides errors."""
        inbox = self._root / INBOX
        found: list[tuple[float, Path]] = []
        seen: set[Path] = set()
        folders = [inbox]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(folder) as entries:
                    listed = [entry for entry in entries if not entry.name.startswith(".")]
            except FileNotFoundError:
                continue
            except OSError as error:
                if folder == inbox:
                    raise
                self._skipped.add(folder, error)
                continue
            for entry in listed:
                path = Path(entry.path)
                seen.add(path)
                try:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif not (entry.is_symlink() and os.path.isdir(path)):  # noqa: PTH112  (Path.is_dir may raise)
                        found.append((entry.stat(follow_symlinks=False).st_mtime, path))
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self._skipped.add(path, error)
        self._skipped.keep(seen)
        return found

    def _claim_waiting(self, now: float) -> Claim | None:
        aged = [(modified, path) for modified, path in self._waiting() if not 0 <= now - modified < self._settle]
        held: ClaimFolder | None = None
        failure: OSError | None = None
        try:
            for _unused, path in sorted(aged):
                key = path.relative_to(self._root / INBOX).as_posix()
                if not held:
                    held = ClaimFolder.new(self._root / CLAIMED, f"{int(self._now() * 1e6):016d}", 1)
                    held.path.mkdir(mode=0o700)
                received = clock.now()
                held.key_file.write_bytes(os.fsencode(key))
                try:
                    path.rename(held.input)
                except FileNotFoundError:  # another worker was faster
                    continue
                except OSError as error:
                    if error.errno in ERRORS_OF_ONE_FILE:
                        self._skipped.add(path, error)
                    else:
                        failure = failure or error
                    continue
                self._skipped.discard(path)
                claimed, held = held, None
                return self._claimed(claimed, key, received)
        finally:
            if held:
                held.remove()
        if failure:
            raise failure
        return None

    def _take_over(self, now: float) -> Claim | None:
        """Take over a claim whose holder was silent for the whole visibility; the rename of only one worker finds it."""
        claims = [held for path in sorted((self._root / CLAIMED).iterdir()) if (held := ClaimFolder.read(path))]
        self._skipped_claims.keep({old.name for old in claims})
        for old in claims:
            try:
                if claim := self._overdue(old, now):
                    self._skipped_claims.discard(old.name)
                    return claim
            except OSError as error:
                if error.errno not in ERRORS_OF_ONE_FILE | {errno.ENOENT}:
                    raise
                self._skipped_claims.add(old.name, error)
        return None

    def _overdue(self, old: ClaimFolder, now: float) -> Claim | None:
        held = ClaimFolder.new(old.path.parent, old.version, old.receives + 1)
        try:
            if now - old.path.stat().st_mtime < self.visibility:
                return None
            received = clock.now()
            os.utime(old.path)  # before the rename: a fresh claim must never look old
            old.path.rename(held.path)
        except FileNotFoundError:
            return None
        if not os.path.lexists(held.input):  # its holder was killed before the file came or after it went
            held.remove()
            return None
        return self._claimed(held, held.key(), received)

    def _claimed(self, held: ClaimFolder, key: str, received: float) -> Claim:
        exhausted = self.max_receives is not None and held.receives > self.max_receives
        job = InputRef(BUCKET, key, held.version)
        return Claim(held.path.name, (job,), held.receives, received, exhausted=exhausted)

    def _set(self, claim: Claim, *, visible_in: float) -> None:
        with spool_errors("queue"):
            path = self._root / CLAIMED / claim.handle
            moment = self._now() - self.visibility + visible_in
            try:
                os.utime(path, (moment, moment))
            except FileNotFoundError:
                raise LeaseLost("another worker has taken the claim over") from None

    def extend(self, claim: Claim) -> None:
        """Hold the claim for another ``visibility`` seconds."""
        self._set(claim, visible_in=self.visibility)

    def release(self, claim: Claim, delay: float) -> None:
        """Let anybody take the claim over after `delay` seconds."""
        self._set(claim, visible_in=delay)

    def finish(self, claim: Claim, outcome: Outcome) -> None:
        """Move the tarball to ``done/`` or ``failed/`` and remove the claim."""
        held = ClaimFolder.read(self._root / CLAIMED / claim.handle)
        assert held  # noqa: S101  (the handle was made here)
        with spool_errors("queue"):
            try:
                key = held.key()
                with exclusive_lock(self._root):
                    move(held.input, free_places(self._root, outcome, key, held.version))
            except FileNotFoundError:
                raise LeaseLost("another worker has taken the claim over") from None
            held.remove()

    def unfinished(self) -> int:
        """Count tarballs in the inbox and claims, without those that cannot be claimed."""
        with spool_errors("queue"):
            claims = [held for path in (self._root / CLAIMED).iterdir() if (held := ClaimFolder.read(path))]
            waiting = [path for _unused, path in self._waiting() if path not in self._skipped]
            return len(waiting) + sum(1 for held in claims if held.name not in self._skipped_claims)
