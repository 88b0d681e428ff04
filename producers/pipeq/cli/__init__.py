"""``pipeq``: the client on the command line, for people and for scripts."""

from __future__ import annotations

import click

from pipeq.cli.group import EXIT_CODES, LazyCommand, LazyGroup

_TASKS = "pipeq.cli.tasks"
_OPERATOR = "pipeq.cli.retire"


@click.group(
    cls=LazyGroup,
    lazy={
        "submit": LazyCommand("pipeq.cli.submit", "Queue a task for each INPUT and print its id."),
        "wait": LazyCommand(_TASKS, "Wait until tasks have ended."),
        "result": LazyCommand(_TASKS, "Print the output of tasks as JSON."),
        "status": LazyCommand(_TASKS, "Show how tasks fare."),
        "cancel": LazyCommand(_TASKS, "Take tasks back, unless they have ended."),
        "job": LazyCommand("pipeq.cli.job", "Submit many rows as one job, follow it, and get its results in order."),
        "queues": LazyCommand("pipeq.cli.queues", "Show every pipeline's queue."),
        "pipelines": LazyCommand("pipeq.cli.pipelines", "Show which pipelines are served, and how."),
        "top": LazyCommand("pipeq.cli.top", "Show queues, workers, batches and failures live, until Ctrl-C."),
        "dead": LazyCommand("pipeq.cli.dead", "List dead letters, send them again, or drop them."),
        "purge": LazyCommand(_OPERATOR, "End every task that waits for a pipeline."),
        "forget": LazyCommand(_OPERATOR, "Take a retired pipeline off the list of known ones."),
        "events": LazyCommand("pipeq.cli.events", "Show the state changes of tasks as they happen."),
        "completion": LazyCommand("pipeq.cli.completion", "Print a script with which your shell completes `pipeq`."),
        "run": LazyCommand(
            "pipeq.demo.run", "Run a pipeline on all rows of a file, on this machine alone.", "worker,demo"
        ),
        "dev": LazyCommand(
            "pipeq.demo.dev", "Run Redis and a worker here until Ctrl-C, for trying out.", "worker,demo"
        ),
        "demo": LazyCommand(
            "pipeq.demo.demo", "Try pipeq on this machine alone: Redis, S3, a worker, tasks.", "worker,demo"
        ),
    },
    epilog=f"""{EXIT_CODES}

Example:
  id=$(pipeq submit text-classification "A fine film.") && pipeq result "$id" --wait
""",
)
@click.version_option(package_name="pipeq", prog_name="pipeq")
def main() -> None:
    """Queue work for Hugging Face pipelines, and read its results.

    Redis is where --redis-url says, else PIPEQ_REDIS_URL, else redis://localhost:6379/0.
    """
