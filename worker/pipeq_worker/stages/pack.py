"""PACK: the rows of a pack in the process that has its inputs, and what becomes of each. Used by all stages.

A row is an input of the pack's task, and goes through the stages as the inputs of any task do. The difference: an
error of an input ends the task, but an error of a row is only that row's outcome. A row that another try may do (its
store was away, this worker lacks something) is left: the host sends it again, alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeq.contract.asked import asked_of, content
from pipeq.contract.errors import Blame, PipeqError
from pipeq.contract.pack import PackMessage, row_id
from pipeq.contract.writing import to_json

from pipeq_worker.models.call import Call
from pipeq_worker.observe.own_faults import is_own_fault
from pipeq_worker.observe.traces import internal, trace_of

#: Most characters of a row's error. There may be a thousand of them in one record.
MESSAGE_CHARS = 2000
#: Where they must be fewer: those that say the cause nearly always; and what stands around them, in bytes.
LEAST_CHARS, HEAD_BYTES = 100, 120


class Outcomes(NamedTuple):
    """How a pack ended."""

    #: JSON: a list of what became of rows. And how many of them have failed, by their error's code; the others have a
    #: result.
    done: bytes
    succeeded: int
    codes: dict[str, int]
    #: The places of the rows that are left, and what becomes of them if nobody tries them again.
    left: list[int]
    left_done: bytes
    left_codes: dict[str, int]
    #: The places of the rows that go alone.
    crowded: list[int]


class Pack:
    """The rows of one pack.

    Args:
        message: as it was sent.
    """

    def __init__(self, message: PackMessage) -> None:
        self.message = message
        self.rows = message.rows
        #: What was asked of each row, if that stands in the outcomes: the stages replace parts of the inputs.
        self._asked = (
            [content(row.inputs, {**message.params, **(row.params or {})}) for row in message.rows]
            if message.include_inputs
            else []
        )
        #: Of the rows with parameters of their own: their call.
        self.calls: dict[int, Call] = {}
        #: Place of a row -> its error, and its result as JSON. A row has one of them at the end.
        self.errors: dict[int, PipeqError] = {}
        self.results: dict[int, bytes] = {}
        #: Number of rows whose outputs have become results, or were found to have none.
        self.finished = 0
        #: Rows that did not fit beside the others, though they may alone.
        self.crowded: set[int] = set()
        #: Parts of results that go to the store, as :class:`pipeq_worker.stages.placing.Upload`.
        self.uploads: list[Any] = []
        #: Results of rows that have an object of their own, as the same.
        self.objects: list[Any] = []
        #: Seconds of the device that it took: of each pass the share of its rows.
        self.device_s = 0.0
        self.outcomes: Outcomes | None = None

    def fail(self, at: int, error: BaseException) -> None:
        """Keeps the first error of a row, without the frames that it passed through."""
        if at in self.errors:
            return
        found = error if isinstance(error, PipeqError) else internal(error)
        kept = self.errors[at] = found.bare()
        kept.traceback = found.traceback or trace_of(found)
        if kept.blame is Blame.TASK and is_own_fault(found):
            kept.blame = Blame.WORKER

    def crowd_out(self, at: int, error: PipeqError) -> None:
        """Ends a row that does not fit beside the others of the pack. It goes alone then, unless it is alone now."""
        if at not in self.errors:
            self.results.pop(at, None)
            self.fail(at, error)
            if len(self.rows) > 1:
                self.crowded.add(at)

    def end(self, inline_max_bytes: int) -> PipeqError | None:
        """Puts the outcomes together. Returns the error of the pack itself, if all of its rows are left.

        Args:
            inline_max_bytes: most bytes of what becomes of rows that are left. It goes to Redis if nobody tries them
                again: their store may be the one that is away.
        """
        left = [at for at in sorted(self.errors) if at not in self.crowded and self._is_left(at)]
        gone = self.crowded.union(left)
        done = [at for at in range(len(self.rows)) if at not in gone]
        failed = [at for at in done if at in self.errors]
        self.outcomes = Outcomes(
            self._listed(done),
            len(done) - len(failed),
            self._codes(failed),
            left,
            self._left(left, inline_max_bytes),
            self._codes(left),
            sorted(self.crowded),
        )
        return self.errors[left[0]] if len(left) == len(self.rows) else None

    def _is_left(self, at: int) -> bool:
        """Whether another try may do a row that has an error."""
        error = self.errors[at]
        return error.retryable or error.blame is not Blame.TASK

    @property
    def first_left(self) -> PipeqError | None:
        """The error of the first row that is left."""
        return self.errors[self.outcomes.left[0]] if self.outcomes is not None and self.outcomes.left else None

    def _listed(self, places: Sequence[int]) -> bytes:
        return b"[" + b",".join([self._outcome(at) for at in places]) + b"]"

    def _left(self, places: Sequence[int], most_bytes: int) -> bytes:
        """What becomes of these rows if nobody tries them again: less of it, where all would be too much."""
        found = self._listed(places)
        if len(found) > most_bytes:
            chars = min(MESSAGE_CHARS, max(LEAST_CHARS, most_bytes // len(places) - HEAD_BYTES))
            found = b"[" + b",".join([self._head(at) + self._error(at, chars) for at in places]) + b"]"
        return found

    def _outcome(self, at: int) -> bytes:
        """One entry of the list, in the form of :mod:`pipeq.contract.job`."""
        head = self._head(at)
        if self._asked:
            head += b"," + to_json(self._asked[at])[1:-1]
        if at not in self.errors:
            return head + b',"result":' + self.results[at] + b"}"
        return head + self._error(at, MESSAGE_CHARS)

    def _head(self, at: int) -> bytes:
        row = self.rows[at]
        line = b"null" if row.line is None else b"%d" % row.line
        name = b"null" if row.custom_id is None else to_json(row.custom_id)
        return b'{"row":%d,"line":%b,"custom_id":%b' % (at, line, name)

    def _error(self, at: int, most_chars: int) -> bytes:
        error = self.errors[at]
        message = error.message if len(error.message) <= most_chars else f"{error.message[: most_chars - 3]}..."
        about = {"code": error.code, "message": message, "retryable": error.retryable}
        return b',"error":' + to_json(about) + b"}"

    def object_of(self, at: int, result: bytes) -> bytes:
        """What the object of a row that has one holds."""
        row, of = self.rows[at], self.message.of
        if not self._asked:
            return result
        head = asked_of(self.message.pipeline, row_id(of.job, row.line), row.custom_id, self._asked[at])
        return b"%b%b}" % (head, result)

    def _codes(self, places: Sequence[int]) -> dict[str, int]:
        return dict(Counter(self.errors[at].code for at in places))
