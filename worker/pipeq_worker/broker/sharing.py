"""SHARING: what a worker takes of its pipelines' queues, and what it gives back to idle workers.

Joins the credit (schedule/credit.py), the tasks inside (children/dispatcher.py) and their messages. Called by the
reserver, on its thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from celery.worker import state as celery_state
from pipeq.contract import shown
from pipeq.contract.reading import number

from pipeq_worker.children.dispatcher import Dispatcher
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.fitness import Fitness
from pipeq_worker.leases.leases import Leases
from pipeq_worker.schedule.credit import WORTH_S, Credit, to_give
from pipeq_worker.schedule.task import Place

logger = logging.getLogger(__name__)

#: A worker that gave messages back takes none for so long, in seconds, unless it has none: they are for others.
AWAY_S = 1.0


class PipelineSharing:
    """See :class:`pipeq_worker.leases.sharing.Sharing`.

    Args:
        leases: hold the messages.
        dispatcher: has the tasks.
        credit: how much of each pipeline may be inside.
        pipelines: the names of the pipelines, which are those of their queues.
        forget: called with deliveries that are given back, before their messages are.
        fitness: which pipelines the worker is able to serve.
    """

    def __init__(
        self,
        leases: Leases,
        dispatcher: Dispatcher[Delivery],
        credit: Credit,
        pipelines: list[str],
        forget: Callable[[list[Delivery]], None],
        fitness: Fitness,
    ) -> None:
        self._leases = leases
        self._dispatcher = dispatcher
        self._credit = credit
        self._pipelines = pipelines
        self._forget = forget
        self._fitness = fitness
        fitness.on_unfit = self.give_all_back
        #: Pipeline -> until when no messages are taken, by the monotonic clock.
        self._away_until: dict[str, float] = {}

    def shares(self, queue: str) -> bool:
        """Whether it is a pipeline's queue. Ordinary tasks are Celery's affair."""
        return queue in self._pipelines

    def most(self, queue: str) -> int:
        """Most messages of a pipeline that may be inside now."""
        held, _ = self._leases.held(queue)
        if (bound := self._fitness.most(queue)) is not None:
            return max(held, bound)
        if held and time.monotonic() < self._away_until.get(queue, 0):
            return held
        return self._credit.most(queue, held)

    def takes(self, queue: str) -> bool:
        """Whether the worker is able to do tasks of a pipeline now."""
        return self._fitness.most(queue) is None

    def is_idle(self) -> bool:
        """Whether the worker has no task of any pipeline, and its child serves."""
        return not any(self._held().values()) and self._dispatcher.is_open

    def lasts_s(self) -> float:
        """How long the device needs for all that is inside, in seconds."""
        return self._credit.lasts_s(self._held())

    def spare(self, queue: str) -> int:
        """Number of tasks that could be given back; 0 if they are not worth it."""
        if self._leases.held(queue)[0] < 2 or self.lasts_s() < WORTH_S:
            return 0
        return len(self._dispatcher.spare(queue))

    def give_back(self, queue: str, idle: int) -> None:
        """Gives back a fair share: what the child does not have yet, then the least urgent, then the newest."""
        tasks = self._dispatcher.spare(queue)
        tasks.sort(key=lambda task: (task.place is not Place.HOST, -_priority(task), -task.ticket))
        held, _ = self._leases.held(queue)
        # Others may take messages only if these do not come back at once.
        self._away_until[queue] = time.monotonic() + AWAY_S
        if back := self._give_back(tasks, to_give(held, len(tasks), idle)):
            reason = f"{idle} workers have none"
            logger.debug("%d tasks of %s go back, because %s", len(back), queue, reason, extra={"action": "give_back"})

    def give_all_back(self, queue: str) -> None:
        """Gives back all that has not begun, because the worker is not able to do it. Called on any thread."""
        tasks = self._dispatcher.spare(queue)
        if back := self._give_back(tasks, len(tasks)):
            count = shown.count(len(back), "task")
            logger.info("%s of %s go back, for other workers", count, queue, extra={"action": "give_back"})

    def _give_back(self, tasks: list[Delivery], most: int) -> list[Delivery]:
        back = self._dispatcher.give_back(tasks, most)
        for task in back:
            task.is_lost = True
            celery_state.task_ready(task.request)
        self._forget(back)
        self._leases.requeue(task.tag for task in back)
        for task in back:
            # In Redis, the message is somewhere else already.
            task.request.acknowledge()
        return back

    def _held(self) -> dict[str, int]:
        return {name: self._leases.held(name)[0] for name in self._pipelines}


def _priority(task: Delivery) -> float:
    """0 is the most urgent."""
    return number((task.request.delivery_info or {}).get("priority")) or 0
