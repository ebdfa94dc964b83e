"""One result per input version, whatever dies, comes twice or comes back from the dead; and each guard's negative control."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from umccr_pcgr.consumer import publish as publishing
from umccr_pcgr.consumer.lease import Lease
from umccr_pcgr.consumer.queue import Queue
from umccr_pcgr.samples.model import Conflict, InputRef, InputVersion, LeaseLost, Published, Transient


def attempt_of(backend: Any) -> str:
    return str(json.loads(backend.result()["provenance.json"])["attempt"])


def again(backend: Any, make: Any) -> None:
    """The event of the sample that is there already comes once more."""
    if hasattr(backend, "notify"):
        backend.notify(make.KEY)
    else:
        pytest.skip("a file in an inbox cannot come twice")


# --- heartbeats and the lease -------------------------------------------------------------------------------------------


def second_worker_sees(backend: Any, make: Any) -> tuple[str | None, list[bool]]:
    """Run a tool for longer than the visibility while another worker keeps asking for work; what the other one got."""
    backend.runtime.modes = ["long"]
    backend.put(make.tarball())
    worker, other, got, over = backend.worker(), backend.queue(), [], threading.Event()

    def ask() -> None:
        while not over.wait(0.3):
            got.append(other.claim(0) is not None)

    asking = threading.Thread(target=ask)
    backend.runtime.on_run = lambda job: asking.start()
    end = worker.once()
    over.set()
    asking.join()
    return end, got


@pytest.fixture
def brief(request: pytest.FixtureRequest, spool: Any, make_cloud: Callable[..., Any]) -> Any:
    """A backend whose messages are hidden for two seconds only."""
    if request.param == "sqs":
        return make_cloud(visibility=2)
    spool.visibility = 2.0
    return spool


both = pytest.mark.parametrize("brief", ["spool", "sqs"], indirect=True)


@both
def test_heartbeats_keep_a_long_run_hidden(brief: Any, make: Any) -> None:
    end, got = second_worker_sees(brief, make)
    assert end == "done"
    assert got
    assert not any(got)


@both
def test_control_without_heartbeats_another_worker_gets_the_message(
    brief: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "_beat", lambda self: None)
    monkeypatch.setattr(Lease, "reason", lambda self: None)
    _unused, got = second_worker_sees(brief, make)
    assert any(got)


@both
@pytest.mark.parametrize("failure", [LeaseLost("gone"), Transient("queue", "unreachable")])
def test_a_lost_lease_kills_the_tool_and_discards(
    brief: Any, make: Any, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost at once when the queue says so; after the visibility when the queue cannot be reached."""
    brief.runtime.modes = ["hang"]
    brief.put(make.tarball())
    worker, queue = brief.worker(), type(brief.queue())
    real = queue.extend

    def extend(self: Queue, claim: Any) -> None:
        if brief.runtime.jobs:  # on a busy host the tool may start late
            raise failure
        real(self, claim)

    monkeypatch.setattr(queue, "extend", extend)
    started = time.monotonic()
    assert worker.once() == "lost"
    assert time.monotonic() - started < 6
    assert brief.runtime.processes[0].returncode == -9
    assert not list(brief.settings.work_dir.iterdir())
    assert brief.result() is None
    assert brief.report() is None


