"""CONTRACT: every name that pipeq uses in Redis, and the priorities.

A pipeline's queue is a plain list named after it, one list for each priority, exactly as Celery's own Redis transport
lays them out (kombu 5.7, transport/redis.py: ``Channel._q_for_pri``): a stock Celery producer needs nothing of ours.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final, TypeGuard

#: The Celery task that every message names.
TASK_NAME: Final = "pipeq.infer"

#: Priorities that have a list of their own; 0 is served first. Others round down to one of these.
PRIORITY_STEPS: Final = (0, 3, 6, 9)
#: What an interactive caller gets.
DEFAULT_PRIORITY: Final = 0
#: What bulk jobs use, so that interactive callers overtake them.
JOB_PRIORITY: Final = 6

#: kombu puts this between a queue's name and its priority.
PRIORITY_SEPARATOR: Final = "\x06\x16"

#: Hash: task id -> JSON of a :class:`pipeq.contract.record.Mark`, of every task that is in, or was lost with, a batch.
RUNNING: Final = "pipeq:running"
#: Hash: delivery tag -> message, of everything inside a worker; and sorted set: delivery tag -> when its lease ends.
UNACKED: Final = "pipeq:unacked"
LEASES: Final = "pipeq:leases"
#: Hash: pipeline name -> JSON of what its last worker said about it. A field is never removed.
PIPELINES: Final = "pipeq:pipelines"
#: String: the key that workers sign references to each other with. Not for producers to read.
SIGNING_KEY: Final = "pipeq:signing-key"

#: A worker says that it lives this often ...
HEARTBEAT_S: Final = 2.0
#: ... and counts as dead after this long without a word.
WORKER_TTL_S: Final = 10.0

#: How long a record is kept while its task can still run.
PENDING_TTL_S: Final = 7 * 86400
#: How long a record is kept after its task ended, unless the worker's settings say otherwise.
RESULT_TTL_S: Final = 86400

#: A task's id is free text, as Celery's are, up to this many bytes of UTF-8.
TASK_ID_MAX_BYTES: Final = 1000
TASK_ID_WORDS: Final = f"text of 1 to {TASK_ID_MAX_BYTES} bytes of UTF-8"
#: An id that is the name of its objects as it is, and what stands for other bytes of an id.
_PLAIN_NAME: Final = re.compile(r"[\w.:@+=-]{1,200}", re.ASCII)
_NOT_PLAIN: Final = re.compile(rb"[^\w.:@+=-]")

#: What keys that are no queues begin with, of ours and of Celery.
_OTHER_KEYS: Final = ("pipeq:", "celery-task-meta-", "celery-taskset-meta-", "unacked", "_kombu.")
QUEUE_NAME_WORDS: Final = "text of 1 to 200 printable characters that does not begin like another key of ours or Celery"

#: Largest message, in bytes of its JSON form. Larger inputs go by reference.
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


def is_readable_id(value: object) -> TypeGuard[str]:
    """Whether a record can stand under this as a task's id: what fails without a better id fails under it."""
    return isinstance(value, str) and value != "" and _utf8(value) is not None


def is_task_id(value: object) -> TypeGuard[str]:
    """Whether this can be a task's id: any text that Celery takes, up to :data:`TASK_ID_MAX_BYTES`."""
    return is_readable_id(value) and len(value.encode()) <= TASK_ID_MAX_BYTES


def object_name(task_id: str) -> str:
    """The name of a task's objects in a store, without an extension: no two ids share one, none holds a slash.

    An id of letters, digits and ``. : @ + = - _`` is its own name. In another, ``~`` and two hexadecimal digits stand
    for each other byte of its UTF-8; what gets longer than a file's name may be becomes ``~~`` and its SHA-256.

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
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return None


def is_queue_name(value: object) -> TypeGuard[str]:
    """Whether this can be the name of a queue, and of the pipeline that it is for: 1 to 200 printable characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        return False
    return value.isprintable() and not value.startswith(_OTHER_KEYS)


def record_key(task_id: str) -> str:
    """Where Celery's result backend keeps a task's record, and the channel it is published on."""
    return f"celery-task-meta-{task_id}"


def workers_key(pipeline: str) -> str:
    """Sorted set: worker name -> seconds since the epoch when it last said that it serves this pipeline."""
    return f"pipeq:workers:{pipeline}"


def loading_key(pipeline: str) -> str:
    """Sorted set: worker name -> seconds since the epoch when it last said that it is loading this pipeline."""
    return f"pipeq:loading:{pipeline}"


def worker_key(worker: str) -> str:
    """String with a lifetime: JSON of what a worker last said about itself."""
    return f"pipeq:worker:{worker}"


def dead_letter_key(queue: str) -> str:
    """List of the messages of this queue that could not succeed, newest first."""
    return f"pipeq:dead:{queue}"


def waiting_key(queue: str) -> str:
    """Sorted set: message -> seconds since the epoch when it goes back on its queue (a retry's backoff)."""
    return f"pipeq:waiting:{queue}"
