"""What a benchmark found: figures of each arm and round, ratios, and what is wanted of them; kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

#: One file for each result, named after its letter; those of a GPU are in a folder of their own.
RESULTS = Path(__file__).parent / "results"
GPU_RESULTS = RESULTS / "gpu"


@dataclass(frozen=True)
class Options:
    """How long the benchmarks run."""

    #: How often every arm runs; the order of the arms is turned round in every other round.
    rounds: int = 3
    #: About how long one arm runs in one round. Benchmarks choose how much work they do by it.
    seconds: float = 8.0
    #: Where models run, in all arms: ``cpu``, or such as ``cuda:0``.
    device: str = "cpu"

    @property
    def is_gpu(self) -> bool:
        """Whether models run on a GPU."""
        return self.device != "cpu"


@dataclass(frozen=True)
class Ratio:
    """A figure against a reference in the same round, or a figure that is wanted as it is."""

    #: Such as ``queue / best plain loop``.
    name: str
    #: One value for each round.
    values: list[float]
    #: ``>= 1.6`` or ``<= 1.15``; empty if nothing is asked for.
    wanted: str = ""
    unit: str = ""

    @property
    def median(self) -> float:
        """The median of all rounds."""
        return statistics.median(self.values)

    @property
    def is_met(self) -> bool:
        """Whether the median is as wanted."""
        if not self.wanted:
            return True
        sign, bound = self.wanted.split()
        return self.median >= float(bound) if sign == ">=" else self.median <= float(bound)

    @property
    def verdict(self) -> str:
        """What is wanted, and whether it is so; empty if nothing is asked for."""
        return f"{self.wanted}{self.unit}: {'yes' if self.is_met else 'NO'}" if self.wanted else ""


@dataclass
class Result:
    """One row of the page."""

    #: Letter in the table, such as ``a``; its file is named after it.
    letter: str
    title: str
    #: Unit of the arms' figures.
    unit: str
    #: Arm -> a figure for each round.
    arms: dict[str, list[float]]
    ratios: list[Ratio]
    #: What a reader must know to believe it: sizes, what is in the time and what is not.
    notes: str
    machine: dict[str, str] = field(default_factory=dict)

    def show(self) -> None:
        """Prints the figures."""
        shown = Table(title=f"({self.letter}) {self.title}")
        for column in ("", self.unit, "min", "max", "wanted"):
            shown.add_column(column, justify="left" if not column else "right")
        for arm, values in self.arms.items():
            shown.add_row(arm, *(f"{one:,.4g}" for one in (statistics.median(values), min(values), max(values))), "")
        for ratio in self.ratios:
            figures = [f"{one:.3g}{ratio.unit}" for one in (ratio.median, min(ratio.values), max(ratio.values))]
            shown.add_row(ratio.name, *figures, ratio.verdict)
        Console().print(shown)

    def save(self, folder: Path = RESULTS) -> None:
        """Keeps it."""
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.letter}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Result:
        """Reads what :meth:`save` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        found["ratios"] = [Ratio(**one) for one in found["ratios"]]
        return cls(**found)


def alternate(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs all arms in turn, in the opposite order in every other round, and never two at the same time.

    Returns:
        Arm -> its figure of each round.
    """
    found: dict[str, list[float]] = {name: [] for name in arms}
    for at in range(rounds):
        names = list(arms)
        for name in names if at % 2 == 0 else reversed(names):
            found[name].append(arms[name]())
            sys.stdout.write(json.dumps({"arm": name, "round": at, "figure": round(found[name][-1], 5)}) + "\n")
            sys.stdout.flush()
    return found


def against(name: str, ours: Sequence[float], reference: Sequence[float], wanted: str) -> Ratio:
    """Returns the ratio of two arms, round by round."""
    return Ratio(name, [one / other for one, other in zip(ours, reference, strict=True)], wanted)


def best(arms: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """Returns the figures of the arm with the best median."""
    return max(arms.values(), key=statistics.median)


def machine(device: str = "cpu") -> dict[str, str]:
    """Returns what the figures depend on."""
    name = {}
    if device != "cpu":
        import torch

        name = {"device": torch.cuda.get_device_name(device)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        **name,
        "cores": str(cores),
        "processor": _processor(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "celery", "redis")},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()
