"""What the device process is given."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from pipeq_worker.children import protocol
from pipeq_worker.children import runs as runs_module
from pipeq_worker.children.lone import Lone
from pipeq_worker.children.runs import Device, Runs
from pipeq_worker.children.slab import Where
from pipeq_worker.children.streams import FIRST, Streams
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.batcher import Batcher, Closed
from pipeq_worker.schedule.task import Item, Task
from pipeq_worker.settings.read import Settings

LIMITS = BatchLimits(max_size=8, max_cost=100)


def item(ticket: int, **about: Any) -> Item[Task]:
    task = Task(id=str(ticket), lane="it", message=b"{}", ticket=ticket, **about)
    return Item(task, ticket, ticket, b"group", "it", 1, 1, child=1, where=Where(b"row"))


def never(*_: Any) -> None:
    """Is called, and does nothing."""


def device(
    begin: Callable[[list[Task], bool], None], sent: list[Any], marked: Callable[[list[Task]], None] = never
) -> Device[Task]:
    """One that always runs, and notes what it is sent; its other parts are of no interest."""
    return Device(
        begin=begin,
        send=lambda *said: sent.extend(said),
        may_run=lambda: True,
        drop=never,
        limits=lambda _: LIMITS,
        max_deaths=Settings().max_deaths,
        observer=Observer(),
        hopeless=never,
        lone=Lone(),
        marked=marked,
        again=never,
    )


def make(window: Batcher[Item[Task]], begin: Callable[[list[Task], bool], None], sent: list[Any]) -> Runs[Task]:
    return Runs(window, device(begin, sent))


def test_rows_of_a_process_that_dies_while_their_batch_begins_do_not_run() -> None:
    """Another process may soon write where they lie, and has other items with their numbers."""
    gone, stays = item(1), item(2)
    sent: list[Any] = []

    def begin(tasks: list[Task], alone: bool) -> None:
        gone.task.ticket = 3  # its prepare process has died, and it starts over

    window: Batcher[Item[Task]] = Batcher()
    for one in (gone, stays):
        window.put(one, LIMITS)
    runs = make(window, begin, sent)
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


class NewTask(Task):
    """One that was looked at a moment ago."""

    expired = False

    def must_be_known(self) -> bool:
        return False

    def is_expired(self) -> bool:
        return self.expired


def new_item(ticket: int, *, expired: bool = False) -> Item[Task]:
    task = NewTask(id=str(ticket), lane="it", message=b"{}", ticket=ticket)
    task.expired = expired
    return Item(task, ticket, ticket, b"group", "it", 1, 1, child=1, where=Where(b"row"))


def test_new_tasks_run_while_their_marks_are_written() -> None:
    sent: list[Any] = []
    marking, written = threading.Event(), threading.Event()
    marked: list[Task] = []

    def begin(tasks: list[Task], alone: bool) -> None:
        marking.set()
        assert written.wait(20)

    window: Batcher[Item[Task]] = Batcher()
    runs = Runs(window, device(begin, sent, marked.extend))
    window.put(one := new_item(1), LIMITS)
    runs.start()
    assert marking.wait(20)
    assert len(sent) == 1
    assert one.task.is_marking
    # Whoever has its tasks start over, or withdraws them, waits.
    assert runs.marking.locked()
    assert not marked
    written.set()
    wait_for(lambda: marked == [one.task] and not runs.marking.locked())
    window.close()
    runs.close()


def test_what_is_ready_for_an_idle_device_begins_on_the_calling_thread() -> None:
    """It need not wait for the marks, nor for another thread; whoever has its tasks start over waits for the marks."""
    sent: list[Any] = []
    written, marked = threading.Event(), list[Task]()

    def begin(tasks: list[Task], alone: bool) -> None:
        assert written.wait(20)

    window: Batcher[Item[Task]] = Batcher()
    at_once = replace(LIMITS, max_wait_s=0.0)
    runs = Runs(window, replace(device(begin, sent, marked.extend), limits=lambda _: at_once))
    runs.start()
    runs.put_ready([one := new_item(1)])
    assert len(sent) == 1
    assert one.task.is_marking
    assert runs.marking.locked()
    # The device has something to do, so the next ones gather.
    runs.put_ready([new_item(2), new_item(3)])
    time.sleep(0.05)
    assert len(sent) == 1
    written.set()
    wait_for(lambda: marked == [one.task] and not runs.marking.locked())
    assert len(sent) == 1
    runs.ran(sent[0].number, 0.01)
    wait_for(lambda: len(sent) == 2 and len(sent[1].rows) == 2)
    window.close()
    runs.close()


@pytest.mark.parametrize("other", [item(1), new_item(1, expired=True)], ids=["known", "expired"])
def test_what_redis_must_be_asked_about_does_not_begin_on_the_calling_thread(other: Item[Task]) -> None:
    asked, sent = threading.Event(), list[Any]()
    here = threading.get_ident()

    def begin(tasks: list[Task], alone: bool) -> None:
        assert threading.get_ident() != here
        asked.set()

    window: Batcher[Item[Task]] = Batcher()
    runs = make(window, begin, sent)
    runs.start()
    runs.put_ready([other])
    assert asked.wait(20)
    wait_for(lambda: len(sent) == 1)
    window.close()
    runs.close()


def test_the_lock_of_marks_is_given_back_when_the_window_is_closed() -> None:
    window: Batcher[Item[Task]] = Batcher()
    runs = make(window, never, [])
    runs.start()
    window.close()
    with pytest.raises(Closed):
        runs.put_ready([new_item(1)])
    runs.close()
    wait_for(lambda: not runs.marking.locked())
    with pytest.raises(Closed):
        runs.put_ready([new_item(2)])
    assert not runs.marking.locked()


def test_marks_that_cannot_be_written_hold_up_no_end() -> None:
    marked: list[Task] = []

    def begin(tasks: list[Task], alone: bool) -> None:
        raise ValueError("a fault")

    window: Batcher[Item[Task]] = Batcher()
    runs = Runs(window, device(begin, [], marked.extend))
    window.put(one := new_item(1), LIMITS)
    runs.start()
    wait_for(lambda: one.task.error is not None)
    assert marked == [one.task]
    assert not runs.marking.locked()
    window.close()
    runs.close()


@pytest.mark.parametrize("other", [item(2), new_item(2, expired=True)], ids=["not-known", "expired"])
def test_a_batch_waits_for_what_is_known_of_any_of_its_tasks(other: Item[Task]) -> None:
    sent: list[Any] = []
    begun: list[int] = []
    window: Batcher[Item[Task]] = Batcher()
    runs = make(window, lambda tasks, _: begun.append(len(sent)), sent)
    for one in (new_item(1), other):
        window.put(one, LIMITS)
    runs.start()
    wait_for(lambda: len(sent) == 1)
    assert begun == [0]
    window.close()
    runs.close()


@pytest.mark.parametrize(
    ("start_s", "run_s", "ahead"), [(0.0, 0.05, 2), (0.02, 0.1, 2), (0.05, 0.05, 3), (0.2, 0.01, 4)]
)
def test_a_batch_that_takes_long_to_start_is_started_earlier(
    monkeypatch: pytest.MonkeyPatch, start_s: float, run_s: float, ahead: int
) -> None:
    """Batches that lie ready delay what is urgent, so there are no more than the device needs."""
    sent: list[protocol.ForwardRows] = []
    # On a clock of the test: on that of a busy machine a start takes as long as the machine likes.
    now = [0.0]
    monkeypatch.setattr(runs_module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def begin(tasks: list[Task], alone: bool) -> None:
        now[0] += start_s

    window: Batcher[Item[Task]] = Batcher()
    for at in range(1, 40 * LIMITS.max_size):
        window.put(item(at), LIMITS)
    runs = make(window, begin, sent)
    runs.start()
    seen = 0
    for done in range(30):
        wait_for(lambda done=done: len(sent) > done)  # type: ignore[misc]
        runs.ran(sent[done].number, run_s)
        if done > 15:
            wait_for(lambda done=done: len(sent) - done - 1 >= ahead)  # type: ignore[misc]
            time.sleep(0.02)  # for one more than there should be
            seen = max(seen, len(sent) - done - 1)
    window.close()
    runs.close()
    assert seen == ahead


def test_a_place_of_a_stream_goes_to_the_most_urgent_item_and_tenants_take_turns() -> None:
    sent: list[protocol.ForwardRows] = []
    streams: Streams[Task] = Streams(device(never, sent), lambda _: 1)
    streams.start()
    streams.put(item(1, priority=6, tenant="a"))
    wait_for(lambda: len(sent) == 1)
    for at in range(2, 6):
        streams.put(item(at, priority=6, tenant="a"))
    streams.put(item(6, priority=6, tenant="b"))
    streams.put(item(7, priority=0))
    for done in range(7):
        wait_for(lambda done=done: len(sent) > done)  # type: ignore[misc]
        (running,) = streams.items_of(sent[done].number)
        sent[done] = running.ticket  # type: ignore[call-overload]
        streams.ran(FIRST + done, 0.1)
    streams.close()
    order: list[Any] = list(sent)
    assert order[:2] == [1, 7]
    assert order.index(6) <= 3
    assert [at for at in order if at not in (6, 7)] == [1, 2, 3, 4, 5]


def wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)
