"""``pipeq submit``: arguments, files and stdin -> tasks, in chunks; prints their ids as it goes, or their results."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any, TypeVar

import click

from pipeq import checks
from pipeq.cli.group import OK, say
from pipeq.cli.inputs import Form, Reader, Value
from pipeq.cli.names import check_params, registered
from pipeq.cli.options import (
    allow_option,
    connected,
    example,
    json_lines,
    redis_url_option,
    timeout_option,
    upload_option,
    wait_option,
)
from pipeq.cli.results import print_results
from pipeq.cli.show import LateProgress, status_json
from pipeq.cli.streams import Paused
from pipeq.client import Client
from pipeq.contract import keys, shown
from pipeq.contract.errors import PipeqError, SubmitError
from pipeq.params_option import parse_params
from pipeq.submitting import CHUNK_BYTES, CHUNK_TASKS

_F = TypeVar("_F", bound=Callable[..., Any])
#: Where click's context has the flags that say how inputs are read.
_FORMS = "pipeq.forms"
#: Where an error of ``submit_many`` says which of its inputs it is about.
_PLACE = re.compile(r"(\w+)\[([0-9]{1,9})\]:? ")


def _parse_task_timeout(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    try:
        return checks.timeout(str(option.name), value)
    except PipeqError as error:
        raise click.BadParameter(error.message) from error


def _form(name: str, says: str) -> Callable[[_F], _F]:
    """A flag that says how inputs are read."""

    def remember(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
        if is_given:
            ctx.meta.setdefault(_FORMS, []).append(name)

    return click.option(f"--{name}", is_flag=True, expose_value=False, callback=remember, help=says)


@click.command(
    epilog=example(
        "pipeq submit text-classification 'A fine film.' 'A dull one.' --wait",
        'pipeq submit automatic-speech-recognition s3://talks/a.flac --params \'{"return_timestamps": "word"}\'',
        "pipeq submit document-question-answering "
        '\'{"image": {"uri": "s3://scans/a.png"}, "question": "Who signed?"}\'',
        "pipeq submit image-classification 'photos/*.png' s3://scans/2026/ --output s3://results/",
        "pipeq submit text-classification reviews.jsonl --jsonl",
        "pipeq submit feature-extraction - --lines --output s3://results/run-1/ < texts.txt",
        "pipeq submit feature-extraction - --lines --idempotency-key nightly/2026-11-26 < texts.txt",
    )
)
@click.argument("pipeline")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--params", default="{}", callback=parse_params, metavar="JSON", help="Parameters of the pipeline's call."
)
@click.option(
    "--output",
    metavar="URI",
    help="Where results go: s3://, file://, gs:// or az://. A prefix ends in '/'; {stem}-{id}.json names each.",
)
@click.option("--include-inputs", is_flag=True, help="Write the inputs beside the result; with --output.")
@click.option("--task-id", metavar="ID", help="The task's id; submitting the same again changes nothing.")
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="Queue nothing for which a task with this key waits, runs or has succeeded. Of several INPUTs or stdin, the "
    "n-th has the key KEY/n, so a submit that broke off can be repeated.",
)
@click.option("--custom-id", metavar="TEXT", help="What you call the task, for {custom_id} in --output; of one INPUT.")
@click.option(
    "--priority",
    type=click.IntRange(0, 9),
    metavar="N",
    help="0 is served first, 9 last. Default: 0 for one INPUT, 6 for several or a stream, so that bulk is in nobody's "
    "way.",
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
@_form("text", "Take every INPUT, and every line of stdin, as plain text.")
@_form("file", "Take every INPUT as a URI or a file that workers can open, also where text is expected.")
@_form("lines", "Read files or stdin: each line is one input, a text, file or URI.")
@_form("jsonl", "Read files or stdin: each line is one input, in JSON.")
@_form("document", "Read files or stdin: each is one input as a whole.")
@click.option("--no-check", is_flag=True, help="Queue even for a pipeline that no worker has ever served.")
@upload_option
@wait_option
@timeout_option
@allow_option
@json_lines
@redis_url_option
def submit(
    pipeline: str,
    inputs: tuple[str, ...],
    params: dict[str, Any],
    output: str | None,
    include_inputs: bool,
    task_id: str | None,
    idempotency_key: str | None,
    custom_id: str | None,
    priority: int | None,
    expires: float | None,
    deadline: float | None,
    task_timeout: float | None,
    fair_key: str | None,
    no_check: bool,
    upload: str | None,
    wait: bool,
    timeout: float | None,
    allow: tuple[str, ...],
    in_json: bool,
    redis_url: str | None,
) -> None:
    """Queue a task for each INPUT and print its id.

    An INPUT is a URI (s3://, file://, https://, gs://, az://, hf://); a prefix such as s3://scans/2026/, or
    's3://scans/*.png'; a JSON object or array, which may hold {"uri": "s3://..."}; or else what the pipeline takes. For
    text, that is text. For images, audio and video it is a file, or 'photos/*.png': with --upload one of this machine,
    otherwise one that the workers can open under the same path.

    `-` reads stdin, an INPUT a line, blank lines left out. With --lines, --jsonl or --document an INPUT is a file whose
    content is read here and travels in the messages, or `-`.

    With --wait, prints a line for each input, in order: its result as JSON, or null and the reason on stderr. Results
    that --output sent elsewhere print as {"uri": ...}. With --json, a line is the task's full status.
    """
    options: dict[str, Any] = {
        "params": params,
        "output": {"uri": output, "include_inputs": True} if include_inputs else output,
        "priority": keys.DEFAULT_PRIORITY if priority is None else priority,
        "expires_s": expires,
        "deadline_s": deadline,
        "timeout_s": task_timeout,
        "fair_key": fair_key,
        "check": not no_check,
    }
    forms = click.get_current_context().meta.get(_FORMS, [])
    if len(forms) > 1:
        raise click.UsageError(f"--{forms[0]} and --{forms[1]} both say how inputs are read: give one of them")
    given = {"task_id": task_id, "idempotency_key": idempotency_key, "custom_id": custom_id}
    own = {name: text for name, text in given.items() if text is not None}
    if include_inputs and output is None:
        raise click.UsageError("--include-inputs writes to a store: give --output, too")
    waits = wait or timeout is not None
    ids: list[str] = []
    with connected(redis_url, allow, upload) as client:
        if params and not no_check:
            check_params(params, registered(client, pipeline), pipeline)
        reader = _reader(client, pipeline, *forms)
        is_one = not reader.may_be_several(inputs)
        if priority is None and not is_one:
            options["priority"] = keys.JOB_PRIORITY
        if task_id is not None and not is_one:
            raise click.UsageError("--task-id names one task: give one INPUT, or --idempotency-key for several")
        if custom_id is not None and not is_one:
            raise click.UsageError("--custom-id names one task: give one INPUT; names of several results have {stem}")

        def done(chunk: list[str]) -> None:
            if waits:
                ids.extend(chunk)
            else:
                _print_submitted(client, chunk, in_json)

        try:
            # The n-th of several inputs, or of the lines of stdin, has the n-th key.
            names = iter([own]) if is_one else _keys(idempotency_key)
            with LateProgress(0, "submitted") as bar:
                for number in _submit_all(client, pipeline, _chunks(reader, inputs, output), names, options, done):
                    bar.reach(number, 0)
        except (PipeqError, click.UsageError, KeyboardInterrupt):
            if ids:
                say("warning", f"{shown.count(len(ids), 'task')} queued before the end, with the ids")
                click.echo("\n".join(ids), err=True)  # all of them: nobody else knows them
            raise
        code = print_results(client, ids, timeout, in_json, fetch=output is None) if ids else OK
    click.get_current_context().exit(code)


def _reader(client: Client, pipeline: str, form: str = "") -> Reader:
    def takes() -> str | None:
        found = registered(client, pipeline).get("takes")
        return found if isinstance(found, str) else None

    forms: dict[str, Form] = {"lines": "lines", "jsonl": "jsonl", "document": "document"}
    return Reader(
        takes,
        say=lambda sentence: say("warning", sentence),
        max_bytes=keys.MAX_MESSAGE_BYTES,
        text=form == "text",
        files=form == "file",
        form=forms.get(form, "auto"),
        uploads=client.upload is not None,
    )


def _keys(key: str | None) -> Iterator[dict[str, Any]]:
    return ({} if key is None else {"idempotency_key": f"{key}/{number}"} for number in count(1))


def _chunks(reader: Reader, arguments: tuple[str, ...], output: str | None) -> Iterator[tuple[list[Value], bool]]:
    """Yields inputs, up to 500 or 4 MiB at a time, and whether they are the last ones.

    What has come so far is not kept waiting for more, unless the output is an exact place, which only a single input
    may have.
    """
    chunk: list[Value] = []
    size = 0
    for value in reader.values(arguments):
        if not isinstance(value, Paused):
            chunk.append(value)
            size += value.bytes
            if len(chunk) < CHUNK_TASKS and size < CHUNK_BYTES:
                continue
        elif not chunk or not (output is None or output.endswith("/") or "{" in output):
            continue
        yield chunk, False
        chunk, size = [], 0
    yield chunk, True


def _submit_all(
    client: Client,
    pipeline: str,
    chunks: Iterator[tuple[list[Value], bool]],
    names: Iterator[dict[str, Any]],
    options: dict[str, Any],
    done: Callable[[list[str]], None],
) -> Iterator[int]:
    """Submits chunk by chunk; ``done`` gets the ids of each. Yields how many are submitted."""
    before = 0
    for chunk, is_last in chunks:
        if not chunk:
            continue
        values = [one.value for one in chunk]
        if not before and is_last and len(chunk) == 1:
            # A single task may have an exact output; several need a prefix, which submit_many checks.
            done([client.submit(pipeline, values[0], **next(names), **options)])
            return
        own = [one.get("idempotency_key") for one in islice(names, len(chunk))]
        named: dict[str, Any] = {"idempotency_keys": own} if any(own) else {}
        try:
            done(client.submit_many(pipeline, values, **named, **options))
        except SubmitError as error:
            done(list(error.submitted))
            place = _PLACE.match(error.message)
            if place is None or int(place[2]) >= len(chunk):
                raise
            # Its position counts from the beginning of the chunk, and means nothing to who wrote the command.
            says = error.message[place.end() :] if place[1] == "inputs" else error.message
            sentence = f"{chunk[int(place[2])].where}: {says}"
            raise SubmitError(error.code, sentence, error.retryable, error.submitted) from error
        before += len(chunk)
        yield before


def _print_submitted(client: Client, ids: list[str], in_json: bool) -> None:
    for line in (status_json(status) for status in client.status_many(ids)) if in_json else ids:
        click.echo(line)
