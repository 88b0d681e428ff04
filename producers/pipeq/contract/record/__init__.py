"""CONTRACT: what Redis holds for one task: its record and its running mark. Only this package builds and reads them.

The record is a string under ``celery-task-meta-<id>``: JSON of a :class:`Record`, in the layout of Celery's result
backend, so that ``AsyncResult`` can read it. pipeq adds a :class:`Part` under the key ``pipeq``, which Celery ignores.
The mark is a :class:`Mark`, as JSON in the field ``<id>`` of the hash ``pipeq:running``.

What happens                    The record                             The mark
A client submits                :func:`queued`                         none
Its first batch begins          says STARTED, by ``begin.lua``         set, by ``begin.lua``
It runs for seconds             stays as it is                         says how far it is, by ``look.lua``
Its worker puts the task back   as before it began, by ``back.lua``    removed, or :meth:`Mark.back_on_its_queue`
The task succeeds               :func:`succeeded`, by ``finish.lua``   removed, by ``finish.lua``
It ends otherwise, or waits     :func:`complete`, by ``finish.lua``    removed, by ``finish.lua``
for its next try                or :func:`retrying`
A client cancels                :func:`cancelled`                      stays until the next look; a mark of an ended
                                                                       task means nothing
An operator empties its queue   :func:`purged`                         removed, by ``purge.lua``
An operator takes it out of     :func:`revived`, by ``revive.lua``     removed, by ``revive.lua``
the dead letters

Each record except the first is also published, on a channel named like its key. :func:`read` converts record and mark
to a status. Any client may have written anything under these keys, so reading never raises: a field of a wrong type
counts as absent.

``docs/record.md`` explains all this to readers in other languages; its tables are generated from the ``#:`` lines
of :mod:`.fields`.
"""

from __future__ import annotations

from pipeq.contract.record.building import cancelled, complete, purged, queued, retrying, revived, succeeded
from pipeq.contract.record.fields import ENDED, MAX_BYTES, OPEN_MAX_BYTES, QUEUED_HEAD, STARTED_HEAD, Mark, Part, Record
from pipeq.contract.record.history import HISTORY_CHARS, HISTORY_MAX, attempt, with_lost
from pipeq.contract.record.lua import LUA
from pipeq.contract.record.reading import Before, read, revoked_reason

__all__ = [
    "ENDED",
    "HISTORY_CHARS",
    "HISTORY_MAX",
    "LUA",
    "MAX_BYTES",
    "OPEN_MAX_BYTES",
    "QUEUED_HEAD",
    "STARTED_HEAD",
    "Before",
    "Mark",
    "Part",
    "Record",
    "attempt",
    "cancelled",
    "complete",
    "purged",
    "queued",
    "read",
    "retrying",
    "revived",
    "revoked_reason",
    "succeeded",
    "with_lost",
]
