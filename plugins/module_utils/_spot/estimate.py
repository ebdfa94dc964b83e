# Copyright: University of Melbourne Centre for Cancer Research and contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How likely a spot instance is interrupted, and what that does to the time and the cost of samples.

The rate of interruptions per instance-hour has a gamma distribution: a weak prior from the pool's interruption class, updated by our
own instances' hours and interruptions. Everything else follows from it: intervals are the 5th and 95th percentile over that distribution.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

try:
    import numpy as np
    from numpy.typing import NDArray
except ImportError:
    pass  # the reader and the preflight report it

# Interruption classes of AWS's Spot Instance Advisor: share of instances interrupted, trailing month; the middle of each class.
CLASSES = {"<5%": 0.025, "5-10%": 0.075, "10-15%": 0.125, "15-20%": 0.175, ">20%": 0.30}
# AWS does not say how long the instances of that share ran: between a day (24 h) and a month (730 h); their geometric mean.
CLASS_HOURS = 132.0
CLASS_WEIGHT = 0.25  # of an interruption seen: the 95th percentile then comes within a fifth of the reading "a day"
OWN_WEIGHT = 0.5  # the same for the rate of all our own instances, as prior of one pool
ENOUGH = 10  # interruptions of one pool from which on its own survival curve is used
POINTS = 101  # of the distribution, at equal steps of probability
TRIALS = 1000  # of a batch, for each of BATCH_POINTS of the distribution
BATCH_POINTS = 21
Z90 = 1.6448536269514722  # normal quantile of a 90 % interval


class Interval(NamedTuple):
    """An estimate with its 90 % interval."""

    mean: float
    low: float
    high: float


class Hazard(NamedTuple):
    """Gamma distribution of the interruptions per instance-hour."""

    shape: float
    rate: float

    def points(self, count: int = POINTS) -> NDArray[np.float64]:
        """Rates at equal steps of probability, ascending."""
        return _gamma(self.shape, count) / self.rate

    def interval(self) -> Interval:
        """The rate with its 90 % interval."""
        low, high = np.quantile(self.points(), [0.05, 0.95])
        return Interval(self.shape / self.rate, float(low), float(high))

    def updated(self, interruptions: int, hours: float) -> Hazard:
        """After having seen so many interruptions in so many instance-hours."""
        return Hazard(self.shape + interruptions, self.rate + hours)

    def survival(self, hours: float) -> Interval:
        """Probability that an instance is not interrupted for so long."""
        low, high = np.quantile(np.exp(-self.points() * hours), [0.05, 0.95])
        return Interval((self.rate / (self.rate + hours)) ** self.shape, float(low), float(high))


@functools.lru_cache(maxsize=512)
def _gamma(shape: float, count: int) -> NDArray[np.float64]:
    draws = np.sort(np.random.default_rng(7).standard_gamma(shape, 20_000))
    points: NDArray[np.float64] = np.quantile(draws, (np.arange(count) + 0.5) / count)
    return points


def prior(label: str | None, hours: float, interruptions: int) -> Hazard | None:
    """The distribution before a pool's own record: from its class, else from all our instances; None when there is neither."""
    if label is not None:
        return Hazard(CLASS_WEIGHT, CLASS_WEIGHT * CLASS_HOURS / -math.log1p(-CLASSES[label]))
    if hours > 0:
        return Hazard(OWN_WEIGHT, OWN_WEIGHT * hours / (interruptions + OWN_WEIGHT))
    return None


def wilson(successes: int, trials: int) -> Interval | None:
    """Share of successes with Wilson's 90 % interval; None without trials."""
    if not trials:
        return None
    share, z2 = successes / trials, Z90 * Z90
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z90 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return Interval(share, max(middle - half, 0.0), min(middle + half, 1.0))


