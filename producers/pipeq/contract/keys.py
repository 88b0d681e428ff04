"""CONTRACT: every name that pipeq uses in Redis, and the priorities.

A pipeline's queue is a plain list of the pipeline's name, with one list for each priority, exactly as in Celery's own
Redis transport (kombu 5.7, transport/redis.py: ``Channel._q_for_pri``). So a stock Celery producer needs nothing of
ours.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, TypeGuard

#: The version of all that producers in any language rely on: messages, records, and the keys in this module. Optional
#: fields may be added to it; what is removed or means something else is another version.
CONTRACT_VERSION: Final = 1

#: The name of the Celery task in every message.
TASK_NAME: Final = "pipeq.infer"

#: Priorities that have a list of their own; 0 is served first. Other priorities are rounded down to one of these.
PRIORITY_STEPS: Final = (0, 3, 6, 9)
#: The default, for interactive callers.
DEFAULT_PRIORITY: Final = 0
#: For bulk jobs, so that interactive callers overtake them.
JOB_PRIORITY: Final = 6

#: Headers of a message beside Celery's own: the tenant that the task belongs to ...
FAIR_KEY_HEADER: Final = "fair_key"
#: ... a wish, within how many seconds of its submission the task should be done ...
DEADLINE_HEADER: Final = "deadline_s"
#: ... and when it was submitted, in seconds since the epoch. Without it, a worker counts from its receipt.
SENT_AT_HEADER: Final = "sent_at"
#: ... and within how many seconds of its start on a worker the task must be done ...
TIMEOUT_HEADER: Final = "timeout_s"
#: ... and how often workers had begun to run it before an operator took it out of the dead letters.
PAST_ATTEMPTS_HEADER: Final = "past_attempts"
#: ... and, of a task that was tried before and waited for another try: when its first try failed, in seconds since the
#: epoch; how often it waited without having been tried by a worker that could do it; the workers that may not touch
#: what it names; how many workers or processes have died while they worked on it; and the workers that could not do it,
#: by a fault of their own, with the time in seconds since the epoch.
RETRYING_SINCE_HEADER: Final = "retrying_since"
PUT_OFF_HEADER: Final = "put_off"
REFUSED_BY_HEADER: Final = "refused_by"
PAST_DEATHS_HEADER: Final = "past_deaths"
FAILED_ON_HEADER: Final = "failed_on"
#: Most workers in each of both, and most characters of each name.
REFUSED_BY_MAX: Final = 100
WORKER_NAME_MAX: Final = 300
#: More attempts than any worker counts.
ATTEMPTS_MAX: Final = 1_000_000
#: Most characters of a tenant's name.
FAIR_KEY_MAX: Final = 200

#: kombu's separator between a queue's name and its priority.
PRIORITY_SEPARATOR: Final = "\x06\x16"

#: Hash: task id -> JSON of a :class:`pipeq.contract.record.Mark`, for every task in a batch, or lost with one.
RUNNING: Final = "pipeq:running"
#: Hash: delivery tag -> message, for everything inside a worker; and sorted set: delivery tag -> when its lease ends.
UNACKED: Final = "pipeq:unacked"
LEASES: Final = "pipeq:leases"
#: Hash: pipeline name -> JSON of what its last worker registered. Only ``pipeq forget`` removes a field.
PIPELINES: Final = "pipeq:pipelines"
#: Stream: the state changes of all tasks; and string: how many of them are kept. While that is not there, none are.
EVENTS: Final = "pipeq:events"
EVENTS_MAX: Final = "pipeq:events-max"
#: String: the key with which workers sign references for each other. Producers may not read it.
SIGNING_KEY: Final = "pipeq:signing-key"

#: Interval of a worker's heartbeats, in seconds ...
HEARTBEAT_S: Final = 2.0
#: ... and age of the last heartbeat at which a worker counts as dead, in seconds.
WORKER_TTL_S: Final = 10.0

#: How long a record is kept while its task can still run, in seconds.
PENDING_TTL_S: Final = 7 * 86400
#: How long a record is kept after its task ended, in seconds, unless the worker's settings say otherwise.
RESULT_TTL_S: Final = 86400

#: Most bytes of a task's id in UTF-8. An id is any text, as in Celery.
TASK_ID_MAX_BYTES: Final = 1000
TASK_ID_WORDS: Final = f"text of 1 to {TASK_ID_MAX_BYTES} bytes of UTF-8"
#: Ids that can serve as names of objects unchanged, and the bytes that are replaced in others.
_PLAIN_NAME: Final = re.compile(r"[\w.:@+=-]{1,200}", re.ASCII)
_NOT_PLAIN: Final = re.compile(rb"[^\w.:@+=-]")

#: Prefixes of our keys and Celery's that are not queues.
_OTHER_KEYS: Final = ("pipeq:", "celery-task-meta-", "celery-taskset-meta-", "unacked", "_kombu.")
QUEUE_NAME_WORDS: Final = "text of 1 to 200 printable characters that does not begin like another key of ours or Celery"

#: Largest message, in bytes of its JSON form. Larger inputs must be sent by reference.
MAX_MESSAGE_BYTES: Final = 256 * 1024


def list_key(queue: str, priority: int = DEFAULT_PRIORITY) -> str:
    """Name of the Redis list that holds the queue's messages of this priority (0 first to 9 last)."""
    if not 0 <= priority <= 9:
        raise ValueError(f"priority {priority} is not in 0 (first) to 9 (last)")
    step = max(step for step in PRIORITY_STEPS if step <= priority)
    return f"{queue}{PRIORITY_SEPARATOR}{step}" if step else queue


