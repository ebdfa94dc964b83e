"""The spool's files: nothing is moved over anything, and one bad file or folder does not stop the others."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from umccr_pcgr.samples.model import InputRef, Permanent, Transient

OTHER = "other-000002-somatic.tar.gz"
NOBODY = 65534


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


# --- never over anything ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["-output.tar.gz", "-failed.json", "-running.json"])
def test_a_file_with_a_name_of_ours_is_refused_and_replaces_nothing(spool: Any, make: Any, ending: str) -> None:
    spool.put(make.tarball())
    spool.put(b"poison", OTHER)
    assert sorted(spool.settle()) == ["done", "failed"]
    before = contents(spool.root / "done"), contents(spool.root / "failed")
    name = f"in/demo-000001-somatic{ending}" if ending != "-failed.json" else "other-000002-somatic-failed.json"
    spool.put(b"anything at all", name)
    assert spool.settle() == ["failed"]
    assert contents(spool.root / "done") == before[0]
    failed = contents(spool.root / "failed")
    assert before[1].items() <= failed.items()
    assert [data for path, data in failed.items() if path not in before[1] and not path.endswith("-failed.json")] == [
        b"anything at all"
    ]
    report = spool.report(name)
    assert (report["stage"], report["permanent"]) == ("name", True)
    assert spool.runtime.jobs[1:] == []
    spool.put(make.tarball())  # control: the sample itself goes its way
    assert spool.settle() == ["done"]


@pytest.mark.parametrize("name", ["demo-000001-somatic-output.tar.gz", "demo-000001-somatic-failed.json"])
def test_a_name_of_ours_that_comes_first_does_not_stand_for_the_sample(spool: Any, make: Any, name: str) -> None:
    spool.put(b"{}", f"in/{name}")
    assert spool.settle() == ["failed"]
    assert contents(spool.root / "done") == {}
    spool.put(b"poison")
    assert spool.settle() == ["failed"]
    assert spool.report()["stage"] == "unpack"


def test_a_note_in_the_inbox_is_refused(spool: Any) -> None:
    note = "machines/i-0123456789abcdef0/interrupted.json"
    spool.store().put("spool", note, b"ours")
    spool.put(b"theirs", note)
    assert spool.settle() == ["failed"]
    assert contents(spool.root / "done") == {note: b"ours"}


def test_an_own_name_in_a_bucket_is_still_ignored(cloud: Any, make: Any) -> None:
    """There it is the notification of our own object."""
    cloud.put(b"{}", "in/demo-000001-somatic-failed.json")
    assert cloud.settle() == ["done"]
    assert cloud.report("in/demo-000001-somatic-failed.json") is None


@pytest.mark.parametrize(("mode", "outcome"), [("good", "done"), ("refuses", "failed")])
def test_a_tarball_put_again_leaves_the_first_in_its_place(spool: Any, make: Any, mode: str, outcome: str) -> None:
    spool.runtime.modes = [mode]
    tarballs = [make.tarball(level=level) for level in (1, 6, 9)]
    for data in tarballs:
        spool.put(data)
        assert spool.settle() == [outcome]
    found = {name: data for name, data in contents(spool.root / outcome).items() if "-output" not in name}
    found.pop("in/demo-000001-somatic-failed.json", None)
    assert found.pop("in/demo-000001-somatic.tar.gz") == tarballs[0]
    assert sorted(found.values()) == sorted(tarballs[1:])
    for name in found:
        assert name.startswith("in/demo-000001-somatic.1")
        assert name.endswith(".tar.gz")


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_whatever_has_the_name_stays(spool: Any, make: Any, kind: str) -> None:
    taken = spool.root / "failed" / OTHER
    {"folder": taken.mkdir, "link": lambda: taken.symlink_to("nowhere"), "pipe": lambda: os.mkfifo(taken)}[kind]()
    spool.put(b"poison", OTHER)
    assert spool.settle() == ["failed"]
    assert {"folder": taken.is_dir, "link": taken.is_symlink, "pipe": taken.is_fifo}[kind]()
    assert spool.report(OTHER)
    assert b"poison" in contents(spool.root / "failed").values()


@pytest.mark.parametrize("ending", ["-failed.json", "-output.tar.gz", ".tar.gz"])
@pytest.mark.parametrize("data", [None, b"poison"], ids=["good", "bad"])
def test_a_folder_named_like_a_file_of_ours_blocks_nothing(
    spool: Any, make: Any, ending: str, data: bytes | None
) -> None:
    """Such a folder may come from the inbox, before or after the file, or be there already."""
    stem = "other-000002-somatic"
    spool.put(make.tarball(), f"{stem}{ending}/demo-000001-somatic.tar.gz")
    spool.put(b"poison", f"{stem}{ending}/demo-000003-somatic.tar.gz")
    assert sorted(spool.settle()) == ["done", "failed"]
    shutil.rmtree(spool.root / "inbox")
    (spool.root / "inbox").mkdir()
    spool.put(data or make.tarball(), OTHER)
    assert spool.settle() == ["failed" if data else "done"]
    assert spool.report(OTHER) if data else spool.result(OTHER)
    for outcome in ("done", "failed"):
        folder = spool.root / outcome / f"{stem}-000004{ending}"
        folder.mkdir()
    spool.put(data or make.tarball(), "other-000002-somatic-000004-somatic.tar.gz")
    assert spool.settle() == ["failed" if data else "done"]


def test_a_folder_where_a_refused_file_lies(spool: Any) -> None:
    spool.put(b"x", "notes")
    assert spool.settle() == ["failed"]
    spool.put(b"x", OTHER)
    (spool.root / "inbox" / "notes").mkdir()
    (spool.root / "inbox" / OTHER).rename(spool.root / "inbox" / "notes" / OTHER)
    assert spool.settle() == ["failed"]
    assert sorted(contents(spool.root / "failed")) == [
        *("notes", "notes-failed.json"),
        *(f"notes~/{OTHER.removesuffix('.tar.gz')}-failed.json", f"notes~/{OTHER}"),
    ]


def test_a_folder_named_like_a_claim_is_none(spool: Any, make: Any) -> None:
    key = f"{1:016d}.1.{'0' * 16}/demo-000001-somatic.tar.gz"
    spool.visibility = 0.3
    spool.put(make.tarball(), key)
    seen = []
    spool.runtime.on_run = lambda job: seen.extend(path.name for path in (spool.root / "claimed").iterdir())
    assert spool.settle() == ["done"]
    assert f"{1:016d}.1.{'0' * 16}" not in seen
    time.sleep(0.4)
    assert spool.queue().claim(0) is None
    assert spool.queue().unfinished() == 0


# --- one bad file does not stop the others ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a" * 248 + ".tar.gz", "b" * 255, "ü" * 127, f"{'c' * 226}-000001-somatic.tar.gz"])
def test_a_name_as_long_as_can_be_is_refused(spool: Any, make: Any, name: str) -> None:
    spool.put(b"x", f"in/{name}")
    os.utime(spool.root / "inbox" / "in" / name, (1, 1))
    spool.put(make.tarball(), OTHER)
    assert spool.settle() == ["failed", "done"]
    failed = contents(spool.root / "failed" / "in")
    assert failed.pop(name) == b"x"
    (report,) = failed
    assert report.endswith("-failed.json")
    assert spool.settle() == []
    spool.put(b"y", f"in/{name}")  # and again, where its name is taken
    assert spool.settle() == ["failed"]
    assert sorted(data for data in contents(spool.root / "failed" / "in").values() if len(data) == 1) == [b"x", b"y"]


def test_a_path_as_long_as_can_be_is_refused(spool: Any, make: Any) -> None:
    folder = spool.root / "inbox"
    while len(str(folder)) < 4096 - 215:
        folder /= "d" * 200
    folder.mkdir(parents=True)
    (folder / ("e" * (4095 - len(str(folder)) - 1))).write_bytes(b"x")
    spool.put(make.tarball(), OTHER)
    assert sorted(spool.settle()) == ["done", "failed"]
    assert b"x" in contents(spool.root / "failed").values()


def test_a_tree_deeper_than_python_calls_is_looked_through(spool: Any, make: Any) -> None:
    spool.put(make.tarball(), OTHER)
    here = Path.cwd()
    try:
        os.chdir(spool.root / "inbox")
        for _unused in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        os.chdir(here)
        assert spool.settle() == ["done"]
    finally:
        os.chdir(here)
        # pytest's own removal calls itself for each level
        subprocess.run(["rm", "-r", spool.root / "inbox" / "d"], check=True)


def as_nobody(spool: Any, work: Callable[[], None]) -> None:
    """Run `work` in a child without any privilege, to which the spool belongs; it fails as the child does."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for folder, folders, names in os.walk(spool.folder):
        for name in [".", *folders, *names]:
            path = Path(folder, name)
            if path.lstat().st_uid == 0 and "alice" not in str(path):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    opened = [
        (path, path.stat().st_mode) for path in spool.folder.parents if path.stat().st_uid == 0 and path != Path("/")
    ]
    for path, mode in opened:
        if not mode & 0o001:
            path.chmod(mode | 0o011)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _unused, status = os.waitpid(child, 0)
    for path, mode in opened:
        path.chmod(mode)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("mode", [0o755, 0o744, 0o700, 0o711], ids=oct)
