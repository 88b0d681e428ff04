"""PRODUCING: the records of a source -> packs in Redis, from where the job's cursor stands. Before: readers.

It waits while enough rows of the job wait or run, so that a job of any length fills neither Redis nor this process. It
may be killed at any moment; the next one goes on (see store).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeq.contract import keys, naming, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.job import JobState, JobStatus
from pipeq.contract.message import Output
from pipeq.contract.pack import PackMessage, PackOf, PackRow, most_rows_with, row_id
from pipeq.envelope import Envelope, new_id
from pipeq.jobs import packing, store
from pipeq.jobs.columns import Columns
from pipeq.jobs.ending import status_of
from pipeq.jobs.local_rows import LocalRows
from pipeq.jobs.packing import Line
from pipeq.jobs.readers import TEXT_KINDS, Source
from pipeq.jobs.records import DRY, is_record
from pipeq.jobs.store import Cursor, Parcel
from pipeq.protocol import Run, Sleep, Steps
from pipeq.wanted import Fed

#: Packs that one transaction queues.
TOGETHER = 8
#: Records that are taken of an asynchronous input before rows are made of them.
TAKEN = 256
#: How often it is looked whether rows have ended, while enough of them are under way, in seconds.
LOOK_S = 0.2


@dataclass(frozen=True)
class Plan:
    """How the rows of a job are sent."""

    job_id: str
    pipeline: str
    columns: Columns
    most_rows: int
    max_message_bytes: int
    params: Mapping[str, Any] = field(default_factory=dict)
    #: Where outcomes go that are too large for Redis, as a message has it; with fields to fill in, where results go.
    output: Mapping[str, Any] | None = None
    #: Whether what was asked stands beside what was answered.
    include_inputs: bool = False
    #: What rows have in memory, or in files of this machine.
    local: LocalRows = field(default_factory=lambda: LocalRows(None, keys.MAX_MESSAGE_BYTES))
    priority: int = keys.JOB_PRIORITY
    headers: Mapping[str, Any] = field(default_factory=dict)
    #: Says of the number of a line whether it is meant; None for all.
    lines: Callable[[int], bool] | None = None
    #: When rows that have not ended expire, in seconds since the epoch.
    expires_at: float | None = None
    #: Rows that wait or run at most.
    max_backlog: int = 50_000


def produce(plan: Plan, source: Source, told: Callable[[JobStatus], None]) -> Steps[None]:
    """Queues what the cursor says is not queued yet, and seals the job.

    Args:
        plan: how rows are sent.
        source: what is read, from its beginning.
        told: called with the job's status now and then.

    Raises:
        PipeqError: the source cannot be read, or somebody else has queued what was read here.
    """
    cursor = yield from store.cursor_of(plan.job_id)
    if (status := (yield from status_of(plan.job_id))) is not None and _is_over(status):
        return
    packs = _packs(_with_places(plan, status, source.kind), source, cursor.lines)
    while some := (yield from _next(packs, source.fed)):
        yield from _wait_for_room(plan, told)
        yield Run(plan.local.flush)
        parcel = _parcel(plan, cursor, some)
        if not (yield from store.put(plan.job_id, cursor, parcel)):
            if (status := (yield from status_of(plan.job_id))) is not None and _is_over(status):
                return
            sentence = f"the job {plan.job_id!r} is being submitted by another process, too"
            raise PipeqError(ErrorCode.IN_USE, sentence)
        cursor = parcel.cursor
        if (status := (yield from status_of(plan.job_id))) is not None:
            if _is_over(status):
                return
            told(status)
    yield from store.seal(plan.job_id)


def _with_places(plan: Plan, status: JobStatus | None, kind: str) -> Plan:
    """The plan, with what makes rows of records of a kind of file."""
    made_at = None if status is None else status.created_at
    chosen = replace(plan.columns, wrap=plan.local.wrap, is_text=kind in TEXT_KINDS)
    if plan.output is None or not naming.has_fields(uri := plan.output["uri"]):
        return replace(plan, columns=chosen)

    def place(row: PackRow) -> str:
        """The day is that of the job, whenever its producer was started again."""
        name = row_id(plan.job_id, row.line)
        about = {"pipeline": plan.pipeline, "inputs": row.inputs, "custom_id": row.custom_id}
        return Output(uri=naming.expand(uri, task_id=name, now=made_at, **about)).object_uri(name)

    return replace(plan, columns=replace(chosen, place=place))


def _next(packs: Iterator[packing.Pack | None], fed: Fed | None) -> Steps[list[packing.Pack]]:
    """The packs that are queued next; none at the end of the input."""
    found: list[packing.Pack] = []

    def take() -> bool:
        """Returns whether more of the input must be taken first. For its records this may be another thread."""
        for pack in packs:
            if pack is None:
                return True
            found.append(pack)
            if len(found) == TOGETHER:
                break
        return False

    while (yield Run(take)):
        assert fed is not None
        yield from fed.take(TAKEN)
    return found


def _packs(plan: Plan, source: Source, done: int) -> Iterator[packing.Pack | None]:
    """The packs of what comes behind the lines that were queued before; None where more must be taken first."""
    lines = _lines(source.records(), done, plan)
    most_rows = min(plan.most_rows, most_rows_with(plan.params)) if plan.params else plan.most_rows
    yield from packing.packs(lines, most_rows, min(packing.BYTES, plan.max_message_bytes // 2))


def _is_over(status: JobStatus) -> bool:
    return status.state.is_final or status.state in (JobState.CANCELLING, JobState.FINALIZING)


def _lines(records: Iterable[Any], done: int, plan: Plan) -> Iterator[Line | None]:
    most, number = plan.max_message_bytes - 4096, 0
    for record in records:
        if record is DRY:
            yield None
            continue
        number += 1
        if number <= done or (plan.lines is not None and not plan.lines(number)):
            continue
        if is_record(record):
            plan.local.begin(number)
            yield plan.columns.line(number, record, most)
        elif isinstance(record, PipeqError):
            yield Line(number, None, error=record)
    if number < done:
        sentence = f"the input has {shown.count(number, 'line')}, and {done} were submitted: it is another one"
        raise PipeqError(ErrorCode.INVALID_INPUT, sentence)


def _wait_for_room(plan: Plan, told: Callable[[JobStatus], None]) -> Steps[None]:
    while (status := (yield from status_of(plan.job_id))) is not None:
        told(status)
        if status.submitted - status.done < plan.max_backlog or _is_over(status):
            return
        yield Sleep(LOOK_S)


def _parcel(plan: Plan, before: Cursor, packs: list[packing.Pack]) -> Parcel:
    envelopes, bodies, wrong = [], [], {}
    rows, number = before.rows, before.packs
    for pack in packs:
        if pack.wrong:
            wrong[number] = pack.wrong
        if pack.rows:
            message = PackMessage(
                plan.pipeline,
                tuple(pack.rows),
                PackOf(plan.job_id, number),
                plan.params,
                None if plan.output is None or naming.has_fields(plan.output["uri"]) else Output(**plan.output),
                plan.include_inputs,
            )
            envelope = Envelope(
                f"{plan.job_id}-{number}",
                message,
                priority=plan.priority,
                headers=plan.headers,
                expires_at=plan.expires_at,
            )
            envelopes.append(envelope)
            bodies.append(envelope.body_of(message.to_text(pack.texts)))
        rows += len(pack.rows) + len(pack.wrong)
        number += 1
    cursor = Cursor(max(packs[-1].last_line, before.lines), rows, number, new_id())
    return Parcel(envelopes, bodies, wrong, cursor)
