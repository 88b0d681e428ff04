"""JOB OPTIONS: what several commands of jobs take beside rows, and the wait that several end with. Used by job."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice

import click

from pipeq.cli.group import INTERRUPTED, NOT_FINISHED, OK, TASK_FAILED, say
from pipeq.cli.options import allow_option, json_lines, redis_url_option, timeout_option, upload_option
from pipeq.cli.results import say_broken_off
from pipeq.client import Client
from pipeq.contract.errors import ReadError, WaitTimeoutError
from pipeq.contract.job import JobState
from pipeq.jobs.display import Display
from pipeq.jobs.options import all_of

#: Rows that are looked at for one that has failed, to say why: a job may have millions.
LOOKED_AT = 2000

job_id_option = click.option(
    "--job-id", metavar="ID", help="A name of your own: a submit that broke off is repeated with it."
)
results_option = click.option("--results", metavar="FILE", help="Then write results there: a path or s3:// URI.")
errors_option = click.option(
    "--errors", metavar="FILE", help="Write errors there instead of among the results; needs --results."
)
order_option = click.option(
    "--order", type=click.Choice(["input", "completed"]), default="input", show_default=True,
    help="Of the rows; completed: the order in which they ended.",
)  # fmt: skip
#: Of the commands that make a job: whether to wait for it, and where its results go then.
sending_options = all_of(
    click.option("--no-check", is_flag=True, help="Submit even if no worker has ever served PIPELINE."),
    click.option("--wait", is_flag=True, help="Wait until all rows have ended; implied by --results."),
    results_option,
    errors_option,
    order_option,
    timeout_option,
    allow_option,
    upload_option,
    json_lines,
    redis_url_option,
)


def check_errors(results: str | None, errors: str | None) -> None:
    """Checks that a file of errors has one of results beside it.

    Raises:
        click.UsageError: it has none.
    """
    if errors is not None and results is None:
        raise click.UsageError("--errors needs --results")


@contextmanager
def resumable(display: Display) -> Iterator[None]:
    """Says after Ctrl-C how a submit goes on, which has queued some rows."""
    try:
        yield
    except KeyboardInterrupt:
        if display.job_id is None:
            raise
        job_id = shlex.quote(display.job_id)
        say("interrupted", f"the rows that are queued go on; the same submit with --job-id {job_id} queues the others")
        raise click.exceptions.Exit(INTERRUPTED) from None


def waited(
    client: Client,
    job_id: str,
    display: Display,
    timeout: float | None,
    results: str | None,
    errors: str | None,
    order: str,
) -> int:
    """Waits for a job, and writes its files. Returns the command's exit code."""
    try:
        found = client.jobs.wait(job_id, timeout, progress=display.show)
    except (WaitTimeoutError, KeyboardInterrupt) as error:
        display.show(client.jobs.status(job_id), is_last=True)
        say_broken_off(error, f"the job goes on, and `pipeq job wait {shlex.quote(job_id)}` waits for it again")
        return NOT_FINISHED
    display.show(found, is_last=True)
    if results is not None:
        client.jobs.save(job_id, results, errors, order=order)
    elif found.failed:
        with suppress(ReadError):  # where this client may not read, only the counts are known
            display.show_first_error(islice(client.jobs.results(job_id, order="completed"), LOOKED_AT))
    return OK if found.state is JobState.COMPLETED and not found.failed else TASK_FAILED
