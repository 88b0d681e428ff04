"""The commands of ``pipeq`` that belong to the client: submit, result, status, cancel, queues."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count, islice
from typing import Any

import click

from pipeq import checks
from pipeq.cli.group import OK, TASK_FAILED, say
from pipeq.cli.inputs import read_inputs
from pipeq.cli.options import connected, example, json_lines, redis_url_option
from pipeq.cli.results import output_of, print_results, say_why, state_code, worst
from pipeq.cli.show import LateProgress, as_json, history_lines, print_queues, status_block, status_json
from pipeq.client import Client
from pipeq.contract import keys as names
from pipeq.contract import shown
from pipeq.contract.errors import PipeqError, SubmitError, WaitTimeoutError
from pipeq.contract.status import State, TaskStatus
from pipeq.submitting import CHUNK_TASKS

#: How long ``result --wait`` waits for an unknown id if no time is given, in seconds.
UNKNOWN_S = 10.0


_wait = click.option("--wait", is_flag=True, help="Wait until every task has ended.")


def _parse_timeout(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    # Checked before anything is submitted. click's own range would accept NaN.
    try:
        return checks.seconds(str(option.name), value)
    except PipeqError as error:
        raise click.BadParameter(error.message) from error


def _parse_task_timeout(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    try:
        return checks.timeout(str(option.name), value)
    except PipeqError as error:
        raise click.BadParameter(error.message) from error


_timeout = click.option(
    "--timeout",
    type=float,
    callback=_parse_timeout,
    metavar="S",
    help="Wait at most this many seconds; implies --wait.",
)
_ids = click.argument("ids", nargs=-1, required=True, metavar="ID...")


_allow = click.option(
    "--allow",
    multiple=True,
    metavar="URI",
    help="Read results below this prefix, such as s3://results/ (your workers' store); may be repeated. "
    "Default: PIPEQ_CLIENT_ALLOW.",
)


# -- submit -----------------------------------------------------------------------------------------------------------


def _parse_params(_: click.Context, __: click.Parameter, text: str) -> dict[str, Any]:
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"no JSON: {error}" if isinstance(error, ValueError) else "nested too deep"
        raise click.BadParameter(f"{reason}; {_write_params(text)}") from error
    if not isinstance(params, dict):
        raise click.BadParameter(f"not a JSON object; {_write_params(text)}")
    return params


def _write_params(text: str) -> str:
    """Suggests what to write instead of ``top_k=2``, or of anything else."""
    assigned = re.fullmatch(r"\s*-*(\w+)\s*[=:]\s*(.{1,100})", text)
    if assigned is None:
        return """write one object, as in --params '{"top_k": 2}'"""
    try:
        value = json.loads(assigned[2])
    except (ValueError, RecursionError):
        value = {"True": True, "False": False, "None": None}.get(assigned[2], assigned[2])
    return f"write --params {shlex.quote(as_json({assigned[1]: value}))}"


@click.command(
    epilog=example(
        "pipeq submit text-classification 'A fine film.' 'A dull one.' --wait",
        'pipeq submit automatic-speech-recognition s3://talks/a.flac --params \'{"return_timestamps": "word"}\'',
        "pipeq submit document-question-answering "
        '\'{"image": {"uri": "s3://scans/a.png"}, "question": "Who signed?"}\'',
        "pipeq submit feature-extraction - --text --priority 6 --output s3://results/run-1/ < texts.txt",
        "pipeq submit feature-extraction - --text --idempotency-key nightly/2026-11-26 < texts.txt",
    )
)
@click.argument("pipeline")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--params", default="{}", callback=_parse_params, metavar="JSON", help="Parameters of the pipeline's call."
)
@click.option("--output", metavar="URI", help="Where results go: s3://, file://, gs:// or az://; a prefix ends in '/'.")
@click.option("--task-id", metavar="ID", help="The task's id; submitting the same again changes nothing.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Queue nothing for which a task with this key waits, runs or has succeeded. Of several INPUTs or stdin, the "
    "n-th has the key KEY/n, so a submit that broke off can be repeated.",
)
@click.option(
    "--priority",
    type=click.IntRange(0, 9),
    default=names.DEFAULT_PRIORITY,
    show_default=True,
    metavar="N",
    help="0 is served first, 9 last.",
)
@click.option(
    "--expires",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Drop a task that no worker has begun after this many seconds.",
)
@click.option("--deadline", type=float, metavar="S", help="Wish for the result within this many seconds.")
@click.option(
    "--task-timeout",
    type=float,
    callback=_parse_task_timeout,
    metavar="S",
    help="Fail a task that is not done this many seconds after a worker started it. (--timeout ends only the wait.)",
)
@click.option("--fair-key", metavar="NAME", help="Whose tasks these are; tasks of different keys take turns.")
@click.option("--text", is_flag=True, help="Take every INPUT as plain text.")
@click.option("--no-check", is_flag=True, help="Queue even for a pipeline that no worker has ever served.")
@_wait
@_timeout
@_allow
@json_lines
@redis_url_option
def submit(
    pipeline: str,
    inputs: tuple[str, ...],
    params: dict[str, Any],
    output: str | None,
    task_id: str | None,
    idempotency_key: str | None,
    priority: int,
    expires: float | None,
    deadline: float | None,
    task_timeout: float | None,
    fair_key: str | None,
    text: bool,
    no_check: bool,
    wait: bool,
    timeout: float | None,
    allow: tuple[str, ...],
    in_json: bool,
    redis_url: str | None,
) -> None:
    """Queue a task for each INPUT and print its id.

    An INPUT is a URI (s3://, file://, https://, gs://, az://, hf://); a file that the workers can open under the same
    path; a JSON object or array, which may hold {"uri": "s3://..."}; or else plain text. `-` reads inputs from stdin,
    one a line, blank lines left out.

    With --wait, prints a line for each INPUT, in order: its result as JSON, or null and the reason on stderr. Results
    that --output sent elsewhere print as {"uri": ...}. With --json, a line is the task's full status.
    """
    options: dict[str, Any] = {
        "params": params,
        "output": output,
        "priority": priority,
        "expires_s": expires,
        "deadline_s": deadline,
        "timeout_s": task_timeout,
        "fair_key": fair_key,
        "check": not no_check,
    }
    is_one = len(inputs) == 1 and inputs[0] != "-"
    if task_id is not None and not is_one:
        raise click.UsageError("--task-id names one task: give one INPUT, or --idempotency-key for several")
    given = {"task_id": task_id, "idempotency_key": idempotency_key}
    own = {name: text for name, text in given.items() if text is not None}
    waits = wait or timeout is not None
    ids: list[str] = []
    with connected(redis_url, allow) as client:

        def done(chunk: list[str]) -> None:
            if waits:
                ids.extend(chunk)
            else:
                _print_submitted(client, chunk, in_json)

        try:
            # The n-th of several inputs, or of the lines of stdin, has the n-th key.
            names = iter([own]) if is_one else _keys(idempotency_key)
            _submit_all(client, pipeline, read_inputs(inputs, text), names, options, done)
        except (PipeqError, click.UsageError):
            if ids:
                say("warning", f"queued before the error: {' '.join(ids)}")
            raise
        code = print_results(client, ids, timeout, in_json, fetch=output is None) if ids else OK
    click.get_current_context().exit(code)


def _keys(key: str | None) -> Iterator[dict[str, Any]]:
    return ({} if key is None else {"idempotency_key": f"{key}/{number}"} for number in count(1))


def _submit_all(
    client: Client,
    pipeline: str,
    inputs: Iterator[Any],
    names: Iterator[dict[str, Any]],
    options: dict[str, Any],
    done: Callable[[list[str]], None],
) -> None:
    """Submits in chunks, so that stdin may have any number of lines; ``done`` gets the ids of each chunk."""
    first = list(islice(inputs, 2))
    if len(first) == 1:
        # A single task may have an exact output; several need a prefix, which submit_many checks.
        done([client.submit(pipeline, first[0], **next(names), **options)])
        return
    chunk, before = first + list(islice(inputs, CHUNK_TASKS - 2)), 0
    while chunk:
        keys = [one.get("idempotency_key") for one in islice(names, len(chunk))]
        named: dict[str, Any] = {"idempotency_keys": keys} if any(keys) else {}
        try:
            done(client.submit_many(pipeline, chunk, **named, **options))
        except SubmitError as error:
            done(list(error.submitted))
            if not before or "[" not in error.message.partition(":")[0]:
                raise
            # Its position counts from the beginning of the chunk.
            sentence = f"of the inputs after the first {before}: {error.message}"
            raise SubmitError(error.code, sentence, error.retryable, error.submitted) from error
        before += len(chunk)
        chunk = list(islice(inputs, CHUNK_TASKS))


def _print_submitted(client: Client, ids: list[str], in_json: bool) -> None:
    for line in (status_json(status) for status in client.status_many(ids)) if in_json else ids:
        click.echo(line)


@click.command(epilog=example("pipeq result 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77 --timeout 60"))
@click.argument("task_id", metavar="ID")
@_wait
@_timeout
@_allow
@redis_url_option
def result(task_id: str, wait: bool, timeout: float | None, allow: tuple[str, ...], redis_url: str | None) -> None:
    """Print a task's output as JSON.

    It is fetched from the store where it lies there, if --allow names that. Without --wait, a task that has not ended
    is exit code 3. With it, an id that is not known yet is waited for too, for 10 seconds or as long as --timeout says:
    a stock Celery producer's task is unknown until a worker runs it.
    """
    with connected(redis_url, allow) as client:
        status = client.status(task_id)
        if wait or timeout is not None:
            status = _waited_for(client, status, timeout)
        code = state_code(status)
        if code == OK:
            click.echo(as_json(output_of(client, status)))
        else:
            say_why(status)
    click.get_current_context().exit(code)


def _waited_for(client: Client, status: TaskStatus, timeout: float | None) -> TaskStatus:
    """Returns the status when the task has ended, or when the time for that is over."""
    try:
        if timeout is None and status.state is State.UNKNOWN:
            return client.wait(status.id, UNKNOWN_S)
        return client.wait(status.id, timeout)
    except WaitTimeoutError as error:
        now = client.status(status.id)
        if timeout is not None:
            say(error.code, error.message)
        elif now.state is not State.UNKNOWN:
            # The id is known by now, so the wait is not limited any more.
            return client.wait(status.id)
        return now


@click.command(epilog=example("pipeq status 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77 --json"))
@_ids
@click.option("--history", "with_history", is_flag=True, help="Show every try: worker, times, stage and error.")
@json_lines
@redis_url_option
def status(ids: tuple[str, ...], with_history: bool, in_json: bool, redis_url: str | None) -> None:
    """Show how tasks fare.

    The exit code says it too: 0 only once all have succeeded.
    """
    with connected(redis_url) as client:
        found = client.status_many(ids)
    for task in found:
        click.echo(status_json(task) if in_json else status_block(task))
        for line in history_lines(task) if with_history and not in_json else ():
            click.echo(f"  {line}")
    click.get_current_context().exit(worst([state_code(task) for task in found]))


@click.command(
    epilog=example("pipeq cancel 6f1c0f5e-3c1c-4f0e-9b55-0a4b1f6d2a77", "pipeq cancel --pipeline feature-extraction")
)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--pipeline", metavar="NAME", help="Cancel every task of this pipeline that has not ended.")
@click.option("--force", is_flag=True, help="Cancel unknown ids, too: a worker drops a message that has one.")
@json_lines
@redis_url_option
def cancel(ids: tuple[str, ...], pipeline: str | None, force: bool, in_json: bool, redis_url: str | None) -> None:
    """Take tasks back, unless they have ended.

    No worker need be up. Prints the state of each afterwards; exit code 1 where one had ended otherwise, or was not
    known: a stock Celery producer's task is not, until a worker runs it. An unknown id changes nothing without --force.
    """
    if not ids and pipeline is None:
        raise click.UsageError("Missing argument 'ID...', or --pipeline")
    code = OK
    with connected(redis_url) as client:
        with LateProgress(len(ids), "cancelling") as bar:
            tasks = client.cancel_many(ids, force=force, progress=bar.reach)
            of_pipeline = [] if pipeline is None else client.cancel_pipeline(pipeline, progress=bar.reach)
        for task in tasks:
            if task.state is State.UNKNOWN and task.error is None:
                say(task.state, f"task {task.id} was never seen, or is forgotten: nothing was changed")
            code = code if task.state is State.CANCELLED else TASK_FAILED
        for task in [*tasks, *of_pipeline]:
            click.echo(status_json(task) if in_json else f"{shown.line(task.id)}  {task.state}")
    if pipeline is not None:
        count_cancelled = sum(task.state is State.CANCELLED for task in of_pipeline)
        say("cancelled", f"{count_cancelled} tasks of {pipeline}")
    click.get_current_context().exit(code)


@click.command(epilog=example("pipeq queues"))
@json_lines
@redis_url_option
def queues(in_json: bool, redis_url: str | None) -> None:
    r"""Show every pipeline's queue.

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
    """
    with connected(redis_url) as client:
        found = client.queues()
    if in_json:
        for queue in found:
            click.echo(as_json(asdict(queue)))
    elif found:
        print_queues(found)
    else:
        click.echo("No worker has ever served a pipeline here.", err=True)
