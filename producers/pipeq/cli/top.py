"""``pipeq top``: queues, workers, batches, the devices' time and failures, as they are now; again and again.

Before: heartbeats of the workers, and the queues. On a terminal, the tables stand still and their numbers change; a
pipe or a file gets plain lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from pipeq.cli.group import say
from pipeq.cli.options import connected, example, redis_url_option
from pipeq.cli.show import as_json, duration, table, tell
from pipeq.client import Client
from pipeq.contract import shown
from pipeq.contract.errors import RedisUnavailableError
from pipeq.queue_info import QueueInfo
from pipeq.terminal import is_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Most failures that are shown of a pipeline.
CODES_SHOWN = 3


@dataclass
class Worker:
    """What one worker does for all of its pipelines."""

    name: str
    pipelines: list[str] = field(default_factory=list)
    in_flight: float = 0
    running: float = 0
    #: Share of the time that its device works.
    busy: float = 0
    #: Why it takes no messages of a pipeline.
    deaf: dict[str, str] = field(default_factory=dict)


@click.command(epilog=example("pipeq top", "pipeq top --once --json", "pipeq top --interval 10 > top.log"))
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Look again after this many seconds.",
)
@click.option("--once", is_flag=True, help="Look once, and end.")
@click.option("--json", "in_json", is_flag=True, help="Print JSON, one object a line for each look.")
@redis_url_option
def top(interval: float, once: bool, in_json: bool, redis_url: str | None) -> None:
    """Show queues, workers, batches and failures live, until Ctrl-C.

    \b
    waiting   messages that wait to be taken, and for their next try
    inside    tasks inside workers; running: those of them that have begun to run
    batch     items in a batch, of the last seconds
    rate      tasks a second that the live workers manage while there is work
    device    share of the time that the devices work for it; of a worker, for all of its pipelines
    failed    tasks that failed at these workers since each of them started, by error code
    """  # noqa: D301 - click knows \b only as the backspace that it is here
    with connected(redis_url) as client, _display(live=not once and not in_json) as show:
        queues = client.queues()
        with suppress(KeyboardInterrupt):
            while True:
                if in_json:
                    click.echo(as_json({"at": time.time(), **described(queues)}))
                else:
                    show(queues)
                if once:
                    return
                time.sleep(interval)
                queues = _again(client, interval)


def _again(client: Client, interval: float) -> list[QueueInfo]:
    """Looks again; a Redis that is away for a while is waited for."""
    while True:
        try:
            return client.queues()
        except RedisUnavailableError as error:
            if not error.retryable:
                raise
            say(error.code, error.message)
            time.sleep(interval)


def described(queues: list[QueueInfo]) -> dict[str, Any]:
    """What is shown, as JSON."""
    return {"queues": [asdict(one) for one in queues], "workers": [asdict(one) for one in workers_of(queues)]}


def workers_of(queues: list[QueueInfo]) -> list[Worker]:
    """The workers that serve any of these queues, by name."""
    found: dict[str, Worker] = {}
    for queue in queues:
        for name, load in queue.load.items():
            one = found.setdefault(name, Worker(name))
            one.pipelines.append(queue.pipeline)
            one.in_flight += load.get("in_flight", 0)
            one.running += load.get("running", 0)
            one.busy += load.get("busy", 0)
        for name, reason in queue.deaf.items():
            found.setdefault(name, Worker(name)).deaf[queue.pipeline] = reason
    return [found[name] for name in sorted(found)]


@contextmanager
def _display(*, live: bool) -> Iterator[Callable[[list[QueueInfo]], None]]:
    """Yields a function that shows the queues: in place on a terminal, else as a block of plain lines."""
    if not (live and is_terminal(sys.stdout)):
        yield _print
        return
    from rich.console import Console
    from rich.live import Live

    # The alternate screen, which leaves the terminal as it was; nothing else is printed meanwhile.
    with Live(console=Console(highlight=False), screen=True, auto_refresh=False, redirect_stderr=True) as drawn:

        def show(queues: list[QueueInfo]) -> None:
            drawn.update(_tables(queues), refresh=True)

        yield show


def _print(queues: list[QueueInfo]) -> None:
    click.echo(time.strftime("%Y-%m-%d %H:%M:%S"))
    tell(_queue_table(queues), [])
    if rows := workers_of(queues):
        click.echo()
        tell(_worker_table(rows), [])
    click.echo()


def _tables(queues: list[QueueInfo]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    at = Text(f"pipeq top  {time.strftime('%H:%M:%S')}  Ctrl-C ends it", style="dim")
    return Group(at, Text(), _queue_table(queues), Text(), _worker_table(workers_of(queues)))


def _queue_table(queues: list[QueueInfo]) -> Any:
    titles = "pipeline waiting oldest inside running workers batch rate device dead failed".split()
    return table(titles, [_queue_row(queue) for queue in queues], right=range(1, len(titles) - 1))


def _queue_row(queue: QueueInfo) -> list[str]:
    waiting = f"{queue.depth} + {queue.waiting}" if queue.waiting else str(queue.depth)
    loading = f" + {queue.loading}" if queue.loading else ""
    batches = [one["batch"] for one in queue.load.values() if "batch" in one]
    rates = [one["rate"] for one in queue.load.values() if "rate" in one]
    busy = [one["busy"] for one in queue.load.values() if "busy" in one]
    return [
        shown.line(queue.pipeline),
        waiting,
        "-" if queue.oldest_age_s is None else duration(queue.oldest_age_s),
        str(queue.in_flight),
        str(queue.running),
        f"{queue.workers}{loading}",
        f"{sum(batches) / len(batches):.1f}" if batches else "-",
        f"{sum(rates):.3g}/s" if rates else "-",
        f"{sum(busy) / len(busy):.0%}" if busy else "-",
        str(queue.dead),
        _failures(queue.failed) or "-",
    ]


def _failures(failed: dict[str, int]) -> str:
    most = sorted(failed.items(), key=lambda one: -one[1])
    more = sum(count for _, count in most[CODES_SHOWN:])
    parts = [f"{code} {count}" for code, count in most[:CODES_SHOWN]]
    return ", ".join([*parts, f"others {more}"] if more else parts)


def _worker_table(workers: list[Worker]) -> Any:
    rows = [
        [
            shown.line(one.name),
            shown.line(", ".join(one.pipelines) or "-", 200),
            f"{one.in_flight:.0f}",
            f"{one.running:.0f}",
            f"{one.busy:.0%}",
            shown.line("; ".join(f"{name}: {reason}" for name, reason in one.deaf.items()), 200),
        ]
        for one in workers
    ]
    return table(("worker", "pipelines", "inside", "running", "device", "takes nothing"), rows, right=range(2, 5))
