"""CONTRACT: what Redis holds for one job: its record, its packs that have not ended, and the outcomes of the others.

    pipeq:job:<id>           hash: what its producer says of it, and what is counted; also the channel of its end
    pipeq:job-open:<id>      hash: field of a pack that has not ended -> its rows (:func:`rows_text`)
    pipeq:job-outcomes:<id>  hash: field of a pack -> its outcomes, or where they are
    pipeq:job-cursor:<id>    string: how far its producer has read the input
    pipeq:jobs               sorted set: job id -> when it was made
    pipeq:job-done:<id>      list: fields of the outcomes, in the order in which they came
    pipeq:job-claim:<id>     string with a lifetime: who writes the job's files, or ends what is left of it
    pipeq:jobs-open          set: ids of the jobs that have not ended
    pipeq:jobs-final         set: ids of the jobs whose files are to be written

A job's rows travel in packs (:mod:`pipeq.contract.pack`), numbered from 0 in the order of the input. A pack is the task
``<job>-<field>``. However that task ends, the step that says so in its record also takes the pack out of the open ones
and counts its rows (``job.lua``; a client that cancels does the same in its transaction, :func:`ended_by_client`). What
is not open is not counted, so each row counts once, whatever was killed or sent twice. When the producer has said how
many rows there are, and the last of them has ended, that step also ends the job: no coordinator.

The outcomes of a pack are JSON: a list of ``{"row", "line", "custom_id", "result"}`` or ``{..., "error": {"code",
"message", "retryable"}}``; or ``{"uri"}`` of an object that holds this list; or ``{"error", "rows": [[line, custom_id],
...]}`` if all of its rows ended alike, without a worker that had read them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any, Final

from pipeq.contract import keys
from pipeq.contract.errors import ErrorCode
from pipeq.contract.reading import json_value, number
from pipeq.contract.writing import to_json

#: How long a job is kept after the last thing that happened to it, in seconds.
TTL_S: Final = keys.PENDING_TTL_S
#: What workers register that know packs, and count their rows as it is written here.
VERSION: Final = 1
#: In front of the names of the fields that count failed rows by their error's code.
CODE: Final = "code:"


class JobState(StrEnum):
    """What a job is doing."""

    #: It was made, and no row has been read yet.
    VALIDATING = "validating"
    #: Rows are being submitted, or wait, or run.
    IN_PROGRESS = "in_progress"
    #: All rows have ended; their outcomes are being written to files.
    FINALIZING = "finalizing"
    #: All rows have ended. Some of them may have failed.
    COMPLETED = "completed"
    #: It could not go on; ``error`` says why.
    FAILED = "failed"
    #: Its rows are being cancelled.
    CANCELLING = "cancelling"
    #: It was cancelled; the rows that had ended before keep their outcomes.
    CANCELLED = "cancelled"
    #: Its time was over before all rows had ended.
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


def job_key(job_id: str) -> str:
    """Hash: what is known of a job."""
    return f"pipeq:job:{job_id}"


def outcomes_key(job_id: str) -> str:
    """Hash: number of a pack -> JSON of its outcomes, or of where they are."""
    return f"pipeq:job-outcomes:{job_id}"


def open_key(job_id: str) -> str:
    """Hash: field of a pack that has not ended -> how many rows it has, and which."""
    return f"pipeq:job-open:{job_id}"


def cursor_key(job_id: str) -> str:
    """String: how far the producer of a job has read its input, as JSON."""
    return f"pipeq:job-cursor:{job_id}"


def done_key(job_id: str) -> str:
    """List: fields of the outcomes, in the order in which they came."""
    return f"pipeq:job-done:{job_id}"


def claim_key(job_id: str) -> str:
    """String with a lifetime: who writes the files of a job, or ends what is left of it."""
    return f"pipeq:job-claim:{job_id}"


#: Sorted set: job id -> when it was made, in seconds since the epoch.
JOBS: Final = "pipeq:jobs"
#: Set: ids of the jobs that have not ended.
OPEN: Final = "pipeq:jobs-open"
#: Set: ids of the jobs whose files are to be written.
FINAL: Final = "pipeq:jobs-final"
#: How long a claim lasts that nobody renews, in seconds.
CLAIM_S: Final = 20


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What is known of a job: what :meth:`pipeq.Client.jobs` returns, and ``pipeq job status --json`` prints."""

    id: str
    state: JobState
    pipeline: str = ""
    #: What is read, in words, and where results go; for people.
    input: str = ""
    #: Rows that were submitted, and whether these are all of them.
    submitted: int = 0
    is_sealed: bool = False
    #: Rows that have ended, each either way; and the failed ones by their error's code. Lines that could not be read
    #: are among them.
    succeeded: int = 0
    failed: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    #: Packs that were submitted, and where the producer goes on if it is started again: the number of lines read.
    packs: int = 0
    lines: int = 0
    #: Seconds since the epoch.
    created_at: float | None = None
    last_at: float | None = None
    finished_at: float | None = None
    #: When it was last searched for packs whose messages are gone.
    searched_at: float | None = None
    #: Seconds that devices have worked for it.
    device_s: float = 0.0
    #: When rows that have not ended expire, in seconds since the epoch.
    expires_at: float | None = None
    #: Where workers write results and errors when all rows have ended.
    results: str | None = None
    errors: str | None = None
    #: The order of the rows in them: ``input`` or ``completed``.
    order: str = "input"
    #: Why it failed.
    error: str | None = None

    @property
    def done(self) -> int:
        """Rows that have ended."""
        return self.succeeded + self.failed

    @property
    def rate(self) -> float | None:
        """Rows a second, from its beginning until its last row."""
        if self.created_at is None or self.last_at is None or self.last_at <= self.created_at:
            return None
        return self.done / (self.last_at - self.created_at)

    @property
    def left_s(self) -> float | None:
        """Seconds until it is done at this rate; None if that is not known, for instance while rows are still read."""
        rate = self.rate
        return (self.submitted - self.done) / rate if rate and self.is_sealed else None

    def to_json(self) -> dict[str, Any]:
        """Returns it as an object of JSON."""
        found = {name: value for name, value in vars(self).items() if value is not None}
        return found | {"done": self.done, "rate": self.rate, "left_s": self.left_s}


