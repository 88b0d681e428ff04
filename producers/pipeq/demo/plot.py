"""PLOT: how many rows had ended when -> a picture (SVG) of rows a second. Used by `pipeq run`."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, log10

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 40
#: Parts of the time for which the picture shows a rate.
STEPS = 60


def svg(title: str, moments: Sequence[tuple[float, int]]) -> str:
    """Returns the picture.

    Args:
        title: stands above it.
        moments: seconds since the beginning, and how many rows had ended; in order.
    """
    seconds = max((moment for moment, _ in moments), default=0.0) or 1.0
    rates = _rates(moments, seconds)
    most = _round_up(max(rates, default=0.0) or 1.0)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(second: float) -> float:
        return LEFT + wide * second / seconds

    def y(rate: float) -> float:
        return TOP + high * (1 - rate / most)

    step_s = seconds / len(rates)
    points = " ".join(
        f"{x(at * step_s):.1f},{y(rate):.1f} {x((at + 1) * step_s):.1f},{y(rate):.1f}" for at, rate in enumerate(rates)
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for part in range(5):
        rate, second = most * part / 4, seconds * part / 4
        lines += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" stroke="#ddd"/>',
            f'<text x="{LEFT - 6}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:g}</text>',
            f'<text x="{x(second):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{second:.3g}</text>',
        ]
    lines += [
        f'<polyline points="{points}" fill="none" stroke="#1668b8" stroke-width="2"/>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">seconds</text>',
        f'<text x="{WIDTH - RIGHT}" y="20" text-anchor="end">rows a second</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _rates(moments: Sequence[tuple[float, int]], seconds: float) -> list[float]:
    """Rows a second in each part of the time: what ended between two moments did so evenly."""
    found = [0.0] * STEPS
    step_s, before = seconds / STEPS, (0.0, 0)
    for moment, done in moments:
        since, count = before
        rows, lasted_s = done - count, max(moment - since, 1e-9)
        for at in range(int(since / step_s), min(STEPS, ceil(moment / step_s))):
            shared_s = min(moment, (at + 1) * step_s) - max(since, at * step_s)
            found[at] += rows * max(0.0, shared_s) / lasted_s / step_s
        before = moment, done
    return found


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 10, 20 ... above."""
    power = 10.0 ** int(log10(value)) if value >= 1 else 10.0 ** (int(log10(value)) - 1)
    return next(step * power for step in (1, 2, 4, 10, 20) if step * power >= value)
