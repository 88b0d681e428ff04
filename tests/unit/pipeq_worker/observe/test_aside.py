"""A user's observer has a thread of its own: it is told in order, and one that never returns stops nothing."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace

import pytest
from pipeq_worker.observe import aside as module
from pipeq_worker.observe.aside import Aside
from pipeq_worker.observe.observer import Observer, Observers

from tests.waiting import until


class Own(Observer):
    """Notes its calls, and the threads; its first one waits until it may return."""

    def __init__(self) -> None:
        self.is_called, self.may_return, self.told = threading.Event(), threading.Event(), list[tuple[int, str]]()

    def batch_began(self, pipeline: str, size: int) -> None:
        self.is_called.set()
        self.may_return.wait(60)
        self.told.append((size, threading.current_thread().name))


def test_it_is_told_in_order_on_a_thread_of_its_own() -> None:
    own = Own()
    own.may_return.set()
    observers = Observers([], [own])
    for size in range(1000):
        observers.batch_began("x", size)
    observers.close(30)
    assert own.told == [(size, "observer") for size in range(1000)]


def test_one_that_does_not_return_stops_neither_the_worker_nor_another_one() -> None:
    stuck, other = Own(), Own()
    other.may_return.set()
    observers = Observers([], [stuck, other])
    began = time.monotonic()
    for size in range(100):
        observers.batch_began("x", size)
    assert time.monotonic() - began < 5
    until(lambda: len(other.told) == 100)
    assert stuck.told == []
    began = time.monotonic()
    observers.close(0.2)
    assert time.monotonic() - began < 5
    stuck.may_return.set()


def test_what_is_left_out_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(module, "MOST", 10)
    own = Own()
    observers = Observers([], [own])
    for size in range(100):
        observers.batch_began("x", size)
    (said,) = caplog.records
    assert said.getMessage() == "the observer Own is slower than its events: 10 wait, and further ones are left out"
    own.may_return.set()
    observers.close(30)
    # One had begun by then, and there was room for another one, or not.
    told = [size for size, _ in own.told]
    assert told[:10] == list(range(10))
    assert len(told) <= 11
    assert [one.getMessage() for one in caplog.records[1:]] == [
        f"the observer Own is told of events again; {100 - len(own.told)} were left out"
    ]


def test_what_is_left_out_while_it_catches_up_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(module, "MOST", 10)
    own, aside = Own(), Aside("Mine")
    call = aside.later(own.batch_began)

    def catches_up(record: logging.LogRecord) -> bool:
        """The log is slow, and meanwhile the observer is told of all that waits."""
        if "is slower" in record.getMessage():
            own.may_return.set()
            until(lambda: len(own.told) == 11)
            time.sleep(0.05)
        return True

    module.logger.addFilter(catches_up)
    try:
        call("x", 0)
        assert own.is_called.wait(30)
        for size in range(1, 12):
            call("x", size)
    finally:
        module.logger.removeFilter(catches_up)
    assert len(own.told) == 11
    aside.close(30)
    assert [one.getMessage().partition("; ")[2] for one in caplog.records[1:]] == ["1 were left out"]


def test_one_that_is_slow_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    own = Own()
    aside = Aside("Mine")
    call = aside.later(own.batch_began)
    call("x", 1)
    assert own.is_called.wait(30)
    now[0] += module.SLOW_S + 1
    call("x", 2)
    call("x", 3)
    assert [one.getMessage() for one in caplog.records] == [
        "the observer Mine has not returned from a call for 61 s, and its events wait"
    ]
    own.may_return.set()
    aside.close(30)
    assert [size for size, _ in own.told] == [1, 2, 3]
