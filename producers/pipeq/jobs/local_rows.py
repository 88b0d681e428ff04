"""LOCAL ROWS: bytes, pictures, sounds and local files in a job's rows -> references. Used while lines are read.

As for single tasks (:mod:`pipeq.local_inputs`), but in the one thread that reads the input, and what is not small goes
to the store, if there is one: rows share a message. It is written before the packs are queued that refer to it.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pipeq.contract.errors import PipeqError
from pipeq.local_inputs import Store, has_local, referenced
from pipeq.protocol import Run, Steps
from pipeq.uploads import Uploads

_T = TypeVar("_T")
#: The part of a message that a row's bytes may take, if there is a store for them.
ROW_BYTES = 16 * 2**10


class LocalRows:
    """What the rows of one submit have in memory or in local files.

    Args:
        store: where to; None if the client has none.
        max_message_bytes: the client's.
    """

    def __init__(self, store: Store | None, max_message_bytes: int) -> None:
        self._uploads = None if store is None else Uploads(store)
        self._most = max_message_bytes if store is None else min(ROW_BYTES, max_message_bytes)

    def begin(self, line: int) -> None:
        """Notes that inputs belong to this line from now on. Writes what waits, if that is much.

        Raises:
            PipeqError: ``input_unavailable``: the store does not take it.
        """
        if self._uploads is not None:
            if self._uploads.is_full:
                self.flush()
            self._uploads.number = line

    def wrap(self, inputs: Any) -> Any:
        """Returns inputs with references in the place of what is here.

        Raises:
            PipeqError: it cannot be sent.
        """
        if not has_local(inputs, self._uploads is not None):
            return inputs
        return _taken(referenced(inputs, None if self._uploads is None else self._uploads.place, self._most))

    def flush(self) -> None:
        """Writes what waits. Raises as :meth:`begin` does."""
        if self._uploads is not None and (failed := _taken(self._uploads.flush())) is not None:
            number, error = failed
            raise PipeqError(error.code, f"line {number}: {error.message}", error.retryable) from error


def _taken(steps: Steps[_T]) -> _T:
    """Takes steps that ask for nothing but calls of functions, in this thread."""
    answer, error = None, None
    while True:
        try:
            ask = steps.send(answer) if error is None else steps.throw(error)
        except StopIteration as end:
            result: _T = end.value
            return result
        assert isinstance(ask, Run)
        answer, error = None, None
        try:
            answer = ask.function()
        except Exception as raised:
            error = raised
