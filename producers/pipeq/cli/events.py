"""The command ``pipeq events``: the stream of state changes, and its switch."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from datetime import datetime

import click

from pipeq.cli.names import queue_of
from pipeq.cli.options import connected, example, json_lines, redis_url_option
from pipeq.contract import shown
from pipeq.contract.events import KEPT_MOST, Event
from pipeq.contract.status import State

#: How long the command waits for more without ``--follow``, in seconds.
NO_WAIT_S = 0.0


@click.command(
    epilog=example(
        "pipeq events --keep 100000",
        "pipeq events --follow --state failed --state succeeded --json",
        "pipeq events --after 1795386989378-0",
    )
)
@click.option("--follow", is_flag=True, help="Go on with what happens from now on, until interrupted.")
@click.option("--after", metavar="ID", help="Begin after this event. Default: the oldest, or with --follow the newest.")
@click.option("--pipeline", "pipelines", multiple=True, help="Only those of this pipeline; may be repeated.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([str(one) for one in State if one is not State.UNKNOWN]),
    help="Only changes to this state; may be repeated.",
)
@click.option(
    "--keep",
    type=click.IntRange(1, KEPT_MOST),
    metavar="COUNT",
    help="Switch the stream on for all workers and clients, and keep about this many events.",
)
@click.option("--off", is_flag=True, help="Switch the stream off, and remove it.")
@json_lines
@redis_url_option
def events(
    follow: bool,
    after: str | None,
    pipelines: tuple[str, ...],
    states: tuple[str, ...],
    keep: int | None,
    off: bool,
    in_json: bool,
    redis_url: str | None,
) -> None:
    """Show the state changes of tasks as they happen.

    The stream is off until an operator switches it on with --keep. Each line has the event's id, its time, the task,
    its state, its pipeline, the number of the try, the worker, and the error's code.
    """
    if keep is not None and off:
        raise click.UsageError("--keep switches the stream on, and --off switches it off: give one of them")
    with connected(redis_url) as client:
        if keep is not None or off:
            kept = client.keep_events(keep or 0)
            click.echo(f"about {kept} events are kept" if kept else "the stream of events is off", err=True)
            if not follow:
                return
        for name in pipelines:
            queue_of(client, name)
        if after is None and not follow:
            after = "0"
        found = client.events(
            after, pipelines=pipelines or None, states=states or None, timeout_s=None if follow else NO_WAIT_S
        )
        with suppress(KeyboardInterrupt) if follow else nullcontext():
            for event in found:
                click.echo(json.dumps(event.to_dict()) if in_json else _line(event))


def _line(event: Event) -> str:
    at = datetime.fromtimestamp(event.at).astimezone().isoformat(" ", "milliseconds")
    attempt = f"try {event.attempt}" if event.attempt else None
    parts = (event.task_id, str(event.state), event.pipeline, attempt, event.worker, event.code)
    return "  ".join([event.id, at, *(shown.line(part) for part in parts if part)])
