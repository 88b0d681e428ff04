"""The output of a benchmark: a JSON line for each run when it ends, and a table at the end."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Run:
    """One run of one arm."""

    benchmark: str
    arm: str
    round: int
    seconds: float
    items: int
    #: Mean items in a forward pass, and the share of padded cost that was padding.
    mean_batch: float
    padding: float

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / self.seconds

    def emit(self) -> None:
        """Prints the run as one JSON line."""
        sys.stdout.write(json.dumps({**asdict(self), "rate": round(self.rate, 2)}) + "\n")
        sys.stdout.flush()


def table(title: str, runs: list[Run], reference: str, console: Console | None = None) -> dict[str, float]:
    """Prints median and spread of each arm, and its ratio to the reference arm of the same round.

    Returns:
        Arm -> median of its ratios.
    """
    arms = list(dict.fromkeys(run.arm for run in runs))
    rate_of = {(run.arm, run.round): run.rate for run in runs}
    rounds = sorted({run.round for run in runs})
    columns = ("arm", "items/s", "min", "max", f"x {reference}", "batch", "padding")
    shown = Table(title=title)
    for column in columns:
        shown.add_column(column, justify="left" if column == "arm" else "right")
    ratios = {}
    for arm in arms:
        mine = [run for run in runs if run.arm == arm]
        rates = [run.rate for run in mine]
        ratios[arm] = statistics.median(rate_of[arm, at] / rate_of[reference, at] for at in rounds)
        shown.add_row(
            arm,
            f"{statistics.median(rates):.1f}",
            f"{min(rates):.1f}",
            f"{max(rates):.1f}",
            f"{ratios[arm]:.2f}",
            f"{statistics.mean(run.mean_batch for run in mine):.1f}",
            f"{statistics.mean(run.padding for run in mine):.0%}",
        )
    (console or Console()).print(shown)
    return ratios
