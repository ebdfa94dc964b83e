"""For all tests: default signals, and no process outlives the run."""

from __future__ import annotations

import warnings

import pytest

from support import processes

MARK = pytest.StashKey[str]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Prepare this process, which runs tests or starts the workers that do."""
    processes.restore_signals()
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        config.stash[MARK] = processes.mark()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Kill what tests have left running, and warn of it."""
    value = session.config.stash.get(MARK, None)
    for line in processes.kill_marked(value) if value else ():
        warnings.warn(f"a test left this process running, now killed: {line[:200]}", stacklevel=1)
