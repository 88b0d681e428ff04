"""The thread that marks what runs already."""

from __future__ import annotations

import threading

from pipeq_worker.children.marking import Marking
from pipeq_worker.schedule.task import Task


def test_the_lock_is_free_after_the_thread_broke() -> None:
    broke = threading.Event()

    def mark(_: list[Task]) -> None:
        if not broke.is_set():
            raise RuntimeError("no marks")

    marks = Marking[Task](mark, lambda _: None, lambda _: broke.set())
    marks.start()
    marks.lock.acquire()
    marks.soon([], [])
    assert broke.wait(10)
    assert marks.lock.acquire(timeout=10)
    marks.soon([], [])
    assert marks.lock.acquire(timeout=10), "who has tasks start over would wait for ever"
