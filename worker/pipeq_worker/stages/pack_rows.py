"""PACK ROWS: a pack's message -> inputs -> items; an error of a row is that row's alone. Used by preparation.

Texts with the same parameters are prepared several at a time where the pipeline can do that, as those of single tasks
are (company.py). All other rows are fetched, decoded and prepared one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from pipeq.contract import naming, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Output
from pipeq.contract.pack import PackMessage

from pipeq_worker.media.decoded import Decoded
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.models.task_type import Media
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages import prepare
from pipeq_worker.stages.accept import read_inputs
from pipeq_worker.stages.bounds import check_input, check_items
from pipeq_worker.stages.pack import Pack
from pipeq_worker.stages.task import Input, Item, Slot, Task

logger = logging.getLogger(__name__)

#: Most rows, and most bytes of text, that one call of a tokenizer gets: a few milliseconds of work.
MOST_TOGETHER, MOST_BYTES = 64, 2**15


def read_rows(task: Task, message: PackMessage, settings: Settings, check_output: Callable[[str], None]) -> None:
    """Reads the rows of a pack. One that cannot be used has its error then.

    Args:
        task: the pack's task.
        message: the pack.
        settings: the worker's.
        check_output: raises if a producer may not have output written to a URI.
    """
    pipeline = task.pipeline
    assert pipeline is not None
    task.pack, task.is_list = Pack(message), True
    plain = _plain_field(task, pipeline)
    task.inputs = [
        # Most rows; the other way comes to the same in five times as long.
        Input({plain: row.inputs}, True)
        if plain is not None and type(row.inputs) is str and not row.params and row.inputs.isascii()
        else _read_row(task, pipeline, task.pack, at, settings)
        for at, row in enumerate(message.rows)
    ]
    for at, row in enumerate(message.rows):
        if row.output is not None:
            try:
                _check_object(row.output, check_output)
            except PipeqError as error:
                task.pack.fail(at, error)
    task.outputs = [[] for _ in task.inputs]


def _check_object(uri: str, check_output: Callable[[str], None]) -> None:
    if naming.has_fields(uri) or uri.endswith("/"):
        sentence = "output: that of a row is one object, without fields to fill in"
        raise PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
    try:
        Output(uri=uri)
    except ValueError as error:
        raise PipeqError(ErrorCode.INVALID_MESSAGE, f"output: {shown.line(str(error), 300)}") from error
    check_output(uri)


def _plain_field(task: Task, pipeline: Pipeline) -> str | None:
    """The field that takes any text as it is, and makes one item of it; None if there is none."""
    main = pipeline.task_type.main
    if main is None or pipeline.task_type.fields[main] not in _TEXT:
        return None
    return main if prepare.least_items((Input({main: "a, b"}, True),), task.call.params) == 1 else None


def _read_row(task: Task, pipeline: Pipeline, pack: Pack, at: int, settings: Settings) -> Input:
    row = pack.rows[at]
    try:
        if row.params:
            pack.calls[at] = pipeline.merge({**task.common_params, **row.params})
        inputs, is_list = read_inputs(pipeline.task_type, row.inputs, settings.inputs)
        if is_list:
            sentence = "a row of a job has one input, and `inputs` is a list of several"
            raise PipeqError(ErrorCode.INVALID_INPUT, sentence)  # noqa: TRY301
        if (count := prepare.least_items(inputs, task.call_of(at).params)) > 1:
            check_items(count, settings)
    except Exception as error:
        pack.fail(at, error)
        return Input({}, True)
    for read, sent in inputs[0].turns:
        task.echo(read, sent)
    return inputs[0]


#: What takes any text as it is.
_TEXT = (Media.TEXT, Media.JSON)


class PackRows:
    """Makes items of the rows of one pack.

    Args:
        task: the pack's task, whose rows are read.
        settings: the worker's.
        fetch: what is yielded when the next row's references must be fetched first.
        decode: decodes the reference of one place of a row.
        decoded: makes what counts the decoded bytes of a row.
        hold: counts bytes that the pack takes, or, if negative, gives back.
    """

    def __init__(
        self,
        task: Task,
        settings: Settings,
        fetch: object,
        decode: Callable[[Task, int, Slot, Decoded], None],
        decoded: Callable[[Task, int], Decoded],
        hold: Callable[[Task, int], None],
    ) -> None:
        assert task.pack is not None
        assert task.pipeline is not None
        self._task, self._pack, self._pipeline = task, task.pack, task.pipeline
        self._settings = settings
        self._fetch = fetch
        self._decode = decode
        self._decoded = decoded
        self._hold = hold

    def items(self) -> Iterator[Item | list[Item] | object | None]:
        """Yields items, or several at once; None for each decoded value; and what asks for a fetch."""
        at, count = 0, len(self._task.inputs)
        while at < count:
            if at in self._pack.errors:
                self._let_go(at)
                at += 1
                continue
            alike = self._alike(at)
            if len(alike) > 1 and (items := self._together(alike)) is not None:
                yield items
                at = alike[-1] + 1
                continue
            for one in alike:
                yield from self._alone(one)
            at = alike[-1] + 1

    def _alike(self, at: int) -> list[int]:
        """This row, and those after it that may be prepared in one step with it."""
        task, found, nbytes = self._task, [at], 0
        inputs, errors, calls = task.inputs, self._pack.errors, self._pack.calls
        if not self._pipeline.prepares_together or inputs[at].slots:
            return found
        call = task.call_of(at)
        for other in range(at + 1, min(at + MOST_TOGETHER, len(inputs))):
            one = inputs[other]
            if other in errors or one.slots or (calls and task.call_of(other) is not call):
                break
            value = one.call_value
            nbytes += len(value) if type(value) is str else 64
            if nbytes > MOST_BYTES:
                break
            found.append(other)
        return found

    def _together(self, places: list[int]) -> list[Item] | None:
        task = self._task
        task.times.enters("prepare")
        try:
            values = [task.inputs[at].call_value for at in places]
            rows = self._pipeline.prepare_together(values, task.call_of(places[0]))
        except Exception:
            logger.exception("%d rows could not be prepared together", len(places), extra={"action": "stage"})
            return None
        if rows is None:
            return None
        items = []
        for at, row in zip(places, rows, strict=True):
            item = Item(task, at, 0, row.features, row.group, row.cost, row.nbytes)
            item.row.deadline = task.deadline
            items.append(item)
        return items

    def _alone(self, at: int) -> Iterator[Item | object | None]:
        """The items of one row. Whatever it raises is the row's error."""
        task = self._task
        if task.inputs[at].slots and at >= task.fetched:
            yield self._fetch
        if at in self._pack.errors:
            self._let_go(at)
            return
        before = task.held_bytes - sum(len(slot.data or b"") for slot in task.inputs[at].slots)
        steps = self._steps(at)
        while True:
            try:
                one = next(steps)
            except StopIteration:
                break
            except BaseException as error:  # a panic inside a tokenizer is not an Exception
                self._pack.fail(at, error)
                break
            yield one
        self._let_go(at, before)

    def _steps(self, at: int) -> Iterator[Item | None]:
        task, one, count = self._task, self._task.inputs[at], 0
        decoded = self._decoded(task, at)  # a row may take as much as a task
        try:
            for slot in one.slots:
                task.times.enters("decode")
                self._decode(task, at, slot, decoded)
                decoded.end()
                yield None
            task.times.enters("prepare")
            check_input(task, at, one, decoded, self._settings)
            for item in prepare.items(task, at):
                decoded.end()
                count += 1
                check_items(count, self._settings)
                yield item
        finally:
            decoded.end()

    def _let_go(self, at: int, before: int | None = None) -> None:
        """Gives back what a row holds whose items are made, or that has failed.

        Args:
            at: its place.
            before: what the pack held without it; None if nothing of it was decoded.
        """
        task, one = self._task, self._task.inputs[at]
        if not one.slots:
            return
        for slot in one.slots:
            if slot.data is not None:
                task.ahead_bytes -= len(slot.data)
                self._hold(task, -len(slot.data))
                slot.data = None
        if at in self._pack.errors or self._pipeline.lets_go_of_inputs:
            for slot in one.slots:
                if slot.media.is_bytes:
                    value: Any = slot.container[slot.key]
                    slot.container[slot.key] = None
                    task.echoes.pop(id(value), None)
                    task.originals.pop(id(value), None)
            if before is not None:
                self._hold(task, before - task.held_bytes)
