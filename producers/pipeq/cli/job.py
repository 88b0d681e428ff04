"""``pipeq job``: many rows as one thing. Arguments -> client.jobs; statuses -> a live line, plain lines, or JSON."""

from __future__ import annotations

import json
from typing import Any

import click

from pipeq.cli.group import NOT_FINISHED, OK, TASK_FAILED
from pipeq.cli.names import check_params, registered
from pipeq.cli.options import (
    allow_option,
    connected,
    example,
    json_lines,
    redis_url_option,
    timeout_option,
    upload_option,
)
from pipeq.contract import shown
from pipeq.contract.errors import WaitTimeoutError
from pipeq.contract.job import JobState
from pipeq.jobs import places
from pipeq.jobs.display import Display, line_of


@click.group(epilog=example("pipeq job submit text-classification reviews.jsonl --field text --id review_id --wait"))
def job() -> None:
    """Submit many rows as one job, follow it, and get its results in order."""


def _pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> Any:
    """``--field text``, or ``--field question=q --field context=c``."""
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    pairs = {}
    for value in values:
        name, equals, column = value.partition("=")
        if not equals or not name or not column:
            raise click.BadParameter(f"{shown.line(value)!r} is not FIELD=COLUMN, which several fields need")
        pairs[name] = column
    return pairs


