"""What an instance leaves in the bucket about itself, and that its role may do all that the consumer does and no more."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

import boto3
import jinja2
import pytest
import yaml

from support import ROOT
from umccr_pcgr.consumer.notes import Notes
from umccr_pcgr.consumer.worker import Pace, Worker
from umccr_pcgr.samples.model import Transient
from umccr_pcgr.samples.notes import is_note, note_key

INTAKE = ROOT / "roles/intake"
PACE = Pace(wait=0, pause=0.05, backoff=0.05, backoff_max=1)
INSTANCE = "i-0123456789abcdef0"


def worker(cloud: Any, instance: str = INSTANCE, store: Any = None) -> Worker:
    notes = Notes(store or cloud.store(), cloud.bucket, lambda: instance)
    return Worker(cloud.context(), cloud.queue(), PACE, notes)


def notes(cloud: Any) -> list[str]:
    found = cloud.s3.list_objects_v2(Bucket=cloud.bucket, Prefix="machines/").get("Contents", [])
    return [entry["Key"] for entry in found]


def test_a_reported_sample_leaves_its_hours_and_no_name(cloud: Any, make: Any) -> None:
    cloud.put(make.tarball())
    assert worker(cloud).once() == "done"
    attempt = json.loads(cloud.result()["provenance.json"])["attempt"]
    [key] = notes(cloud)
    assert key == f"machines/{INSTANCE}/{attempt}.json"
    assert is_note(key)
    text = cloud.read(key).decode()
    note = json.loads(text)
    assert 0 < note.pop("hours") < 20 / 3600
    assert note.pop("time").endswith("Z")
    assert note == {"event": "sample", "machine": INSTANCE, "attempt": attempt}
    assert "demo" not in text
    cloud.notify()  # the event once more: the result is there, nothing was computed
    assert worker(cloud).once() == "done"
    cloud.put(b"no tarball", "in/demo-000002-somatic.tar.gz")
    assert worker(cloud).once() == "failed"
    assert notes(cloud) == [key]


def test_an_instance_without_an_id_leaves_nothing(cloud: Any, make: Any) -> None:
    cloud.put(make.tarball())
    assert worker(cloud, "").once() == "done"
    assert notes(cloud) == []


def test_a_note_that_cannot_be_written_costs_no_sample(cloud: Any, make: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Down:
        def put(self, *_unused: Any) -> None:
            raise Transient("progress", "503 SlowDown")

    cloud.put(make.tarball())
    assert worker(cloud, store=Down()).once() == "done"
    assert cloud.result()
    assert "cannot leave the note" in caplog.text


@pytest.mark.parametrize("name", ["0123456789abcdef", "interrupted"])
def test_an_event_of_a_note_is_no_sample(cloud: Any, name: str) -> None:
    """An event source without a filter reports our own objects, too."""
    key = note_key(INSTANCE, name)
    cloud.put(b"{}", key)
    assert cloud.settle() == ["done"]
    assert cloud.report(key) is None
    cloud.put(b"{}", f"machines/{INSTANCE}/notes.txt.json")  # control: nobody's
    assert cloud.settle() == ["failed"]


# ---- rights


def policy(bucket: str, queue: str) -> list[dict[str, Any]]:
    """The statements of the instances' role."""
    names = {"__intake_bucket_arn": f"arn:aws:s3:::{bucket}", "__intake_queue_arns": "q", "intake_queue": queue}
    text = (INTAKE / "vars/main.yml").read_text()
    found = yaml.safe_load(text)["__intake_machine_policy"]["Statement"]
    filled: list[dict[str, Any]] = json.loads(jinja2.Template(json.dumps(found)).render(names))
    return filled


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowing(statements: list[dict[str, Any]], action: str, resource: str) -> list[str]:
    return [
        one["Sid"]
        for one in statements
        if action in listed(one["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in listed(one["Resource"]))
    ]


def test_the_role_allows_what_the_consumer_does_and_nothing_idle(make_cloud: Any, make: Any) -> None:
    cloud = make_cloud(versioned=True)
    calls: set[tuple[str, str]] = set()

    def record(params: dict[str, Any], model: Any, **_unused: Any) -> None:
        """The right that AWS would ask for."""
        if model.service_model.service_name == "sqs":
            calls.add((f"sqs:{model.name}", f"q:{cloud.bucket}"))
        else:
            action = model.name.replace("Head", "Get") + ("Version" if "VersionId" in params else "")
            calls.add((f"s3:{action}", f"arn:aws:s3:::{params['Bucket']}/{params['Key']}"))

    boto3.setup_default_session()
    boto3.DEFAULT_SESSION.events.register("provide-client-params", record)
    queue, store = cloud.queue(), cloud.store()  # these two are recorded, the clients of the test are not
    boto3.setup_default_session()
    cloud.store = lambda: store
    notes = Notes(store, cloud.bucket, lambda: INSTANCE)
    notes.interrupted()
    cloud.runtime.modes = ["refuses", "good", "killed"]
    for ended in ("failed", "done", "later"):
        cloud.put(make.tarball(), "in/demo-000001-somatic.tar.gz")
        assert Worker(cloud.context(), queue, PACE, notes).once() == ended
    queue.unfinished()

    statements = policy(cloud.bucket, cloud.bucket)
    assert {call for call in calls if not allowing(statements, *call)} == set()
    used = {(sid, action) for action, resource in calls for sid in allowing(statements, action, resource)}
    rights = {(one["Sid"], action) for one in statements for action in listed(one["Action"])}
    assert rights - used == {("TellMissingFromForbidden", "s3:ListBucket")}  # what it is for, its comment says
    patterns = {pattern for one in statements for pattern in listed(one["Resource"])}
    resources = {resource for _unused, resource in calls}
    assert {p for p in patterns if not any(fnmatchcase(r, p) for r in resources)} == {f"arn:aws:s3:::{cloud.bucket}"}


@pytest.mark.parametrize(
    ("action", "key", "by"),
    [
        ("s3:PutObject", f"machines/{INSTANCE}/interrupted.json", ["LeaveNotes"]),
        ("s3:PutObject", f"machines/{INSTANCE}/demo-000001-somatic.tar.gz", []),
        ("s3:PutObject", "in/demo-000001-somatic.tar.gz", []),
        ("s3:PutObject", "machines/other.json", []),
        ("s3:DeleteObject", f"machines/{INSTANCE}/interrupted.json", []),
        ("s3:DeleteObject", "in/demo-000001-somatic-output.tar.gz", []),
    ],
)
def test_the_role_allows_no_more(action: str, key: str, by: list[str]) -> None:
    assert allowing(policy("b", "q"), action, f"arn:aws:s3:::b/{key}") == by
