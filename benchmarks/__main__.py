"""``python -m benchmarks``: every benchmark, or those named on the command line; ``--help`` lists them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from benchmarks import (
    batching,
    continuous,
    death,
    delivery,
    devices,
    forward,
    jobs,
    late_worker,
    latency,
    memory,
    noop,
    one_length,
    page,
    pictures,
    producers,
    urgency,
    workers,
)
from benchmarks.report import GPU_RESULTS, RESULTS, Options, Result, machine

#: Letter of the table -> what runs it. A benchmark returns what it found; ``delivery`` and ``memory`` only print.
BENCHMARKS: dict[str, Callable[[Options], list[Result]]] = {
    "a": batching.main,
    "b": one_length.main,
    "c": devices.main,
    "d": forward.main,
    "e": noop.main,
    "f": latency.main,
    "g": late_worker.main,
    "h": urgency.main,
    "i": continuous.main,
    "j": death.main,
    "k": producers.main,
    "l": jobs.constant,
    "m": jobs.minilm,
    "n": pictures.main,
    "delivery": delivery.main,
    "memory": memory.main,
}


def main() -> None:
    """Runs the benchmarks named on the command line, or all."""
    parser = argparse.ArgumentParser("python -m benchmarks", epilog=_epilog())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="which ones; by default all")
    parser.add_argument("--rounds", type=int, default=Options.rounds, help="rounds of all arms (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=Options.seconds, help="about how long an arm of one round runs (%(default)g)"
    )
    parser.add_argument(
        "--device", default=Options.device, help="where models run, in all arms: %(default)s, or such as cuda:0"
    )
    parser.add_argument("--save", action="store_true", help="keep the results, and make the page of benchmarks anew")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in BENCHMARKS]:
        sys.exit(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    # Nothing here asks the Hub, neither this process nor a worker.
    os.environ["HF_HUB_OFFLINE"] = "1"
    options = Options(given.rounds, given.seconds, given.device)
    workers.DEVICE = given.device
    for name in given.names or BENCHMARKS:
        before = machine(given.device)
        for result in BENCHMARKS[name](options):
            result.show()
            if given.save:
                result.machine = before
                result.save(GPU_RESULTS if options.is_gpu else RESULTS)
    if given.save:
        page.write()


def _epilog() -> str:
    lines = ["benchmarks:"]
    for name, run in BENCHMARKS.items():
        about = sys.modules[run.__module__].__doc__ or ""
        lines.append(f"  {name:<10} {about.partition(chr(10))[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
