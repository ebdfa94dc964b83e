"""What only one of the two backends does."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from umccr_pcgr.consumer import sqs
from umccr_pcgr.consumer.config import QueueSettings
from umccr_pcgr.consumer.spool_queue import SpoolQueue
from umccr_pcgr.samples.model import InputRef, InputVersion, LeaseLost, Transient

# --- spool --------------------------------------------------------------------------------------------------------------


def test_many_workers_claim_every_file_exactly_once(spool: Any) -> None:
    names = {f"x-{number:06d}-somatic.tar.gz" for number in range(60)}
    for name in names:
        spool.put(b"x", name)
    got: list[str] = []

    def work() -> None:
        queue = spool.queue()
        while claim := queue.claim(0):
            got.append(claim.jobs[0].key)

    threads = [threading.Thread(target=work) for _unused in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(names)


def test_a_silent_claim_is_taken_over_by_exactly_one_and_only_after_the_visibility(spool: Any) -> None:
    spool.visibility = 0.6
    spool.put(b"x")
    first = spool.queue().claim(0)
    assert spool.queue().claim(0) is None  # control: not yet
    time.sleep(0.7)
    claims = [spool.queue().claim(0) for _unused in range(3)]
    assert [claim.receives for claim in claims if claim] == [2]
    with pytest.raises(LeaseLost):
        spool.queue().extend(first)
    with pytest.raises(LeaseLost):
        spool.queue().finish(first, "done")
    assert spool.queue().unfinished() == 1


def test_an_old_file_is_not_an_old_claim(spool: Any) -> None:
    """Renaming keeps a file's time; the claim's own clock starts at the claim."""
    spool.put(b"x")
    os.utime(spool.root / "inbox" / "in" / "demo-000001-somatic.tar.gz", (1, 1))
    assert spool.queue().claim(0)
    assert spool.queue().claim(0) is None


def test_files_still_being_written_are_left_alone(spool: Any) -> None:
    queue = SpoolQueue(spool.root, settle=0.5)
    spool.put(b"x")
    spool.put(b"x", ".hidden-000001-somatic.tar.gz")
    spool.put(b"x", ".folder/x-000001-somatic.tar.gz")
    assert queue.claim(0) is None
    time.sleep(0.6)
    assert queue.claim(0).jobs[0].key == "in/demo-000001-somatic.tar.gz"
    assert queue.claim(0) is None


def test_claims_cut_short_are_cleared_away(spool: Any) -> None:
    """Killed between making the folder and moving the file, or between moving the file away and removing the folder."""
    spool.visibility = 0.1
    for number, with_key in ((1, True), (2, False)):
        folder = spool.root / "claimed" / f"{number:016d}.1.{'0' * 16}"
        folder.mkdir()
        if with_key:
            (folder / "key").write_text("a")
    time.sleep(0.2)
    assert spool.queue().claim(0) is None
    assert spool.queue().unfinished() == 0


@pytest.mark.parametrize("kind", ["symlink", "pipe", "link to a folder"])
def test_what_is_no_regular_file_in_the_inbox_is_refused(spool: Any, make: Any, kind: str) -> None:
    path = spool.root / "inbox" / make.KEY
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/etc" if kind == "link to a folder" else "/etc/hostname")
    assert spool.settle() in (["failed"], [])
    if kind != "link to a folder":  # that one is not looked into at all
        assert "not a regular file" in spool.report()["reason"]
    assert spool.runtime.jobs == []


def test_inputs_move_along_with_their_results(spool: Any, make: Any) -> None:
    spool.put(make.tarball())
    spool.put(b"poison", "bad-000001-somatic.tar.gz")
    spool.settle()
    found = sorted(
        str(path.relative_to(spool.root)) for path in spool.root.rglob("*.*") if path.is_file() and path.name != ".lock"
    )
    assert found == [
        "done/in/demo-000001-somatic-output.tar.gz",
        "done/in/demo-000001-somatic.tar.gz",
        "failed/bad-000001-somatic-failed.json",
        "failed/bad-000001-somatic.tar.gz",
    ]


def test_a_foreign_result_without_provenance_is_replaced(backend: Any, make: Any) -> None:
    store, path = backend.store(), backend.folder / "foreign"
    path.write_bytes(b"not even a tarball")
    key = "in/demo-000001-somatic-output.tar.gz"
    store.put_if(getattr(backend, "bucket", "spool"), key, path, {}, None)
    backend.put(make.tarball())
    assert backend.settle() == ["done"]
    assert backend.result()


def test_a_spool_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Transient, match="file"):
        SpoolQueue(tmp_path / "file")


# --- SQS and S3 ---------------------------------------------------------------------------------------------------------


def test_a_queue_that_does_not_exist_is_not_made(cloud: Any) -> None:
    with pytest.raises(Transient, match="queue absent"):
        sqs.SqsQueue(replace(cloud.queue_settings, name="absent"))
    assert not any("absent" in url for url in cloud.sqs.list_queues().get("QueueUrls", []))


def test_an_endpoint_that_is_down_is_transient(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    settings = QueueSettings("sqs", name="q", region="ap-southeast-2", endpoint_url="http://127.0.0.1:1")
    monkeypatch.setattr("botocore.retryhandler.delay_exponential", lambda *_unused: 0)
    with pytest.raises(Transient, match="queue q: Could not connect"):
        sqs.SqsQueue(settings)
    with pytest.raises(Transient, match="head k"):
        sqs.S3Store(settings).head(InputRef("b", "k"))


def test_a_refused_permission_is_transient_and_says_so(cloud: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    store = cloud.store()

    def denied(**_unused: Any) -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "HeadObject")

    monkeypatch.setattr(store._s3, "head_object", denied)
    with pytest.raises(Transient, match="head k: AccessDenied: no"):
        store.head(InputRef("b", "k"))


def test_the_visibility_is_the_queues_own_unless_set(cloud: Any, make: Any) -> None:
    assert cloud.queue().visibility == 10
    assert cloud.queue().max_receives == 5
    assert sqs.SqsQueue(replace(cloud.queue_settings, visibility_seconds=77)).visibility == 77


def test_a_message_is_never_hidden_for_more_than_twelve_hours(
    cloud: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.put(make.tarball())
    queue = cloud.queue()
    claim = queue.claim(0)
    queue.extend(claim)  # control
    monkeypatch.setattr("umccr_pcgr.samples.clock.now", lambda: claim.received + 12 * 3600)
    with pytest.raises(LeaseLost, match="12 hours"):
        queue.extend(claim)


def test_bytes_that_do_not_match_are_fetched_again_and_then_given_up(cloud: Any, make: Any) -> None:
    cloud.put(b"content")
    store = cloud.store()
    good = store.head(InputRef(cloud.bucket, make.KEY))
    assert store.fetch(good, cloud.folder / "good", lambda: None)  # control
    assert (cloud.folder / "good").read_bytes() == b"content"
    for wrong, said in (
        (replace(good, md5="0" * 32), "do not match the object's etag"),
        (replace(good, size=99), "got 7 bytes of 99"),
        (replace(good, etag="0" * 32), "PreconditionFailed"),  # replaced between look and fetch
    ):
        with pytest.raises(Transient, match=said):
            store.fetch(wrong, cloud.folder / "bad", lambda: None)


def test_multipart_uploads_have_no_md5_and_are_still_fetched(cloud: Any, make: Any) -> None:
    start = cloud.s3.create_multipart_upload(Bucket=cloud.bucket, Key=make.KEY)["UploadId"]
    part = cloud.s3.upload_part(Bucket=cloud.bucket, Key=make.KEY, UploadId=start, PartNumber=1, Body=make.tarball())
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    cloud.s3.complete_multipart_upload(Bucket=cloud.bucket, Key=make.KEY, UploadId=start, MultipartUpload=parts)
    assert cloud.store().head(InputRef(cloud.bucket, make.KEY)).md5 is None
    cloud.notify(make.KEY)
    assert cloud.settle() == ["done"]


def test_metadata_of_a_result_names_its_input(cloud: Any, make: Any) -> None:
    cloud.put(make.tarball())
    cloud.settle()
    found = cloud.s3.head_object(Bucket=cloud.bucket, Key="in/demo-000001-somatic-output.tar.gz")["Metadata"]
    etag = cloud.s3.head_object(Bucket=cloud.bucket, Key=make.KEY)["ETag"].strip('"')
    assert found["pcgr-input"] == f"etag:{etag}"
    assert found["pcgr-input-modified"].endswith("Z")
    assert isinstance(cloud.store().head(InputRef(cloud.bucket, make.KEY)), InputVersion)
