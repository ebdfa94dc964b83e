"""What every runtime must show, the same for all three kinds."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from umccr_pcgr.consumer.runtime import Job, Run
from umccr_pcgr.samples.model import Transient


def alive(token: str) -> bool:
    """Whether any process has `token` on its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if token.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def token() -> str:
    """An argument for sleep that no other process has."""
    return f"61.{uuid.uuid4().int % 10**12}"


def test_a_whole_run(site: Any) -> None:
    site.runtime.check()
    result, log = site.run("pcgr --version; echo complained >&2; exit 3")
    assert result == Run(3)
    assert log.split() == ["pcgr", "2.3.2", "complained"]
    assert site.run("exit 0")[0] == Run(0)
    assert site.run("sh -c 'kill -9 $$'; exit $?")[0].code == 137


def test_nothing_of_the_check_is_left(site: Any) -> None:
    site.runtime.check()
    assert list(site.settings.work_dir.iterdir()) == []


@pytest.mark.parametrize("why", ["stop", "overtime"])
def test_a_run_that_must_end_takes_all_its_processes_with_it(site: Any, token: str, why: str) -> None:
    job = site.job(f"trap '' TERM; setsid sleep {token} & echo begun; sleep {token}")
    stop = (lambda: "enough" if "begun" in job.log.read_text() else None) if why == "stop" else (lambda: None)
    result = site.runtime.run(job, 1 if why == "overtime" else 30, stop)
    assert (result.stopped, result.overtime) == (("enough", False) if why == "stop" else (None, True))
    assert job.log.read_text() == "begun\n"
    until(lambda: not alive(token))
    assert site.runtime.clear() == []


def test_what_a_run_leaves_in_the_background_ends_with_it(site: Any, token: str) -> None:
    result, _unused = site.run(f"setsid sleep {token} >/dev/null 2>&1 & echo begun")
    assert result == Run(0)
    until(lambda: not alive(token))


def test_after_a_crash_leftovers_are_cleared(site: Any, token: str) -> None:
    job = site.job(f"setsid sleep {token} & echo begun; sleep {token}", attempt="crashed")
    crashing = multiprocessing.get_context("fork").Process(
        target=site.runtime.run, args=(job, 60, lambda: None), daemon=True
    )
    crashing.start()
    until(lambda: job.log.exists() and "begun" in job.log.read_text())
    crashing.kill()
    crashing.join()
    if site.kind != "conda":  # bubblewrap's run dies with the consumer
        assert alive(token)  # control: it lives on
        assert site.runtime.clear() == ["pcgr-crashed"]
    until(lambda: not alive(token))
    assert site.runtime.clear() == []


ISOLATION = """
cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' ' | sed 's/^/interface /'
for place in /mnt/bundle /mnt/.vep /mnt/pcgr_inputs; do touch $place/x 2>/dev/null && echo "wrote $place"; done
cat /mnt/pcgr_inputs/in.vcf; echo made >/mnt/pcgr_outputs/made
touch /usr/left-behind 2>/dev/null && echo "wrote /usr"
[ -e "{secret}" ] && echo "sees other samples"
[ -e /tmp/{token} ] && echo "sees the host's /tmp"
echo private >/tmp/left-behind-{token}; mkdir -p "$XDG_CACHE_HOME" && echo "cache can be written"
env | grep -c AWS_ | sed 's/^/secrets /'
ls /proc | grep -c '^[0-9]' | sed 's/^/processes /'
grep CapEff /proc/self/status | tr -s '\t' ' '
"""


