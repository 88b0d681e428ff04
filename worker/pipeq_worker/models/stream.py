"""STREAM: how rows enter and leave a model one by one, beside each other. Before: stages. Imports no torch.

    submit(features, call, row, done) -> ... row.stop = True, row.done ... -> done(output, or why there is none)

A pipeline runs its rows in batches (``Pipeline.forward``), or, if it has a stream, in this way: a short answer does not
wait for a long one, and a row that has ended leaves its place to the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from pipeq.contract.errors import PipeqError

from pipeq_worker.models.call import Call
from pipeq_worker.models.running import Row


class StreamLostError(Exception):
    """The stream broke with rows inside; any of them may be the reason, which is its ``__cause__``."""


#: The output of a row, as :meth:`Pipeline.forward` returns it; its error; or, if it was stopped, None.
Outcome = Any | PipeqError | StreamLostError | None
Done = Callable[[Outcome], None]


class Stream(ABC):
    """The rows of one pipeline that run at present. Safe to use from many threads."""

    #: Most rows at a time.
    slots: int

    @abstractmethod
    def start(self) -> None:
        """Starts it, or starts it again after it broke or was stopped. It must not run.

        While it runs, nobody else may use the model.
        """

    @abstractmethod
    def submit(self, features: Any, call: Call, row: Row, done: Done) -> None:
        """Starts a row, and returns at once.

        Args:
            features: of the row, as :meth:`Pipeline.prepare` made them.
            call: of its task.
            row: tells whether it is still wanted, and is told how far it is.
            done: called once with the outcome, on a thread of the stream, or at once for a row that cannot run.
        """

    @abstractmethod
    def still_s(self) -> float:
        """For how long rows have been inside without a step, in seconds."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it; rows inside get a :class:`StreamLostError`. Returns when nothing runs, or after a few seconds."""
