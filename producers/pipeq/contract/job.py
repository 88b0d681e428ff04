"""CONTRACT: what Redis holds for one job: its record, and the outcomes of its rows.

    pipeq:job:<id>           hash: a :class:`Job`, and what the script that ends packs counts
    pipeq:job-outcomes:<id>  hash: where the outcomes of each pack are
    pipeq:jobs               sorted set: job id -> when it was made

A job's rows travel in packs (:mod:`pipeq.contract.pack`), numbered from 0 in the order of the input. Whoever ends a
pack counts its rows in the same step, and only once (``finish.lua``), so the counts are exact whatever was killed. When
the producer has said how many rows there are, and the last of them has ended, that step also ends the job: no
coordinator.

The outcomes of a pack are a list, as JSON, of ``{"row", "line", "custom_id", "result"}`` or ``{..., "error": {"code",
"message", "retryable"}}``; or ``{"uri"}`` of an object that holds this list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from pipeq.contract import keys
from pipeq.contract.reading import json_value, number

#: How long a job is kept after the last thing that happened to it, in seconds.
TTL_S: Final = keys.PENDING_TTL_S
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


#: Sorted set: job id -> when it was made, in seconds since the epoch.
JOBS: Final = "pipeq:jobs"


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
    #: Seconds that devices have worked for it.
    device_s: float = 0.0
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
        state = JobState(text("state"))
    except ValueError:
        return None
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
        device_s=(_number(found.get("device_ms")) or 0.0) / 1000,
        error=text("error") or None,
    )


def _number(value: bytes | None) -> float | None:
    try:
        return number(float(value)) if value is not None else None
    except ValueError:
        return None


def outcomes(text: bytes) -> tuple[list[dict[str, Any]], str | None]:
    """Reads the outcomes of a pack as Redis has them: a list, or the URI of the object that holds it.

    Raises:
        ValueError: it is neither.
    """
    value = json_value(text)
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return value, None
    if isinstance(value, dict) and isinstance(uri := value.get("uri"), str):
        return [], uri
    raise ValueError("neither a list of outcomes nor where one is")


#: The lines that ``finish.lua`` needs of this.
LUA: Final = f"""
local JOB_TTL_S = {TTL_S}
-- Counts the rows of a pack that has ended. ABOUT: its field, and numbers; TEXT: its outcomes.
local function count_rows(job, outcomes, about, text, now)
  if redis.call('HEXISTS', job, 'state') == 0 then
    return  -- the job was forgotten
  end
  if text ~= '' then
    redis.call('HSET', outcomes, about.field, text)
  end
  if about.left ~= '' then
    redis.call('HSET', outcomes, about.field .. '+', about.left)
  end
  redis.call('HINCRBY', job, 'succeeded', about.succeeded)
  redis.call('HINCRBY', job, 'failed', about.failed)
  redis.call('HINCRBYFLOAT', job, 'device_ms', about.device_ms)
  for code, count in pairs(about.codes) do
    redis.call('HINCRBY', job, '{CODE}' .. code, count)
  end
  redis.call('HSET', job, 'last_at', now)
  redis.call('EXPIRE', job, JOB_TTL_S)
  redis.call('EXPIRE', outcomes, JOB_TTL_S)
  local is = redis.call('HMGET', job, 'state', 'sealed', 'rows', 'succeeded', 'failed')
  if is[1] == 'in_progress' and is[2] == '1' and tonumber(is[4]) + tonumber(is[5]) >= tonumber(is[3]) then
    redis.call('HSET', job, 'state', 'completed', 'ended_at', now)
  end
end
"""
