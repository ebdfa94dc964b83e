"""KVM only where flags, device and trial agree; the trial really runs code."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcloud import accelerator as module

needs_qemu = pytest.mark.skipif(shutil.which(module.QEMU) is None, reason="QEMU not installed")


@pytest.fixture(autouse=True)
def fresh_answer() -> Iterator[None]:
    """Clear the cached answer before and after each test."""
    module.kind.cache_clear()
    yield
    module.kind.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu vmx sse2\n", True),
        ("processor\t: 0\nflags\t\t: fpu svm\n", True),
        ("flags\t\t: fpu svme_addr_chk sse2\n", False),
        ("vmx flags\t: vnmi svm\n", False),
        ("model name\t: vmx\nflags\t\t: fpu\n", False),
        ("", False),
    ],
)
def test_flags(tmp_path: Path, text: str, expected: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    assert module.has_flags(cpuinfo) is expected


def test_no_cpuinfo_means_no_flags(tmp_path: Path) -> None:
    assert module.has_flags(tmp_path / "none") is False


@needs_qemu
def test_trial_runs_code_under_emulation() -> None:
    assert module.trial("tcg", seconds=60) is True


@needs_qemu
def test_trial_of_a_guest_that_hangs_fails_in_time() -> None:
    assert module.trial("tcg", code=b"\xf4\xeb\xfd", seconds=3) is False


@needs_qemu
def test_trial_of_an_unknown_accelerator_fails() -> None:
    assert module.trial("nonesuch") is False


def test_trial_without_qemu_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QEMU", "/nonexistent/qemu")
    assert module.trial("tcg") is False


@pytest.mark.parametrize(
    ("flags", "device", "works", "expected"),
    [
        (True, True, True, "kvm"),
        (False, True, True, "tcg"),
        (True, False, True, "tcg"),
        (True, True, False, "tcg"),
    ],
)
def test_each_condition_is_needed(
    monkeypatch: pytest.MonkeyPatch, flags: bool, device: bool, works: bool, expected: str
) -> None:
    monkeypatch.setattr(module, "has_flags", lambda: flags)
    monkeypatch.setattr(module.os, "access", lambda path, mode: device)
    monkeypatch.setattr(module, "trial", lambda name: works)
    assert module.kind() == expected
    assert module.accelerator()[1].startswith(expected)
