"""``pipeq demo``: starts a queue, a store and a worker on this machine, embeds pipeq's documents, and searches them.

This process is only the client; the worker is a process of its own, as always.
"""

from __future__ import annotations

import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipeq.client import Client
from pipeq.contract import keys
from pipeq.contract.errors import WaitTimeoutError
from pipeq.contract.message import Ref
from pipeq.contract.status import State, TaskStatus
from pipeq.demo.embedded import S3Server, minilm_path, s3, valkey
from pipeq.demo.guarded import Child, guarded
from pipeq.demo.passages import Match, Passage, collect, nearest
from pipeq.terminal import is_terminal

PIPELINE = "text-embedding"
#: Downloaded from the Hub (91 MB), unless a wheel has brought it.
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
BUCKET = "passages"
QUESTIONS = (
    "What happens to a task when its worker dies?",
    "How are inputs grouped into batches?",
    "Which inputs may a worker read?",
)
#: Number of matches for each question, and number of characters shown of each.
MATCHES = 3
MATCH_CHARS = 200
UPLOAD_THREADS = 16
#: torch and the model load in 5 to 20 s; the first download takes longer.
WORKER_WITHIN_S = 300.0
TASKS_WITHIN_S = 600.0
#: Interval of the progress checks, in seconds: one round trip for all tasks that are not done.
LOOK_EVERY_S = 0.1
#: Without a terminal, a line of progress is printed this often, in seconds.
LINE_EVERY_S = 2.0
#: An idle worker ends within this time, in seconds.
WORKER_GRACE_S = 5.0
#: Columns of the output in a pipe, which has no width.
PIPE_WIDTH = 100


class WorkerEndedError(Exception):
    """The worker ended by itself. The argument is the end of its log."""


@dataclass(frozen=True)
class Services:
    """What runs on this machine during the demo."""

    client: Client
    store: S3Server
    worker: Child


@dataclass(frozen=True)
class BatchStats:
    """Statistics of finished tasks with one item each."""

    tasks: int
    batches: int
    largest: int
    #: Tasks a second, from the first submit to the last end.
    rate: float

    @property
    def mean(self) -> float:
        """Mean number of tasks in a batch."""
        return self.tasks / self.batches

    @classmethod
    def of(cls, statuses: Sequence[TaskStatus]) -> BatchStats | None:
        """Computes them; returns None if no task ran in a batch."""
        ran = [status for status in statuses if status.batch and status.submitted_at and status.finished_at]
        if not ran:
            return None
        sizes = [status.batch.size for status in ran if status.batch]
        elapsed_s = max(s.finished_at or 0 for s in ran) - min(s.submitted_at or 0 for s in ran)
        # Each of the n tasks of a batch counts as 1/n batch.
        batches = max(1, round(sum(1 / size for size in sizes)))
        return cls(len(ran), batches, max(sizes), len(ran) / max(elapsed_s, 1e-3))


@click.command(
    epilog="""\b
Example:
  pipeq demo "How do I cancel a task?"
"""
)
@click.argument("question", required=False)
def demo(question: str | None) -> None:
    """Try pipeq on this machine alone: Redis, S3, a worker, tasks.

    Starts all three on free local ports, embeds pipeq's own documents with a small model, one task a passage, and shows
    which passages answer QUESTION, or three questions of its own, best. Takes half a minute; everything is stopped and
    removed at the end.
    """
    console = Console(highlight=False, width=None if is_terminal(sys.stdout) else PIPE_WIDTH)
    try:
        with _services(console) as services:
            failed = _run(console, services, collect(), [question] if question else list(QUESTIONS))
    except WorkerEndedError as error:
        click.echo(f"pipeq: the worker ended by itself; the end of its log:\n{error}", err=True)
        raise click.exceptions.Exit(1) from error
    if failed:
        raise click.exceptions.Exit(1)