def read(job_id: str, fields: dict[bytes, bytes]) -> JobStatus | None:
    """Reads a job from the hash in Redis; None if there is none. Never raises: anybody may have written there."""
    found = {name.decode("utf-8", "replace"): value for name, value in fields.items()}
    if "state" not in found:
        return None

    def text(name: str) -> str:
        return found.get(name, b"").decode("utf-8", "replace")

    def count(name: str) -> int:
        return int(_number(found.get(name)) or 0)

    try:
        state, stop = JobState(text("state")), text("stop")
    except ValueError:
        return None
    if state is JobState.VALIDATING and (count("rows") or text("sealed") == "1"):
        state = JobState.IN_PROGRESS
    if state is JobState.IN_PROGRESS and stop:
        state = JobState.CANCELLING
    return JobStatus(
        id=job_id,
        state=state,
        pipeline=text("pipeline"),
        input=text("input"),
        submitted=count("rows"),
        is_sealed=text("sealed") == "1",
        succeeded=count("succeeded"),
        failed=count("failed"),
        codes={name.removeprefix(CODE): count(name) for name in sorted(found) if name.startswith(CODE)},
        packs=count("packs"),
        lines=count("lines"),
        created_at=_number(found.get("created_at")),
        last_at=_number(found.get("last_at")),
        finished_at=_number(found.get("ended_at")),
        searched_at=_number(found.get("searched_at")),
        device_s=(_number(found.get("device_ms")) or 0.0) / 1000,
        expires_at=_number(found.get("expires_at")),
        results=text("results") or None,
        errors=text("errors") or None,
        order=text("order") or "input",
        error=text("error") or None,
    )


