"""Memory, open file handles and threads of processes, sampled as time goes: a table, a picture, what is not flat."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

#: In the second half of the time that a process was seen, its resident memory may grow by this much (MiB, and share of
#: what it had), and its handles and threads by so many.
GROWTH_MIB, GROWTH_SHARE, GROWTH_COUNT = 16.0, 0.03, 4.0
#: Colours of the lines.
_COLOURS = ("#0ea5e9", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#64748b", "#ec4899", "#84cc16")


@dataclass
class Series:
    """What was seen of one process."""

    times: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    handles: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    @property
    def span_s(self) -> float:
        return self.times[-1] - self.times[0]

    def growth(self, values: Sequence[float]) -> float:
        """By how much they grow in the second half, by a straight line through that."""
        half = len(values) // 2
        times, later = np.array(self.times[half:]), np.array(values[half:], dtype=float)
        if len(times) < 3:
            return 0.0
        slope = float(np.polyfit(times - times[0], later, 1)[0])
        return slope * float(times[-1] - times[0])


class Samples:
    """See the module."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        #: Name and process id -> what was seen.
        self.series: dict[tuple[str, int], Series] = defaultdict(Series)

    def take(self, processes: Iterable[tuple[str, int]]) -> None:
        """Looks at processes, by name and id."""
        now = time.monotonic() - self.began
        for name, pid in processes:
            with suppress(OSError, StopIteration):  # it has just ended
                status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                if "VmRSS" not in status:
                    continue
                handles = len(os.listdir(f"/proc/{pid}/fd"))
                one = self.series[name, pid]
                one.times.append(now)
                one.rss_mib.append(int(status["VmRSS"].split()[0]) / 1024)
                one.handles.append(handles)
                one.threads.append(int(status["Threads"]))

    def lasting(self, seconds: float) -> dict[tuple[str, int], Series]:
        """Those that were seen for so long."""
        return {key: one for key, one in self.series.items() if one.span_s >= seconds}

    def table(self, seconds: float) -> str:
        """A row for each process that was seen for so long."""
        rows = [f"{'process':<26}{'s':>6}{'RSS MiB':>18}{'growth':>8}{'handles':>12}{'growth':>8}{'threads':>10}"]
        for (name, pid), one in sorted(self.lasting(seconds).items()):
            half = len(one.times) // 2
            rss = f"{one.rss_mib[half]:.0f} .. {one.rss_mib[-1]:.0f}"
            handles = f"{one.handles[half]} .. {one.handles[-1]}"
            rows.append(
                f"{f'{name} ({pid})':<26}{one.span_s:>6.0f}{rss:>18}{one.growth(one.rss_mib):>8.1f}"
                f"{handles:>12}{one.growth(one.handles):>8.1f}{f'{one.threads[half]} .. {one.threads[-1]}':>10}"
            )
        return "\n".join(rows)

    def faults(self, seconds: float) -> list[str]:
        """What is not flat, of processes that were seen for so long."""
        found = []
        for (name, pid), one in sorted(self.lasting(seconds).items()):
            grown = one.growth(one.rss_mib)
            if grown > GROWTH_MIB + GROWTH_SHARE * one.rss_mib[len(one.times) // 2]:
                found.append(f"{name} ({pid}) grows by {grown:.1f} MiB")
            for what, values in (("handles", one.handles), ("threads", one.threads)):
                if (grown := one.growth(values)) > GROWTH_COUNT:
                    found.append(f"{name} ({pid}) grows by {grown:.1f} {what}")
        return found

    def draw(self, path: Path, seconds: float) -> None:
        """Writes a picture: resident memory above, open handles below."""
        lasting = sorted(self.lasting(seconds).items())
        width, height, left = 900, 240, 60
        until = max((one.times[-1] for _, one in lasting), default=1.0)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + 280}" height="{2 * height + 80}"'
            ' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        ]
        for at, what in enumerate(("RSS, MiB", "open handles")):
            top = 30 + at * (height + 30)
            most = max((max(one.handles if at else one.rss_mib) for _, one in lasting), default=1) * 1.05
            parts.append(f'<text x="{left}" y="{top - 8}">{what}, 0 to {most:.0f}, in {until:.0f} s</text>')
            parts.append(f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#94a3b8"/>')
            for number, ((name, pid), one) in enumerate(lasting):
                colour = _COLOURS[number % len(_COLOURS)]
                values: Sequence[float] = one.handles if at else one.rss_mib
                points = " ".join(
                    f"{left + x / until * width:.1f},{top + height - y / most * height:.1f}"
                    for x, y in zip(one.times, values, strict=True)
                )
                parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
                y = top + 16 + 16 * number
                parts.append(f'<text x="{left + width + 10}" y="{y}" fill="{colour}">{name} ({pid})</text>')
        path.write_text("\n".join([*parts, "</svg>"]))
