"""The host's cost of a message: no-ops with stored results, a pipeq worker against a stock Celery solo worker.

A queue is filled first; the time runs from the first message taken to the last one acknowledged. The pipeline
``constant`` takes the whole way of a real one except for the model. The CPU time of the worker's main process, which
holds the leases, says why the ratio is as it is, and depends less on what else the machine does.
"""

from __future__ import annotations

from pipeq.demo.embedded import valkey

from benchmarks.delivery import throughput
from benchmarks.report import Options, Result, against, alternate

#: Messages for each second that an arm is to run.
STOCK_A_SECOND, OURS_A_SECOND = 250, 1250
CPU = "worker's CPU, ms/message"


def main(options: Options) -> list[Result]:
    """Runs all rounds."""
    counts = {
        "stock solo": int(STOCK_A_SECOND * options.seconds),
        "pipeq": int(OURS_A_SECOND * options.seconds),
    }
    cpu: dict[str, list[float]] = {name: [] for name in counts}

    def run(arm: str, url: str) -> float:
        measured = throughput(arm, len(cpu[arm]), url, url, counts[arm])
        cpu[arm].append(measured.values[CPU])
        return measured.values["messages/s"]

    with valkey() as url:
        found = alternate({name: lambda name=name: run(name, url) for name in counts}, options.rounds)  # type: ignore[misc]
    ours, stock = cpu["pipeq"], cpu["stock solo"]
    return [
        Result(
            "e",
            "No-op messages with stored results",
            "messages/s",
            found,
            [
                against("pipeq / stock solo", found["pipeq"], found["stock solo"], ">= 6"),
                against("CPU of a message: stock solo / pipeq's main process", stock, ours, ""),
            ],
            f"{counts['pipeq']} and {counts['stock solo']} messages a round; late acknowledgement in both arms.",
        )
    ]
