"""``pipeq job submit`` and ``retry``: a file -> a job. Arguments -> client.jobs. Part of job."""

from __future__ import annotations

from typing import Any

import click

from pipeq.cli.job_options import check_errors, job_id_option, resumable, sending_options, waited
from pipeq.cli.names import check_params, parse_codes, registered
from pipeq.cli.options import connected, example
from pipeq.jobs import places
from pipeq.jobs.display import Display
from pipeq.jobs.options import row_options


@click.command(
    epilog=example(
        "pipeq job submit text-generation batch.jsonl --job-id nightly --results out.jsonl --errors errors.jsonl",
        "pipeq job submit image-classification 's3://scans/*.png' --wait",
        "pipeq job submit text-classification s3://in/a.jsonl --results s3://out/a.jsonl --worker-writes",
        "zcat prompts.jsonl.gz | pipeq job submit text-generation - --field prompt",
    )
)
@click.argument("pipeline")
@click.argument("input", metavar="INPUT")
@row_options
@job_id_option
@click.option(
    "--worker-writes", is_flag=True,
    help="Do not wait: a worker writes --results and --errors, s3:// or file:// URIs, when all rows have ended.",
)  # fmt: skip
@sending_options
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    pipeline: str,
    input: str,  # noqa: A002 - what users call it
    *,
    job_id: str | None,
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
    **rows: Any,
) -> None:
    """Submit each row of INPUT, and print the job's id.

    INPUT is a file (.jsonl, .csv, .tsv, .parquet, .txt; also .gz), an s3:// URI, a prefix or a name with wildcards, or
    - for standard input. A submit that broke off may be repeated with its --job-id: it goes on.
    """
    check_errors(results, errors)
    if worker_writes and results is None:
        raise click.UsageError("--worker-writes needs --results")
    if results is not None and not worker_writes:
        places.check(results, errors, input)
    with connected(redis_url, allow, upload) as client:
        params = {**(rows["params"] or {}), **(rows["params_columns"] or {})}
        if params and not no_check:
            check_params(params, registered(client, pipeline), pipeline)
        display = Display(in_json=in_json)
        with resumable(display):
            found = client.jobs.submit(
                pipeline,
                input,
                job_id=job_id,
                results=results if worker_writes else None,
                errors=errors if worker_writes else None,
                order=order,
                check=not no_check,
                progress=display.show,
                **rows,
            )
        if not in_json:
            click.echo(found)
        if worker_writes:
            results = errors = None
        if wait or results is not None or timeout is not None:
            ctx.exit(waited(client, found, display, timeout, results, errors, order))
        display.show(client.jobs.status(found), is_last=True)


@click.command(
    epilog=example(
        "pipeq job retry nightly batch.jsonl --code input_unavailable",
        "pipeq job retry nightly reviews.csv --field text --results again.csv",
    )
)
@click.argument("job", metavar="ID")
@click.argument("input", metavar="INPUT")
@click.option(
    "--code",
    "codes",
    multiple=True,
    callback=parse_codes,
    metavar="CODE",
    help="Only rows with this error; may be repeated.",
)
@row_options
@job_id_option
@sending_options
@click.pass_context
def retry(
    ctx: click.Context,
    /,
    job: str,
    input: str,  # noqa: A002 - what users call it
    *,
    codes: tuple[str, ...],
    job_id: str | None,
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
    **rows: Any,
) -> None:
    """Submit the failed rows of a job again, as a new one, and print its id.

    INPUT is the job's, which is read again. The other options are those that the job had, or better ones.
    """
    check_errors(results, errors)
    if results is not None:
        places.check(results, errors, input)
    with connected(redis_url, allow, upload) as client:
        display = Display(in_json=in_json)
        with resumable(display):
            found = client.jobs.retry(
                job,
                input,
                codes=codes or None,
                new_job_id=job_id,
                check=not no_check,
                progress=display.show,
                **rows,
            )
        if found is None:
            click.echo("no row failed so", err=True)
            return
        if not in_json:
            click.echo(found)
        if wait or results is not None or timeout is not None:
            ctx.exit(waited(client, found, display, timeout, results, errors, order))
        display.show(client.jobs.status(found), is_last=True)
