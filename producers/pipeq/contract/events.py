"""EVENTS: the stream of state changes, which is off until an operator switches it on. Only this module knows its form.

The string ``pipeq:events-max`` is the switch: while it is there, it says how many events the stream ``pipeq:events``
keeps. Whatever changes a record adds the event in the same step: the scripts of workers and operators (by :data:`LUA`),
and the transactions of clients (by :func:`command`). docs/decisions/events.md says why.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

from pipeq.contract import keys
from pipeq.contract.status import CELERY_STATES, State

#: Most events that may be kept.
KEPT_MOST = 100_000_000
#: Most characters of a field that is read.
_CHARS = 2000

_STATES = ", ".join(f"{word} = '{state}'" for state, word in CELERY_STATES.items() if state is not State.EXPIRED)
#: For the scripts that change records, below the lines of :data:`pipeq.contract.record.LUA`.
LUA = (
    f"""
local EVENTS, KEPT = '{keys.EVENTS}', '{keys.EVENTS_MAX}'
local EVENT_STATES = {{{_STATES}}}
"""
    + """
-- Returns how many events are kept; nil while the stream is off.
local function events_kept()
  local kept = redis.pcall('GET', KEPT)
  kept = type(kept) == 'string' and tonumber(kept) or 0
  return kept >= 1 and math.floor(kept) or nil
end

local function say_event(kept, id, state, pipeline, attempt, worker, code)
  local event = {'task_id', id, 'state', state}
  for name, value in pairs({pipeline = pipeline, attempt = attempt, worker = worker, code = code}) do
    if type(value) == 'number' or (type(value) == 'string' and value ~= '') then
      event[#event + 1] = name
      event[#event + 1] = value
    end
  end
  redis.pcall('XADD', EVENTS, 'MAXLEN', '~', kept, '*', unpack(event))
end

-- Adds the event of a record that is new. A record that pipeq has no part in is no task of ours.
local function say_record(kept, id, text)
  local ok, record = pcall(cjson.decode, text)
  local part = ok and type(record) == 'table' and record.pipeq
  if type(part) ~= 'table' then
    return
  end
  local state, error = EVENT_STATES[record.status], part.error
  local said = type(record.result) == 'table' and record.result.exc_message
  if state == 'cancelled' and (type(said) == 'table' and said[1] or said) == 'expired' then
    state = 'expired'
  end
  local code = type(error) == 'table' and error.code
  say_event(kept, id, state or 'queued', part.pipeline, part.attempts, part.worker, code)
end
"""
)


@dataclass(frozen=True, kw_only=True)
class Event:
    """One state change of one task."""

    #: Its place in the stream; ``after=`` an event's id, the next ones follow.
    id: str
    #: When it happened, by the clock of Redis, in seconds since the epoch.
    at: float
    task_id: str
    #: The state that the task has now.
    state: State
    #: None for a task of a stock Celery producer until a worker begins it.
    pipeline: str | None = None
    #: The number of the try, once a worker has begun one.
    attempt: int | None = None
    #: The worker that has the task, or ended it.
    worker: str | None = None
    #: Why it failed, or will be tried again: one of :class:`pipeq.ErrorCode`.
    code: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return asdict(self)


_NAMES = [one.name for one in dataclasses.fields(Event)]


def command(
    kept: int,
    task_id: str,
    state: State,
    pipeline: str | None,
    attempt: int | None = None,
    worker: str | None = None,
    code: str | None = None,
) -> tuple[str | int, ...]:
    """Returns the command that adds an event with these fields; ``kept`` is from :func:`kept_of`, and not 0.

    A client may not know yet that the stream was switched off; then there is none, and the command makes none.
    """
    found: list[str | int] = ["XADD", keys.EVENTS, "NOMKSTREAM", "MAXLEN", "~", kept, "*", "task_id", task_id]
    found += ("state", str(state))
    for name, value in zip(_NAMES[4:], (pipeline, attempt, worker, code), strict=True):
        if value:
            found += (name, value)
    return tuple(found)


def kept_of(value: object) -> int:
    """Returns how many events are kept, as the switch in Redis says; 0 while the stream is off."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return min(int(text), KEPT_MOST) if isinstance(text, str) and text.isdecimal() and len(text) < 10 else 0


def read(event_id: bytes, fields: Mapping[bytes, bytes] | None) -> Event | None:
    """Returns one entry of the stream; None if it is no event, since any client may have written anything there."""
    texts = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, value in (fields or {}).items()}
    one = SimpleNamespace(**{name: texts.get(name, "")[:_CHARS] for name in _NAMES})
    try:
        state = State(one.state)
    except ValueError:
        return None
    if not keys.is_task_id(one.task_id):
        return None
    place = event_id.decode("ascii", "replace")
    return Event(
        id=place,
        at=int(place.partition("-")[0]) / 1000,
        task_id=one.task_id,
        state=state,
        pipeline=one.pipeline or None,
        attempt=int(one.attempt) if one.attempt.isdecimal() and len(one.attempt) < 10 else None,
        worker=one.worker or None,
        code=one.code or None,
    )
