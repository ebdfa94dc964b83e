"""Labels of published objects: read as they are written, and one answer to whether a result is of an input."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from umccr_pcgr.client.store import Entry, is_of
from umccr_pcgr.consumer.publish import standing
from umccr_pcgr.samples.documents import FailureReport, input_fields
from umccr_pcgr.samples.labels import from_labels, labels, labels_in, relation
from umccr_pcgr.samples.model import InputVersion, Published

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def version(name: str, modified: datetime | None = NOON) -> InputVersion:
    return InputVersion("b", "k", name, "e", 3, modified)


def test_what_an_object_says_of_its_input_is_read_back() -> None:
    source = InputVersion("b", "k", None, "e", 3, NOON)
    for final in (True, False):
        found = from_labels(labels(source, "a", final=final), "t")
        assert found == Published("t", "etag:e", NOON, "a", final=final)
    assert from_labels({}, "t") == Published("t", None, None, None)


@pytest.mark.parametrize("final", [True, False])
def test_a_document_has_the_labels_of_its_object(final: bool) -> None:
    """A spool has no metadata: there the labels follow from the document."""
    source = version("1", NOON + timedelta(microseconds=7))
    document = FailureReport.document(
        "demo",
        input_fields(source, None),
        reason="r",
        stage="run",
        attempt="a",
        host="h",
        time=NOON,
        permanent=final,
        log_tail=("last",),
    )
    assert labels_in(json.loads(json.dumps(document))) == labels(source, "a", final=final)
    assert FailureReport.read(document) == FailureReport("r", "h", final, ("last",))
    assert labels_in({"input": "nonsense"}) == labels_in({}) == {}


@pytest.mark.parametrize("current", [True, False])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("name", ["1", "2"])
@pytest.mark.parametrize("modified", [NOON - SECOND, NOON, NOON + SECOND])
def test_consumer_and_client_agree_on_whose_result_it_is(
    name: str, modified: datetime, final: bool, current: bool
) -> None:
    """A tie of two versions of one second: what the key holds now is the newer one, for both."""
    source, of = version("1"), labels(version(name, modified), "a", final=final)

    class Store:
        def is_current(self, asked: InputVersion) -> bool:
            assert asked is source
            return current

    stands = standing(cast(Any, Store()), from_labels(of, "t"), source)
    counts = is_of(Entry("r", NOON, labels=of), Entry("k", NOON, source.identity), lambda: current)
    assert counts is (stands in ("same", "newer") or name == "1")
    if name == "2":
        older = modified < NOON or (modified == NOON and current)
        assert stands == ("replaceable" if older else "newer")


@pytest.mark.parametrize("modified", [NOON - SECOND, NOON + SECOND, None])
def test_the_store_is_asked_for_a_tie_only(modified: datetime | None) -> None:
    never: Callable[[], bool] = lambda: pytest.fail("asked")  # noqa: E731
    relation(from_labels(labels(version("2", modified), "a", final=True), "t"), "version:1", NOON, never)
    relation(from_labels(labels(version("1"), "a", final=True), "t"), "version:1", NOON, never)
