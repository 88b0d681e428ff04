"""FIT: padded cost and seconds of forward passes -> seconds for each launch, and for each unit of cost. Used by costs.

``seconds = launch_s + cost_s * padded cost``. Passes of similar cost share a bucket, which keeps the last few of them
and counts as their median: a pass that compiled something, or that another program slowed down, changes nothing. The
line goes through the buckets' medians by least squares of relative errors, reweighted after Huber (1964, "Robust
estimation of a location parameter"). Old buckets fade. Where all passes cost the same, the two numbers cannot be told
apart; then the ratio that was assumed at the start decides, which counts as one weak observation.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

#: Buckets for each doubling of the cost, and passes that a bucket keeps.
BUCKETS_PER_DOUBLING = 2
KEPT = 9
#: A bucket counts half as much after this many passes without one of its own.
HALF_LIFE = 64
#: Relative error, as a logarithm, beyond which a bucket counts less.
TOLERANCE = 0.2
#: Weight of the assumed ratio, beside 1 for each pass.
PRIOR = 0.2
ROUNDS = 6


@dataclass(frozen=True)
class Line:
    """Seconds of a forward pass."""

    #: Before the first unit of cost, and for each unit of padded cost.
    launch_s: float
    cost_s: float

    def at(self, padded: float) -> float:
        """Seconds of a pass of this padded cost."""
        return self.launch_s + self.cost_s * padded

    def launch_cost(self) -> float:
        """The launch in units of cost; infinite if the cost takes no time."""
        return self.launch_s / self.cost_s if self.cost_s > 0 else math.inf


@dataclass
class _Bucket:
    passes: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    last: int = 0

    def median(self, launch_cost: float) -> tuple[float, float]:
        """Mean cost of its passes, and the (lower) median of their seconds, each carried over to that cost."""
        mean = sum(cost for cost, _ in self.passes) / len(self.passes)
        scale = launch_cost + mean
        seconds = sorted(seconds * scale / (launch_cost + cost) for cost, seconds in self.passes)
        return mean, seconds[(len(seconds) - 1) // 2]


@dataclass
class LineFit:
    """Learns the line of one pipeline on one device. Not safe for threads.

    Args:
        launch_cost: the assumed cost of a launch, in units of cost.
    """

    launch_cost: float
    count: int = 0
    _buckets: dict[int, _Bucket] = field(default_factory=dict)

    def add(self, padded: float, seconds: float) -> None:
        """Adds a pass."""
        padded, seconds = max(padded, 1.0), max(seconds, 1e-9)
        self.count += 1
        bucket = self._buckets.setdefault(int(math.log2(padded) * BUCKETS_PER_DOUBLING), _Bucket())
        bucket.passes.append((padded, seconds))
        bucket.last = self.count

    def line(self) -> Line | None:
        """The line through what was added; None before the first pass."""
        if not self._buckets:
            return None
        assumed = max(self.launch_cost, 1e-6)
        points = [
            (*bucket.median(assumed), len(bucket.passes) * 0.5 ** ((self.count - bucket.last) / HALF_LIFE))
            for bucket in self._buckets.values()
        ]
        rate = _weighted_median([(seconds / (assumed + cost), weight) for cost, seconds, weight in points])
        line = Line(assumed * rate, rate)
        for _ in range(ROUNDS):
            line = _solve(points, line, assumed)
        return line


def _solve(points: list[tuple[float, float, float]], before: Line, assumed: float) -> Line:
    """One round of reweighted least squares, with both numbers at least zero."""
    total = total_x = total_y = total_xx = total_xy = 0.0
    for cost, seconds, weight in points:
        expected = before.at(cost)
        error = abs(math.log(seconds / expected))
        weight *= min(1.0, TOLERANCE / error if error else 1.0) / expected**2
        total += weight
        total_x += weight * cost
        total_y += weight * seconds
        total_xx += weight * cost * cost
        total_xy += weight * cost * seconds
    # One more equation, launch = assumed * cost_s, whose error counts relative to a pass of that cost.
    prior = PRIOR / max(before.at(assumed), 1e-12) ** 2
    aa, ab, bb = total + prior, total_x - prior * assumed, total_xx + prior * assumed * assumed
    determinant = aa * bb - ab * ab
    launch = (total_y * bb - total_xy * ab) / determinant
    slope = (aa * total_xy - ab * total_y) / determinant
    if launch < 0:
        launch, slope = 0.0, total_xy / total_xx
    elif slope < 0:
        launch, slope = total_y / total, 0.0
    return Line(launch, slope)


def _weighted_median(values: list[tuple[float, float]]) -> float:
    values = sorted(values)
    half, so_far = sum(weight for _, weight in values) / 2, 0.0
    for value, weight in values:
        so_far += weight
        if so_far >= half:
            return value
    return values[-1][0]
