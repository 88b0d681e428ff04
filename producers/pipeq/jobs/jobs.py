"""JOBS: ``client.jobs``: many rows as one thing. Arguments -> checks -> producing; ids -> status, results.

job = client.jobs.submit("text-classification", "reviews.jsonl", field="text", id="review_id")
client.jobs.wait(job)
client.jobs.save(job, "results.jsonl", errors="errors.jsonl")
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from pipeq import cancelling, checks
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError, WaitTimeoutError
from pipeq.contract.job import VERSION, JobState, JobStatus
from pipeq.contract.pack import ROWS_MAX
from pipeq.envelope import new_id
from pipeq.jobs import packing, store
from pipeq.jobs.columns import Columns, columns
from pipeq.jobs.ending import end_if_done, is_done, status_of
from pipeq.jobs.files import OutcomeFiles
from pipeq.jobs.outcomes import outcomes
from pipeq.jobs.producing import Plan, produce
from pipeq.jobs.readers import Source, source
from pipeq.protocol import Give, Run, Sleep, Steps, Stream, given
from pipeq.read_allow import ReadAllow
from pipeq.results import read_result
from pipeq.speaking import Speaker, blocking, iterating

#: How often a job that is waited for is looked at, in seconds: at first, and at most.
LOOK_S, MOST_LOOK_S = 0.05, 1.0
#: Packs that are cancelled in one step.
CANCEL = 500
#: How often the open packs are read: a worker sends rows on alone meanwhile, but only once.
PASSES = 5
#: Most rows of a job that may wait or run by default, and most that a caller may ask for.
BACKLOG, MOST_BACKLOG = 50_000, 10**9
#: Longest id of a job: those of its rows are a few characters longer.
ID_CHARS = 200


class JobCalls:
    """What both clients can do with jobs, written once, as steps.

    Args:
        pipelines: what workers have registered.
        allow: what this client may read.
        max_message_bytes: the client's.
    """

    def __init__(
        self, pipelines: Callable[[], Steps[dict[str, dict[str, Any]]]], allow: ReadAllow, max_message_bytes: int
    ) -> None:
        self._pipelines = pipelines
        self._allow = allow
        self._max_message_bytes = max_message_bytes
        #: Of a job that is submitted now and has not all rows of its input: the lines that are meant.
        self._lines: dict[str, frozenset[int]] = {}

    def submit(
        self,
        pipeline: str,
        inputs: Any,
        *,
        field: str | Mapping[str, str] | None = None,
        id: str | None = None,  # noqa: A002 - what users call the column
        params: Mapping[str, Any] | None = None,
        params_columns: Mapping[str, str] | None = None,
        format: str | None = None,  # noqa: A002 - what users call it
        job_id: str | None = None,
        output: str | None = None,
        priority: int = keys.JOB_PRIORITY,
        fair_key: str | None = None,
        timeout_s: float | None = None,
        max_backlog: int = BACKLOG,
        pack_rows: int | None = None,
        check: bool = True,
        progress: Callable[[JobStatus], None] | None = None,
    ) -> Steps[str]:
        """Submits all rows of an input as one job, and returns its id.

        It reads the input once, and returns when the last row is queued. With a ``job_id``, a submit that broke off, or
        whose process was killed, may be repeated, on another machine, too: it goes on behind what was queued. A row
        that cannot be used is one of the job's errors, with its line number.

        Args:
            pipeline: the pipeline's name.
            inputs: a path or ``s3://`` URI of JSON lines (also those of OpenAI's Batch API), CSV, Parquet or text
                (``.jsonl``, ``.csv``, ``.tsv``, ``.parquet``, ``.txt``; also with ``.gz``); a prefix or a name with
                wildcards, each object or file of which is an input; ``-`` for standard input; an open file; or any
                iterable of inputs, such as a generator or a ``datasets.Dataset``.
            field: the column that is the input; or the pipeline's fields, each with its column.
            id: the column with the rows' names, which become ``custom_id``.
            params: parameters of the pipeline's call, for all rows.
            params_columns: parameters that rows have of their own, each with its column.
            format: ``jsonl``, ``csv``, ``tsv``, ``parquet``, ``lines`` or ``refs`` (each file is an input), where the
                name does not say it.
            job_id: a name of your own.
            output: a prefix below which workers write outcomes that are too large for Redis; by default their store.
            priority: 0 is served first, 9 last.
            fair_key: whose job it is; see :meth:`pipeq.Client.submit`.
            timeout_s: seconds that a row may take.
            max_backlog: rows that wait or run at most: then the submit waits.
            pack_rows: rows that travel in one message at most; by default as many as suit the task type.
            check: whether to refuse a pipeline that no worker has ever served, or whose workers do not know jobs.
            progress: called with the job's status now and then.

        Raises:
            PipeqError: an argument cannot be used; the input cannot be read; ``in_use``: another process submits this
                job at the same time.
        """
        return self._submit(
            checks.pipeline(pipeline),
            source(inputs, format),
            columns(field, id, params_columns),
            _job_id(job_id),
            {
                "params": checks.params(params),
                "output": checks.output(output, many=True),
                "priority": checks.priority(priority),
                "headers": checks.urgency(None, fair_key, timeout_s),
                "max_backlog": _at_least_one("max_backlog", max_backlog, MOST_BACKLOG),
            },
            None if pack_rows is None else _at_least_one("pack_rows", pack_rows, ROWS_MAX),
            check=checks.flag("check", check),
            progress=_progress(progress),
        )

    def retry(
        self, /, job_id: str, inputs: Any, *, codes: str | Iterable[str] | None = None, **options: Any
    ) -> Steps[str | None]:
        """Submits those rows of a job again that failed, as a new job. Returns its id; None if no row failed so.

        Redis does not keep the rows of a job, so its input is read again.

        Args:
            job_id: the job; its rows must have ended.
            inputs: the job's input.
            codes: the codes of the errors that are meant; None for all.
            options: those of :meth:`submit` that the job had, such as ``field``, ``id`` and ``params``.
        """
        status = yield from self.status(job_id)
        if not status.state.is_final:
            checks.refuse(f"job_id {shown.line(job_id)!r}: its rows have not all ended ({status.state})")
        wanted = None if codes is None else set(checks.texts("codes", [codes] if isinstance(codes, str) else codes))
        lines = set[int]()
        packs = self._outcomes(job_id)
        while (found := (yield from given(packs))) is not None:
            for one in found:
                if "error" in one and one.get("line") and (wanted is None or one["error"].get("code") in wanted):
                    lines.add(one["line"])
        if not lines:
            return None
        again = str(options.pop("job_id", None) or f"{job_id}-again-{new_id()[:8]}")
        steps = self.submit(status.pipeline, inputs, job_id=again, **options)
        self._lines[again] = frozenset(lines)
        try:
            return (yield from steps)
        finally:
            del self._lines[again]

    def _submit(
        self,
        pipeline: str,
        from_: Source,
        chosen: Columns,
        job_id: str,
        about: dict[str, Any],
        pack_rows: int | None,
        *,
        check: bool,
        progress: Callable[[JobStatus], None],
    ) -> Steps[str]:
        if about["output"] is not None:
            self._allow.remember(about["output"])
        most_rows = pack_rows or packing.most_rows((yield from self._registered(pipeline, check=check)))
        plan = Plan(
            job_id, pipeline, chosen, most_rows, self._max_message_bytes, lines=self._lines.get(job_id), **about
        )
        yield from self._make(plan, from_)
        yield from produce(plan, from_, progress)
        return job_id

    def status(self, job_id: str) -> Steps[JobStatus]:
        """How far a job is.

        Raises:
            PipeqError: ``invalid_input``: there is no such job, or it was forgotten (7 days after its last row).
        """
        job_id = checks.task_id(job_id)
        status = yield from status_of(job_id)
        if status is not None and is_done(status):
            # Its last row ended just before its producer said that it was the last, and then the producer died.
            yield from end_if_done(job_id)
            status = yield from status_of(job_id)
        if status is None:
            raise PipeqError(ErrorCode.INVALID_INPUT, f"there is no job {shown.line(job_id)!r} in this Redis")
        return status

    def wait(
        self, job_id: str, timeout_s: float | None = None, *, progress: Callable[[JobStatus], None] | None = None
    ) -> Steps[JobStatus]:
        """Waits until all rows of a job have ended.

        Args:
            job_id: the job.
            timeout_s: how long to wait, in seconds; None waits for ever.
            progress: called with each status that is read.

        Raises:
            WaitTimeoutError: they have not; the job goes on.
        """
        limit_s, told = checks.seconds("timeout_s", timeout_s), _progress(progress)
        until, pause_s = None if limit_s is None else time.monotonic() + limit_s, LOOK_S
        while True:
            status = yield from self.status(job_id)
            told(status)
            if status.state.is_final:
                return status
            if until is not None and (left_s := until - time.monotonic()) <= 0:
                raise WaitTimeoutError(
                    f"{status.done} of {status.submitted} rows of the job {shown.line(job_id)!r} had ended after "
                    f"{limit_s:g} s; it goes on"
                )
            yield Sleep(pause_s if until is None else min(pause_s, max(left_s, 0.0)))
            pause_s = min(MOST_LOOK_S, pause_s * 1.3)

    def results(self, job_id: str) -> Stream[dict[str, Any]]:
        """Yields what became of each row that has ended, in the order of the input.

        Each is a dictionary: ``line``, ``custom_id``, and ``result``, or ``error`` with ``code``, ``message`` and
        ``retryable``.

        Raises:
            PipeqError: there is no such job; a ReadError if an outcome lies where this client may not read.
        """
        stream = self._outcomes(job_id)
        answer, error = None, None
        while True:
            try:
                ask = stream.send(answer) if error is None else stream.throw(error)
            except StopIteration:
                return None
            answer, error = None, None
            if isinstance(ask, Give):
                for one in ask.value:
                    yield Give(one)
                continue
            try:
                answer = yield ask
            except Exception as raised:
                error = raised

    def save(self, job_id: str, results: str, errors: str | None = None) -> Steps[tuple[int, int]]:
        """Writes results, and errors, to files (paths or ``s3://`` URIs; JSON lines, or CSV by the name).

        Args:
            job_id: the job.
            results: the file of results.
            errors: the file of errors; None to write both into one, in the order of the input.

        Returns:
            The number of results, and of errors.
        """
        for name, place in (("results", results), ("errors", errors)):
            if not isinstance(place, str) and not (place is None and name == "errors"):
                checks.refuse(f"{name} is {shown.value(place)}, not a path or an s3:// URI")
        stream = self._outcomes(job_id)
        answer, error = None, None
        with OutcomeFiles(results, errors) as files:
            while True:
                try:
                    ask = stream.send(answer) if error is None else stream.throw(error)
                except StopIteration:
                    break
                answer, error = None, None
                try:
                    answer = yield Run(partial(files.write, ask.value)) if isinstance(ask, Give) else ask
                except Exception as raised:
                    error = raised
        return files.succeeded, files.failed

    def cancel(self, job_id: str) -> Steps[JobStatus]:
        """Cancels the rows of a job that have not ended. Those that have keep their outcomes."""
        status = yield from self.status(job_id)
        if status.state.is_final:
            return status
        yield from store.stop(job_id, JobState.CANCELLED)
        for _ in range(PASSES):
            if not (fields := (yield from store.open_fields(job_id))):
                break
            for start in range(0, len(fields), CANCEL):
                packs = [f"{job_id}-{name}" for name in fields[start : start + CANCEL]]
                # Rows that were sent on alone have no record before they begin.
                yield from cancelling.cancel(packs, force=True)
        yield from end_if_done(job_id, is_stopped=True)
        return (yield from self.status(job_id))

    def _outcomes(self, job_id: str) -> Stream[list[dict[str, Any]]]:
        yield from self.status(job_id)
        return (yield from outcomes(job_id, lambda uri: read_result(uri, self._allow)))

    def _registered(self, pipeline: str, *, check: bool) -> Steps[str | None]:
        """The task type of a pipeline, as its workers have registered it."""
        known = yield from self._pipelines()
        if check and pipeline not in known:
            served = ", ".join(sorted(known)) or "none"
            raise PipeqError(
                ErrorCode.UNKNOWN_PIPELINE, f"no worker has ever served {pipeline!r} (served were: {served})"
            )
        about = known.get(pipeline)
        if check and about is not None and about.get("jobs") != VERSION:
            raise PipeqError(
                ErrorCode.UNKNOWN_PIPELINE,
                f"the workers of {pipeline!r} have not said that they know jobs, so they are of another version than "
                "this client: update them, or submit single tasks with `submit_many`",
            )
        found = (about or {}).get("task")
        return found if isinstance(found, str) else None

    def _make(self, plan: Plan, from_: Source) -> Steps[None]:
        """Makes the job, or finds the one that is to go on."""
        spec = {
            "pipeline": plan.pipeline,
            "input": [from_.name, from_.kind],
            "columns": [dict(plan.columns.fields), plan.columns.id, dict(plan.columns.params)],
            "params": plan.params,
            "output": plan.output,
        }
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
        fields = {"pipeline": plan.pipeline, "input": f"{from_.name} ({from_.kind})", "spec": digest}
        if not (yield from store.create(plan.job_id, fields)):
            known = yield from store.spec_of(plan.job_id)
            if known is not None and known != digest:
                checks.refuse(
                    f"job_id {plan.job_id!r} is that of another job: with other inputs, columns, params or pipeline it "
                    "needs another id"
                )

    def list(self) -> Steps[list[JobStatus]]:
        """All jobs that are kept, the newest first."""
        found = []
        for job_id in (yield from store.ids()):
            if (status := (yield from status_of(job_id))) is not None:
                found.append(status)
        return found


def _job_id(value: Any) -> str:
    if value is None:
        return f"job-{new_id()}"
    if len(checks.new_task_id(value, "job_id")) > ID_CHARS:
        checks.refuse(f"job_id {shown.value(value)} is longer than {ID_CHARS} characters")
    return str(value)


def _progress(value: Any) -> Callable[[JobStatus], None]:
    if value is not None and (not callable(value) or isinstance(value, type)):
        checks.refuse(f"progress is {shown.value(value)}, not a function of the job's status")
    return value or (lambda _: None)


def _at_least_one(name: str, value: Any, most: int) -> int:
    if checks.count(name, value, most) == 0:
        checks.refuse(f"{name} is 0, and must be 1 at least")
    return int(value)


class Jobs:
    """The jobs of a Redis, from :attr:`pipeq.Client.jobs`."""

    def __init__(self, speaker: Speaker, calls: JobCalls) -> None:
        self._speaker = speaker
        self._steps = calls

    submit = blocking(JobCalls.submit)
    status = blocking(JobCalls.status)
    wait = blocking(JobCalls.wait)
    results = iterating(JobCalls.results)
    save = blocking(JobCalls.save)
    cancel = blocking(JobCalls.cancel)
    retry = blocking(JobCalls.retry)
    list = blocking(JobCalls.list)