def _run(console: Console, services: Services, passages: Sequence[Passage], questions: Sequence[str]) -> int:
    """Uploads, embeds, searches and reports. Returns how many tasks did not succeed."""
    client, worker = services.client, services.worker
    refs = _upload(console, services.store, passages)
    _wait_for_worker(console, client, worker)

    # Bulk work is submitted with low priority, so that interactive callers overtake it.
    ids = client.submit_many(PIPELINE, refs, priority=keys.JOB_PRIORITY)
    embedded = _follow(console, client, worker, ids)
    asked = _follow(None, client, worker, client.submit_many(PIPELINE, questions))

    index = [(passage, s.result) for passage, s in zip(passages, embedded, strict=True) if isinstance(s.result, list)]
    for question, status in zip(questions, asked, strict=True):
        if isinstance(status.result, list):
            _print_matches(console, question, nearest(status.result, index, MATCHES))  # type: ignore[arg-type]

    # Show a task of the largest batch, because the first tasks find an idle device and run alone.
    shown = max(embedded, key=lambda status: status.batch.size if status.batch else 0)
    console.print(f"\n[bold]The status of task {shown.id}[/]", soft_wrap=True)
    console.print_json(data=shortened(client.status(shown.id)))
    return _report(console, [*embedded, *asked], BatchStats.of(embedded))


# -- what runs --------------------------------------------------------------------------------------------------------


@contextmanager
def _services(console: Console) -> Iterator[Services]:
    """Starts Valkey, S3 and the worker, which is still loading then; stops all of them afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pipeq-demo-")))
        with _step(console, "Valkey") as done:
            redis_url = stack.enter_context(valkey())
            done(redis_url)
        with _step(console, "S3") as done:
            store = stack.enter_context(s3([BUCKET]))
            done(store.endpoint_url)
        model = minilm_path()
        worker = guarded(
            worker_command(model),
            log=folder / "worker.log",
            env=worker_env(os.environ, redis_url, store, model),
            cwd=folder,
            leftovers=[folder],
            grace_s=WORKER_GRACE_S,
        )
        yield Services(stack.enter_context(Client(redis_url)), store, stack.enter_context(worker))


def worker_command(model: Path | None) -> list[str]:
    """The command line of a worker that may read only our passages.

    Args:
        model: the model's folder; None takes the model from the Hub.
    """
    serves = f"{PIPELINE}={model or MODEL}"
    return [sys.executable, "-m", "pipeq", "worker", serves, "--allow", f"s3://{BUCKET}/"]


def worker_env(environ: Mapping[str, str], redis_url: str, store: S3Server, model: Path | None) -> dict[str, str]:
    """The worker's environment: the caller's, without settings that are meant for the caller's own workers."""
    kept = {name: value for name, value in environ.items() if not name.startswith("PIPEQ_")}
    offline = {"HF_HUB_OFFLINE": "1"} if model else {}
    return kept | store.env() | offline | {"PIPEQ_REDIS_URL": redis_url, "PYTHONUNBUFFERED": "1"}


def _upload(console: Console, store: S3Server, passages: Sequence[Passage]) -> list[Ref]:
    """Puts each passage into the store. Returns references to them."""
    with _step(console, "Passages") as done:
        client = store.client(connections=UPLOAD_THREADS)

        def put(numbered: tuple[int, Passage]) -> Ref:
            key = f"{numbered[0]:04}.txt"
            client.put_object(Bucket=BUCKET, Key=key, Body=numbered[1].text.encode(), ContentType="text/plain")
            return Ref(f"s3://{BUCKET}/{key}")

        with ThreadPoolExecutor(UPLOAD_THREADS) as pool:
            refs = list(pool.map(put, enumerate(passages, start=1)))
        client.close()
        files = len({passage.source for passage in passages})
        done(f"{len(refs)} from {files} files -> s3://{BUCKET}/")
    return refs


def _wait_for_worker(console: Console, client: Client, worker: Child) -> None:
    """Waits until the worker serves the pipeline.

    Raises:
        WorkerEndedError: it ended instead.
        WaitTimeoutError: it was not ready in time.
    """
    deadline = time.monotonic() + WORKER_WITHIN_S
    with _step(console, "Worker") as done:
        while not any(queue.workers for queue in client.queues() if queue.pipeline == PIPELINE):
            _pause(worker, deadline, "the worker is not ready")
        done(f"{PIPELINE}={MODEL}, process {worker.pid}")


def _follow(console: Console | None, client: Client, worker: Child, ids: Sequence[str]) -> list[TaskStatus]:
    """Waits until all tasks have ended, and shows their progress. Returns their statuses, in order.

    Raises:
        WorkerEndedError: the worker ended meanwhile.
        WaitTimeoutError: the tasks took too long.
    """
    ended: dict[str, TaskStatus] = {}
    deadline = time.monotonic() + TASKS_WITHIN_S
    with _display(console, len(ids)) as show:
        while True:
            statuses = client.status_many(task_id for task_id in ids if task_id not in ended)
            ended |= {status.id: status for status in statuses if status.is_final}
            running = sum(status.state is State.RUNNING for status in statuses)
            show(len(ids) - len(ended) - running, running, len(ended))
            if len(ended) == len(ids):
                return [ended[task_id] for task_id in ids]
            _pause(worker, deadline, f"{len(ids) - len(ended)} tasks are not done")


