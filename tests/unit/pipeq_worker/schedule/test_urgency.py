"""Who is the most urgent, against a plain comparison of all; and what that costs when there are many tenants."""

from __future__ import annotations

import random
import time

import pytest
from pipeq_worker.schedule.task import Task
from pipeq_worker.schedule.task_queue import TaskQueue
from pipeq_worker.schedule.turns import SPARE
from pipeq_worker.schedule.urgency import EVERY, Urgency, Waiting


def plain_head(urgency: Urgency[Task]) -> Waiting[Task]:
    waiting = {at: one for at, one in urgency._priorities.items() if one.tenants}
    at = min(waiting, key=lambda at: (waiting[at].passed_over < EVERY, at))
    left = [one for one in urgency if one.item.priority == at]
    return min(left, key=lambda one: (urgency.time(one), one.due, one.order))


@pytest.mark.parametrize("seed", range(40))
def test_the_most_urgent_is_found_among_any_tenants(seed: int) -> None:
    chance, urgency = random.Random(seed), Urgency[Task]()
    left: list[Waiting[Task]] = []
    for order in range(600):
        step = chance.random()
        if step < 0.5 or not left:
            task = Task(id=str(order), tenant=chance.choice([None, *"abcdefg"]), priority=chance.choice([0, 0, 6]))
            left.append(Waiting(task, chance.randint(1, 9), 0.0, chance.choice([1.0, 2.0, chance.random()]), order))
            urgency.add(left[-1])
        elif step < 0.6:
            one = left.pop(chance.randrange(len(left)))
            urgency.remove(one)
        else:
            head = urgency.head()
            assert head is plain_head(urgency)
            company = [one for one in left if one is not head and chance.random() < 0.1]
            urgency.serve(head, [head, *company])
            left = [one for one in left if not one.is_taken]


def test_a_tenant_more_costs_the_others_nothing() -> None:
    """With 4,000 tenants, each task took 200 times as long as with one: all were compared for each."""

    def cpu_s(tenants: int) -> float:
        queue = TaskQueue[Task]()
        for at in range(4000):
            queue.add(Task(id=str(at), tenant=str(at % tenants)))
        began = time.process_time()
        while queue:
            queue.head()
            queue.pop()
        return time.process_time() - began

    assert cpu_s(4000) < 20 * cpu_s(1)


def test_tenants_that_come_and_go_leave_nothing_behind() -> None:
    urgency = Urgency[Task]()
    urgency.add(Waiting(Task(id="stays", tenant="a"), 1, 0.0, 0.0, 0))
    for order in range(1, 5000):
        one = Waiting(Task(id="goes", tenant=str(order)), 1, 0.0, 1.0, order)
        urgency.add(one)
        assert urgency.head().item.id == "stays"
        urgency.remove(one)
    (priority,) = urgency._priorities.values()
    assert len(priority.places) <= SPARE + 4
