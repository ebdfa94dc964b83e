"""The ranking itself, in process: order, what a row says, which pools make the set, what is noted."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.choice import (
    NO_CAP,
    NO_CAPACITY,
    Choice,
    Request,
    choose,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.estimate import Work, cost_per_sample, prior
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.evidence import Evidence
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.history import from_records
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.log import InstanceRun, SpotError, parse_time, stamp

from support.spot import change

NOW = parse_time("2026-11-23T00:00:00Z")
REGION = "ap-southeast-2"
A, B, C = (f"{REGION}{letter}" for letter in "abc")
DAY = 24 * 3600.0
Price = tuple[str, str, float] | tuple[str, str, float, float]  # zone, type, price, days ago (else 200)


def chosen(prices: list[Price], evidence: Evidence | None = None, **request: Any) -> Choice:
    found = [change(zone, kind, price, stamp(NOW - (more[0] if more else 200) * DAY)) for zone, kind, price, *more in prices]  # fmt: skip
    return choose([from_records(found)], evidence or Evidence(), Request(**request), NOW)


def instance_run(zone: str, kind: str, hours: float, *, lost: bool = False, market: str = "spot") -> InstanceRun:
    return InstanceRun("i", "demo", kind, zone, market, NOW - hours * 3600, NOW, interrupted=lost, over=True, usd_per_hour=None)  # fmt: skip


def order(choice: Choice) -> list[tuple[str, str]]:
    return [(row.pool.type, row.pool.zone) for row in choice.rows]


def types(choice: Choice) -> list[str]:
    return list(dict.fromkeys(pool.type for pool in choice.pools))


def test_order_is_cost_then_score_then_name() -> None:
    prices: list[Price] = [(zone, "m5.large", 0.1) for zone in (C, B, A)]
    assert order(chosen(prices)) == [("m5.large", zone) for zone in (A, B, C)]
    scored = chosen(prices, Evidence(scores={"id-b": 3, "id-c": 9}, zones={B: "id-b", C: "id-c"}))
    assert [(row.pool.zone, row.score, row.pool.zone_id) for row in scored.rows] == [(C, 9, "id-c"), (B, 3, "id-b"), (A, None, "")]  # fmt: skip
    assert chosen(prices, Evidence(scores={REGION: 5})).rows[0].score == 5
    # The mean of the window counts, not the price of the moment.
    fell: list[Price] = [(A, "m5.large", 0.5), (A, "m5.large", 0.1, 1), (B, "m5.large", 0.2)]
    assert order(chosen(fell))[0] == ("m5.large", B)
    # Unknown odds do not stand behind known good ones.
    known = Evidence(classes={(REGION, "m5.large"): "<5%"})
    assert order(chosen([(A, "m5.large", 0.2), (A, "r5.large", 0.1)], known))[0] == ("r5.large", A)


def test_what_a_row_says_of_the_price() -> None:
    prices: list[Price] = [(A, "m5.large", 0.1), (A, "m5.large", 0.4, 10), (A, "m5.large", 0.2, 1)]
    evidence = Evidence(on_demand={(REGION, "m5.large"): 0.5}, classes={(REGION, "m5.large"): ">20%"})
    work = Work(hours=24.0, samples=3, deadline=0.5)
    row = chosen(prices, evidence, sample_hours=24.0, work=work).rows[0]
    assert (row.price, row.p50, row.p95, row.changes, row.days, row.share) == (0.2, 0.1, 0.4, 2, 90, 0.4)
    assert row.mean == pytest.approx((80 * 0.1 + 9 * 0.4 + 0.2) / 90)
    hazard = prior(">20%", 0, 0)
    assert hazard and row.cost == cost_per_sample(hazard, work, row.mean, 0.5, 0.4)
    assert row.uninterrupted == hazard.survival(24)
    assert row.by_deadline and row.by_deadline.mean < 0.01 and row.feasible is False
    assert chosen(prices, days=10).rows[0].mean == pytest.approx(0.38)
    assert (chosen([(A, "m5.large", 0.3, 0)]).rows[0].mean, row.rests_on) == (0.3, ["price 90 d", "class >20%"])
    late: list[Price] = [(A, "m5.large", 0.1), (B, "m5.large", 0.1, -1)]  # the second begins tomorrow
    assert order(chosen(late)) == [("m5.large", A)]
    with pytest.raises(SpotError, match="at that moment"):
        chosen(late[1:])
    assert chosen(prices, evidence, work=Work(1, deadline=0)).rows[0].by_deadline is not None


def test_the_odds_asked_for_are_met_on_average() -> None:
    evidence = Evidence(classes={(REGION, "m5.large"): "10-15%"})
    odds = chosen([(A, "m5.large", 0.1)], evidence, sample_hours=24.0).rows[0].uninterrupted
    assert odds and odds.low < odds.mean < 0.99
    for target, feasible in ((odds.mean, True), (odds.mean + 1e-6, False)):
        [row] = chosen([(A, "m5.large", 0.1)], evidence, sample_hours=24.0, target=target).rows
        assert row.feasible is feasible


def test_zones_named_by_id_take_region_and_score_from_elsewhere() -> None:
    evidence = Evidence(on_demand={(REGION, "m5.large"): 0.5}, scores={"apse2-az1": 4})
    history = from_records([change("apse2-az1", "m5.large", 0.1, stamp(NOW - 9 * DAY)) | {"AvailabilityZoneId": "apse2-az1"}])  # fmt: skip
    [row] = choose([history], evidence, Request(regions=(REGION,)), NOW).rows
    assert (row.on_demand, row.score, row.pool.zone_id) == (0.5, 4, "apse2-az1")


def test_nothing_to_choose_from_is_told() -> None:
    with pytest.raises(SpotError, match="the price history is empty"):
        choose([], Evidence(), Request(), NOW)
    with pytest.raises(SpotError, match=r"has a5.large, a6.large$"):
        chosen([(A, f"a{number}.large", 0.1) for number in (5, 6)], types=("x1.large",))
    with pytest.raises(SpotError, match=r"has a1.x, a2.x, a3.x, a4.x, a5.x, a6.x, …$"):
        chosen([(A, f"a{number}.x", 0.1) for number in range(1, 8)], types=("x1.large",))


def test_own_machines_count_where_they_ran() -> None:
    prices: list[Price] = [(A, "m5.large", 0.1), (B, "m5.large", 0.1)]
    runs = [instance_run(A, "m5.large", 30), instance_run(A, "m5.large", 9, lost=True)]
    runs.append(instance_run(A, "m5.large", 500, lost=True, market="on-demand"))
    evidence = Evidence(runs=runs, sample_hours=[1, 2, 9])
    found = chosen(prices, evidence)
    assert (found.work.hours, found.sample_from) == (2, "median of 3 samples in our own log")
    assert chosen(prices, evidence, sample_hours=5.0).work.hours == 5
    by_zone = {row.pool.zone: row for row in found.rows}
    all_ours = prior(None, 39, 1)
    assert all_ours
    assert by_zone[B].hazard == all_ours.interval()
    assert by_zone[A].hazard == all_ours.updated(1, 39).interval()
    assert by_zone[B].rests_on == ["price 90 d", "all our instances", "no on-demand price"]
    assert by_zone[A].rests_on == ["price 90 d", "all our instances", "own 39 h, 1 interrupted", "no on-demand price"]


def test_the_pools_own_survival_curve_needs_enough_losses_and_lives_as_long() -> None:
    others = [instance_run(B, "m5.large", 50), instance_run(A, "m5.large", 50, market="on-demand")]

    def odds(losses: int, hours: float) -> float:
        runs = [instance_run(A, "m5.large", 2 + number % 2, lost=True) for number in range(losses)]
        evidence = Evidence(runs=runs + others)
        [row] = chosen([(A, "m5.large", 0.1)], evidence, sample_hours=hours).rows
        assert row.uninterrupted
        return row.uninterrupted.mean

    assert odds(10, 2.5) == pytest.approx(0.5)  # Kaplan and Meier
    assert odds(10, 3) == 0  # as long as the longest
    assert odds(10, 3.5) > 0.1  # longer than any: the hazard
    assert 0.1 < odds(9, 2.5) != pytest.approx(4 / 9)


def test_the_cap() -> None:
    prices: list[Price] = [(A, "m5.large", 0.1), (A, "m5.large", 0.3, 2.5), (A, "m5.large", 0.1, 2)]
    request = {"cap": 0.2, "sample_hours": 24.0, "days": 4.0}
    found = chosen(prices, **request)
    [row] = found.rows
    assert (row.windows, types(found)) == (4, ["m5.large"])  # a sample a day, in four days
    assert row.below_cap and row.below_cap.mean == 0.75
    assert "the cap would have terminated instances in 1 of 1 pools at times when no cap would have" in found.notes
    assert chosen(prices, **request, work=Work(1, deadline=48.0)).rows[0].windows == 2
    steady = chosen([(A, "m5.large", 0.2), (B, "m5.large", 0.3)], cap=0.2)
    assert any("instances in 0 of 2 pools" in note for note in steady.notes)
    assert types(steady) == ["m5.large"]
    assert (steady.as_json()["maximum_price"], steady.as_json()["maximum_price_because"]) == (0.2, "as asked")
    free = chosen([(A, "m5.large", 0.2)])
    assert free.as_json()["maximum_price_because"] == NO_CAP
    assert not any("the cap would" in note for note in free.notes)


def test_the_set_makes_room_for_families() -> None:
    many: list[Price] = [(A, f"m5.{size}large", 0.1 + size / 100) for size in range(1, 6)]
    many += [(A, "m5.big", 0.2), (A, "r5.large", 0.3), (A, "c5.large", 0.4), (A, "i3.large", 0.5)]
    found = chosen(many, set_types=4)
    # The dearest doubles go, the next families come, until there are three.
    assert types(found) == ["m5.1large", "m5.2large", "r5.large", "c5.large"]
    assert types(chosen(many, set_types=6)) == ["m5.1large", "m5.2large", "m5.3large", "m5.4large", "r5.large", "c5.large"]  # fmt: skip
    assert not any("instance families" in note for note in found.notes)
    assert types(chosen(many[:6], set_types=2)) == ["m5.1large", "m5.2large"]  # nothing to make room for
    assert types(chosen([many[0], many[6], many[7]], set_types=2)) == ["m5.1large", "r5.large"]  # no room


def test_the_set_prefers_feasible_pools_and_drops_what_on_demand_beats() -> None:
    prices: list[Price] = [(A, "m5.large", 0.1), (A, "r5.large", 0.2), (A, "c5.large", 0.3)]
    classes = {(REGION, "m5.large"): ">20%", (REGION, "c5.large"): "<5%"}
    found = chosen(prices, Evidence(classes=classes), sample_hours=24.0, set_types=2, target=0.95)
    assert [row.feasible for row in found.rows] == [None, True, False]
    assert types(found) == ["r5.large", "c5.large"]
    assert types(chosen(prices, Evidence(classes=classes), sample_hours=24.0, target=0.95))[2:] == ["m5.large"]
    beaten = chosen(prices, Evidence(on_demand={(REGION, "r5.large"): 0.2}))
    assert types(beaten) == ["m5.large"]  # as dear as on demand is no gain
    rose: list[Price] = [(A, "m5.large", 0.1), (A, "m5.large", 0.5, 1), (A, "r5.large", 0.2)]
    assert types(chosen(rose, Evidence(on_demand={(REGION, "m5.large"): 0.4}))) == ["r5.large"]
    assert types(chosen(rose, cap=0.3)) == ["r5.large"]


def test_notes() -> None:
    prices: list[Price] = [(A, "m5.large", 0.1), (B, "r5.large", 0.3)]
    evidence = Evidence(on_demand={(REGION, "m5.large"): 0.2}, zones={"zz": "", C: "", A: ""})
    notes = chosen(prices, evidence, sample_hours=1.0).notes
    assert notes == [
        NO_CAPACITY,
        "the set has 1 of at least 3 instance families: name more types, or requirements",
        f"no price in {C}, zz: these types are not offered there",
        f"not in the set: {B}, where on demand or the cap beats every pool",
    ]
    evidence = Evidence(classes={(REGION, "m5.large"): "<5%"})
    notes = chosen(prices, evidence, cap=0.01).notes
    assert notes[0] == "no set: every pool costs more than on demand, or more than the cap"
    assert [note.split(":")[0].split(";")[0] for note in notes[1:3]] == ["no on-demand price", "a sample is assumed to take 1 h"]  # fmt: skip
    assert len(notes) == 4
