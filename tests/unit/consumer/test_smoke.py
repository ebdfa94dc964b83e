"""The installed runtime tried without a sample: what is asked, that each fault is found, and what is left."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.umccr.pcgr.plugins.module_utils._release import load_release

from umccr_pcgr.consumer.smoke import RECORD, STAMP, smoke


def ask(site: Any) -> list[tuple[bool, str]]:
    for assembly in site.settings.assemblies:
        (site.settings.refdata_dir / "data" / assembly).mkdir(parents=True, exist_ok=True)
    return list(smoke(site.settings, load_release("rehearsal"), site.image, site.runtime, [site.settings.runtime_file]))


def proven(site: Any) -> bool:
    """As the role asks."""
    record = site.settings.state_dir / RECORD
    return subprocess.run(["sha256sum", "--check", "--status", record], check=False, stderr=-3).returncode == 0


def test_a_good_runtime(site: Any) -> None:
    site.settings.runtime_file.write_text("{}")
    stamp = site.settings.refdata_dir / "data" / "grch38" / STAMP
    stamp.parent.mkdir(parents=True)
    stamp.write_text("1")
    answers = ask(site)
    assert [line for fine, line in answers if not fine] == []
    assert [line.partition(":")[0] for _unused, line in answers] == [
        "runtime",
        "pcgr --version",
        "cpsr --version",
        *("pcgr without input is refused", "pcgr with assembly grch36 is refused"),
        *("cpsr without input is refused", "cpsr with assembly grch36 is refused"),
        *("pcgr starts with the data of grch38", "cpsr starts with the data of grch38"),
        *("pcgr starts with the data of grch37", "cpsr starts with the data of grch37"),
        *("network is off", "data and inputs are read-only", "outputs belong to the consumer"),
    ]
    assert list(site.settings.work_dir.iterdir()) == []
    assert [path.name for path in site.settings.state_dir.iterdir()] == [RECORD]  # and no mark of a processed sample
    assert proven(site)
    stamp.write_text("2")  # other data came
    assert not proven(site)


@pytest.mark.parametrize("site", ["conda"], indirect=True)
def test_what_comes_on_the_other_output_may_come_late(site: Any, tmp_path: Path) -> None:
    """Docker brings the two outputs on separate ways."""
    real = site.program.resolve()
    site.program.unlink()
    late = tmp_path / "late"
    site.program.write_text(f'#!/bin/sh\n{real} "$@" 2>{late}; code=$?; cat {late} >&2; exit $code\n')
    site.program.chmod(0o755)
    assert [line for fine, line in ask(site) if not fine] == []


def version(site: Any) -> None:
    (site.bin / "cpsr").write_text((site.bin / "cpsr").read_text().replace("2.3.0", "2.2.0"))


def greedy(site: Any) -> None:
    (site.bin / "pcgr").write_text((site.bin / "pcgr").read_text().replace("exit 2", "exit 0"))


def unnamed(site: Any) -> None:
    (site.bin / "pcgr").write_text((site.bin / "pcgr").read_text().replace("invalid choice", "odd"))


def mute(site: Any) -> None:
    (site.bin / "cpsr").unlink()


def other_data(site: Any) -> None:
    for command in ("pcgr", "cpsr"):
        text = (site.bin / command).read_text().replace("data/$assembly ]", "data/${assembly}b ]")
        (site.bin / command).write_text(text)


def instead(flag: str, other: str | None) -> Callable[[Any], None]:
    """bwrap without a flag, or with another in its place."""

    def wrapper(site: Any) -> None:
        real = site.program.resolve()
        site.program.unlink()
        swap = f'set -- "$@" {other or ""}' if other else ":"
        loop = f'for word; do shift; if [ "$word" = {flag} ]; then {swap}; else set -- "$@" "$word"; fi; done'
        site.program.write_text(f'#!/bin/sh\n{loop}\nexec {real} "$@"\n')
        site.program.chmod(0o755)

    return wrapper


@pytest.mark.parametrize("site", ["conda"], indirect=True)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (version, ["cpsr --version: found 'cpsr 2.2.0', allowed 'cpsr 2.3.0'"]),
        (
            greedy,
            [
                "pcgr without input is refused: exit code 0 (2 is right), 'required' printed",
                "pcgr with assembly grch36 is refused: exit code 0 (2 is right), 'invalid choice' printed",
            ],
        ),
        (
            unnamed,
            ["pcgr with assembly grch36 is refused: exit code 2 (2 is right), 'invalid choice' not printed, but"],
        ),
        (mute, ["cpsr --version: found", "cpsr without", "cpsr with", *["cpsr starts with the data of grch3"] * 2]),
        (
            other_data,
            [
                f"{command} starts with the data of {assembly}: exit code 1, 'ERROR - no bundle of {assembly}'"
                for assembly in ("grch38", "grch37")
                for command in ("pcgr", "cpsr")
            ],
        ),
        (instead("--unshare-net", None), ["network is off: interfaces "]),
        (
            instead("--ro-bind", "--bind"),
            ["data and inputs are read-only: not read-only: /mnt/bundle, /mnt/.vep, /mnt/pcgr"],
        ),
        (lambda site: site.program.unlink(), ["runtime: bwrap: no such program on this host"]),
    ],
    ids=["version", "greedy", "unnamed", "mute", "data", "network", "writable", "program"],
)
def test_each_fault_is_found(
    site: Any, spoil: Callable[[Any], None], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.settings.state_dir / RECORD).write_text("of better days")
    spoil(site)
    if said[0].startswith("runtime"):
        monkeypatch.setenv("PATH", str(site.program.parent))
    failed = [line for fine, line in ask(site) if not fine]
    assert len(failed) == len(said)
    for line, start in zip(failed, said, strict=True):
        assert line.startswith(start)
        assert "\n" not in line
    assert not (site.settings.state_dir / RECORD).exists()
    assert list(site.settings.work_dir.iterdir()) == []


@pytest.mark.parametrize("site", ["conda"], indirect=True)
def test_a_folder_that_cannot_be_written_is_one_line(site: Any) -> None:
    site.settings.work_dir.rmdir()
    (said,) = [line for fine, line in ask(site) if not fine]
    assert said.startswith(str(site.settings.work_dir))
    assert said.endswith(": No such file or directory")


def test_releases_without_some_options_are_asked_what_they_know(tmp_path: Path) -> None:
    from umccr_pcgr.consumer.smoke import _versions

    asked = {name: [q.about for q in _versions(load_release(name))] for name in ("1.0.3", "1.4.1")}
    assert asked == {"1.0.3": ["pcgr --version"], "1.4.1": ["pcgr --version", "cpsr --version"]}
    question = next(_versions(load_release("1.4.1")))
    assert question.judge(0, "pcgr 1.4.1\n")[0]
    assert not question.judge(0, "pcgr 1.4.10\n")[0]
    assert not question.judge(1, "pcgr 1.4.1\n")[0]
