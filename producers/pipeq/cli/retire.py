"""The commands of ``pipeq`` that empty and retire a pipeline's queue: purge, forget."""

from __future__ import annotations

import click

from pipeq.cli.names import queue_of
from pipeq.cli.options import connected, example, redis_url_option
from pipeq.cli.show import LateProgress
from pipeq.contract import shown


@click.command(epilog=example("pipeq purge text-classification", "pipeq purge text-classification --yes"))
@click.argument("pipeline")
@click.option("--yes", is_flag=True, help="Do not ask.")
@redis_url_option
def purge(pipeline: str, yes: bool, redis_url: str | None) -> None:
    """End every task that waits for a pipeline.

    All of its messages are taken off: those of all priorities and tenants, those with a delay, and those that wait for
    their next try. The status of each task then says `cancelled`, with the error `purged`. Tasks inside workers go on.
    """
    with connected(redis_url) as client:
        queue = queue_of(client, pipeline)
        waiting = queue.depth + queue.waiting
        name = shown.line(pipeline)
        if waiting and not yes:
            that = f"{shown.count(waiting, 'task')} that {'waits' if waiting == 1 else 'wait'} for {name}"
            click.confirm(f"End {that}?", abort=True, err=True)
        with LateProgress(waiting, "purging") as bar:
            done = client.purge(pipeline, progress=bar.reach)
        inside = client.queue(pipeline).in_flight
    click.echo(f"{shown.count(done, 'message')} taken off")
    if inside:
        many = f"{inside} tasks are inside workers and go on"
        click.echo("1 task is inside a worker and goes on" if inside == 1 else many, err=True)


@click.command(epilog=example("pipeq forget old-model"))
@click.argument("pipeline")
@click.option(
    "--force", is_flag=True, help="Also while a worker serves it, or messages or dead letters lie there; they stay."
)
@redis_url_option
def forget(pipeline: str, force: bool, redis_url: str | None) -> None:
    """Take a retired pipeline off the list of known ones.

    `pipeq queues` does not show it any more, and submitting to it is refused. A worker that serves it puts it back on
    the list.
    """
    with connected(redis_url) as client:
        queue_of(client, pipeline)
        client.forget(pipeline, force=force)
    click.echo(f"{shown.line(pipeline)} is forgotten")
