"""CONTRACT: the keys in Redis that programs in any language may rely on, as a table. ``keys.py`` makes their names.

``docs/keys.json`` and the table in ``docs/any-language.md`` are made from it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from pipeq.contract import job, keys


@dataclass(frozen=True)
class Key:
    """One key, or the keys of one form."""

    #: Its name; ``<...>`` stands for what differs.
    name: str
    #: Its type in Redis.
    type: str
    #: Who writes it: ``producer``, ``worker``, ``operator``, several of them with ``, `` between.
    written_by: str
    #: What it holds.
    holds: str


_QUEUE, _ID = "<pipeline>", "<id>"

#: What producers write and read.
KEYS: Final = (
    Key(
        keys.list_key(_QUEUE),
        "list",
        "producer, worker",
        "The queue of a pipeline, for priority 0: LPUSH adds a message; workers take them at the other end.",
    ),
    *(
        Key(
            keys.list_key(_QUEUE, step),
            "list",
            "producer, worker",
            f"The same for priority {step}: the name, the bytes 0x06 and 0x16, and the number.",
        )
        for step in keys.PRIORITY_STEPS[1:]
    ),
    Key(
        keys.record_key(_ID),
        "string",
        "producer, worker",
        "The record of a task: JSON (record.schema.json). Also the channel on which each new record is published.",
    ),
    Key(
        keys.RUNNING,
        "hash",
        "worker",
        "The field <id> is the mark of a task that runs: JSON (mark.schema.json).",
    ),
    Key(
        keys.PIPELINES,
        "hash",
        "worker, operator",
        "The field <pipeline> is there once a worker has served it: ask HEXISTS before the first submit.",
    ),
    Key(
        keys.workers_key(_QUEUE),
        "sorted set",
        "worker",
        "Names of the pipeline's workers, by their last heartbeat in seconds since the epoch: "
        f"one that is older than {keys.WORKER_TTL_S:.0f} s is dead.",
    ),
    Key(
        keys.loading_key(_QUEUE),
        "sorted set",
        "worker",
        "The same for workers that are loading the pipeline.",
    ),
    Key(
        keys.waiting_key(_QUEUE),
        "sorted set",
        "producer, worker",
        "Messages that wait, by when they go back on their lists, in seconds since the epoch: "
        'JSON {"list", "message"}.',
    ),
    Key(
        keys.dead_letter_key(_QUEUE),
        "list",
        "worker, operator",
        "Dead letters, the newest first: JSON (dead-letters.md).",
    ),
    Key(
        keys.EVENTS,
        "stream",
        "producer, worker",
        "State changes of all tasks, while events-max holds a number (record.md).",
    ),
    Key(keys.EVENTS_MAX, "string", "operator", "About how many state changes are kept."),
    Key(
        keys.once_key("<key>"),
        "string",
        "producer",
        "The id of the task that was submitted with this idempotency key by the Python client.",
    ),
)

#: What only workers and pipeq's own tools read; its form may change in any release.
PRIVATE: Final = (
    keys.UNACKED,
    keys.LEASES,
    keys.SIGNING_KEY,
    keys.fair_key("<list>"),
    keys.fair_times_key("<list>"),
    keys.worker_key("<worker>"),
    keys.idle_key(_QUEUE),
    job.job_key("<job>"),
    job.open_key("<job>"),
    job.outcomes_key("<job>"),
    job.cursor_key("<job>"),
    job.done_key("<job>"),
    job.claim_key("<job>"),
    job.JOBS,
    job.OPEN,
    job.FINAL,
)


def table() -> str:
    """The keys as JSON, as exported to ``docs/keys.json``."""
    found = {"version": keys.CONTRACT_VERSION, "keys": [asdict(one) for one in KEYS], "private": list(PRIVATE)}
    return json.dumps(found, indent=2) + "\n"
