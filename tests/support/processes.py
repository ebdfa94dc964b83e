"""The processes of a test run: start them with default signals, and kill those that outlive the run."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

MARK = "PCGR_TEST_RUN"  # set in the environment of every process that a test run starts, with a value of its own
GRACE_SECONDS = 2.0  # a process that is shutting down, such as a region, may need a moment


def restore_signals() -> None:
    """Start children with default signals, and react to Ctrl-C, however this process itself was started.

    Background jobs of a script, and those of nohup, inherit ignored signals and pass them on to their children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        # The run itself continues when the terminal closes, as nohup promises. Children get the default: they inherit no handler.
        signal.signal(signal.SIGHUP, lambda *_unused: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, set(signal.Signals))


def mark() -> str:
    """Mark all processes that this one starts from now on; return the value of the mark."""
    os.environ[MARK] = uuid.uuid4().hex
    return os.environ[MARK]


def kill_marked(value: str) -> list[str]:
    """Kill every marked process that does not end by itself within GRACE_SECONDS; return the command lines of those."""
    deadline = time.monotonic() + GRACE_SECONDS
    while _marked(value) and time.monotonic() < deadline:
        time.sleep(0.1)
    found: dict[int, str] = {}
    while new := {pid: line for pid, line in _marked(value).items() if pid not in found}:
        for pid in new:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        found |= new  # then look again: one of them may have started another meanwhile
    return list(found.values())


def _marked(value: str) -> dict[int, str]:
    entry = f"{MARK}={value}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if entry in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found[int(folder.name)] = (
                    (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
        except OSError:
            continue
    return {pid: line for pid, line in found.items() if line}
