"""``pipeq run``: a pipeline over all rows of an input, on this machine alone. Input -> Redis, worker -> one file.

This process starts Redis and a worker, submits the rows as a job, and adds each outcome to OUT.partial as it comes.
When all rows have ended, OUT is written in the order of the input. Started again, it goes on with what is missing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from pipeq.client import Client
from pipeq.contract import schemes, shown
from pipeq.contract.errors import PipeqError, RedisUnavailableError
from pipeq.contract.job import JobState, JobStatus
from pipeq.demo.embedded import RedisServer, redis_server
from pipeq.demo.guarded import Child, NotRunningError, guarded
from pipeq.demo.plot import svg
from pipeq.jobs import places
from pipeq.jobs.columns import columns
from pipeq.jobs.display import Display
from pipeq.jobs.files import Beside, OutcomeFiles
from pipeq.jobs.options import read_options
from pipeq.jobs.partial import PartialFile
from pipeq.jobs.readers import TABLES, Source, source

#: How long a worker may take to end what it does, in seconds.
GRACE_S = 5.0
#: How often it is looked whether the worker serves, or has ended, in seconds.
LOOK_S = 0.1
#: Exit code after Ctrl-C, as shells have it.
INTERRUPTED = 130
#: Rows between two moments that the picture knows, at first.
MOMENTS = 1000
JOB = "run"


def _local(_: click.Context, __: click.Parameter, value: str) -> Path:
    if schemes.of(value):
        there = f"copy it to {shown.uri(value)} then"
        raise click.BadParameter(f"outcomes are gathered in a file of this machine: name one, and {there}")
    return Path(os.path.expanduser(value))


@click.command(
    epilog="""\b
Examples:
  pipeq run text-classification reviews.csv out.csv --field text
  pipeq run text-embedding=sentence-transformers/all-MiniLM-L6-v2 texts.txt out.jsonl --plot speed.svg
  pipeq run image-classification 'photos/*.png' labels.csv
