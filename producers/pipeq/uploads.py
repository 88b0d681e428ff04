"""UPLOADS: what the tasks of a chunk have in memory or in local files -> the store, several at once.

Used by submission: an input's place is known before it is written, so messages are made first, and their inputs are
written together before they are queued. Before: local_inputs. After: uploading.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeq.contract.errors import PipeqError
from pipeq.local_inputs import Store
from pipeq.protocol import Run, Steps

#: Most objects that are written at once, and most that wait for it: as many, or as many bytes.
AT_ONCE = 8
WAITING, WAITING_BYTES = 64, 32 * 2**20


class _Write(NamedTuple):
    #: Of the task.
    number: int
    uri: str
    data: bytes | Path


class Uploads:
    """What is to be written for the tasks of one call.

    Args:
        store: where to.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, _Write] = {}
        self._bytes = 0
        #: The task to which inputs belong now.
        self.number = 0

    def place(self, data: bytes | Path, media_type: str | None) -> Steps[str]:
        """The URI of an input, which is written by the next :meth:`flush`.

        Raises:
            PipeqError: ``input_not_found``: there is no such file.
        """
        uri: str = yield Run(partial(self._store.place, data, media_type))
        if uri not in self._waiting:
            self._waiting[uri] = _Write(self.number, uri, data)
            self._bytes += len(data) if isinstance(data, bytes) else 0
        return uri

    @property
    def is_full(self) -> bool:
        """Whether it is time to write, so that memory stays bounded."""
        return len(self._waiting) >= WAITING or self._bytes >= WAITING_BYTES

    def flush(self) -> Steps[tuple[int, PipeqError] | None]:
        """Writes what waits. Returns the first task whose input cannot be written, with the error."""
        waiting, self._waiting, self._bytes = list(self._waiting.values()), {}, 0
        if not waiting:
            return None
        found: tuple[int, PipeqError] | None = yield Run(partial(_write, self._store, waiting))
        return found


def _write(store: Store, waiting: Sequence[_Write]) -> tuple[int, PipeqError] | None:
    def write(one: _Write) -> PipeqError | None:
        try:
            store.write(one.uri, one.data)
        except PipeqError as error:
            return error
        return None

    if len(waiting) == 1:
        errors = [write(waiting[0])]
    else:
        with ThreadPoolExecutor(min(AT_ONCE, len(waiting)), thread_name_prefix="pipeq-upload") as pool:
            errors = list(pool.map(write, waiting))
    failed = ((one.number, error) for one, error in zip(waiting, errors, strict=True) if error is not None)
    return next(failed, None)