def list_keys(queue: str) -> list[str]:
    """All lists of a queue, first served first."""
    return [list_key(queue, step) for step in PRIORITY_STEPS]


#: Digits in front of each message in a sorted set of a fair list.
FAIR_NUMBER_DIGITS: Final = 13


def fair_key(list_name: str) -> str:
    """Sorted set: the messages of a list on which tenants take turns, as workers moved them here -> their order."""
    return f"pipeq:fair:{list_name}"


def fair_times_key(list_name: str) -> str:
    """Hash: the state of the turns on a list."""
    return f"pipeq:fair-times:{list_name}"


def is_readable_id(value: object) -> TypeGuard[str]:
    """Whether a record can be stored under this id. A message that fails without a valid id fails under this one."""
    return isinstance(value, str) and value != "" and _utf8(value) is not None


def is_task_id(value: object) -> TypeGuard[str]:
    """Whether this can be a task's id: any text that Celery accepts, up to :data:`TASK_ID_MAX_BYTES`."""
    return is_readable_id(value) and len(value.encode()) <= TASK_ID_MAX_BYTES


def object_name(task_id: str) -> str:
    """The name of a task's objects in a store, without an extension. No two ids share one, and none has a slash.

    An id of letters, digits and ``. : @ + = - _`` is its own name. In other ids, ``~`` and two hexadecimal digits
    replace each other byte of the UTF-8; if the result is too long for a file's name, it is ``~~`` and the id's
    SHA-256.

    Raises:
        UnicodeEncodeError: it is no readable id.
    """
    if _PLAIN_NAME.fullmatch(task_id):
        return task_id
    name = _NOT_PLAIN.sub(lambda match: b"~%02X" % match[0][0], task_id.encode()).decode("ascii")
    return name if len(name) <= 200 else "~~" + hashlib.sha256(task_id.encode()).hexdigest()


def _utf8(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can write
        return None


def is_queue_name(value: object) -> TypeGuard[str]:
    """Whether this can be the name of a queue, and of its pipeline: 1 to 200 printable characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        return False
    return value.isprintable() and not value.startswith(_OTHER_KEYS)


def record_key(task_id: str) -> str:
    """Key under which Celery's result backend keeps a task's record, and the channel on which it is published."""
    return f"celery-task-meta-{task_id}"


def once_key(idempotency_key: str) -> str:
    """String with a lifetime: the id of the task that was submitted with this idempotency key."""
    return f"pipeq:once:{idempotency_key}"


def workers_key(pipeline: str) -> str:
    """Sorted set: worker name -> time of its last heartbeat for this pipeline, in seconds since the epoch."""
    return f"pipeq:workers:{pipeline}"


def loading_key(pipeline: str) -> str:
    """Sorted set: worker name -> when it last said that it is loading this pipeline, in seconds since the epoch."""
    return f"pipeq:loading:{pipeline}"


def worker_key(worker: str) -> str:
    """String with a lifetime: JSON of a worker's last heartbeat."""
    return f"pipeq:worker:{worker}"


def idle_key(pipeline: str) -> str:
    """Sorted set: the mark of a worker that has no work -> when the mark ends, in seconds since the epoch."""
    return f"pipeq:idle:{pipeline}"


def dead_letter_key(queue: str) -> str:
    """List of this queue's messages that could not succeed, newest first."""
    return f"pipeq:dead:{queue}"


def waiting_key(queue: str) -> str:
    """Sorted set: message -> seconds since the epoch when it goes back on its queue (delay or backoff)."""
    return f"pipeq:waiting:{queue}"
