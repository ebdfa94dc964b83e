"""Messages: every form that is understood, and garbage that is refused with one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umccr_pcgr.samples.events import EventRefused, parse
from umccr_pcgr.samples.model import InputRef


def record(key: str = "a.tar.gz", name: str = "ObjectCreated:Put", **thing: Any) -> dict[str, Any]:
    return {"eventName": name, "s3": {"bucket": {"name": "b"}, "object": {"key": key, **thing}}}


def test_all_records_of_a_message_are_read_and_repeats_collapse() -> None:
    body = json.dumps({"Records": [record("1"), record("2"), record("1"), record("3", "ObjectRemoved:Delete")]})
    assert [ref.key for ref in parse(body)] == ["1", "2"]


def test_keys_of_notifications_are_url_encoded_and_those_of_eventbridge_are_plain() -> None:
    assert parse(json.dumps({"Records": [record("in%2Fa+b%2Bc%25.tar.gz")]}))[0].key == "in/a b+c%.tar.gz"
    detail = {"bucket": {"name": "b"}, "object": {"key": "in/a+b%2F.tar.gz", "version-id": "v", "etag": "e", "size": 3}}
    body = {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}
    assert parse(json.dumps(body)) == (InputRef("b", "in/a+b%2F.tar.gz", "v", "e", 3),)
    assert parse(json.dumps(body | {"detail-type": "Object Deleted"})) == ()


@pytest.mark.parametrize(("given_id", "kept"), [("abc", "abc"), ("null", None), ("", None), (None, None)])
def test_the_version_id_is_optional(given_id: str | None, kept: str | None) -> None:
    assert parse(json.dumps({"Records": [record(versionId=given_id)]}))[0].version_id == kept
    assert parse(json.dumps({"Records": [record()]}))[0].version_id is None


def test_s3s_test_message_tells_of_nothing() -> None:
    assert parse(json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"})) == ()


def test_a_notification_wrapped_by_sns_is_unwrapped() -> None:
    inner = json.dumps({"Records": [record("1")]})
    assert parse(json.dumps({"Type": "Notification", "Message": inner}))[0].key == "1"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("nonsense", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not an object"),
        ("{}", "no 'Records' list"),
        ('{"Records": {}}', "no 'Records' list"),
        ('{"Records": [7]}', "Records[0]: found '7'"),
        ('{"Records": [{}]}', "Records[0].eventName: found None"),
        ('{"Records": [{"eventName": "ObjectCreated:Put"}]}', "Records[0].s3.bucket: found 'None'"),
        (
            '{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}, "object": {}}}]}',
            "object.key",
        ),
        ('{"detail-type": "Object Created", "detail": []}', "detail.bucket: found 'None'"),
    ],
)
def test_garbage_is_refused_with_one_line(body: str, said: str) -> None:
    with pytest.raises(EventRefused) as refusal:
        parse(body)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Records", "s3", "object", "bucket", "key", "name", "eventName", "detail", "detail-type", "Event"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON.map(json.dumps) | st.text())
def test_no_message_crashes_the_reader(body: str) -> None:
    try:
        assert all(ref.bucket and ref.key is not None for ref in parse(body))
    except EventRefused as refusal:
        assert "\n" not in str(refusal)
