"""CALLS: what both clients can do with jobs, written once, as steps: ids -> status, results, an end. Used by jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from pipeq import checks
from pipeq.contract import schemes, shown
from pipeq.contract.errors import ErrorCode, PipeqError, WaitTimeoutError
from pipeq.contract.job import JobState, JobStatus
from pipeq.envelope import new_id
from pipeq.jobs import arguments, keeping, places, store
from pipeq.jobs.ending import end_if_done, is_done, status_of
from pipeq.jobs.files import Asked, Beside, OutcomeFiles
from pipeq.jobs.outcomes import as_completed, outcomes
from pipeq.jobs.readers import source
from pipeq.jobs.submit_calls import SubmitCalls
from pipeq.jobs.watching import Watch
from pipeq.protocol import Give, Steps, Stream, given
from pipeq.results import read_result
from pipeq.warn import warn

#: How long workers have to write the files of a job before a client does, in seconds.
WORKERS_S = 30.0


class JobCalls(SubmitCalls):
    """See :class:`.jobs.Jobs`."""

    def retry(
        self,
        /,
        job_id: str,
        inputs: Any,
        *,
        codes: str | Iterable[str] | None = None,
        new_job_id: str | None = None,
        **options: Any,
    ) -> Steps[str | None]:
        """Submits those rows of a job again that failed, as a new job. Returns its id; None if no row failed so.

        Redis does not keep the rows of a job, so its input is read again.

        Args:
            job_id: the job; its rows must have ended.
            inputs: the job's input. One that lacks lines that failed is warned of.
            codes: the codes of the errors that are meant; None for all.
            new_job_id: a name of your own for the new job: a retry that broke off may be repeated with it.
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
        again = new_job_id if new_job_id is not None else f"{job_id}-again-{new_id()[:8]}"
        yield from self.submit(status.pipeline, inputs, job_id=again, lines=lines.__contains__, **options)
        there = (yield from self.status(again)).submitted
        if there < len(lines):
            warn(
                f"the input has only {there} of the {len(lines)} lines that failed in {shown.line(job_id)!r}: "
                f"is it the job's input? {shown.line(again)!r} has those alone",
                UserWarning,
            )
        return again

    def status(self, job_id: str) -> Steps[JobStatus]:
        """How far a job is.

        Raises:
            PipeqError: ``unknown_job``: there is no such job, or it was forgotten (7 days after its last row).
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
            raise PipeqError(ErrorCode.UNKNOWN_JOB, f"there is no job {shown.line(job_id)!r} in this Redis")
        return status

    def wait(
        self, job_id: str, timeout_s: float | None = None, *, progress: Callable[[JobStatus], None] | None = None
    ) -> Steps[JobStatus]:
        """Waits until all rows of a job have ended. A Redis that goes away meanwhile may come back.

        Args:
            job_id: the job.
            timeout_s: how long to wait, in seconds; None waits for ever.
            progress: called with each status that is read.

        Raises:
            WaitTimeoutError: they have not; the job goes on.
        """
        limit_s, told = checks.seconds("timeout_s", timeout_s), arguments.progress(progress)
        until = None if limit_s is None else time.monotonic() + limit_s
        watch = Watch(checks.task_id(job_id), lambda: self.status(job_id), until)
        while True:
            status = yield from watch.status()
            if status is not None:
                told(status)
                if status.state.is_final:
                    return status
                if status.state is JobState.FINALIZING and (yield from self._finalize(status)):
                    continue
                if until is not None and time.monotonic() >= until:
                    raise WaitTimeoutError(
                        f"{status.done} of {status.submitted} rows of the job {shown.line(job_id)!r} had ended after "
                        f"{limit_s:g} s; it goes on"
                    )
            yield from watch.pause()

    def _finalize(self, status: JobStatus) -> Steps[bool]:
        """Writes the files of a job if no worker does so: there may be none any more. Returns whether it did."""
        since = time.time() - (status.last_at or 0.0)
        if since < WORKERS_S or "file" in map(schemes.of, filter(None, (status.results, status.errors))):
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
            job_id,
            arguments.row_order(order),
            follow=checks.flag("follow", follow),
            forget=checks.flag("forget", forget),
        )
        while (found := (yield from given(stream))) is not None:
            for one in found:
                yield Give(one)
        return None

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
        """Writes results, and errors, to files: paths or URIs of stores; JSON lines, CSV or Parquet by the name.

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
                checks.refuse(f"{name} is {shown.value(place)}, not a path or a URI like s3://bucket/out.jsonl")
        places.check(results, errors, inputs)
        if inputs is not None and arguments.row_order(order) != "input":
            checks.refuse("order: the columns of inputs can stand beside the outcomes in the order of the input alone")
        read = None if inputs is None else source(inputs, format)
        if read is not None and read.fed is not None:
            checks.refuse(f"inputs is {read.name}, and is read here as a file is: give a file, or a list")
        beside: Any = None if read is None else Beside(read)
        if beside is None and (asked := (yield from store.columns_of(checks.task_id(job_id)))) is not None:
            beside = Asked(*asked)
        with OutcomeFiles(results, errors, beside) as files:
            yield from keeping.filled(self._outcomes(job_id, arguments.row_order(order)), files)
        return files.succeeded, files.failed

    def cancel(self, job_id: str) -> Steps[JobStatus]:
        """Cancels the rows of a job that have not ended. Those that have keep their outcomes."""
        status = yield from self.status(job_id)
        if status.state.is_final:
            return status
        yield from keeping.stop(job_id, JobState.CANCELLED, ErrorCode.CANCELLED)
        return (yield from self.status(job_id))

    def _outcomes(
        self, job_id: str, order: str = "input", *, follow: bool = False, forget: bool = False
    ) -> Stream[list[dict[str, Any]]]:
        if order == "input" and (follow or forget):
            checks.refuse(f"{'follow' if follow else 'forget'}: that needs order='completed'")
        yield from self.status(job_id)
        if order == "input":
            return (yield from outcomes(job_id, self._read))
        more = partial(self._more, Watch(job_id, lambda: self.status(job_id), None)) if follow else None
        return (yield from as_completed(job_id, self._read, more, forget=forget))

    @staticmethod
    def _more(watch: Watch, is_new: bool) -> Steps[bool]:
        """Waits a while for further outcomes, and says whether there may be some."""
        status = yield from watch.status()
        if status is not None and (status.state.is_final or status.state is JobState.FINALIZING):
            return False
        yield from watch.pause(is_first=is_new)
        return True

    def _read(self, uri: str) -> Any:
        return read_result(uri, self._allow)

    def list(self) -> Steps[list[JobStatus]]:
        """All jobs that are kept, the newest first."""
        found = []
        for job_id in (yield from store.ids()):
            if (status := (yield from status_of(job_id))) is not None:
                found.append(status)
        return found