def look(site: Any, token: str, monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], Path]:
    """What a run sees of the host; and the outputs folder."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    secret = site.settings.work_dir / "attempt-other" / "patient.vcf"
    secret.parent.mkdir()
    secret.touch()
    marker = Path("/tmp", token)
    marker.touch()
    try:
        result, log = site.run(ISOLATION.format(secret=secret, token=token))
    finally:
        marker.unlink()
    assert result == Run(0)
    lines = {line for line in log.splitlines() if not line.startswith("processes ")}
    count = next(int(line.split()[1]) for line in log.splitlines() if line.startswith("processes "))
    return lines | ({"few processes"} if count < 10 else {"the host's processes"}), secret


GOOD = {"interface lo", "sample", "cache can be written", "secrets 0", "CapEff: 0000000000000000", "few processes"}


def test_a_run_sees_nothing_of_the_host(site: Any, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, secret = look(site, token, monkeypatch)
    assert lines == GOOD
    made = secret.parents[1] / "attempt-a1" / "outputs" / "made"
    assert made.read_text() == "made\n"
    assert (made.stat().st_uid, made.stat().st_gid) == (os.getuid(), os.getgid())
    assert not Path(f"/tmp/left-behind-{token}").exists()
    assert not Path("/usr/left-behind").exists()


@pytest.mark.parametrize(
    ("site", "without", "then"),
    [
        ("apptainer", ["--net", "--network", "none"], "interface"),
        ("apptainer", ["--cleanenv"], "secrets"),
        ("apptainer", ["--workdir", "--containall"], "sees the host's /tmp"),
        ("conda", ["--unshare-net"], "interface"),
        ("conda", ["--clearenv"], "secrets"),
        ("conda", ["--unshare-pid"], "the host's processes"),
    ],
    indirect=["site"],
)
def test_each_guard_guards(
    site: Any, token: str, monkeypatch: pytest.MonkeyPatch, without: list[str], then: str
) -> None:
    """Negative control: the same check, without one flag."""
    runtime: Any = site.runtime
    whole = type(runtime).command

    def less(self: Any, job: Job) -> list[str]:
        command = whole(self, job)
        for flag in without:
            if flag == "--workdir":
                del command[command.index(flag) + 1]
            command.remove(flag)
        return command

    monkeypatch.setattr(type(runtime), "command", less)
    monkeypatch.setattr(type(runtime), "_environment", lambda self, attempt: dict(os.environ))
    lines, _unused = look(site, token, monkeypatch)
    changed = {line.split()[0] if line.startswith(("secrets ", "interface ")) else line for line in lines - GOOD}
    changed.discard("sees other samples")  # the tests' folder lies in /tmp
    assert changed == {then}


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(Transient) as refused:
        call()
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_what_is_missing_is_told_in_one_line_and_is_no_fault_of_the_sample(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = site.command("no-such-command")
    assert "no-such-command" in refusal(lambda: site.runtime.run(absent, 30, lambda: None))
    whole = site.image
    lost = {
        "docker": replace(whole, image="1" * 64),
        "apptainer": replace(whole, image=f"{site.folder}/lost.sif"),
        "conda": replace(whole, image=f"{site.folder}/lost", prefixes=dict.fromkeys(whole.prefixes, "/lost")),
    }
    site.image = lost[site.kind]
    for said in (refusal(site.runtime.check), refusal(lambda: site.runtime.run(site.job(":"), 30, lambda: None))):
        assert "1111" in said if site.kind == "docker" else "lost" in said
    site.image = whole
    monkeypatch.setenv("PATH", "/nowhere")
    for said in (refusal(site.runtime.check), refusal(lambda: site.runtime.run(site.job(":"), 30, lambda: None))):
        assert site.program.name in said


def test_missing_data_is_no_fault_of_the_sample(site: Any) -> None:
    """Of docker it is the daemon that decides (it makes missing folders), so the consumer looks itself when it starts."""
    site.settings.vep_dir.rmdir()
    assert str(site.settings.vep_dir) in refusal(lambda: site.runtime.run(site.job(":"), 30, lambda: None))


@pytest.mark.parametrize("site", ["conda", "apptainer"], indirect=True)
def test_a_host_that_allows_no_namespaces_is_noticed_at_the_start(site: Any) -> None:
    site.program.unlink()
    complaint = {
        "conda": "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1",
        "apptainer": "echo 'FATAL:   Failed to create user namespace' >&2; exit 255",
    }[site.kind]
    site.program.write_text(f"#!/bin/sh\n{complaint}\n")
    site.program.chmod(site.program.stat().st_mode | stat.S_IXUSR)
    assert complaint.split("'")[1].rpartition("  ")[2] in refusal(site.runtime.check)


@pytest.mark.parametrize("site", ["apptainer"], indirect=True)
@pytest.mark.parametrize("extra", ["--no-such-flag", "--read-only"])
def test_the_stand_in_refuses_what_apptainer_does_not_have(
    site: Any, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    runtime: Any = site.runtime
    whole = type(runtime).command
    monkeypatch.setattr(
        type(runtime), "command", lambda self, job: [*whole(self, job)[:3], extra, *whole(self, job)[3:]]
    )
    job = site.job(":")
    assert runtime.run(job, 30, lambda: None).code == 1
    assert "unrecognized arguments" in job.log.read_text() or extra in job.log.read_text()
