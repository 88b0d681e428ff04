"""OUTCOMES: what Redis and the store hold of a job's rows -> each row's result or error, in the order that is wanted.

Only the outcomes of one pack are in memory at a time. The fields of a pack N: ``N`` (what its worker wrote), ``N+``
(rows that nobody tried again), ``N.R`` (row R, which went alone), ``N!`` (lines that are no rows; from the producer).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pipeq.contract import job
from pipeq.contract.errors import ErrorCode, ReadError
from pipeq.jobs import store
from pipeq.protocol import Give, Run, Steps, Stream

#: Most fields that one round trip reads.
FIELDS = 32
#: Reads the JSON of an object in the workers' store.
Read = Callable[[str], Any]


def outcomes(job_id: str, read: Read) -> Stream[list[dict[str, Any]]]:
    """Hands out, pack by pack in the order of the input, the outcome of each row that has ended.

    Each has ``line``, ``custom_id``, and ``result`` or ``error``.

    Args:
        job_id: the job.
        read: reads the JSON of an object in the workers' store.

    Raises:
        ReadError: an outcome cannot be read.
    """
    packs: dict[int, list[str]] = {}
    for name in (yield from store.outcome_fields(job_id)):
        if (number := _number(name)) is not None:
            packs.setdefault(number, []).append(name)
    for number in sorted(packs):
        yield Give((yield from _of_fields(job_id, packs[number], read)))
    return None


def as_completed(
    job_id: str, read: Read, more: Callable[[bool], Steps[bool]] | None = None, *, forget: bool = False
) -> Stream[list[dict[str, Any]]]:
    """Hands out the same in the order in which rows ended.

    Args:
        job_id: the job.
        read: reads the JSON of an object in the workers' store.
        more: waits for further ones, and says whether there may be some; given whether some have come since its last
            call. None to hand out what is there.
        forget: whether to remove them from Redis when they have been handed out.

    Raises:
        ReadError: an outcome cannot be read.
    """
    at, may_come, is_new = 0, True, True
    while True:
        if not (names := (yield from store.done_fields(job_id, at))):
            if not may_come or more is None:
                return None
            may_come, is_new = (yield from more(is_new)), False
            continue
        at, is_new = at + len(names), True
        for start in range(0, len(names), FIELDS):
            for name in names[start : start + FIELDS]:
                yield Give((yield from _of_fields(job_id, [name], read)))
                if forget:
                    yield from store.forget_outcomes(job_id, name)


def _of_fields(job_id: str, names: Sequence[str], read: Read) -> Steps[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    for start in range(0, len(names), FIELDS):
        some = names[start : start + FIELDS]
        for name, text in zip(some, (yield from store.outcomes(job_id, some)), strict=True):
            if text:
                found += yield Run(partial(_listed, job_id, name, text, read))
    found.sort(key=_place)
    for one in found:
        one.pop("row", None)
    return found


def _listed(job_id: str, name: str, text: bytes, read: Read) -> list[dict[str, Any]]:
    try:
        listed, uri = job.outcomes(text)
        if uri is not None:
            value = read(uri)
            if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
                raise ValueError(f"{uri} holds no list of outcomes")  # noqa: TRY301
            listed = value
    except ValueError as error:
        sentence = f"the outcomes {name} of the job {job_id!r} cannot be read: {error}"
        raise ReadError(ErrorCode.INVALID_RECORD, sentence) from error
    # A row that went alone is the only one of its message; where it stood before, its field says.
    _, dot, row = name.rstrip("+").partition(".")
    if dot and row.isdecimal():
        for one in listed:
            one["row"] = int(row)
    return listed


def _place(one: dict[str, Any]) -> tuple[int, int]:
    line, row = one.get("line"), one.get("row")
    return (line if isinstance(line, int) else 0, row if isinstance(row, int) else 0)


def _number(name: str) -> int | None:
    head = name.rstrip("+!").partition(".")[0]
    return int(head) if head.isdecimal() and len(head) < 16 else None