def _params(_: click.Context, option: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        return json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{shown.line(value)!r} is no JSON: {error}") from error


results_option = click.option("--results", metavar="FILE", help="Then write results there: a path or s3:// URI.")
errors_option = click.option(
    "--errors", metavar="FILE", help="Write errors there instead of among the results; needs --results."
)
order_option = click.option(
    "--order", type=click.Choice(["input", "completed"]), default="input", show_default=True,
    help="Of the rows; completed: the order in which they ended.",
)  # fmt: skip


@job.command(
    epilog=example(
        "pipeq job submit text-generation batch.jsonl --job-id nightly --results out.jsonl --errors errors.jsonl",
        "pipeq job submit image-classification 's3://scans/*.png' --wait",
        "pipeq job submit text-classification s3://in/a.jsonl --results s3://out/a.jsonl --worker-writes",
        "zcat prompts.jsonl.gz | pipeq job submit text-generation - --field prompt",
    )
)
@click.argument("pipeline")
@click.argument("input", metavar="INPUT")
@click.option(
    "--field", "fields", multiple=True, callback=_pairs, metavar="COLUMN",
    help="The column that is the input; FIELD=COLUMN, several times, where the pipeline takes several fields.",
)  # fmt: skip
@click.option("--id", "row_id", metavar="COLUMN", help="The column with the rows' names.")
@click.option("--params", callback=_params, metavar="JSON", help="Parameters of the pipeline's call, for all rows.")
@click.option(
    "--format", "kind", type=click.Choice(["jsonl", "csv", "tsv", "parquet", "lines", "refs"]),
    help="What INPUT holds, where its name does not say it; refs: each file or object is an input.",
)  # fmt: skip
@click.option("--job-id", metavar="ID", help="A name of your own: a submit that broke off is repeated with it.")
@click.option(
    "--output", metavar="URI",
    help="Prefix for outcomes that are too large for Redis; with fields such as {id}, the name of each row's result.",
)  # fmt: skip
@click.option("--include-inputs", is_flag=True, help="Write each row's inputs and parameters beside its result.")
@click.option("--priority", type=click.IntRange(0, 9), default=6, show_default=True, help="0 is served first.")
@click.option("--fair-key", metavar="TEXT", help="Whose job it is.")
@click.option("--max-backlog", type=int, default=50_000, show_default=True, help="Rows that wait or run at most.")
@click.option("--expires", type=float, metavar="S", help="Rows that have not ended after so many seconds fail.")
@click.option(
    "--worker-writes", is_flag=True,
    help="Do not wait: a worker writes --results and --errors, s3:// or file:// URIs, when all rows have ended.",
)  # fmt: skip
@click.option("--no-check", is_flag=True, help="Submit even if no worker has ever served PIPELINE.")
@click.option("--wait", is_flag=True, help="Wait until all rows have ended; implied by --results.")
@results_option
@errors_option
@order_option
@timeout_option
@allow_option
@upload_option
@json_lines
@redis_url_option
@click.pass_context
def submit(
    ctx: click.Context,
    pipeline: str,
    input: str,  # noqa: A002 - what users call it
    fields: Any,
    row_id: str | None,
    params: Any,
    kind: str | None,
    job_id: str | None,
    output: str | None,
    priority: int,
    fair_key: str | None,
    max_backlog: int,
    expires: float | None,
    *,
    include_inputs: bool,
    worker_writes: bool,
    no_check: bool,
    wait: bool,
    results: str | None,
    errors: str | None,
    order: str,
    timeout: float | None,
    allow: tuple[str, ...],
    upload: str | None,
    in_json: bool,
    redis_url: str | None,
) -> None:
    """Submit each row of INPUT, and print the job's id.

    INPUT is a file (.jsonl, .csv, .tsv, .parquet, .txt; also .gz), an s3:// URI, a prefix or a name with wildcards, or
    - for standard input. A submit that broke off may be repeated with its --job-id: it goes on.
    """
    if errors is not None and results is None:
        raise click.UsageError("--errors needs --results")
    if worker_writes and results is None:
        raise click.UsageError("--worker-writes needs --results")
    if results is not None and not worker_writes:
        places.check(results, errors, input)
    with connected(redis_url, allow, upload) as client:
        if params and not no_check:
            check_params(params, registered(client, pipeline), pipeline)
        display = Display(in_json=in_json)
        found = client.jobs.submit(
            pipeline,
            input,
            field=fields,
            id=row_id,
            params=params,
            format=kind,
            job_id=job_id,
            output=output,
            include_inputs=include_inputs,
            results=results if worker_writes else None,
            errors=errors if worker_writes else None,
            order=order,
            priority=priority,
            fair_key=fair_key,
            expires_s=expires,
            max_backlog=max_backlog,
            check=not no_check,
            progress=display.show,
        )
        if not in_json:
            click.echo(found)
        if worker_writes:
            results = errors = None
        if wait or results is not None or timeout is not None:
            ctx.exit(_waited(client, found, display, timeout, results, errors, order))
        display.show(client.jobs.status(found), is_last=True)


@job.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@json_lines
@redis_url_option
def status(ids: tuple[str, ...], *, in_json: bool, redis_url: str | None) -> None:
    """Show how far jobs are."""
    with connected(redis_url) as client:
        for one in ids:
            found = client.jobs.status(one)
            click.echo(json.dumps(found.to_json()) if in_json else line_of(found))


@job.command()
@click.argument("id", metavar="ID")
@results_option
@errors_option
@order_option
@timeout_option
@allow_option
@json_lines
@redis_url_option
@click.pass_context
def wait(
    ctx: click.Context,
    id: str,  # noqa: A002 - what users call it
    *,
    results: str | None,
    errors: str | None,
    order: str,
    timeout: float | None,
    allow: tuple[str, ...],
    in_json: bool,
    redis_url: str | None,
) -> None:
    """Follow a job until all of its rows have ended."""
    if errors is not None and results is None:
        raise click.UsageError("--errors needs --results")
    if results is not None:
        places.check(results, errors)
    with connected(redis_url, allow) as client:
        ctx.exit(_waited(client, id, Display(in_json=in_json), timeout, results, errors, order))


def _waited(
    client: Any,
    job_id: str,
    display: Display,
    timeout: float | None,
    results: str | None,
    errors: str | None,
    order: str,
) -> int:
    try:
        found = client.jobs.wait(job_id, timeout, progress=display.show)
    except WaitTimeoutError:
        display.show(client.jobs.status(job_id), is_last=True)
        return NOT_FINISHED
    display.show(found, is_last=True)
    if results is not None:
        client.jobs.save(job_id, results, errors, order=order)
    return OK if found.state is JobState.COMPLETED and not found.failed else TASK_FAILED


@job.command(
    epilog=example(
        "pipeq job results nightly --to results.csv --input reviews.csv",
        "pipeq job results nightly --order completed --follow",
    )
)
@click.argument("id", metavar="ID")
@click.option("--to", "place", metavar="FILE", help="Write there: a path or s3:// URI, JSON lines or .csv.")
@click.option("--errors", metavar="FILE", help="Write errors there instead of among the results; needs --to.")
@click.option("--input", "inputs", metavar="INPUT", help="With --to: write the columns of the job's input beside them.")
@order_option
@click.option("--follow", is_flag=True, help="With --order completed: wait for rows that have not ended, too.")
@allow_option
@redis_url_option
def results(
    id: str,  # noqa: A002 - what users call it
    *,
    place: str | None,
    errors: str | None,
    inputs: str | None,
    order: str,
    follow: bool,
    allow: tuple[str, ...],
    redis_url: str | None,
) -> None:
    """Print what became of each row, as JSON lines."""
    for name, value in (("--errors", errors), ("--input", inputs)):
        if value is not None and place is None:
            raise click.UsageError(f"{name} needs --to")
    with connected(redis_url, allow) as client:
        if place is not None:
            good, bad = client.jobs.save(id, place, errors, order=order, inputs=inputs)
            click.echo(f"{good} results, {bad} errors", err=True)
            return
        for one in client.jobs.results(id, order=order, follow=follow):
            click.echo(json.dumps(one, ensure_ascii=False))


@job.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@json_lines
@redis_url_option
def cancel(ids: tuple[str, ...], *, in_json: bool, redis_url: str | None) -> None:
    """Cancel the rows of jobs that have not ended."""
    with connected(redis_url) as client:
        for one in ids:
            found = client.jobs.cancel(one)
            click.echo(json.dumps(found.to_json()) if in_json else line_of(found))


@job.command(epilog=example("pipeq job retry nightly batch.jsonl --code input_unavailable"))
@click.argument("id", metavar="ID")
@click.argument("input", metavar="INPUT")
@click.option("--code", "codes", multiple=True, metavar="CODE", help="Only rows with this error; may be repeated.")
@click.option("--field", "fields", multiple=True, callback=_pairs, metavar="COLUMN", help="As the job had it.")
@click.option("--id", "row_id", metavar="COLUMN", help="As the job had it.")
@click.option("--params", callback=_params, metavar="JSON", help="As the job had them, or better ones.")
@redis_url_option
def retry(
    id: str,  # noqa: A002 - what users call it
    input: str,  # noqa: A002 - what users call it
    codes: tuple[str, ...],
    fields: Any,
    row_id: str | None,
    params: Any,
    *,
    redis_url: str | None,
) -> None:
    """Submit the failed rows of a job again, as a new one. INPUT is the job's, which is read again."""
    with connected(redis_url) as client:
        found = client.jobs.retry(id, input, codes=codes or None, field=fields, id=row_id, params=params)
        if found is None:
            click.echo("no row failed so", err=True)
        else:
            click.echo(found)


@job.command("list")
@json_lines
@redis_url_option
def list_jobs(*, in_json: bool, redis_url: str | None) -> None:
    """Show all jobs that are kept, the newest first."""
    with connected(redis_url) as client:
        for found in client.jobs.list():
            click.echo(json.dumps(found.to_json()) if in_json else line_of(found))
