"""Spot prices over time: the step function against a simulation minute by minute, both ways of reading, the old script's question."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import history as spot_history
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import legacy as spot_legacy
from ansible_collections.umccr.pcgr.plugins.module_utils._spot import reader as spot_reader
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.history import History, Pool
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import SpotError, parse_time
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NOW = parse_time("2026-11-23T00:00:00Z")
MINUTE = 60.0
BID = 0.06
ZONE = "ap-southeast-2a"


def hours_ago(hours: float) -> float:
    return NOW - hours * 3600


def steps(*changes: tuple[float, float]) -> tuple[Any, Any]:
    """Times and prices of changes given as (hours ago, price)."""
    return np.array([hours_ago(hours) for hours, _price in changes]), np.array([price for _hours, price in changes])


def since(*changes: tuple[float, float], window: float = 168) -> float | None:
    return spot_history.hours_since_above(*steps(*changes), BID, start=hours_ago(window), now=NOW)


# ---- the three cases that the old script gets wrong, and the edges


def test_above_since_before_the_window_is_above_now() -> None:
    assert since((200, 0.10)) == 0.0


def test_the_end_of_the_time_above_counts_not_its_beginning() -> None:
    assert since((300, 0.05), (100, 0.10), (1, 0.05)) == 1.0


def test_risen_and_still_above_is_above_now() -> None:
    assert since((300, 0.05), (100, 0.10)) == 0.0


def test_edges() -> None:
    assert since((300, BID)) == 168  # equal is not above
    assert since((300, 0.10), (200, 0.05)) == 168  # it was above before the window only
    assert since((300, 0.10), (168, 0.05)) == 168  # until the window began
    assert since((300, 0.05), (0, 0.10)) == 0.0  # rises this moment
    assert since((300, 0.10), (0, 0.05)) == 0.0  # falls this moment
    assert since((-1, 0.10)) is None  # not known yet
    assert since((300, 0.05), (-1, 0.10)) == 168  # the future does not count


def test_exact_mode_gives_the_old_answers() -> None:
    def old(*changes: tuple[float, float]) -> float:
        time, price = steps(*changes)
        history = History([Pool(ZONE, "m5.large", "Linux/UNIX")], np.array([0, len(time)]), time, price, {})
        [(hours, _kind, _zone)] = spot_legacy.exact_durations(history, [("m5.large", BID)], hours=168, now=NOW)
        return round(hours, 1)

    assert old((200, 0.10)) == 168.0
    assert old((300, 0.05), (100, 0.10), (1, 0.05)) == 100.0
    assert old((300, 0.05), (100, 0.10)) == 100.0


def test_bids_are_for_their_type_and_the_future_does_not_count() -> None:
    time, price = steps((300, 0.05), (100, BID), (-1, 0.10), (-1, 0.10))
    pools = [Pool(ZONE, kind, "Linux/UNIX") for kind in ("c4.large", "m5.large")]
    history = History(pools, np.array([0, 3, 4]), time, price, {})
    for durations in (spot_legacy.durations, spot_legacy.exact_durations):
        rows = durations(history, [("c4.large", BID), ("m5.large", BID)], hours=168, now=NOW)
        assert rows == [(168.0, "c4.large", ZONE)]  # m5.large has no price yet
    assert spot_legacy.order([(1.0, "m5.large", "a"), (1.0, "c4.large", "b")], exact=False)[0][1] == "c4.large"


# ---- against brute force

CHANGES = st.lists(st.tuples(st.integers(-5, 400), st.sampled_from([0.04, BID, 0.08, 0.1])), min_size=1, max_size=12)


def by_minute(changes: list[tuple[int, float]], first: int, last: int) -> list[float | None]:
    """The price during each minute [m, m + 1) from `first` to `last`, by walking through all changes."""
    prices: list[float | None] = []
    for minute in range(first, last):
        price = None
        for at, value in changes:  # ascending; the last one that has happened counts
            if at <= minute:
                price = value
        prices.append(price)
    return prices


def series(changes: list[tuple[int, float]]) -> tuple[Any, Any]:
    return np.array([NOW + at * MINUTE for at, _price in changes]), np.array([price for _at, price in changes])


@settings(deadline=None)
@given(CHANGES, st.integers(1, 300))
def test_hours_since_above_as_by_the_minute(drawn: list[tuple[int, float]], window: int) -> None:
    changes = sorted({-at: price for at, price in drawn}.items())
    found = spot_history.hours_since_above(*series(changes), BID, start=NOW - window * MINUTE, now=NOW)
    now_price = by_minute(changes, 0, 1)[0]
    if now_price is None:
        assert found is None
        return
    before = by_minute(changes, -window, 0)
    count = 0
    if not now_price > BID:
        for price in reversed(before):
            if price is not None and price > BID:
                break
            count += 1
    assert found == pytest.approx(count / 60)


@settings(deadline=None)
@given(CHANGES, st.integers(1, 300))
def test_quantiles_and_mean_as_by_the_minute(drawn: list[tuple[int, float]], window: int) -> None:
    changes = sorted({-at: price for at, price in drawn}.items())
    seconds, prices = spot_history.spans(*series(changes), NOW - window * MINUTE, NOW)
    known = sorted(price for price in by_minute(changes, -window, 0) if price is not None)
    assert seconds.sum() == pytest.approx(len(known) * MINUTE)
    if not known:
        return
    assert float(seconds @ prices) / seconds.sum() == pytest.approx(sum(known) / len(known))
    for share in (0.0, 0.5, 0.95, 1.0):
        [found] = spot_history.quantiles(seconds, prices, share)
        assert found == next(price for index, price in enumerate(known, 1) if index >= share * len(known) - 1e-9)


@settings(deadline=None)
@given(CHANGES, st.integers(1, 60), st.integers(1, 300))
def test_windows_below_as_by_the_minute(drawn: list[tuple[int, float]], block: int, window: int) -> None:
    changes = sorted({-at: price for at, price in drawn}.items())
    found = spot_history.windows_below(*series(changes), BID, block / 60, start=NOW - window * MINUTE, now=NOW)
    stayed = begun = 0
    for first in range(-block, -window - 1, -block):
        minutes = by_minute(changes, first, first + block)
        if minutes[0] is not None and minutes[0] <= BID:
            begun += 1
            stayed += all(price is not None and price <= BID for price in minutes)
    assert found == (stayed, begun)


# ---- reading

STAMPS = ["Z", ".000Z", "+00:00", ".250Z"]


def record(at: datetime, price: str, end: str, kind: str = "m5.large", zone: str = ZONE) -> dict[str, str]:
    return {
        "AvailabilityZone": zone,
        "InstanceType": kind,
        "ProductDescription": "Linux/UNIX",
        "SpotPrice": price,
        "Timestamp": f"{at:%Y-%m-%dT%H:%M:%S}{end}",
    }


def same(one: History, other: History) -> bool:
    return one.pools == other.pools and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("bounds", "time", "price")
    )


RECORDS = st.lists(
    st.builds(
        record,
        st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),
        st.one_of(
            st.integers(0, 300_000_000).map(lambda micro: f"{micro / 1e6:.6f}"), st.sampled_from(["0.04", "12.5", "3"])
        ),
        st.sampled_from(STAMPS[:1]),
        st.sampled_from(["m5.large", "m5.xlarge", "u7i-12tb.224xlarge"]),
        st.sampled_from([ZONE, "ap-southeast-2b", "us-west-2-lax-1a"]),
    ),
    min_size=1,
    max_size=40,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RECORDS, st.sampled_from(STAMPS), st.sampled_from([None, 4]), st.booleans(), st.booleans(), st.integers(2, 40))
def test_both_ways_of_reading_agree(
    tmp_path: Path, records: list[dict[str, str]], end: str, indent: int | None, bare: bool, ids: bool, chunk: int
) -> None:
    for one in records:
        one["Timestamp"] = one["Timestamp"].removesuffix("Z") + end
    if ids:
        records = [
            {"AvailabilityZone": one["AvailabilityZone"], "AvailabilityZoneId": "apse2-az1", **one} for one in records
        ]
    path = tmp_path / "h.json"
    document = {"SpotPriceHistory": records, "Recorded": [{"a": "}{"}]}
    path.write_text(json.dumps(records if bare else document, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spot_reader, "CHUNK", chunk * 104)  # records are cut everywhere
        found = spot_reader.read_history(str(path))
    assert same(found, spot_reader._read_any(path.read_bytes(), "x"))
    assert same(found, spot_history.from_records(records))
    assert found.extra == ({} if bare else {"Recorded": [{"a": "}{"}]})


def columns(path: Path) -> Any:
    with path.open("rb", buffering=0) as file:
        return spot_reader._Columns(file).read()


@pytest.mark.parametrize("end", ["Z", ".000Z", "+00:00"])
@pytest.mark.parametrize("indent", [None, 4])
def test_regular_files_are_read_by_columns(tmp_path: Path, end: str, indent: int | None) -> None:
    records = [record(datetime(2026, 1, day), f"{day / 7:.6f}", end) for day in range(1, 29)]
    path = tmp_path / "h.json"
    path.write_text(json.dumps({"SpotPriceHistory": records, "Recorded": [{}, {}]}, indent=indent) + "\n")
    _pools, _code, time, price, _extra = columns(path)
    assert list(price) == [float(one["SpotPrice"]) for one in records]
    assert list(time) == [parse_time(one["Timestamp"]) for one in records]


IRREGULAR = {
    "another key's place": lambda ones: ones.append(dict(reversed(ones[0].items()))),
    "a number for a price": lambda ones: ones.append({**ones[0], "SpotPrice": 0.5}),
    "a time of another form": lambda ones: ones.append({**ones[0], "Timestamp": "2026-01-01T00:00:00+10:00"}),
    "a letter in a price": lambda ones: ones.append({**ones[0], "SpotPrice": "0.0x0000"}),
    "a colon in a price": lambda ones: ones.append({**ones[0], "SpotPrice": "0.04:000"}),
    "two points in a price": lambda ones: ones.append({**ones[0], "SpotPrice": "0.0.0"}),
    "no price": lambda ones: ones.append({**ones[0], "SpotPrice": ""}),
    "a letter in a time": lambda ones: ones.append({**ones[0], "Timestamp": "2026-01-0xT00:00:00Z"}),
    "the 30th of February": lambda ones: ones.append({**ones[0], "Timestamp": "2026-02-30T00:00:00Z"}),
    "hour 24": lambda ones: ones.append({**ones[0], "Timestamp": "2026-02-20T24:00:00Z"}),
    "something else in the list": lambda ones: ones.append(7),
}


@pytest.mark.parametrize("place", [4, 8])
@pytest.mark.parametrize("what", IRREGULAR)
def test_what_is_not_regular_is_left_to_the_parser(tmp_path: Path, what: str, place: int) -> None:
    records: list[Any] = [record(datetime(2026, 1, day), "0.040000", "Z") for day in range(1, 9)]
    IRREGULAR[what](records)
    records.insert(place, records.pop())
    path = tmp_path / "h.json"
    path.write_text(json.dumps({"SpotPriceHistory": records}))
    with pytest.raises(spot_reader._Irregular):
        columns(path)


def test_times_of_all_forms_are_the_same_moment(tmp_path: Path) -> None:
    at = datetime(2026, 11, 22, 23, 0, 0)
    for text in (
        "2026-11-22T23:00:00Z",
        "2026-11-22T23:00:00.000Z",
        "2026-11-22T23:00:00+00:00",
        "2026-11-23T09:00:00+10:00",
    ):
        path = tmp_path / "h.json"
        path.write_text(json.dumps({"SpotPriceHistory": [{**record(at, "0.05", ""), "Timestamp": text}]}))
        assert list(spot_reader.read_history(str(path)).time) == [at.replace(tzinfo=UTC).timestamp()]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is no spot price history"),
        ("{", "is no spot price history"),
        ("[1]", "is no spot price history"),
        ('{"Instances": []}', "`SpotPriceHistory`"),
        (json.dumps({"SpotPriceHistory": [{"AvailabilityZone": "a"}]}), "`InstanceType`"),
        (
            json.dumps({"SpotPriceHistory": [record(datetime(2026, 1, 1), "cheap", "Z")]}),
            "record 1: found SpotPrice 'cheap'",
        ),
        (json.dumps({"SpotPriceHistory": [record(datetime(2026, 1, 1), "-1", "Z")]}), "record 1"),
        (json.dumps({"SpotPriceHistory": [record(datetime(2026, 1, 1), "nan", "Z")]}), "record 1"),
        (json.dumps({"SpotPriceHistory": [record(datetime(2026, 1, 1), "0.1", "!")]}), "record 1"),
    ],
)
def test_what_is_no_history_is_told_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "h.json"
    path.write_text(content)
    with pytest.raises(SpotError) as error:
        spot_reader.read_history(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(SpotError, match=r"^/nowhere/h.json: No such file"):
        spot_reader.read_history("/nowhere/h.json")


def test_of_changes_in_one_second_the_last_counts_whatever_the_order_of_the_file(tmp_path: Path) -> None:
    newest_first = [
        record(datetime(2026, 1, 2), "0.3", "Z"),
        record(datetime(2026, 1, 1), "0.2", "Z"),
        record(datetime(2026, 1, 1), "0.1", "Z"),
    ]
    for records in (newest_first, newest_first[::-1]):
        path = tmp_path / "h.json"
        path.write_text(json.dumps({"SpotPriceHistory": records}))
        history = spot_reader.read_history(str(path))
        assert list(history.price) == [0.2, 0.3]
        assert spot_history.price_at(*history.series(0), parse_time("2026-01-01T12:00:00Z")) == 0.2


def test_bids() -> None:
    assert spot_legacy.parse_bids("c4.large:0.08, m5.large:1") == [("c4.large", 0.08), ("m5.large", 1.0)]
    for text in (
        "c4.large",
        "c4.large:",
        "c4.large:cheap",
        ":0.1",
        "c4.large:0.1:2",
        "c4.large:-1",
        "c4.large:nan",
        "",
        "a:1,",
    ):
        with pytest.raises(SpotError, match=r"^--bids: found"):
            spot_legacy.parse_bids(text)


def test_without_numpy_the_missing_library_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text('{"SpotPriceHistory": []}')
    missing = ImportError("no", name="numpy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spot_history, "IMPORT_ERROR", missing)
        patch.setattr(spot_reader, "IMPORT_ERROR", missing)
        for make in (lambda: spot_history.from_records([]), lambda: spot_reader.read_history(str(path))):
            with pytest.raises(SpotError, match="the Python library numpy is missing"):
                make()
