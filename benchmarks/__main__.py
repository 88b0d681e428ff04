"""``python -m benchmarks``: every benchmark, or those named on the command line."""

from __future__ import annotations

import sys

from benchmarks import batching, delivery

BENCHMARKS = {"batching": batching.main, "delivery": delivery.main}


def main() -> None:
    """Runs the benchmarks named on the command line, or all."""
    names = sys.argv[1:] or list(BENCHMARKS)
    for name in names:
        if name not in BENCHMARKS:
            sys.exit(f"no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
