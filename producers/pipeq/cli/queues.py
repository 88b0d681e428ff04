"""``pipeq queues``: what waits for each pipeline, and which workers serve it."""

from __future__ import annotations

from dataclasses import asdict

import click

from pipeq.cli.options import connected, example, json_lines, redis_url_option
from pipeq.cli.show import as_json, print_queues


@click.command(epilog=example("pipeq queues"))
@json_lines
@redis_url_option
def queues(in_json: bool, redis_url: str | None) -> None:
    """Show every pipeline's queue.

    \b
    depth      messages that wait to be taken
    waiting    messages that wait for their next try
    oldest     age of the message that has waited longest
    in flight  tasks inside workers
    running    those of them that have begun to run
    to drain   time that the live workers need for all of them
    workers    live ones
    loading    workers that are loading the pipeline
    dead       messages in the dead-letter list

    \b
    Below the table: the workers that take no messages, and why.
    """  # noqa: D301 - click knows \b only as the backspace that it is here
    with connected(redis_url) as client:
        found = client.queues()
    if in_json:
        for queue in found:
            click.echo(as_json(asdict(queue)))
    elif found:
        print_queues(found)
    else:
        click.echo("No worker has ever served a pipeline here.", err=True)
