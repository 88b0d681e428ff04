"""FETCHING: a task's references -> bytes, in turns with other tasks. Before: accept. After: decode.

    fetch inputs 0..k -> decode and prepare them -> fetch the next ones -> ...

It runs on the fetch threads of the task's pipeline, a slice at a time; other tasks take their turn between two slices.
No task holds all of its bytes at once: when it has fetched for :data:`AHEAD_S`, or a share of the pipeline's budget,
what is there is decoded and prepared first (preparation.py), and given back. So a small task next to one of thousands
of inputs waits neither for a thread nor for room.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stages.lane import Lane
from pipeq_worker.stages.located import located
from pipeq_worker.stages.task import Task
from pipeq_worker.stores import deadline
from pipeq_worker.stores.signed import looks_like_result

#: How long one task may keep a thread while other tasks of its pipeline wait for it, in seconds.
SLICE_S = 0.05
#: A task that has fetched for so long has what is there prepared, in seconds: its first items are then ready, and
#: the host gives this process other tasks.
AHEAD_S = 1.0
#: The same, as a share of the bytes that all tasks of the pipeline may hold.
AHEAD_SHARE = 1 / 8


class Fetching:
    """The fetch stage of all pipelines.

    Args:
        fetcher: reads references.
        most_bytes: most bytes that one task may have fetched at a time (`max_decoded_bytes`).
        most_results: most results of earlier tasks that one task may refer to (`max_items`).
        lane: the lane of a task.
        hold: counts bytes that a task takes.
        waiting: entered while a task's step waits for room.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        most_bytes: int,
        most_results: int,
        lane: Callable[[Task], Lane],
        hold: Callable[[Task, int], None],
        waiting: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._fetcher = fetcher
        self._most_bytes = most_bytes
        self._most_results = most_results
        self._lane = lane
        self._hold = hold
        self._waiting = waiting

    def has_results(self, task: Task) -> bool:
        """Whether the task's inputs refer to results of earlier tasks (of a chain, or of a chord's header).

        Raises:
            PipeqError: ``input_too_large``: to too many.
        """
        given = task.given if isinstance(task.given, list) else [task.given]
        count = sum(map(looks_like_result, given))
        if count > self._most_results:
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"the task refers to {count} results of other tasks, and this worker takes {self._most_results} "
                "(`max_items`): send it in parts",
            )
        return count > 0

    def fetch_results(self, task: Task) -> bool:
        """Reads results back from the store, for a slice of time. Returns whether all are there."""
        lane, until = self._lane(task), time.monotonic() + SLICE_S
        if not task.held_bytes:
            lane.budget.wait_for_room(self._waiting)
        if not isinstance(task.given, list):
            task.given = self._result(task, task.given)
            return True
        for at in range(task.fetched, len(task.given)):
            if time.monotonic() > until:
                return False
            task.given[at] = self._result(task, task.given[at])
            task.fetched = at + 1
        task.fetched = 0
        return True

    def fetch(self, task: Task) -> bool:
        """Reads the next inputs, for a slice of time.

        Returns:
            Whether enough are there to go on with; if not, other tasks take their turn first.
        """
        lane, until = self._lane(task), time.monotonic() + SLICE_S
        if task.fetching_until is None:
            task.fetching_until = time.monotonic() + AHEAD_S
        if not task.held_bytes:
            lane.budget.wait_for_room(self._waiting)
        ahead = lane.budget.limit * AHEAD_SHARE
        for at in range(task.fetched, len(task.inputs)):
            others = task.ahead_bytes - sum(len(slot.data or b"") for slot in task.inputs[at].slots)
            for slot in task.inputs[at].slots:
                if slot.data is not None:
                    continue
                if task.needs_no_device:
                    return True
                if time.monotonic() > until:
                    return False
                try:
                    with located(task, at), deadline.until(task.deadline):
                        slot.data = self._fetcher.fetch(slot.ref, lambda size: self._reserve(task, size))
                except PipeqError as error:
                    if task.pack is None:
                        raise
                    if error.code == ErrorCode.INPUT_TOO_LARGE and others:
                        # It may fit once the rows before it have been prepared.
                        task.fetching_until = None
                        return True
                    task.pack.fail(at, error)
                    break
                except Exception as error:
                    if task.pack is None:
                        raise
                    task.pack.fail(at, error)
                    break
            task.fetched = at + 1
            if task.ahead_bytes > ahead or time.monotonic() > task.fetching_until:
                break
        task.fetching_until = None
        return True

    def _result(self, task: Task, value: Any) -> Any:
        if task.needs_no_device or (ref := self._fetcher.result_ref(value)) is None:
            return value
        with deadline.until(task.deadline):
            return self._fetcher.fetch_result(ref, lambda size: self._reserve(task, size))

    def _reserve(self, task: Task, size: int) -> None:
        """Counts bytes that are about to be read."""
        if task.ahead_bytes + size > self._most_bytes:
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"what the task refers to is {task.ahead_bytes + size} bytes or more before it is decoded, beyond the "
                f"{self._most_bytes} that this worker makes of one task ([inputs] max_decoded_bytes): send less in one "
                "task",
            )
        self._hold(task, size)
        task.ahead_bytes += size
