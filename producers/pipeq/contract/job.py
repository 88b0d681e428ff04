"""CONTRACT: what Redis holds for one job: its record, its packs that have not ended, and the outcomes of the others.

    pipeq:job:<id>           hash: what its producer says of it, and what is counted
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
and counts its rows (:data:`LUA`; a client that cancels does the same in its transaction, :func:`cancelled`). What is
not open is not counted, so each row counts once, whatever was killed or sent twice. When the producer has said how many
rows there are, and the last of them has ended, that step also ends the job: no coordinator.

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
from typing import Any, Final

from pipeq.contract import keys
from pipeq.contract.errors import ErrorCode
from pipeq.contract.reading import json_value, number

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


def pack_of(task_id: str) -> tuple[str, str] | None:
    """The job that a task may be a pack of, and its field there; whether it is one, the open packs say."""
    found = _PACK.fullmatch(task_id)
    return None if found is None else (found[1], found[2])


def rows_text(rows: Iterable[tuple[int | None, str | None]]) -> str:
    """What the open packs have of one: the number of its rows, and line and name of each."""
    listed = list(rows)
    return f"{len(listed)}:{json.dumps(listed, separators=(',', ':'))}"


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


#: What every script needs that ends tasks, below the lines of :data:`pipeq.contract.record.LUA`.
LUA: Final = (
    f"""
local JOB_TTL_S, JOB_CODE = {TTL_S}, '{CODE}'
local JOB, JOB_PACKS, JOB_OUTCOMES = '{job_key("")}', '{open_key("")}', '{outcomes_key("")}'
local JOB_DONE, JOBS_OPEN, JOBS_FINAL = '{done_key("")}', '{OPEN}', '{FINAL}'
"""
    + """
-- The job that a task may be a pack of, and its field there.
local function pack_of(id)
  return string.match(id, '^(.+)%-(%d+%.?%d*)$')
end

-- Ends a job whose rows have all been submitted and have all ended.
local function end_job(id, now)
  local job = JOB .. id
  local is = redis.call('HMGET', job, 'state', 'sealed', 'rows', 'succeeded', 'failed', 'stop', 'results')
  local done = (tonumber(is[4] or 0) or 0) + (tonumber(is[5] or 0) or 0)
  if (is[1] == 'validating' or is[1] == 'in_progress') and is[2] == '1' and done >= (tonumber(is[3] or 0) or 0) then
    local has_expired = redis.call('HEXISTS', job, JOB_CODE .. 'expired') == 1
    local last = is[6] or (has_expired and 'expired') or 'completed'
    if is[7] then
      redis.call('SADD', JOBS_FINAL, id)
      redis.call('HSET', job, 'state', 'finalizing', 'then', last, 'rows_ended_at', now)
    else
      redis.call('HSET', job, 'state', last, 'ended_at', now)
      redis.call('SREM', JOBS_OPEN, id)
    end
    redis.call('DEL', JOB_PACKS .. id)
  end
end

-- Counts the rows of a pack that was taken out of the open ones. ABOUT: its field, and numbers; TEXT: its outcomes.
local function count_rows(id, about, text, now)
  local job, outcomes = JOB .. id, JOB_OUTCOMES .. id
  if redis.call('HEXISTS', job, 'state') == 0 then
    return  -- the job was forgotten
  end
  if text ~= '' then
    redis.call('HSET', outcomes, about.field, text)
    redis.call('RPUSH', JOB_DONE .. id, about.field)
  end
  if about.left ~= '' then
    redis.call('HSET', outcomes, about.field .. '+', about.left)
    redis.call('RPUSH', JOB_DONE .. id, about.field .. '+')
  end
  redis.call('HINCRBY', job, 'succeeded', about.succeeded)
  redis.call('HINCRBY', job, 'failed', about.failed)
  redis.call('HINCRBYFLOAT', job, 'device_ms', about.device_ms)
  for code, count in pairs(about.codes) do
    redis.call('HINCRBY', job, JOB_CODE .. code, count)
  end
  redis.call('HSET', job, 'last_at', now)
  redis.call('EXPIRE', job, JOB_TTL_S)
  redis.call('EXPIRE', outcomes, JOB_TTL_S)
  redis.call('EXPIRE', JOB_PACKS .. id, JOB_TTL_S)
  redis.call('EXPIRE', JOB_DONE .. id, JOB_TTL_S)
  end_job(id, now)
end

-- Takes a pack out of the open ones. Returns what they had of it; nil if it is none of them, for instance not any more.
local function take_pack(id, field)
  local rows = redis.call('HGET', JOB_PACKS .. id, field)
  if rows then
    redis.call('HDEL', JOB_PACKS .. id, field)
  end
  return rows
end

-- Why a task ended, as its record says: a code and a sentence.
local function end_of(record)
  local fields = object(record)
  local part, said = fields.pipeq, type(fields.result) == 'table' and fields.result.exc_message
  local error = type(part) == 'table' and type(part.error) == 'table' and part.error or {}
  local code, message = error.code, error.message
  if fields.status == 'REVOKED' and not code then
    said = type(said) == 'table' and said[1] or said
    code = said == 'expired' and 'expired' or 'cancelled'
    message = code == 'expired' and 'it expired before a worker began it' or 'it was cancelled before it had ended'
  end
  return type(code) == 'string' and code or 'internal',
    type(message) == 'string' and message or 'its pack ended without the outcomes of its rows'
end

-- Counts the rows of a task that has ended, if it is a pack, and nobody has read its rows: they all ended as it did.
local function task_ended(id, record, now)
  local job, field = pack_of(id)
  if not job or not ENDED[object(record)[RECORD_STATUS]] then
    return
  end
  local rows = take_pack(job, field)
  local count, heads = string.match(rows or '', '^(%d+):(.*)$')
  if not count then
    return
  end
  local code, message = end_of(record)
  local error = cjson.encode({code = code, message = message, retryable = false})
  local about = {
    field = field, succeeded = 0, failed = tonumber(count), codes = {[code] = tonumber(count)}, left = "", device_ms = 0
  }
  count_rows(job, about, '{"error":' .. error .. ',"rows":' .. heads .. '}', now)
end

-- Whether a job waits for this pack. ABOUT: as for count_rows, with its job.
local function is_open(about)
  return redis.pcall('HEXISTS', JOB_PACKS .. about.job, about.field) == 1
end

-- As the record of a pack whose message has other rows than its producer sent: somebody has overwritten it.
local function other_rows()
  local error = {code = 'invalid_message', message = 'its message has other rows than its producer had sent'}
  return cjson.encode({[RECORD_STATUS] = 'FAILURE', pipeq = {error = error}})
end

-- Counts a pack whose rows were read, and keeps those open that go on alone. PACK: what a worker says of it, whether it
-- is open; ID: its task.
local function end_pack(pack, id, now)
  local about = pack.about
  if not pack.is_open then
    return
  end
  local rows = take_pack(about.job, about.field)
  if tonumber(string.match(rows, '^%d+')) ~= about.succeeded + about.failed + #pack.alone then
    redis.call('HSET', JOB_PACKS .. about.job, about.field, rows)
    return task_ended(id, other_rows(), now)
  end
  for _, one in ipairs(pack.alone) do
    redis.call('HSET', JOB_PACKS .. about.job, one[5], one[6])
  end
  count_rows(about.job, about, pack.outcomes, now)
end
"""
)
