"""The whole way of a sample through both backends with the scripted tool: what comes out, what is left, what is said."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from umccr_pcgr.consumer.spool_queue import SpoolQueue


def test_a_good_sample_comes_back(backend: Any, make: Any) -> None:
    data = make.tarball(make.files(s__toml=b'[pcgr]\ntumor_dp_tag = "TDP"\n', s__cna__tsv=b"Chromosome\n"))
    running: list[bytes | None] = []
    backend.runtime.on_run = lambda job: running.append(backend.read("in/demo-000001-somatic-running.json"))
    backend.put(data)

    assert backend.settle() == ["done"]

    result = backend.result()
    assert list(result)[:2] == ["provenance.json", "pcgr.log"]
    assert list(result)[2:] == sorted(result.keys() - {"provenance.json", "pcgr.log"})
    assert "demo-000001-somatic.pcgr.grch38.html" in result
    assert b"Finished PCGR!" in result["pcgr.log"]
    provenance = json.loads(result["provenance.json"])
    assert list(provenance) == [
        *("sample", "input", "release", "image", "bundle", "vep", "command", "consumer_version", "attempt", "host"),
        *("started", "finished", "seconds"),
    ]
    assert provenance["sample"] == "demo-000001-somatic"
    assert provenance["input"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert provenance["input"]["bytes"] == len(data)
    assert provenance["input"]["key"] == make.KEY
    assert provenance["command"][0] == "pcgr"
    assert provenance["bundle"] == {"date": "20260620"}
    assert provenance["image"] == {
        "kind": "docker",
        "reference": "umccr/pcgr-rehearsal:2.3.2",
        "id": "sha256:" + "0" * 64,
    }
    assert provenance["started"] < provenance["finished"]
    note = json.loads(running[0] or b"")
    assert (note["sample"], note["attempt"]) == ("demo-000001-somatic", provenance["attempt"])
    assert backend.clean()
    assert backend.report() is None
    assert (backend.settings.state_dir / "processed-samples").is_file()


def test_a_normal_goes_to_cpsr(backend: Any, make: Any) -> None:
    key = "in/demo-000001-normal.tar.gz"
    backend.put(make.tarball(), key)
    assert backend.settle() == ["done"]
    assert "demo-000001-normal.cpsr.grch38.html" in backend.result(key)


def test_the_sample_chooses_the_assembly(backend: Any, make: Any) -> None:
    backend.put(make.tarball(make.files(make.vcf(assembly="grch37"), s__toml=b'genome_assembly = "grch37"\n')))
    assert backend.settle() == ["done"]
    assert "demo-000001-somatic.pcgr.grch37.html" in backend.result()


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("lies", "no closing line 'Finished PCGR!', no demo-000001-somatic.pcgr.grch38.conf.yaml"),
        ("silent", "pcgr failed: no closing line 'Finished PCGR!'; last line: pcgr starts"),
        ("boasts", "pcgr failed: no demo-000001-somatic.pcgr.grch38.conf.yaml"),
        ("refuses", "exit code 1, no closing line 'Finished PCGR!', no demo"),
        ("refuses", "; error: ERROR: tumor_site outside range"),
        ("logs", "; error: 2025-01-01 10:00:01 - pcgr-validate-arguments - ERROR - tumor purity 7 is out of range"),
    ],
)
def test_success_is_looked_at(backend: Any, make: Any, mode: str, said: str) -> None:
    backend.runtime.modes = [mode]
    backend.put(make.tarball())
    assert backend.settle() == ["failed"]
    report = backend.report()
    assert said in report["reason"]
    assert list(report) == [*("sample", "input", "reason", "stage", "attempt", "host", "time", "permanent", "log_tail")]
    assert (report["stage"], report["permanent"], report["log_tail"][0]) == ("run", True, "pcgr starts")
    assert backend.result() is None
    assert backend.clean()
    assert len(list(backend.settings.log_dir.glob("demo-000001-somatic-*.log"))) == 1


@pytest.mark.parametrize(
    ("release", "mode", "said"),
    [
        ("1.4.1", "old", None),
        ("1.4.1", "good", "no demo-000001-somatic.pcgr_acmg.grch38.vcf.gz"),
        ("1.0.3", "older", None),
        ("1.0.3", "old", "no closing line 'pcgr-writer - INFO - Finished'"),
        ("2.0.0", "old", "no demo-000001-somatic.pcgr.grch38.conf.yaml"),
    ],
)
def test_what_success_looks_like_depends_on_the_release(
    spool: Any, make: Any, release: str, mode: str, said: str | None
) -> None:
    spool.release = release
    spool.runtime.modes = [mode]
    spool.put(make.tarball())
    assert spool.settle() == ["failed" if said else "done"]
    if said:
        assert said in spool.report()["reason"]


def test_the_tool_may_not_run_for_ever(backend: Any, make: Any) -> None:
    backend.runtime.modes = ["hang"]
    backend.put(make.tarball())
    assert backend.settle(timeout_seconds=0.3) == ["failed"]
    assert "pcgr ran longer than 0.3 s" in backend.report()["reason"]
    assert backend.runtime.processes[0].returncode == -9


@pytest.mark.parametrize("mode", ["killed", "full"])
def test_what_may_pass_is_tried_again(backend: Any, make: Any, mode: str) -> None:
    backend.runtime.modes = [mode, "good"]
    backend.put(make.tarball())
    assert backend.settle() == ["later", "done"]
    assert backend.result()
    assert backend.report() is None


def test_a_full_work_disk_is_noticed_before_the_fetch(backend: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.put(make.tarball())
    context = backend.context()
    worker = backend.worker()
    monkeypatch.setattr(type(context.store), "fetch", lambda *_unused: pytest.fail("fetched"))
    monkeypatch.setattr("shutil.disk_usage", lambda _unused: type("Usage", (), {"free": 100})())
    assert worker.once() == "later"
    assert backend.queue().unfinished() == 1


def test_the_last_try_leaves_its_reason_and_nothing_is_lost(backend: Any, make: Any) -> None:
    backend.runtime.modes = ["killed"]
    backend.put(make.tarball())
    ends = backend.settle()
    assert ends[:5] == ["later"] * 5
    assert ends[5:] == (["failed"] if isinstance(backend.queue(), SpoolQueue) else [])  # SQS buries its dead itself
    report = backend.report()
    assert report["permanent"] is False
    assert "killed by signal 9" in report["reason"]
    assert len(backend.dead()) == 1

    # corrected and sent again, it succeeds, and the old report is removed
    backend.runtime.modes = ["good"]
    backend.put(make.tarball())
    assert backend.settle() == ["done"]
    assert backend.result()
    assert backend.report() is None


def test_the_queue_moves_on(backend: Any, make: Any) -> None:
    """A poison sample between good ones affects no other."""
    keys = [f"in/demo-{number:06d}-somatic.tar.gz" for number in range(1, 4)]
    for key, data in zip(keys, [make.tarball(), b"poison", make.tarball()], strict=True):
        backend.put(data, key)
    assert sorted(end or "" for end in backend.settle()) == ["done", "done", "failed"]
    assert backend.result(keys[0])
    assert backend.result(keys[2])
    assert backend.report(keys[1])["stage"] == "unpack"


def test_the_same_input_gives_the_same_bytes_but_for_times(spool: Any, make: Any) -> None:
    from umccr_pcgr.consumer.pack import pack
    from umccr_pcgr.samples.clock import utc

    (spool.folder / "o").mkdir()
    for name in ("b", "a"):
        (spool.folder / "o" / name).write_text(name)
    (spool.folder / "o" / "link").symlink_to("/etc/passwd")
    (spool.folder / "l").write_text("log")
    moment = utc()
    for target in ("1", "2"):
        pack(spool.folder / target, "n", spool.folder / "o", spool.folder / "l", provenance={}, modified=moment)
        (spool.folder / "o" / "a").touch()
    assert (spool.folder / "1").read_bytes() == (spool.folder / "2").read_bytes()
    assert b"passwd" not in (spool.folder / "1").read_bytes()