def _number(value: bytes | None) -> float | None:
    try:
        return number(float(value)) if value is not None else None
    except ValueError:
        return None


# -- packs that have not ended ----------------------------------------------------------------------------------------

#: The id of a pack's task: that of its job, and its field there.
_PACK: Final = re.compile(r"(.+)-(\d{1,15}(?:\.\d{1,15})?)", re.DOTALL)
_FIELD_CHARS: Final = 31


def pack_of(task_id: str) -> tuple[str, str] | None:
    """The job that a task may be a pack of, and its field there; whether it is one, the open packs say."""
    found = _PACK.fullmatch(task_id)
    return None if found is None else (found[1], found[2])


def rows_text(rows: Iterable[tuple[int | None, str | None]]) -> str:
    """What the open packs have of one: the number of its rows, and line and name of each."""
    listed = list(rows)
    return f"{len(listed)}:{to_json(listed, is_finite=True).decode()}"


#: Why clients end packs -> what the outcomes of their rows say.
SENTENCES: Final = {
    ErrorCode.CANCELLED: "it was cancelled before it had ended",
    ErrorCode.EXPIRED: "its job expired before it had ended",
    ErrorCode.WORKER_LOST: "its message is not in Redis any more: somebody has removed it",
}


def ended_by_client(task_id: str, rows: bytes, now: float, code: ErrorCode) -> list[tuple[Any, ...]]:
    """The commands that count the rows of a pack as failed, if they run with what ends its record.

    Args:
        task_id: the pack's.
        rows: what the open packs have of it.
        now: seconds since the epoch.
        code: why: one of :data:`SENTENCES`.
    """
    found = pack_of(task_id)
    assert found is not None
    (job_id, name), (count, _, heads) = found, rows.decode().partition(":")
    key = job_key(job_id)
    error = {"code": str(code), "message": SENTENCES[code], "retryable": False}
    return [
        ("HDEL", open_key(job_id), name),
        ("RPUSH", done_key(job_id), name),
        ("EXPIRE", done_key(job_id), TTL_S),
        ("HSET", outcomes_key(job_id), name, f'{{"error":{json.dumps(error)},"rows":{heads}}}'),
        ("EXPIRE", outcomes_key(job_id), TTL_S),
        ("HINCRBY", key, "failed", int(count)),
        ("HINCRBY", key, f"{CODE}{code}", int(count)),
        ("HSET", key, "last_at", now),
    ]


def outcomes(text: bytes) -> tuple[list[dict[str, Any]], str | None]:
    """Reads the outcomes of a pack as Redis has them: a list, or the URI of the object that holds it.

    Raises:
        ValueError: it is neither.
    """
    value = json_value(text)
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return value, None
    if isinstance(value, dict):
        if isinstance(uri := value.get("uri"), str):
            return [], uri
        if isinstance(error := value.get("error"), dict) and isinstance(rows := value.get("rows"), list):
            return [
                {"row": at, "line": row[0], "custom_id": row[1], "error": error}
                for at, row in enumerate(rows)
                if isinstance(row, list) and len(row) == 2
            ], None
    raise ValueError("neither a list of outcomes nor where one is")


@cache
def lua() -> str:
    """What every script needs that ends tasks, below the lines of :data:`pipeq.contract.record.LUA`."""
    names = {
        "JOB_TTL_S": TTL_S,
        "FIELD_CHARS": _FIELD_CHARS,
        "JOB_CODE": f"'{CODE}'",
        "JOB": f"'{job_key('')}'",
        "JOB_PACKS": f"'{open_key('')}'",
        "JOB_OUTCOMES": f"'{outcomes_key('')}'",
        "JOB_DONE": f"'{done_key('')}'",
        "JOBS_OPEN": f"'{OPEN}'",
        "JOBS_FINAL": f"'{FINAL}'",
    }
    head = "".join(f"local {name} = {value}\n" for name, value in names.items())
    return head + (resources.files(__package__) / "job.lua").read_text(encoding="utf-8")