def _pause(worker: Child, deadline: float, what: str) -> None:
    """Waits a moment, unless the worker ends."""
    if worker.has_ended(LOOK_EVERY_S):
        raise WorkerEndedError(worker.log_tail())
    if time.monotonic() > deadline:
        raise WaitTimeoutError(f"{what}; the end of the worker's log:\n{worker.log_tail()}")


# -- what is shown ----------------------------------------------------------------------------------------------------


@contextmanager
def _step(console: Console, name: str) -> Iterator[Any]:
    """Shows a spinner while something starts, then a line with its duration. Yields a function for the line's text."""
    started = time.monotonic()
    texts: list[str] = []
    with console.status(f"{name} ...", spinner="line"):
        yield texts.append
    took = f"{time.monotonic() - started:.1f} s"
    console.print(f"[bold]{name:<9}[/] {took:>7}  {escape(''.join(texts))}", soft_wrap=True)


@contextmanager
def _display(console: Console | None, total: int) -> Iterator[Any]:
    """Yields a function that shows the numbers of queued, running and done tasks: as a bar, or as lines in a pipe."""
    if console is None:
        yield lambda *_: None
    elif console.is_terminal:
        counts = TextColumn("queued {task.fields[queued]}  running {task.fields[running]}  done {task.completed}")
        columns = (SpinnerColumn("line"), TextColumn("[bold]Tasks[/]"), BarColumn(), counts, TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            row = progress.add_task("tasks", total=total, queued=total, running=0)
            yield lambda queued, running, done: progress.update(row, queued=queued, running=running, completed=done)
    else:
        yield _Lines(console, total).show


class _Lines:
    """Shows progress as lines: after a change, at most every 2 s, and at the end."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._shown: tuple[int, int, int] | None = None
        self._next_at = 0.0

    def show(self, *counts: int) -> None:
        queued, running, done = counts
        is_due = time.monotonic() >= self._next_at or done == self._total
        if is_due and counts != self._shown:
            self._console.print(f"Tasks      queued {queued}  running {running}  done {done}")
            self._shown = (queued, running, done)
            self._next_at = time.monotonic() + LINE_EVERY_S


def _print_matches(console: Console, question: str, matches: Sequence[Match]) -> None:
    console.print(f"\n[bold]{escape(question)}[/]", soft_wrap=True)
    for match in matches:
        console.print(f"  [green]{match.score:.2f}[/]  [cyan]{escape(match.passage.source)}[/]", soft_wrap=True)
        # Not a rich table, because it would pad lines with spaces.
        text = textwrap.shorten(match.passage.text, MATCH_CHARS, placeholder=" ...")
        width = min(console.width, PIPE_WIDTH)
        lines = textwrap.fill(text, width, initial_indent=" " * 8, subsequent_indent=" " * 8)
        console.print(escape(lines), soft_wrap=True)


def shortened(status: TaskStatus, numbers: int = 3) -> dict[str, Any]:
    """A status as JSON, with only the first numbers of its embedding."""
    fields = status.model_dump(mode="json")
    result = fields["result"]
    if isinstance(result, list) and len(result) > numbers:
        fields["result"] = [*result[:numbers], f"... {len(result) - numbers} more"]
    return fields


def _report(console: Console, statuses: Sequence[TaskStatus], stats: BatchStats | None) -> int:
    """Prints how the tasks were batched, and the first failure if there is one. Returns the number of failures."""
    if stats:
        console.print(
            f"\n[bold]{stats.tasks} tasks in {stats.batches} batches[/]: {stats.mean:.1f} tasks a batch, "
            f"{stats.largest} in the largest, {stats.rate:.0f} tasks a second",
            soft_wrap=True,
        )
    failed = [status for status in statuses if status.state is not State.SUCCEEDED]
    if failed:
        why = failed[0].error
        reason = f"{why.code}: {why.message}" if why else failed[0].state
        console.print(f"[red]{len(failed)} tasks did not succeed[/]; the first, {failed[0].id}: {escape(reason)}")
    return len(failed)