"""
)
@click.argument("task", metavar="TASK[=MODEL]")
@click.argument("inputs", metavar="IN")
@click.argument("out", metavar="OUT", callback=_local)
@read_options
@click.option("--errors", metavar="FILE", help="Write errors there instead of among the results.")
@click.option("--no-columns", is_flag=True, help="Do not write the columns of IN beside the results.")
@click.option("--config", metavar="FILE", help="Settings of the worker.")
@click.option("--allow", multiple=True, metavar="URI", help="Prefix that inputs may be read from; may be repeated.")
@click.option("--plot", metavar="FILE", help="At the end, write a picture (SVG) of rows a second.")
@click.option("--again", is_flag=True, help="Run rows again that have failed in an earlier run.")
@click.option("--json", "in_json", is_flag=True, help="Print how far it is as JSON, one object a line.")
@click.pass_context
def run(
    ctx: click.Context,
    /,
    task: str,
    inputs: str,
    out: Path,
    errors: str | None,
    no_columns: bool,
    config: str | None,
    allow: tuple[str, ...],
    plot: str | None,
    again: bool,
    in_json: bool,
    **rows: Any,
) -> None:
    """Run a pipeline over all rows of IN, and write what becomes of them to OUT, on this machine alone.

    IN is a file (.jsonl, .csv, .tsv, .parquet, .txt; also .gz), an s3:// URI, or a prefix or a name with wildcards,
    whose files are the inputs. OUT is .jsonl, .csv, .tsv or .parquet. After Ctrl-C, or whatever ended it, the same
    command goes on with what is missing.
    """
    places.check(str(out), errors, inputs, name="OUT")
    from_ = source(inputs, rows["format"])
    if not from_.is_repeatable:
        raise click.UsageError("IN must be a file, which can be read again: write what comes from a pipe to one first")
    columns(rows["field"], rows["id"], rows["params_columns"]).check(from_.begun().names)
    about = {"task": task, "input": [from_.name, from_.kind], **rows, "stamp": _stamp(inputs)}
    # Ended by Ctrl-C, or by whoever started it: both let the others end first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with PartialFile(out.with_name(f"{out.name}.partial"), about) as partial:
        if again:
            partial.forget_failed()
        if len(partial):
            _say(f"{_there(partial)} from an earlier run")
        display = Display(in_json=in_json)
        work = _Run(task, inputs, partial, rows, display)
        try:
            arguments = [*(("--config", config) if config else ()), *_allowed(inputs, allow, config)]
            work.run(arguments)
        except KeyboardInterrupt:
            partial.flush()
            _say(f"ended. {_there(partial)}: the same command goes on with what is missing")
            ctx.exit(INTERRUPTED)
        except NotRunningError:
            partial.flush()
            if len(partial):
                _say(f"{_there(partial)}: the same command goes on with what is missing")
            raise
        beside = None if no_columns or not _has_columns(from_) else Beside(from_)
        with OutcomeFiles(str(out), errors, beside) as files:
            for outcomes in partial.in_order():
                files.write(outcomes)
        if files.failed:
            display.show_first_error(one for outcomes in partial.in_order() for one in outcomes)
    partial.path.unlink(missing_ok=True)
    if plot is not None:
        title = f"{task}, {shown.count(files.succeeded + files.failed, 'row')}"
        try:
            Path(plot).write_text(svg(title, work.moments), encoding="utf-8")
        except OSError as error:
            places.cannot(plot, error)
    counts = f"{shown.count(files.succeeded, 'result')} and {shown.count(files.failed, 'error')}"
    _say(f"{counts} are in {out}{f' and {errors}' if errors else ''}")
    ctx.exit(1 if files.failed else 0)


class _Run:
    """One run: Redis, a worker, a thread that submits, and this one, which takes what comes."""

    def __init__(self, task: str, inputs: str, partial: PartialFile, options: dict[str, Any], display: Display) -> None:
        self._task = task
        self._pipeline = task.partition("=")[0]
        self._inputs = inputs
        self._partial = partial
        self._options = options
        self._display = display
        #: Seconds since the first row could run, and how many had ended.
        self.moments: list[tuple[float, int]] = []
        self._each = MOMENTS
        self._error: BaseException | None = None

    def run(self, arguments: Sequence[str]) -> None:
        """Runs what is missing.

        Raises:
            PipeqError: the input cannot be read, the worker did not start, or ended.
        """
        with ExitStack() as stack:
            server = stack.enter_context(redis_server())
            command = [sys.executable, "-P", "-m", "pipeq", "worker", self._task, *arguments]
            env = {**os.environ, "PIPEQ_REDIS_URL": server.url, "PYTHONUNBUFFERED": "1"}
            log = Path(stack.enter_context(TemporaryDirectory(prefix="pipeq-run-"))) / "worker.log"
            worker = stack.enter_context(guarded(command, log=log, env=env, cwd=Path.cwd(), grace_s=GRACE_S))
            others = _Others(server, worker)
            client = stack.enter_context(Client(server.url))
            _say("the worker is loading")
            try:
                self._rows(client, others)
            except RedisUnavailableError:
                server.check(within_s=1)
                raise

    def _rows(self, client: Client, others: _Others) -> None:
        self._until(others, lambda: self._pipeline in client.pipelines())
        producer = threading.Thread(target=self._submit, args=(client,), name="submit", daemon=True)
        producer.start()
        self._until(others, lambda: self._error is not None or self._has_job(client))
        self._take(client, others)
        producer.join()
        if self._error is not None:
            raise self._error

    def _submit(self, client: Client) -> None:
        try:
            client.jobs.submit(
                self._pipeline,
                self._inputs,
                job_id=JOB,
                lines=lambda line: line not in self._partial,
                **self._options,
            )
        except BaseException as error:
            self._error = error

    def _has_job(self, client: Client) -> bool:
        with suppress(PipeqError):
            return bool(client.jobs.status(JOB))
        return False

    @staticmethod
    def _until(others: _Others, condition: Callable[[], bool]) -> None:
        while not condition():
            others.check()
            time.sleep(LOOK_S)

    def _take(self, client: Client, others: _Others) -> None:
        """Adds outcomes as they come."""
        if self._error is not None:
            return
        began, count, watch = time.monotonic(), 0, _Watch(others, LOOK_S * 10)
        rows = client.jobs.results(JOB, order="completed", follow=True, forget=True)
        with watch:
            try:
                for one in rows:
                    self._partial.add(one)
                    count += 1
                    if self._display.is_due():
                        self._partial.flush()
                        self._display.show(client.jobs.status(JOB))
                    self._note(time.monotonic() - began, count)
            except KeyboardInterrupt:
                if watch.has_ended:
                    others.check()
                raise
        self._partial.flush()
        self.moments.append((time.monotonic() - began, count))
        status: JobStatus = client.jobs.status(JOB)
        self._display.show(status, is_last=True)
        if status.state is JobState.FAILED and self._error is None:
            raise PipeqError("invalid_input", str(status.error))

    def _note(self, second: float, count: int) -> None:
        if count % self._each == 0:
            self.moments.append((second, count))
            if len(self.moments) > 2 * MOMENTS:
                self.moments, self._each = self.moments[1::2], self._each * 2


@dataclass(frozen=True)
class _Others:
    """The processes without which no row ends."""

    server: RedisServer
    worker: Child

    def have_ended(self) -> bool:
        """Whether one has, by itself."""
        return self.server.child.has_ended() or self.worker.has_ended()

    def check(self) -> None:
        """Raises a :class:`NotRunningError` if one has."""
        self.server.check()
        if self.worker.has_ended():
            raise NotRunningError(f"the worker has ended: {shown.line(self.worker.log_tail(5), 2000)}")


class _Watch:
    """A thread that interrupts this process if another one ends by itself: nobody would end the rows."""

    def __init__(self, others: _Others, every_s: float) -> None:
        self._others, self._every_s = others, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.has_ended = False

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            if self._others.have_ended():
                self.has_ended = True
                os.kill(os.getpid(), signal.SIGINT)
                return


def _has_columns(from_: Source) -> bool:
    return from_.kind in (*TABLES, "jsonl")


def _stamp(inputs: str) -> list[int] | None:
    """What changes with the input's content; None where it is not one file here."""
    with suppress(OSError):
        found = os.stat(os.path.expanduser(inputs))
        return [found.st_size, found.st_mtime_ns]
    return None


def _allowed(inputs: str, allow: Sequence[str], config: str | None) -> list[str]:
    """What the worker may read: what was asked for; otherwise this folder, and what the input names."""
    if not allow and config is None:
        allow = [f"{Path.cwd().as_uri().rstrip('/')}/"]
        if schemes.of(inputs):
            scheme, _, rest = inputs.partition("://")
            allow.append(f"{scheme}://{rest.partition('/')[0]}/")
        else:
            folder = Path(os.path.expanduser(inputs)).absolute().parent
            while any(char in str(folder) for char in "*?["):
                folder = folder.parent
            allow.append(f"{folder.as_uri().rstrip('/')}/")
    return [part for one in dict.fromkeys(allow) for part in ("--allow", one)]


def _there(partial: PartialFile) -> str:
    return f"{shown.count(len(partial), 'row')} {'is' if len(partial) == 1 else 'are'} in {partial.path}"


def _say(text: str) -> None:
    click.echo(f"pipeq run: {text}", err=True)
