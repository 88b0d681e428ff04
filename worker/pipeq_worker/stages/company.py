"""COMPANY: light tasks of one pipeline that have come together -> accepted, and prepared, in one step of the loop.

    tasks that wait -> accept each -> texts with the same parameters: one call of the tokenizer -> items
                                   -> all others: prepared one by one, in steps of their own

A step of one short text costs more than the text itself: its entry on the board, two locks, a turn of the loop, and the
fixed part of a tokenizer's call. Here many share them. If the process dies meanwhile, all tasks of the step are
suspects, as those of a batch are; a task with a death has no company.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from pipeq_worker.models.pipeline import Prepared
from pipeq_worker.stages.steps import Stage, Steps
from pipeq_worker.stages.task import Item, Task
from pipeq_worker.stages.threads import LOOP, Threads

logger = logging.getLogger(__name__)

#: Most bytes of the messages of one step: about what a tokenizer reads before the loop must hear the host again.
MOST_BYTES = 2**14


class Company:
    """The light tasks of one pipeline. Used on the loop's thread only.

    Args:
        threads: of the pipeline; their loop runs the steps.
        steps: where the steps are noted.
        alone: accepts a task and prepares it, in a step of its own.
        accept: accepts a task, which joins its :attr:`Task.company` then unless it goes on elsewhere.
        prepare: prepares a task that was accepted, in a step of its own, soon.
        go_on: takes a task with an item that is made (``held_up``) to the shelf.
    """

    def __init__(
        self,
        threads: Threads,
        steps: Steps,
        alone: Callable[[Task], None],
        accept: Callable[[Task], None],
        prepare: Callable[[Task], None],
        go_on: Callable[[Task], None],
    ) -> None:
        self._threads = threads
        self._steps = steps
        self._run_alone = alone
        self._accept = accept
        self._prepare = prepare
        self._go_on = go_on
        self._waiting: deque[Task] = deque()

    def add(self, task: Task) -> None:
        """Takes a task in. Returns at once."""
        self._waiting.append(task)
        if len(self._waiting) == 1:
            self._threads.together(self._burst)

    def _burst(self) -> tuple[int, int]:
        tasks = self._take()
        if self._waiting:
            self._threads.together(self._burst)
        if len(tasks) == 1:
            self._run_alone(tasks[0])
            return 1, 1
        accepted: list[Task] = []
        with self._steps.step(Stage.PREPARE, *(task.number for task in tasks)):
            for task in tasks:
                task.company = accepted
                self._accept(task)
                task.company = None
            alone = [task for group in _alike(accepted) if not self._prepare_together(group) for task in group]
        for task in alone:
            self._prepare(task)
        return len(tasks), len(tasks) - len(alone)

    def _take(self) -> list[Task]:
        """The next tasks that share a step: the first one, and as many as fit beside it."""
        most = self._threads.most_together
        tasks = [self._waiting.popleft()]
        nbytes = len(tasks[0].body)
        while self._waiting and len(tasks) < most and (nbytes := nbytes + len(self._waiting[0].body)) <= MOST_BYTES:
            tasks.append(self._waiting.popleft())
        return tasks

    def _prepare_together(self, tasks: Sequence[Task]) -> bool:
        """Prepares tasks with the same call. Returns False, with nothing done, if each must be prepared alone."""
        pipeline, began = tasks[0].pipeline, time.monotonic()
        assert pipeline is not None
        if len(tasks) < 2:
            return False
        try:
            rows = pipeline.prepare_together([task.inputs[0].call_value for task in tasks], tasks[0].call)
        except Exception:
            logger.exception("%d tasks could not be prepared together", len(tasks), extra={"action": "stage"})
            rows = None
        if rows is None:
            return False
        busy_s = (time.monotonic() - began) / len(tasks)
        for task, row in zip(tasks, rows, strict=True):
            task.busy_s += busy_s
            task.rows, task.thread, task.held_up, task.items = iter(()), LOOP, _item(task, row), 1
            task.has_one_item = True
            self._go_on(task)
        return True


def _item(task: Task, row: Prepared) -> Item:
    item = Item(task, 0, 0, row.features, row.group, row.cost, row.nbytes)
    item.row.deadline, task.row = task.deadline, item.row
    return item


def _alike(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks with the same call, in the order of the first of each. A task of several inputs is with itself."""
    found: dict[int, list[Task]] = {}
    for task in tasks:
        found.setdefault(id(task) if task.is_list else id(task.call), []).append(task)
    return list(found.values())
