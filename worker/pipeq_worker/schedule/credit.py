"""CREDIT: how many tasks of a pipeline a worker takes, and how many it gives back. Before: costs. After: reserver.

All numbers come from the time that tasks take on the device. What a worker holds, no other worker can have, so it holds
what lasts for a few seconds; see docs/decisions/credit.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.schedule.costs import Costs

#: Batches that a worker may hold of each pipeline, however long they take: one runs, and one lies ready.
BATCHES = 2
#: Work that lasts for less than this is not worth giving back, in seconds: it is done before another worker has it.
WORTH_S = 0.2


class Credit:
    """The credit of a worker's pipelines. Safe for threads.

    Args:
        costs: what was learned of the pipelines.
        seed: returns the limits of a pipeline's batches, for as long as nothing is known.
        most: most tasks of a pipeline, whatever they take.
        seconds: how long what is held of a pipeline may last on the device.
    """

    def __init__(self, costs: Costs, seed: Callable[[str], BatchLimits], most: int, seconds: float) -> None:
        self._costs = costs
        self._seed = seed
        self._most = most
        self._seconds = seconds

    def most(self, name: str, held: int) -> int:
        """Most tasks of a pipeline that may be inside, given how many are.

        A worker that has none takes two batches first. If several wait for work, the next one gets some, too.
        """
        learned = self._costs.find(name)
        if learned is None:
            least, task_s = float(self._seed(name).max_size), None
        else:
            least, task_s = learned.tasks_in_batch(), learned.seconds_of_task()
        # Means of floating-point numbers are never exactly whole.
        most = math.ceil(BATCHES * max(1.0, least) - 1e-6)
        if held and task_s is not None:
            most = max(most, math.ceil(self._seconds / task_s) if task_s * self._most > self._seconds else self._most)
        return min(most, self._most)

    def lasts_s(self, held: Mapping[str, int]) -> float:
        """How long the device needs for these tasks (pipeline -> number), in seconds; infinite if it is unknown."""
        total = 0.0
        for name, number in held.items():
            learned = self._costs.find(name)
            task_s = None if learned is None else learned.seconds_of_task()
            if number:
                total += math.inf if task_s is None else number * task_s
        return total


def to_give(held: int, spare: int, idle: int) -> int:
    """How many tasks to give back, so that this worker and the idle ones have equal shares, rounded in its favour.

    Args:
        held: tasks inside, those that run included.
        spare: those of them that have not begun.
        idle: workers that have nothing.
    """
    return min(spare, held * idle // (idle + 1))
