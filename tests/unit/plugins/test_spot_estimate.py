"""Odds and costs against simulation and closed forms; the back-test's own machinery; the picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.estimate import (
    CLASSES,
    Hazard,
    Work,
    batch_odds,
    cost_per_sample,
    instance_hours,
    kaplan_meier,
    prior,
    wilson,
)
from ansible_collections.umccr.pcgr.plugins.module_utils._spot.history import HOUR

from support.spot import NOW, advisor, demand, history, refused, shown
from umccr_pcgr.spot import backtest as spot_backtest

__all__ = ["advisor", "demand", "history"]  # fixtures


def test_hours_billed_as_in_the_textbook() -> None:
    rate, work = 0.1, Work(hours=4, overhead=0.5, losses=400)
    spot, on_demand = instance_hours(rate, work)
    assert spot == pytest.approx((1 / rate + work.overhead) * math.expm1(rate * work.hours))
    assert on_demand == pytest.approx(0)
    assert instance_hours(0.0, work) == (4, 0)
    assert instance_hours(1000.0, work._replace(losses=2)) == pytest.approx(
        (2 / 1000 + 0.5, 4.5)
    )  # always lost at once


def test_hours_billed_as_simulated() -> None:
    rate, work = 0.2, Work(hours=4, overhead=0.5, losses=2)
    chance = np.random.default_rng(3)
    spot, on_demand = [], []
    for lives in chance.exponential(1 / rate, (100_000, work.losses)):
        hours = demand = 0.0
        for attempt, life in enumerate(lives):
            if life >= work.hours:
                hours += work.hours
                break
            hours += life + (work.overhead if attempt + 1 < work.losses else 0)
        else:
            demand = work.hours + work.overhead
        spot.append(hours)
        on_demand.append(demand)
    found = instance_hours(rate, work)
    assert found[0] == pytest.approx(np.mean(spot), rel=0.01)
    assert found[1] == pytest.approx(np.mean(on_demand), rel=0.02)


def test_intervals_hold_what_they_say() -> None:
    """Of pools whose true rate is drawn from the prior, nine of ten lie in the interval after some hours of record."""
    chance, inside = np.random.default_rng(2), 0
    start = Hazard(0.5, 50)
    for _unused in range(2000):
        rate = chance.gamma(start.shape, 1 / start.rate)
        found = start.updated(int(chance.poisson(rate * 100)), 100).interval()
        inside += found.low <= rate <= found.high
    assert 0.87 < inside / 2000 < 0.93


def test_survival() -> None:
    hazard = Hazard(2.0, 100.0)
    rates = np.random.default_rng(1).gamma(2.0, 0.01, 200_000)
    found = hazard.survival(10)
    assert found.mean == pytest.approx(np.mean(np.exp(-rates * 10)), abs=0.001)
    assert found.low == pytest.approx(np.quantile(np.exp(-rates * 10), 0.05), abs=0.01)
    assert found.high == pytest.approx(np.quantile(np.exp(-rates * 10), 0.95), abs=0.01)


def test_priors() -> None:
    means = [hazard.interval().mean for label in CLASSES if (hazard := prior(label, 0, 0))]
    assert means == sorted(means)
    for label, share in CLASSES.items():
        hazard = prior(label, 0, 0)
        assert hazard
        rate = hazard.interval()
        assert -math.expm1(-rate.mean * 132) == pytest.approx(share)  # that share is lost in 132 h
        assert -math.expm1(-rate.high * 24) == pytest.approx(share, rel=0.2)  # or about in a day, at worst
    assert prior(None, 0, 0) is None
    assert (own := prior(None, 99, 1)) and own.interval().mean == pytest.approx(1.5 / 99)


def test_wilson_and_kaplan_meier() -> None:
    assert wilson(0, 0) is None
    assert (found := wilson(9, 10)) and (round(found.low, 3), round(found.high, 3)) == (0.652, 0.977)
    for trials in range(1, 100):
        assert (none := wilson(0, trials)) and none.low >= 0 and (every := wilson(trials, trials)) and every.high <= 1
    # Of five machines one was lost at 1 h; one was seen alive at 2 h; of the three left one was lost at 3 h.
    survival = kaplan_meier([1, 2, 3, 4, 4], [True, False, True, False, False], 3.5)
    assert survival.mean == pytest.approx(4 / 5 * 2 / 3)
    assert 0 < survival.low < survival.mean < survival.high < 1
    assert kaplan_meier([1, 2, 3, 4, 4], [True, False, True, False, False], 2.5).mean == pytest.approx(4 / 5)
    assert kaplan_meier([4, 4], [False, False], 3).low < 1
    assert (none := kaplan_meier([1, 2], [True, True], 3)).mean == 0 < none.high


def test_costs_and_batches() -> None:
    work = Work(hours=2, samples=8, machines=2, side_by_side=2, overhead=0.5)
    assert cost_per_sample(None, work, 0.1, None, 0.2) == pytest.approx((0.1 * 1.125, 0.1 * 1.125, 0.2 * 1.125))
    often, seldom = Hazard(50, 100), Hazard(50, 100_000)
    assert cost_per_sample(often, work, 0.1, 0.5, 0.1).mean > 2 * cost_per_sample(seldom, work, 0.1, 0.5, 0.1).mean
    soon, late = work._replace(deadline=4.4), work._replace(deadline=4.6)
    assert work.waves == 2
    assert batch_odds(seldom, soon).mean < 0.01 < 0.99 < batch_odds(seldom, late).mean < 1
    assert 0.99 < batch_odds(Hazard(50, 1e9), late).mean < 1  # no failure in the trials is no certainty
    with pytest.raises(ValueError, match="no deadline"):
        batch_odds(often, work)
    found, flat = (cost_per_sample(often, work, 0.1, None, high) for high in (0.2, 0.1))
    assert flat.low < flat.mean < flat.high
    assert found == (flat.mean, flat.low, pytest.approx(2 * flat.high))
    # Lost at once three times, then on demand: a start and three more of half an hour, and two hours.
    at_once, wave = Hazard(5e6, 1), work._replace(samples=4)
    assert batch_odds(at_once, wave._replace(deadline=3.9)).mean < 0.01
    assert batch_odds(at_once, wave._replace(deadline=4.1)).mean > 0.99
    odds = batch_odds(often, late)
    # Two machines, two rounds each, none may be lost: rates are about 0.5 an hour.
    assert odds.mean == pytest.approx(math.exp(-0.5 * 2 * 4), abs=0.03)


# ---- back-test


def test_strategies_see_the_past_only() -> None:
    """What comes later, prices and losses alike, changes no decision."""
    world, other = (spot_backtest.world("calm", 1) for _unused in range(2))
    now = 30 * 24.0
    other.history.price[other.history.time > now * HOUR] = 99.0
    other.interruptions = [np.array([now + 0.1]) for _unused in other.interruptions]
    for name, strategy in spot_backtest.STRATEGIES.items():
        picks = [strategy(spot_backtest.State(one, np.random.default_rng(1)), now) for one in (world, other)]
        assert picks[0] == picks[1], name


def test_a_sample_is_played_as_told() -> None:
    world = spot_backtest.world("calm", 1)
    world.history.price[:] = 0.1
    world.evidence.on_demand = dict.fromkeys(world.evidence.on_demand, 0.2)
    world.interruptions = [
        np.array([100.0 + 1.0]) for _unused in world.interruptions
    ]  # every machine is lost after one hour
    state = spot_backtest.State(world, np.random.default_rng(1))
    found = spot_backtest.play(state, lambda _state, _now: (0, 0.75), 100.0)
    need = spot_backtest.OVERHEAD + spot_backtest.SAMPLE
    assert found.cost == pytest.approx(0.1 * (1 + need))
    assert (found.hours, found.wasted) == (pytest.approx(1 + need), pytest.approx(1))
    assert found.forecasts == [(0.75, False), (0.75, True)]
    assert found.regret == pytest.approx(found.cost - 0.2 * need)  # nothing on spot would have lasted
    assert [run.interrupted for run in state.runs] == [True, False]


def test_reliability_bins() -> None:
    rows = spot_backtest.reliability([(0.4, False), (0.97, True), (0.99, False), (1.0, True)])
    assert [(count, came) for _bin, count, _forecast, came in rows] == [(1, 0.0), (3, pytest.approx(2 / 3))]


def test_recorded_availability(tmp_path: Path) -> None:
    for name, up in (("good", [1] * 960), ("bad", ([1] * 5 + [0] * 3) * 120)):
        (tmp_path / f"{name}.json").write_text(f'{{"metadata": {{"gap_seconds": 900}}, "data": {up}}}')
    found = spot_backtest.traces(tmp_path)
    brier = {name: np.mean([value for _pool, _day, value in found[name]]) for name in ("own", "constant", "always")}
    assert found["starts"] > 100
    assert brier["own"] < brier["constant"]


# ---- the picture


@pytest.mark.parametrize("form", ["png", "svg"])
def test_a_picture_is_drawn(tmp_path: Path, history: Path, advisor: Path, demand: Path, form: str) -> None:
    path = tmp_path / f"out.{form}"
    shown(
        "--history",
        history,
        "--now",
        NOW,
        "--advisor",
        advisor,
        "--on-demand",
        demand,
        "--max-price",
        "0.1",
        "--plot",
        path,
    )
    assert path.read_bytes().startswith(b"\x89PNG" if form == "png" else b"<?xml")


def test_a_picture_of_prices_only(tmp_path: Path, history: Path) -> None:
    shown("--history", history, "--now", NOW, "--plot", tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_where_no_picture_can_be_is_told(tmp_path: Path, history: Path) -> None:
    assert "--plot: found" in refused("--history", history, "--plot", tmp_path / "out.bmp")
    assert "no such folder" in refused("--history", history, "--plot", tmp_path / "none/out.png")
