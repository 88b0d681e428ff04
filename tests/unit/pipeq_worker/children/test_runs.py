"""What the device process is given."""

from __future__ import annotations

import time
from typing import Any

from pipeq.contract.message import TaskMessage
from pipeq_worker.children import protocol
from pipeq_worker.children.runs import Runs
from pipeq_worker.children.slab import Where
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.batcher import Batcher
from pipeq_worker.schedule.task import Item, Task
from pipeq_worker.settings.read import Settings

LIMITS = BatchLimits(max_size=8, max_cost=100)


def item(ticket: int) -> Item[Task]:
    task = Task(id=str(ticket), message=TaskMessage(pipeline="it", inputs=1), ticket=ticket)
    return Item(task, ticket, ticket, b"group", "it", 1, 1, child=1, where=Where(b"row"))


def test_rows_of_a_process_that_dies_while_their_batch_begins_do_not_run() -> None:
    """Another process may soon write where they lie, and has other items with their numbers."""
    gone, stays = item(1), item(2)
    sent: list[Any] = []

    def begin(tasks: list[Task], alone: bool) -> None:
        gone.task.ticket = 3  # its prepare process has died, and it starts over

    window: Batcher[Item[Task]] = Batcher(2**30)
    for one in (gone, stays):
        window.put(one, LIMITS)
    never = lambda *_: None  # noqa: E731
    runs: Runs[Task] = Runs(
        window,
        begin,
        lambda *said: sent.extend(said),
        lambda: True,
        never,
        lambda _: LIMITS,
        Settings(),
        Observer(),
        never,
    )
    runs.start()
    deadline = time.monotonic() + 10
    while not sent and time.monotonic() < deadline:
        time.sleep(0.01)
    window.close()
    runs.close()
    (batch,) = sent
    assert isinstance(batch, protocol.ForwardRows)
    assert len(batch.rows) == 1
    assert runs.items_of(batch.number) == [stays]
