"""Prints the outcome of tasks: lines on stdout and stderr, and the exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import click

from pipeq.cli.group import NOT_FINISHED, OK, TASK_FAILED, UNKNOWN_ID, exit_code, say
from pipeq.cli.show import LateProgress, as_json, status_json
from pipeq.client import Client
from pipeq.contract.errors import PipeqError, WaitTimeoutError
from pipeq.contract.status import State, TaskStatus

#: How long an unknown id is waited for if no time is given, in seconds.
UNKNOWN_S = 10.0


def ended(client: Client, ids: Sequence[str], timeout: float | None) -> Iterator[TaskStatus]:
    """Yields the status of each task when it has ended, in the order of their ends.

    Without a timeout, an id that is still unknown after 10 seconds is given up, and its status yielded as it is: a
    stock Celery producer's task is unknown until a worker runs it.

    Raises:
        WaitTimeoutError: some did not end in time.
    """
    if timeout is not None or not any(one.state is State.UNKNOWN for one in client.status_many(ids)):
        yield from client.as_completed(ids, timeout)
        return
    left = dict.fromkeys(ids)
    try:
        for status in client.as_completed(ids, UNKNOWN_S):
            del left[status.id]
            yield status
    except WaitTimeoutError:
        statuses = client.status_many(left)
        yield from (one for one in statuses if one.state is State.UNKNOWN)
        yield from client.as_completed([one.id for one in statuses if one.state is not State.UNKNOWN])


def print_results(
    client: Client, ids: Sequence[str], timeout: float | None, in_json: bool, *, fetch: bool = True
) -> int:
    """Waits for tasks, and prints a line for each, in order; a line is printed as soon as those before it are.

    Returns:
        The exit code.
    """
    found: dict[str, TaskStatus] = {}
    codes = [OK]
    left = iter(ids)
    current = next(left, None)
    try:
        with LateProgress(len(ids)) as progress:
            for status in ended(client, ids, timeout):
                found[status.id] = status
                progress.advance()
                while current in found:
                    codes.append(print_result(client, found[current], in_json, fetch=fetch))
                    current = next(left, None)
    except (WaitTimeoutError, KeyboardInterrupt) as error:
        say_broken_off(error)
        rest = [current, *left] if current is not None else []
        # The others are read once more, so that their ids are not lost; some may have ended behind a slow one.
        codes += [print_result(client, status, in_json, fetch=fetch) for status in client.status_many(rest)]
        end_if_interrupted(error, codes)
    return worst(codes)


def say_broken_off(error: WaitTimeoutError | KeyboardInterrupt, what: str = "the tasks go on") -> None:
    """Says on stderr why a wait is over although not all has ended."""
    if isinstance(error, WaitTimeoutError):
        say(error.code, error.message)
    else:
        say("interrupted", what)


def end_if_interrupted(error: BaseException, codes: Sequence[int]) -> None:
    """Ends the command after Ctrl-C: nobody waits for the ids that are still on stdin.

    Raises:
        click.exceptions.Exit: with the exit code of what was printed.
    """
    if isinstance(error, KeyboardInterrupt):
        raise click.exceptions.Exit(worst(codes) or NOT_FINISHED)


def print_result(client: Client, status: TaskStatus, in_json: bool, *, fetch: bool = True, null: bool = True) -> int:
    """Prints one line on stdout for any outcome, or with ``null`` unset only for a result.

    The reason for a missing result goes to stderr.

    Returns:
        The exit code.
    """
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
    if null or code == OK:
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