def test_a_folder_of_another_user_stops_nothing(
    spool: Any, make: Any, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    """Not to be renamed out of, listed but not looked into, not to be read, or read only by who knows the names."""
    folder = spool.root / "inbox" / "alice\n"
    spool.put(make.tarball(), "alice\n/demo-000001-somatic.tar.gz")
    os.utime(folder / "demo-000001-somatic.tar.gz", (1, 1))  # older than the good one: tried first
    spool.put(make.tarball(), OTHER)
    folder.chmod(mode)

    def work() -> None:
        queue = spool.queue()
        with caplog.at_level(logging.ERROR):
            for _unused in range(3):
                claim = queue.claim(0)
                if claim:
                    assert claim.jobs[0].key == OTHER
                    queue.finish(claim, "done")
        (message,) = caplog.messages
        assert "alice\\n" in message
        assert message.endswith("cannot be claimed and is skipped: Permission denied")
        assert message.isprintable()
        assert queue.unfinished() == 0  # what no worker here can claim is no reason to stay
        assert list((spool.root / "claimed").iterdir()) == []
        assert (spool.root / "done" / OTHER).is_file()

    as_nobody(spool, work)
    queue = spool.queue()  # as root, who may: nothing was lost
    claim = queue.claim(0)
    assert claim.jobs[0].key == "alice\n/demo-000001-somatic.tar.gz"


def test_what_could_not_be_claimed_is_once_it_can(spool: Any, make: Any) -> None:
    spool.put(make.tarball(), "bob/demo-000001-somatic.tar.gz")

    def work() -> None:
        queue, folder = spool.queue(), spool.root / "inbox" / "bob"
        folder.chmod(0o555)
        assert queue.claim(0) is None
        assert queue.unfinished() == 0
        folder.chmod(0o755)
        claim = queue.claim(0)
        assert claim.jobs[0].key == "bob/demo-000001-somatic.tar.gz"
        assert queue.unfinished() == 1
        queue.finish(claim, "done")

    as_nobody(spool, work)


def test_a_file_that_may_not_be_read_is_refused_at_once(spool: Any, make: Any) -> None:
    spool.put(make.tarball(), "alice.tar.gz")  # of root: as_nobody leaves it so
    (spool.root / "inbox" / "alice.tar.gz").rename(spool.root / "inbox" / f"alice-{OTHER}")
    (spool.root / "inbox" / f"alice-{OTHER}").chmod(0o600)

    def work() -> None:
        claim = spool.queue().claim(0)
        store = spool.store()
        version = store.head(InputRef("spool", f"alice-{OTHER}", claim.jobs[0].version_id))
        with pytest.raises(Permanent, match="the consumer's user may not read the file"):
            store.fetch(version, spool.folder / "x", lambda: None)

    as_nobody(spool, work)


def test_a_place_in_failed_that_cannot_be_used_is_gone_around(spool: Any) -> None:
    spool.put(b"x", f"sub/{OTHER}")
    (spool.root / "failed" / "alice").mkdir()
    (spool.root / "failed" / "sub").symlink_to("alice")

    def work() -> None:
        queue = spool.queue()
        queue.finish(queue.claim(0), "failed")
        (path,) = [path for path in (spool.root / "failed").iterdir() if path.is_file()]
        assert path.read_bytes() == b"x"

    as_nobody(spool, work)


def test_a_claim_that_cannot_be_taken_over_stops_nothing(
    spool: Any, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    spool.visibility = 0.1
    broken = spool.root / "claimed" / f"{1:016d}.1.{'0' * 16}"
    broken.mkdir()
    (broken / "input").write_bytes(b"x")  # without its key it is unknown what it is
    spool.put(make.tarball(), OTHER)
    queue = spool.queue()
    claim = queue.claim(0)
    assert claim.jobs[0].key == OTHER
    with caplog.at_level(logging.ERROR):
        for _unused in range(4):
            time.sleep(0.15)
            again = queue.claim(0)
            assert again is None or again.jobs[0].key == OTHER
    assert len([message for message in caplog.messages if f"{1:016d}" in message]) == 1
    assert (spool.root / "claimed").is_dir()
    assert len(list((spool.root / "claimed").glob(f"{1:016d}.*"))) == 1


def test_a_spool_that_fails_as_a_whole_still_says_so(spool: Any, make: Any) -> None:
    """Control: only what one file may have is skipped."""
    spool.put(b"x", OTHER)
    queue = spool.queue()
    shutil.rmtree(spool.root / "claimed")
    with pytest.raises(Transient):
        queue.claim(0)
    (spool.root / "claimed").mkdir()
    assert queue.claim(0)


# --- two workers ----------------------------------------------------------------------------------------------------------


def test_two_movers_of_one_name_keep_both(spool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a name and the rename others must wait."""
    spool.put(b"first")
    queue = spool.queue()
    claims = [queue.claim(0)]
    spool.put(b"second")
    claims.append(queue.claim(0))
    look = os.path.lexists

    def slow(path: Any) -> bool:
        found = look(path)
        time.sleep(0.1)
        return found

    monkeypatch.setattr(os.path, "lexists", slow)
    threads = [threading.Thread(target=queue.finish, args=(claim, "failed")) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(contents(spool.root / "failed").values()) == [b"first", b"second"]
