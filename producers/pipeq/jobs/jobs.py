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

from redis.exceptions import RedisError

from pipeq import checks
from pipeq.contract import keys, naming, schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError, RedisUnavailableError, WaitTimeoutError
from pipeq.contract.job import VERSION, JobState, JobStatus
from pipeq.contract.pack import ROWS_MAX
from pipeq.envelope import new_id
from pipeq.jobs import keeping, packing, store
from pipeq.jobs.columns import Columns, columns
from pipeq.jobs.ending import end_if_done, is_done, status_of
from pipeq.jobs.files import OutcomeFiles
from pipeq.jobs.outcomes import as_completed, outcomes
from pipeq.jobs.producing import Plan, produce
from pipeq.jobs.readers import Source, source
from pipeq.protocol import Give, Sleep, Steps, Stream, given
from pipeq.read_allow import ReadAllow
from pipeq.results import read_result
from pipeq.speaking import Speaker, blocking, iterating

#: How often a job that is waited for is looked at, in seconds: at first, and at most.
LOOK_S, MOST_LOOK_S = 0.05, 1.0
#: How long workers have to write the files of a job before a client does, in seconds.
WORKERS_S = 30.0
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
        results: str | None = None,
        errors: str | None = None,
        order: str = "input",
        priority: int = keys.JOB_PRIORITY,
        fair_key: str | None = None,
        timeout_s: float | None = None,
        expires_s: float | None = None,
        max_backlog: int = BACKLOG,
        pack_rows: int | None = None,
        lines: Callable[[int], bool] | None = None,
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
            results: an ``s3://`` or ``file://`` URI, to which a worker writes the results when all rows have ended; its
                settings must allow that. JSON lines, or CSV or Parquet by the name.
            errors: the same for errors; None to write them among the results.
            order: of the rows there: ``input``, or ``completed`` for the order in which they ended.
            priority: 0 is served first, 9 last.
            fair_key: whose job it is; see :meth:`pipeq.Client.submit`.
            timeout_s: seconds that a row may take.
            expires_s: seconds from now in which the job may run: then rows that have not ended fail as ``expired``.
            max_backlog: rows that wait or run at most: then the submit waits.
            pack_rows: rows that travel in one message at most; by default as many as suit the task type.
            lines: says of the number of a line, from 1, whether it is meant; None for all.
            check: whether to refuse a pipeline that no worker has ever served, or whose workers do not know jobs.
            progress: called with the job's status now and then.

        Raises:
            PipeqError: an argument cannot be used; the input cannot be read; ``in_use``: another process submits this
                job at the same time.
        """
        now = time.time()
        return self._submit(
            checks.pipeline(pipeline),
            source(inputs, format),
            columns(field, id, params_columns),
            _job_id(job_id),
            {
                "params": checks.params(params),
                "output": _output(output),
                "priority": checks.priority(priority),
                "headers": checks.urgency(None, fair_key, timeout_s),
                "expires_at": None if (limit_s := checks.seconds("expires_s", expires_s)) is None else now + limit_s,
                "max_backlog": _at_least_one("max_backlog", max_backlog, MOST_BACKLOG),
                "lines": _function("lines", lines, "the number of a line"),
            },
            _files(results, errors, order),
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
        return (yield from self.submit(status.pipeline, inputs, job_id=again, lines=lines.__contains__, **options))

    def _submit(
        self,
        pipeline: str,
        from_: Source,
        chosen: Columns,
        job_id: str,
        about: dict[str, Any],
        files: dict[str, str],
        pack_rows: int | None,
        *,
        check: bool,
        progress: Callable[[JobStatus], None],
    ) -> Steps[str]:
        if about["output"] is not None:
            self._allow.remember(about["output"])
        most_rows = pack_rows or packing.most_rows((yield from self._registered(pipeline, check=check)))
        plan = Plan(job_id, pipeline, chosen, most_rows, self._max_message_bytes, **about)
        yield from self._make(plan, from_, files)
        try:
            yield from produce(plan, from_, progress)
        except (RedisError, RedisUnavailableError):
            raise
        except Exception as error:
            if getattr(error, "code", None) != ErrorCode.IN_USE:
                yield from store.fail(job_id, shown.line(getattr(error, "message", None) or shown.value(error), 500))
            raise
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
        elif status is not None and (status.expires_at or float("inf")) < time.time() and not status.state.is_final:
            yield from keeping.expire(job_id)
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
            if status.state is JobState.FINALIZING and (yield from self._finalize(status)):
                continue
            if until is not None and (left_s := until - time.monotonic()) <= 0:
                raise WaitTimeoutError(
                    f"{status.done} of {status.submitted} rows of the job {shown.line(job_id)!r} had ended after "
                    f"{limit_s:g} s; it goes on"
                )
            yield Sleep(pause_s if until is None else min(pause_s, max(left_s, 0.0)))
            pause_s = min(MOST_LOOK_S, pause_s * 1.3)

    def _finalize(self, status: JobStatus) -> Steps[bool]:
        """Writes the files of a job if no worker does so: there may be none any more. Returns whether it did."""
        since = time.time() - (status.last_at or 0.0)
        if since < WORKERS_S or schemes.of(status.results or "") != "s3":
            return False  # a file:// URI is that of a worker's machine
        try:
            return (yield from keeping.finalize(status.id, self._read))
        except PipeqError:
            return False  # of the last try, the job's status tells

    def results(
        self, job_id: str, *, order: str = "input", follow: bool = False, forget: bool = False
    ) -> Stream[dict[str, Any]]:
        """Yields what became of each row that has ended.

        Each is a dictionary: ``line``, ``custom_id``, and ``result``, or ``error`` with ``code``, ``message`` and
        ``retryable``.

        Args:
            job_id: the job.
            order: ``input``, or ``completed`` for the order in which rows ended.
            follow: whether to wait for rows that have not ended; needs ``order="completed"``.
            forget: whether to remove outcomes from Redis when further ones are asked for, so that a job of any length
                fills none; needs ``order="completed"``.

        Raises:
            PipeqError: there is no such job; a ReadError if an outcome lies where this client may not read.
        """
        stream = self._outcomes(
            job_id, _order(order), follow=checks.flag("follow", follow), forget=checks.flag("forget", forget)
        )
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

    def save(
        self,
        job_id: str,
        results: str,
        errors: str | None = None,
        *,
        order: str = "input",
        inputs: Any = None,
        format: str | None = None,  # noqa: A002 - what users call it
    ) -> Steps[tuple[int, int]]:
        """Writes results, and errors, to files: paths or ``s3://`` URIs; JSON lines, CSV or Parquet by the name.

        Args:
            job_id: the job.
            results: the file of results.
            errors: the file of errors; None to write both into one.
            order: of the rows: ``input``, or ``completed`` for the order in which they ended.
            inputs: the job's input, to write its columns beside the outcomes; it is read once more.
            format: of the input, as :meth:`submit` takes it.

        Returns:
            The number of results, and of errors.
        """
        for name, place in (("results", results), ("errors", errors)):
            if not (isinstance(place, str) and place) and not (place is None and name == "errors"):
                checks.refuse(f"{name} is {shown.value(place)}, not a path or an s3:// URI")
        if inputs is not None and _order(order) != "input":
            checks.refuse("order: the columns of inputs can stand beside the outcomes in the order of the input alone")
        from_ = None if inputs is None else source(inputs, format)
        with OutcomeFiles(results, errors, from_) as files:
            yield from keeping.filled(self._outcomes(job_id, _order(order)), files)
        return files.succeeded, files.failed

    def cancel(self, job_id: str) -> Steps[JobStatus]:
        """Cancels the rows of a job that have not ended. Those that have keep their outcomes."""
        status = yield from self.status(job_id)
        if status.state.is_final:
            return status
        yield from keeping.stop(job_id, JobState.CANCELLED, ErrorCode.CANCELLED)
        return (yield from self.status(job_id))

    def keep(self, step: str, job_id: str, token: str | None = None) -> Steps[None]:
        """Does what is left to do for a job, as workers have it done; see :mod:`pipeq.jobs.keeping`.

        Args:
            step: ``finalize``, ``expire`` or ``recover``.
            job_id: the job.
            token: of a worker's claim.
        """
        job_id = checks.task_id(job_id)
        if token is not None and not isinstance(token, str):
            checks.refuse(f"token is {shown.value(token)}, not text")
        if step == "finalize":
            yield from keeping.finalize(job_id, self._read, token)
        elif step in ("expire", "recover"):
            if (yield from (keeping.expire if step == "expire" else keeping.recover)(job_id)) and token is not None:
                yield from keeping.Claim(job_id, token).give_back()  # perhaps its files are to be written now
        else:
            checks.refuse(f"step is {shown.value(step)}, not one of finalize, expire and recover")

    def _outcomes(
        self, job_id: str, order: str = "input", *, follow: bool = False, forget: bool = False
    ) -> Stream[list[dict[str, Any]]]:
        if order == "input" and (follow or forget):
            checks.refuse(f"{'follow' if follow else 'forget'}: that needs order='completed'")
        yield from self.status(job_id)
        if order == "input":
            return (yield from outcomes(job_id, self._read))
        return (
            yield from as_completed(job_id, self._read, partial(self._more, job_id) if follow else None, forget=forget)
        )

    def _more(self, job_id: str) -> Steps[bool]:
        """Waits a moment for further outcomes, and says whether there may be some."""
        status = yield from self.status(job_id)
        if status.state.is_final or status.state is JobState.FINALIZING:
            return False
        yield Sleep(LOOK_S)
        return True

    def _read(self, uri: str) -> Any:
        return read_result(uri, self._allow)

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

    def _make(self, plan: Plan, from_: Source, files: Mapping[str, str]) -> Steps[None]:
        """Makes the job, or finds the one that is to go on."""
        spec = {
            "pipeline": plan.pipeline,
            "input": [from_.name, from_.kind],
            "columns": [dict(plan.columns.fields), plan.columns.id, dict(plan.columns.params)],
            "params": plan.params,
            "output": plan.output,
            **files,
        }
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
        fields = {"pipeline": plan.pipeline, "input": f"{from_.name} ({from_.kind})", "spec": digest, **files}
        if plan.expires_at is not None:
            fields["expires_at"] = str(plan.expires_at)
        if not (yield from store.create(plan.job_id, fields)):
            known = yield from store.spec_of(plan.job_id)
            if known is not None and known != digest:
                checks.refuse(
                    f"job_id {plan.job_id!r} is that of another job: with other inputs, columns, params or pipeline it "
                    "needs another id"
                )
            yield from store.go_on(plan.job_id)

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


def _output(value: Any) -> dict[str, Any] | None:
    found = checks.output(value, many=True)
    if found is not None and (naming.has_fields(found["uri"]) or "include_inputs" in found):
        checks.refuse(
            "output of a job is a prefix such as s3://bucket/prefix/, without fields to fill in and without "
            "include_inputs: the rows of a job are written together (results=), beside their inputs by save(inputs=)"
        )
    return found


def _order(value: Any) -> str:
    if value not in ("input", "completed"):
        checks.refuse(f"order is {shown.value(value)}, not input or completed")
    return str(value)


def _files(results: Any, errors: Any, order: Any) -> dict[str, str]:
    """The fields of a job with the files that a worker is to write."""
    found = {}
    for name, place in (("results", results), ("errors", errors)):
        if place is None:
            continue
        if not isinstance(place, str) or schemes.of(place) not in ("s3", "file") or place.endswith("/"):
            checks.refuse(f"{name} is {shown.value(place)}, not a URI like s3://bucket/out.jsonl or file:///out.csv")
        found[name] = place
    if errors is not None and results is None:
        checks.refuse("errors needs results: give both, or results alone")
    if _order(order) == "completed" and found:
        found["order"] = order
    return found


def _progress(value: Any) -> Callable[[JobStatus], None]:
    return _function("progress", value, "the job's status") or (lambda _: None)


def _function(name: str, value: Any, of: str) -> Any:
    if value is not None and (not callable(value) or isinstance(value, type)):
        checks.refuse(f"{name} is {shown.value(value)}, not a function of {of}")
    return value


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
    keep = blocking(JobCalls.keep)
    retry = blocking(JobCalls.retry)
    list = blocking(JobCalls.list)