def test_a_suspended_worker_sees_that_its_lease_ran_out(spool: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.put(make.tarball())
    queue = spool.queue()
    claim = queue.claim(0)
    assert claim
    lease = Lease(queue, claim)
    assert lease.reason() is None
    monkeypatch.setattr("umccr_pcgr.samples.clock.now", lambda: claim.received + queue.visibility + 1)
    assert lease.reason() == "lease lost: no heartbeat succeeded in time"


def test_a_claim_taken_over_is_noticed_and_the_other_worker_finishes(
    spool: Any, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The zombie: its claim is taken over while its tool runs."""
    spool.visibility = 1.0
    spool.runtime.modes = ["hang", "good"]
    spool.put(make.tarball())
    zombie, ends = spool.worker(), []

    def steal(job: Any) -> None:
        if len(spool.runtime.jobs) == 1:
            (held,) = (spool.root / "claimed").glob("*.1.*")
            held.rename(held.with_name(held.name.replace(".1.", ".2.", 1)))  # what a take-over does

    spool.runtime.on_run = steal
    ends.append(zombie.once())
    assert ends == ["lost"]
    assert "attempt stopped: lease lost: another worker has taken the claim over" in caplog.messages
    assert spool.result() is None
    assert spool.settle() == ["done"]
    assert spool.result()


# --- stopping -----------------------------------------------------------------------------------------------------------


def test_a_stop_kills_the_tool_and_hands_the_message_back_at_once(backend: Any, make: Any) -> None:
    backend.runtime.modes = ["hang", "good"]
    backend.put(make.tarball())
    worker = backend.worker()
    backend.runtime.on_run = lambda job: threading.Timer(0.3, worker.stop, ["SIGTERM"]).start()
    started = time.monotonic()
    assert worker.run() == "stopped"
    assert time.monotonic() - started < 8
    assert backend.runtime.processes[0].returncode == -9
    assert backend.clean()
    backend.runtime.on_run = lambda job: None
    claim = backend.queue().claim(0)  # no one has to wait for the visibility
    assert claim
    assert claim.receives == 2


def test_no_heartbeat_hides_a_message_again_that_was_given_back(
    spool: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.runtime.modes = ["killed"]
    spool.put(make.tarball())
    queue = type(spool.queue())
    real = queue.release

    def slow(self: Any, claim: Any, delay: float) -> None:
        real(self, claim, 0)
        time.sleep(0.5)

    monkeypatch.setattr("umccr_pcgr.consumer.lease.BEATS", 200)  # one every 50 ms
    monkeypatch.setattr(queue, "release", slow)
    assert spool.worker().once() == "later"
    assert spool.queue().claim(0)


def test_a_stop_is_seen_while_a_large_sample_is_unpacked_and_checked(
    spool: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from umccr_pcgr.samples import checks, unpack

    text = make.vcf(*["1 5"] * 60_000)
    spool.put(make.tarball(make.files(text)))
    worker = spool.worker()
    for module, name in ((unpack, "unpack"), (checks, "check_vcf")):
        spool.folder.joinpath(name).mkdir()
        path = spool.folder / name / "s.vcf"
        path.write_bytes(text)
        seen: list[int] = []

        def stop(append: Callable[[int], None] = seen.append) -> None:
            append(1)
            raise InterruptedError

        options: dict[str, Any] = {"unpacked_bytes": 1 << 30, "ratio": 500, "pulse": stop}
        with pytest.raises(InterruptedError):
            if module is checks:
                checks.check_vcf(path, "grch38", single_sample=False, **options)
            else:
                path.write_bytes(make.tarball(make.files(text)))
                unpack.unpack(path, path.parent / "x", members=9, label="t", **options)
        assert seen == [1]

    real = checks.check_vcf

    def check(*arguments: Any, pulse: Any, **options: Any) -> int:
        worker.stop("SIGTERM")
        return real(*arguments, pulse=pulse, **options)

    monkeypatch.setattr(checks, "check_vcf", check)
    assert worker.once() == "back"
    assert spool.runtime.jobs == []


def test_a_stop_before_any_work_claims_nothing(backend: Any, make: Any) -> None:
    backend.put(make.tarball())
    worker = backend.worker()
    worker.stop("SIGTERM")
    assert worker.run() == "stopped"
    assert backend.runtime.jobs == []
    assert backend.queue().claim(0).receives == 1


# --- one result per version ---------------------------------------------------------------------------------------------


def test_a_repeated_event_does_not_run_the_tool_again(cloud: Any, make: Any) -> None:
    cloud.put(make.tarball())
    assert cloud.settle() == ["done"]
    first = attempt_of(cloud)
    again(cloud, make)
    assert cloud.settle() == ["done"]
    assert len(cloud.runtime.jobs) == 1
    assert attempt_of(cloud) == first


def test_control_a_new_version_does_run_the_tool_again(backend: Any, make: Any) -> None:
    """Two uploads within one second, as S3 counts time."""
    backend.put(make.tarball())
    assert backend.settle() == ["done"]
    first, old = attempt_of(backend), backend.result()
    backend.put(make.tarball(make.files(make.vcf("3 77"))))
    assert backend.settle() == ["done"]
    assert len(backend.runtime.jobs) == 2
    assert attempt_of(backend) != first
    name = "demo-000001-somatic.pcgr.grch38.html"
    assert backend.result()[name] != old[name]


def test_a_repeated_event_of_a_refused_input_changes_nothing(cloud: Any, make: Any) -> None:
    cloud.put(b"poison")
    assert cloud.settle() == ["failed"]
    first = cloud.report()
    again(cloud, make)
    assert cloud.settle() == ["done"]
    assert cloud.report() == first


def test_a_corrected_upload_replaces_the_failure(backend: Any, make: Any) -> None:
    backend.put(b"poison")
    assert backend.settle() == ["failed"]
    backend.put(make.tarball())
    assert backend.settle() == ["done"]
    assert backend.result()
    assert backend.report() is None


def test_the_same_bytes_put_again_after_a_failure_are_tried_again(cloud: Any, make: Any) -> None:
    cloud.runtime.modes, data = ["lies", "good"], make.tarball()
    cloud.put(data)
    assert cloud.settle() == ["failed"]
    time.sleep(1.1)  # S3 dates to the second
    cloud.put(data)
    assert cloud.settle() == ["done"]
    assert cloud.result()


def two_at_once(backend: Any, make: Any) -> tuple[list[str | None], str]:
    """Two workers on two messages of one input; the second starts and ends while the first's tool runs."""
    backend.put(make.tarball())
    again(backend, make)
    ends: list[str | None] = []
    other = backend.worker()

    def meanwhile(job: Any) -> None:
        if len(backend.runtime.jobs) == 1:
            ends.append(other.once())

    backend.runtime.on_run = meanwhile
    ends.append(backend.worker().once())
    return ends, backend.runtime.jobs[1].attempt


def test_the_first_to_publish_wins(cloud: Any, make: Any) -> None:
    ends, winner = two_at_once(cloud, make)
    assert ends == ["done", "done"]
    assert len(cloud.runtime.jobs) == 2
    assert attempt_of(cloud) == winner
    assert cloud.queue().unfinished() == 0
    assert cloud.clean()


def test_control_without_the_condition_the_last_would_win(
    cloud: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = type(cloud.store())
    monkeypatch.setattr(publishing, "standing", lambda *_unused: "free")
    monkeypatch.setattr(
        store, "put_if", lambda self, bucket, key, path, labels, tag: self.put(bucket, key, path.read_bytes())
    )
    _unused, winner = two_at_once(cloud, make)
    assert attempt_of(cloud) != winner


def test_an_event_of_an_older_version_does_not_undo_a_newer_result(make_cloud: Any, make: Any) -> None:
    cloud = make_cloud(versioned=True)
    old = cloud.s3.put_object(Bucket=cloud.bucket, Key=make.KEY, Body=make.tarball())["VersionId"]
    new = cloud.s3.put_object(Bucket=cloud.bucket, Key=make.KEY, Body=make.tarball(make.files(make.vcf("3 7"))))[
        "VersionId"
    ]
    cloud.notify(make.KEY, new)
    assert cloud.settle() == ["done"]
    cloud.notify(make.KEY, old)
    assert cloud.settle() == ["done"]
    assert len(cloud.runtime.jobs) == 1
    assert json.loads(cloud.result()["provenance.json"])["input"]["version_id"] == new


def test_the_version_of_the_event_is_what_is_reported(make_cloud: Any, make: Any) -> None:
    """In order, but late: the older version is reported, then replaced by the newer."""
    cloud = make_cloud(versioned=True)
    data = [make.tarball(), make.tarball(make.files(make.vcf("3 7")))]
    ids = [cloud.s3.put_object(Bucket=cloud.bucket, Key=make.KEY, Body=item)["VersionId"] for item in data]
    for version in ids:
        cloud.notify(make.KEY, version)
        cloud.settle()
        assert json.loads(cloud.result()["provenance.json"])["input"]["version_id"] == version


def test_a_zombie_of_an_older_version_is_superseded(cloud: Any, make: Any) -> None:
    """While the tool runs the input is replaced and the new version's result published."""
    cloud.put(make.tarball())
    other = cloud.worker()

    def meanwhile(job: Any) -> None:
        if len(cloud.runtime.jobs) == 1:
            cloud.put(make.tarball(make.files(make.vcf("3 77"))))
            assert other.once() == "done"

    cloud.runtime.on_run = meanwhile
    assert cloud.worker().once() == "done"
    assert attempt_of(cloud) == cloud.runtime.jobs[1].attempt


def test_a_write_whose_answer_was_lost_counts_as_ours(
    backend: Any, make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    store = type(backend.store())
    real, calls = store.put_if, []

    def applied_but_unanswered(self: Any, *arguments: Any) -> None:
        calls.append(arguments)
        real(self, *arguments)
        raise Conflict("412, answered to the retry of our own write")

    monkeypatch.setattr(store, "put_if", applied_but_unanswered)
    backend.put(make.tarball())
    assert backend.settle() == ["done"]
    assert len(calls) == 1
    assert backend.result()
    assert any(" published in " in message for message in caplog.messages)


def test_a_result_waits_for_a_store_that_is_down(backend: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool has run for hours by then; it does not run again. Control: patience is what makes the difference."""
    store = type(backend.store())
    real, failures = store.put_if, []

    def down(self: Any, *arguments: Any) -> None:
        failures.append(1)
        if len(failures) <= 3:
            raise Transient("publish", "503")
        real(self, *arguments)

    monkeypatch.setattr(store, "put_if", down)
    monkeypatch.setattr("umccr_pcgr.consumer.attempt.PAUSE", 0.05)
    backend.put(make.tarball())
    assert backend.settle() == ["done"]
    assert len(backend.runtime.jobs) == 1

    failures.clear()
    monkeypatch.setattr("umccr_pcgr.consumer.attempt.PATIENCE", -1.0)
    backend.put(make.tarball(), "in/demo-000002-somatic.tar.gz")
    assert backend.settle() == ["later", "later", "later", "done"]
    assert len(backend.runtime.jobs) == 5


def test_a_waiting_result_does_not_hold_up_a_stop(spool: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = spool.worker()

    def down(self: Any, *_unused: Any) -> None:
        worker.stop("SIGTERM")
        raise Transient("publish", "503")

    monkeypatch.setattr(type(spool.store()), "put_if", down)
    monkeypatch.setattr("umccr_pcgr.consumer.attempt.PAUSE", 0.05)
    monkeypatch.setattr("umccr_pcgr.consumer.attempt.PATIENCE", 3.0)
    spool.put(make.tarball())
    assert worker.once() == "back"


def test_of_many_writers_exactly_one_wins(spool: Any, tmp_path: Path) -> None:
    """First publication, then replacement of one and the same object: eight writers each."""
    store, key = spool.store(), "a-000001-somatic-failed.json"
    tag = None
    for _unused in range(5):
        barrier = threading.Barrier(8)
        won: list[int] = []

        def write(
            number: int,
            expected: str | None = tag,
            gate: threading.Barrier = barrier,
            win: Callable[[int], None] = won.append,
        ) -> None:
            path = tmp_path / f"candidate-{number}"
            path.write_text(json.dumps({"n": number}))
            gate.wait()
            try:
                store.put_if("spool", key, path, {}, expected)
                win(number)
            except Conflict:
                pass

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert json.loads(spool.read(key))["n"] == won[0]
        tag = store.published("spool", key).tag


def test_a_write_on_a_wrong_condition_is_refused(backend: Any, tmp_path: Path) -> None:
    store, key, bucket = backend.store(), "a-000001-somatic-failed.json", getattr(backend, "bucket", "spool")
    path = tmp_path / "candidate"
    path.write_text('{"n": 1}')
    store.put_if(bucket, key, path, {}, None)
    old = store.published(bucket, key).tag
    path.write_text('{"n": 2}')
    store.put_if(bucket, key, path, {}, old)
    for wrong in (None, old):
        with pytest.raises(Conflict):
            store.put_if(bucket, key, path, {}, wrong)
    store.delete(bucket, key)
    with pytest.raises(Conflict):  # it was there when we looked
        store.put_if(bucket, key, path, {}, old)


EARLY, LATE = (datetime(2026, 11, 23, 4, minute, tzinfo=UTC) for minute in (1, 2))


@pytest.mark.parametrize(
    ("there", "date", "current", "expected"),
    [
        (None, LATE, False, "free"),
        (Published("t", "version:1", EARLY, "a"), LATE, False, "same"),
        (Published("t", "version:1", EARLY, "a", final=False), EARLY, False, "replaceable"),
        (Published("t", "version:0", EARLY, "a"), LATE, False, "replaceable"),
        (Published("t", "version:2", LATE, "a"), EARLY, True, "newer"),
        (Published("t", "version:2", EARLY, "a"), EARLY, False, "newer"),  # a tie: the current version is the newer
        (Published("t", "version:0", EARLY, "a"), EARLY, True, "replaceable"),
        (Published("t", None, None, None), EARLY, False, "replaceable"),  # another program's object
        (Published("t", "version:0", EARLY, "a"), None, False, "newer"),  # our input is gone
    ],
)
def test_how_what_is_published_stands_to_an_input(
    there: Published | None, date: datetime | None, current: bool, expected: str
) -> None:
    class Store:
        def is_current(self, version: InputVersion) -> bool:
            return current

    version = InputVersion("b", "k", "1", "e", 3, date)
    assert publishing.standing(cast("Any", Store()), there, version) == expected


# --- messages -----------------------------------------------------------------------------------------------------------


def test_an_input_that_is_gone_is_reported(cloud: Any, make: Any) -> None:
    cloud.put(make.tarball())
    cloud.s3.delete_object(Bucket=cloud.bucket, Key=make.KEY)
    assert cloud.settle() == ["failed"]
    assert "does not exist any more" in cloud.report()["reason"]
    assert cloud.runtime.jobs == []


def test_garbage_goes_to_the_dead_letter_queue_and_the_queue_moves_on(cloud: Any, make: Any) -> None:
    cloud.send("nonsense")
    cloud.put(make.tarball())
    ends = cloud.settle()
    assert ends.count("done") == 1
    assert ends.count("later") == 5
    assert cloud.dead() == ["nonsense"]


def test_s3s_test_message_and_our_own_objects_are_cleared_away(cloud: Any, make: Any) -> None:
    cloud.send(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent"}))
    for key in ("in/demo-000001-somatic-output.tar.gz", "odd-failed.json", "in/x-running.json"):
        cloud.notify(key)
    assert cloud.settle() == ["done"] * 4
    assert cloud.s3.list_objects_v2(Bucket=cloud.bucket)["KeyCount"] == 0


def test_all_inputs_of_a_message_are_done_and_only_what_is_missing_is_done_again(cloud: Any, make: Any) -> None:
    keys = [f"in/demo-{number:06d}-somatic.tar.gz" for number in range(3)]
    for key in keys:
        cloud.s3.put_object(Bucket=cloud.bucket, Key=key, Body=make.tarball())
    cloud.runtime.modes = ["good", "killed", "good", "good"]
    cloud.send(json.dumps({"Records": [cloud.event(key) for key in keys]}))
    assert cloud.worker().once() == "later"
    assert [bool(cloud.result(key)) for key in keys] == [True, False, True]
    assert cloud.settle() == ["done"]
    assert all(cloud.result(key) for key in keys)
    assert len(cloud.runtime.jobs) == 4


# --- draining -----------------------------------------------------------------------------------------------------------


def test_an_empty_queue_drains(backend: Any) -> None:
    assert backend.worker().run() == "drained"
    assert backend.settings.drained_file.exists()


def test_idle_seconds_0_never_drains(backend: Any) -> None:
    worker = backend.worker(idle_seconds=0)
    threading.Timer(1.2, worker.stop, ["enough"]).start()
    assert worker.run() == "stopped"
    assert not backend.settings.drained_file.exists()


def in_other_hands(backend: Any, make: Any) -> str:
    """Run an idle worker while another one, which will die, holds the only message; how the idle one ended within 1.5 s."""
    backend.put(make.tarball())
    assert backend.queue().claim(1)
    worker = backend.worker()
    threading.Timer(1.5, worker.stop, ["enough"]).start()
    return str(worker.run())


def test_work_in_other_hands_keeps_a_worker_from_draining(backend: Any, make: Any) -> None:
    assert in_other_hands(backend, make) == "stopped"
    assert not backend.settings.drained_file.exists()


def test_control_without_the_count_it_would_drain(backend: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(backend.queue()), "unfinished", lambda self: 0)
    assert in_other_hands(backend, make) == "drained"


def test_a_late_arrival_is_still_taken(backend: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that comes after the last poll and before the count."""
    queue = type(backend.queue())
    real, arrivals = queue.unfinished, []

    def late(self: Any) -> int:
        if not arrivals:
            arrivals.append(1)
            backend.put(make.tarball())
        return int(real(self))

    worker = backend.worker()
    monkeypatch.setattr(queue, "unfinished", late)
    assert worker.run() == "drained"
    assert backend.result()


def test_a_queue_that_fails_is_not_an_empty_one(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The idle time counts from when the queue answers again."""
    worker, started, answers = backend.worker(idle_seconds=0.5), time.monotonic(), []

    def claim(self: Any, wait: float) -> None:
        if time.monotonic() - started < 1:
            raise Transient("queue", "unreachable")
        answers.append(time.monotonic())

    monkeypatch.setattr(type(backend.queue()), "claim", claim)
    assert worker.run() == "drained"
    assert time.monotonic() - answers[0] >= 0.4


def test_failing_messages_do_not_use_up_the_idle_time(cloud: Any, make: Any) -> None:
    """Four bad ones before three good ones: all seven are dealt with before the host drains."""
    for number in range(4):
        cloud.put(b"poison", f"in/bad-{number:06d}-somatic.tar.gz")
    for number in range(3):
        cloud.put(make.tarball(), f"in/good-{number:06d}-somatic.tar.gz")
    assert cloud.worker().run() == "drained"
    assert all(cloud.report(f"in/bad-{number:06d}-somatic.tar.gz") for number in range(4))
    assert all(cloud.result(f"in/good-{number:06d}-somatic.tar.gz") for number in range(3))


def test_a_store_reference_without_version_finds_the_newest(make_cloud: Any, make: Any) -> None:
    cloud = make_cloud(versioned=True)
    cloud.put(b"1")
    newest = cloud.s3.put_object(Bucket=cloud.bucket, Key=make.KEY, Body=b"22")["VersionId"]
    found = cloud.store().head(InputRef(cloud.bucket, make.KEY))
    assert (found.version_id, found.size) == (newest, 2)
