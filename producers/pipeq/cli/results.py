"""Prints the outcome of tasks: lines on stdout and stderr, and the exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from pipeq.cli.group import NOT_FINISHED, OK, TASK_FAILED, UNKNOWN_ID, exit_code, say
from pipeq.cli.show import LateProgress, as_json, status_json
from pipeq.client import Client
from pipeq.contract.errors import PipeqError, WaitTimeoutError
from pipeq.contract.status import State, TaskStatus


def print_results(client: Client, ids: Sequence[str], timeout: float | None, in_json: bool, *, fetch: bool) -> int:
    """Waits for tasks, and prints a line for each, in order; a line is printed as soon as those before it are.

    Returns:
        The exit code.
    """
    ended: dict[str, TaskStatus] = {}
    codes = [OK]
    left = iter(ids)
    current = next(left, None)
    try:
        with LateProgress(len(ids)) as progress:
            for status in client.as_completed(ids, timeout):
                ended[status.id] = status
                progress.advance()
                while current in ended:
                    codes.append(_print_result(client, ended[current], in_json, fetch))
                    current = next(left, None)
    except (WaitTimeoutError, KeyboardInterrupt) as error:
        if isinstance(error, WaitTimeoutError):
            say(error.code, error.message)
        else:
            say("interrupted", "the tasks go on")
        rest = [current, *left] if current is not None else []
        # The others are read once more, so that their ids are not lost; some may have ended behind a slow one.
        codes += [_print_result(client, status, in_json, fetch) for status in client.status_many(rest)]
    return worst(codes)


def _print_result(client: Client, status: TaskStatus, in_json: bool, fetch: bool) -> int:
    """Prints one line on stdout for any outcome; the reason for a missing result goes to stderr."""
    code = state_code(status)
    if in_json:
        click.echo(status_json(status))
        return code
    output = None
    if code == OK:
        try:
            output = output_of(client, status, fetch)
        except PipeqError as error:
            say(error.code, f"task {status.id}: {error.message}")
            code = exit_code(error)
    else:
        say_why(status)
    click.echo(as_json(output))
    return code


def output_of(client: Client, status: TaskStatus, fetch: bool = True) -> Any:
    """Returns the pipeline's output; only its URI if it is in a store and ``fetch`` is false."""
    if status.result_uri is None or fetch:
        return client.result(status)
    return {"uri": status.result_uri}


def say_why(status: TaskStatus) -> None:
    """Prints on stderr why a task has no output."""
    if status.error is not None:
        say(status.error.code, f"task {status.id}: {status.error.message}")
    elif status.state is State.UNKNOWN:
        say(status.state, f"task {status.id} was never seen, or is forgotten")
    else:
        say(status.state, f"task {status.id} is {status.state}")


def state_code(status: TaskStatus) -> int:
    """The exit code for one task's state."""
    if status.state is State.SUCCEEDED:
        return OK
    if status.state is State.UNKNOWN:
        return UNKNOWN_ID
    return TASK_FAILED if status.is_final else NOT_FINISHED


def worst(codes: Sequence[int]) -> int:
    """The exit code for several tasks."""
    return next((code for code in (UNKNOWN_ID, TASK_FAILED, NOT_FINISHED) if code in codes), OK)
