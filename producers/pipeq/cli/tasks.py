"""The commands of ``pipeq`` that take ids of tasks: wait, result, status, cancel."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from pipeq.cli.group import OK, TASK_FAILED, say
from pipeq.cli.ids import are_many, ids_argument, in_chunks
from pipeq.cli.names import queue_of
from pipeq.cli.options import (
    allow_option,
    connected,
    example,
    json_lines,
    redis_url_option,
    timeout_option,
    wait_option,
    wait_timeout_option,
)
from pipeq.cli.results import (
    end_if_interrupted,
    ended,
    print_result,
    print_results,
    say_broken_off,
    say_why,
    state_code,
    worst,
)
from pipeq.cli.show import LateProgress, history_lines, status_block, status_json
from pipeq.client import Client
from pipeq.contract import shown
from pipeq.contract.errors import WaitTimeoutError
from pipeq.contract.status import State, TaskStatus


@click.command(
    epilog=example(
        "pipeq wait 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77 --timeout 60",
        "pipeq submit text-classification - --lines < texts.txt | pipeq wait -",
    )
)
@ids_argument
@wait_timeout_option
@json_lines
@redis_url_option
def wait(ids: tuple[str, ...], timeout: float | None, in_json: bool, redis_url: str | None) -> None:
    """Wait until tasks have ended.

    Prints the state of each when it has ended; the exit code is 0 only if all succeeded. `-` reads ids from stdin, one
    a line. Without --timeout, an id that is not known is waited for 10 seconds: a stock Celery producer's task is
    unknown until a worker runs it.
    """
    codes = [OK]
    with connected(redis_url) as client:
        for chunk, left_s in _within(ids, timeout):
            seen: set[str] = set()
            try:
                with LateProgress(len(chunk)) as progress:
                    for status in ended(client, chunk, left_s):
                        seen.add(status.id)
                        progress.advance()
                        codes.append(_print_state(status, in_json))
            except (WaitTimeoutError, KeyboardInterrupt) as error:
                say_broken_off(error)
                rest = [one for one in dict.fromkeys(chunk) if one not in seen]
                codes += [_print_state(status, in_json) for status in client.status_many(rest)]
                end_if_interrupted(error, codes)
    click.get_current_context().exit(worst(codes))


def _print_state(status: TaskStatus, in_json: bool) -> int:
    click.echo(status_json(status) if in_json else f"{shown.line(status.id)}  {status.state}")
    if status.error is not None and not in_json:
        say_why(status)
    return state_code(status)


def _within(ids: tuple[str, ...], timeout: float | None) -> Iterator[tuple[list[str], float | None]]:
    """Yields ids, some at a time, with the time that is left for them."""
    until = None if timeout is None else time.monotonic() + timeout
    for chunk in in_chunks(ids):
        yield chunk, None if until is None else round(max(0.0, until - time.monotonic()), 2)


@click.command(
    epilog=example(
        "pipeq result 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77 --timeout 60",
        "pipeq submit text-classification - --lines < texts.txt | pipeq result - --wait > results.jsonl",
    )
)
@ids_argument
@wait_option
@timeout_option
@allow_option
@json_lines
@redis_url_option
def result(
    ids: tuple[str, ...],
    wait: bool,
    timeout: float | None,
    allow: tuple[str, ...],
    in_json: bool,
    redis_url: str | None,
) -> None:
    """Print the output of tasks as JSON.

    Prints a line for each, in the order of the ids. An output is fetched from the store where it lies there, if --allow
    names that. `-` reads ids from stdin, one a line. Of several tasks, one without an output prints as null, and stderr
    says why; with --json, a line is the full status.

    Without --wait, a task that has not ended is exit code 3. With it, an id that is not known yet is waited for too,
    for 10 seconds or as long as --timeout says: a stock Celery producer's task is unknown until a worker runs it.
    """
    waits = wait or timeout is not None
    codes = [OK]
    with connected(redis_url, allow) as client:
        if not are_many(ids):
            status = _waited_for(client, ids[0], timeout) if waits else client.status(ids[0])
            codes.append(print_result(client, status, in_json, null=False))
        else:
            for chunk, left_s in _within(ids, timeout):
                if waits:
                    codes.append(print_results(client, chunk, left_s, in_json))
                else:
                    codes += [print_result(client, status, in_json) for status in client.status_many(chunk)]
    click.get_current_context().exit(worst(codes))


def _waited_for(client: Client, task_id: str, timeout: float | None) -> TaskStatus:
    """Returns the status when the task has ended, or when the time for that is over."""
    try:
        return next(ended(client, [task_id], timeout))
    except (WaitTimeoutError, KeyboardInterrupt) as error:
        say_broken_off(error)
        return client.status(task_id)


@click.command(
    epilog=example("pipeq status 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77 --json", "pipeq status - --json < ids.txt")
)
@ids_argument
@click.option("--history", "with_history", is_flag=True, help="Show every try: worker, times, stage and error.")
@json_lines
@redis_url_option
def status(ids: tuple[str, ...], with_history: bool, in_json: bool, redis_url: str | None) -> None:
    """Show how tasks fare.

    `-` reads ids from stdin, one a line. The exit code says it too: 0 only once all have succeeded.
    """
    codes = [OK]
    with connected(redis_url) as client:
        for chunk in in_chunks(ids):
            for task in client.status_many(chunk):
                codes.append(state_code(task))
                click.echo(status_json(task) if in_json else status_block(task))
                for line in history_lines(task) if with_history and not in_json else ():
                    click.echo(f"  {line}")
    click.get_current_context().exit(worst(codes))


@click.command(
    epilog=example(
        "pipeq cancel 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77",
        "pipeq cancel - < ids.txt",
        "pipeq cancel --pipeline feature-extraction",
    )
)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--pipeline", metavar="NAME", help="Cancel every task of this pipeline that has not ended.")
@click.option("--force", is_flag=True, help="Cancel unknown ids, too: a worker drops a message that has one.")
@json_lines
@redis_url_option
def cancel(ids: tuple[str, ...], pipeline: str | None, force: bool, in_json: bool, redis_url: str | None) -> None:
    """Take tasks back, unless they have ended.

    No worker need be up. `-` reads ids from stdin, one a line. Prints the state of each afterwards; exit code 1 where
    one had ended otherwise, or was not known: a stock Celery producer's task is not, until a worker runs it. An unknown
    id changes nothing without --force.
    """
    if not ids and pipeline is None:
        raise click.UsageError("Missing argument 'ID...', or --pipeline")
    code = OK
    with connected(redis_url) as client:
        if pipeline is not None:
            queue_of(client, pipeline)
        known = 0 if "-" in ids else len(ids)
        with LateProgress(known, "cancelling") as bar:
            for chunk in in_chunks(ids):
                for task in client.cancel_many(chunk, force=force):
                    bar.advance()
                    if task.state is State.UNKNOWN and task.error is None:
                        say(task.state, f"task {task.id} was never seen, or is forgotten: nothing was changed")
                    code = code if task.state is State.CANCELLED else TASK_FAILED
                    click.echo(status_json(task) if in_json else f"{shown.line(task.id)}  {task.state}")
            of_pipeline = [] if pipeline is None else client.cancel_pipeline(pipeline, progress=bar.reach)
        for task in of_pipeline:
            click.echo(status_json(task) if in_json else f"{shown.line(task.id)}  {task.state}")
    if pipeline is not None:
        count_cancelled = sum(task.state is State.CANCELLED for task in of_pipeline)
        say("cancelled", f"{shown.count(count_cancelled, 'task')} of {pipeline}")
    click.get_current_context().exit(code)