def kaplan_meier(hours: list[float], ended: list[bool], at: float) -> Interval:
    """Share of instances that run longer than ``at`` hours; those not ``ended`` were still running when last seen.

    Greenwood's variance on the log(-log) scale, 90 % interval.
    """
    survival, variance = 1.0, 0.0
    for moment in sorted({time for time, end in zip(hours, ended, strict=True) if end and time <= at}):
        alive = sum(time >= moment for time in hours)
        deaths = sum(end and time == moment for time, end in zip(hours, ended, strict=True))
        survival *= 1 - deaths / alive
        if alive > deaths:
            variance += deaths / (alive * (alive - deaths))
    if survival in (0.0, 1.0):
        bound = wilson(round(survival * len(hours)), len(hours))
        return bound._replace(mean=survival) if bound else Interval(survival, 0.0, 1.0)
    spread = Z90 * math.sqrt(variance) / abs(math.log(survival))
    return Interval(survival, survival ** math.exp(spread), survival ** math.exp(-spread))


class Work(NamedTuple):
    """What is to be done: ``samples`` that take ``hours`` each on one of ``machines``, ``side_by_side`` of them at a time.

    ``overhead`` is the hours until a fresh instance begins its first sample; after ``losses`` interruptions of the same sample it
    runs on demand. ``deadline`` is in hours from now, for all samples; None: there is none.
    """

    hours: float
    samples: int = 1
    machines: int = 1
    side_by_side: int = 1
    overhead: float = 0.25
    losses: int = 3
    deadline: float | None = None

    @property
    def waves(self) -> int:
        """Rounds that each instance works."""
        return -(-self.samples // (self.machines * self.side_by_side))


def instance_hours(rate: Any, work: Work) -> tuple[Any, Any]:
    """Expected hours billed per wave on spot and on demand, at a rate of interruptions (0 allowed, an array too).

    A wave is begun afresh after each interruption. Without the last resort (``losses`` to infinity) the sum is
    (1/rate + overhead)(exp(rate hours) - 1).
    """
    lost = -np.expm1(-np.asarray(rate, float) * work.hours)
    with np.errstate(divide="ignore", invalid="ignore"):
        attempt = np.where(lost > 0, lost / np.asarray(rate, float), work.hours)  # expected length of one attempt
        attempts = np.where(lost > 0, (1 - lost**work.losses) / (1 - lost), 1.0)
    attempts = np.where(lost >= 1, float(work.losses), attempts)
    on_demand = lost**work.losses
    again = attempts * lost - on_demand  # interruptions that are followed by another spot instance
    return attempts * attempt + again * work.overhead, on_demand * (work.hours + work.overhead)


def cost_per_sample(
    hazard: Hazard | None, work: Work, price: float, on_demand: float | None, high_price: float
) -> Interval:
    """Expected US dollars per sample. The interval goes from few interruptions at ``price`` to many at ``high_price``.

    Without a hazard it is the cost when nothing is interrupted, and the interval is the price's alone.
    """
    boot = work.overhead * work.machines / work.samples
    if hazard is None:
        hours = work.hours / work.side_by_side + boot
        return Interval(hours * price, hours * price, hours * high_price)

    def cost(rate: Any, dollars: float) -> Any:
        spot, demand = instance_hours(rate, work)
        return (
            spot * dollars + demand * (dollars if on_demand is None else on_demand)
        ) / work.side_by_side + boot * dollars

    rates = hazard.points()
    low, high = np.quantile(rates, [0.05, 0.95])
    return Interval(float(np.mean(cost(rates, price))), float(cost(low, price)), float(cost(high, high_price)))


@functools.lru_cache(maxsize=512)
def batch_odds(hazard: Hazard, work: Work) -> Interval:
    """Probability that all samples are done by the deadline, by simulation over the distribution of the hazard."""
    if work.deadline is None:
        raise ValueError("the work has no deadline")
    shape = (TRIALS, work.machines, work.waves, work.losses)
    durations = np.random.default_rng(11).standard_exponential(shape)
    odds = []
    for rate in hazard.points(BATCH_POINTS):
        with np.errstate(divide="ignore"):
            hours = durations / rate
        lost = np.logical_and.accumulate(hours < work.hours, axis=3)
        wasted = np.where(lost, hours + work.overhead, 0.0).sum(axis=3)
        total = work.overhead + (wasted + work.hours).sum(axis=2)
        done = int(np.sum(np.all(total <= work.deadline, axis=1)))
        odds.append((done + 1) / (TRIALS + 2))  # Laplace: no failure among the trials is no certainty
    low, high = np.quantile(odds, [0.05, 0.95])
    return Interval(float(np.mean(odds)), float(low), float(high))
