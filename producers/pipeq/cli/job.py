"""``pipeq job``: many rows as one thing. Arguments -> client.jobs; statuses -> a live line, plain lines, or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain

import click

from pipeq.cli.group import OK, UNKNOWN_ID, say
from pipeq.cli.ids import in_chunks
from pipeq.cli.job_options import check_errors, errors_option, order_option, results_option, waited
from pipeq.cli.job_submit import retry, submit
from pipeq.cli.options import allow_option, connected, example, json_lines, redis_url_option, wait_timeout_option
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.job import JobStatus
from pipeq.jobs import places
from pipeq.jobs.display import Display, line_of
from pipeq.jobs.readers import KINDS


@click.group(epilog=example("pipeq job submit text-classification reviews.jsonl --field text --id review_id --wait"))
def job() -> None:
    """Submit many rows as one job, follow it, and get its results in order."""


job.add_command(submit)


def _each(ids: tuple[str, ...], call: Callable[[str], JobStatus], *, in_json: bool) -> int:
    """Prints the status of each job that there is; the others are said. Returns the exit code."""
    code = OK
    for one in chain.from_iterable(in_chunks(ids)):
        try:
            found = call(one)
        except PipeqError as error:
            if error.code != ErrorCode.UNKNOWN_JOB:
                raise
            say(error.code, error.message)
            code = UNKNOWN_ID
        else:
            click.echo(json.dumps(found.to_json()) if in_json else line_of(found))
    return code


@job.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@json_lines
@redis_url_option
@click.pass_context
def status(ctx: click.Context, ids: tuple[str, ...], *, in_json: bool, redis_url: str | None) -> None:
    """Show how far jobs are. - stands for ids on standard input."""
    with connected(redis_url) as client:
        ctx.exit(_each(ids, client.jobs.status, in_json=in_json))


@job.command()
@click.argument("id", metavar="ID")
@results_option
@errors_option
@order_option
@wait_timeout_option
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
    check_errors(results, errors)
    if results is not None:
        places.check(results, errors)
    with connected(redis_url, allow) as client:
        ctx.exit(waited(client, id, Display(in_json=in_json), timeout, results, errors, order))


@job.command(
    epilog=example(
        "pipeq job results nightly --to results.csv --input reviews.csv",
        "pipeq job results nightly --order completed --follow",
    )
)
@click.argument("id", metavar="ID")
@click.option("--to", "place", metavar="FILE", help="Write there: a path or s3:// URI, .jsonl, .csv, .tsv or .parquet.")
@click.option("--errors", metavar="FILE", help="Write errors there instead of among the results; needs --to.")
@click.option("--input", "inputs", metavar="INPUT", help="With --to: write the columns of the job's input beside them.")
@click.option("--format", "kind", type=click.Choice(KINDS), help="What --input holds, where its name does not say it.")
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
    kind: str | None,
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
            good, bad = client.jobs.save(id, place, errors, order=order, inputs=inputs, format=kind)
            click.echo(f"{shown.count(good, 'result')}, {shown.count(bad, 'error')}", err=True)
            return
        for one in client.jobs.results(id, order=order, follow=follow):
            click.echo(json.dumps(one, ensure_ascii=False))


@job.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@json_lines
@redis_url_option
@click.pass_context
def cancel(ctx: click.Context, ids: tuple[str, ...], *, in_json: bool, redis_url: str | None) -> None:
    """Cancel the rows of jobs that have not ended. - stands for ids on standard input."""
    with connected(redis_url) as client:
        ctx.exit(_each(ids, client.jobs.cancel, in_json=in_json))


job.add_command(retry)


@job.command("list")
@json_lines
@redis_url_option
def list_jobs(*, in_json: bool, redis_url: str | None) -> None:
    """Show all jobs that are kept, the newest first."""
    with connected(redis_url) as client:
        all_jobs = client.jobs.list()
    for found in all_jobs:
        click.echo(json.dumps(found.to_json()) if in_json else line_of(found))
    if not all_jobs:
        click.echo("No jobs.", err=True)
