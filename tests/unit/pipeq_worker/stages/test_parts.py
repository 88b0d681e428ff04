"""The small parts between the stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

from pipeq_worker.stages.budget import Budget
from pipeq_worker.stages.threads import Threads


def test_the_budget_holds_back_who_holds_nothing() -> None:
    budget = Budget(100)
    budget.add(0, 80)
    waiter = threading.Thread(target=budget.add, args=(0, 30))
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive()
    budget.add(80, 50)  # a task that holds memory never waits, so two half-read tasks cannot block each other
    budget.add(130, -130)
    waiter.join(5)
    assert not waiter.is_alive()
    assert budget.used == 30


def test_one_larger_than_the_budget_is_let_in_alone() -> None:
    budget = Budget(100)
    budget.add(0, 1000)
    assert budget.used == 1000


def test_a_closed_budget_lets_everybody_through() -> None:
    budget = Budget(100)
    budget.add(0, 100)
    waiters = [threading.Thread(target=budget.add, args=(0, 50)), threading.Thread(target=budget.wait_for_room)]
    for waiter in waiters:
        waiter.start()
    budget.close()
    for waiter in waiters:
        waiter.join(5)
    assert not any(waiter.is_alive() for waiter in waiters)


def test_steps_go_on_where_they_began_in_turn_with_new_ones() -> None:
    threads, seen, done = Threads(2, "it"), [], threading.Semaphore(0)

    def slice_of(name: str, left: int) -> None:
        seen.append((name, threading.get_ident()))
        if left:
            threads.go_on(threads.here(), lambda: slice_of(name, left - 1))
        else:
            done.release()

    threads.submit(lambda: slice_of("a", 50))
    threads.submit(lambda: slice_of("b", 200))
    assert done.acquire(timeout=20)
    assert done.acquire(timeout=20)
    assert len({thread for name, thread in seen if name == "a"}) == 1
    assert len({thread for name, thread in seen if name == "b"}) == 1
    threads.close()


def test_what_is_new_waits_for_a_step_and_not_for_a_task() -> None:
    threads, seen, done, both = Threads(1, "it"), [], threading.Event(), threading.Event()

    def slice_of(left: int) -> None:
        assert both.wait(20)
        seen.append("old")
        if left:
            threads.go_on(threads.here(), lambda: slice_of(left - 1))
        else:
            done.set()

    threads.submit(lambda: slice_of(50))
    threads.submit(lambda: seen.append("new"))
    both.set()
    assert done.wait(20)
    assert seen.index("new") <= 2
    threads.close()


def test_a_step_that_raises_ends_no_thread() -> None:
    threads, done = Threads(1, "it"), threading.Event()
    threads.submit(lambda: 1 // 0)
    threads.submit(done.set)
    assert done.wait(20)
    threads.close()


def test_short_steps_stay_on_one_thread_and_long_ones_are_shared() -> None:
    threads, seen, done = Threads(2, "it"), [], threading.Semaphore(0)

    def step(seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass
        seen.append(threading.get_ident())
        done.release()

    def run(count: int, seconds: float) -> list[int]:
        seen.clear()
        threads.submit(*(partial(step, seconds) for _ in range(count)))
        assert all(done.acquire(timeout=60) for _ in range(count))
        return list(seen)

    run(200, 0)  # so that steps are known to be short
    short = run(50, 0.0002)
    assert len(set(short)) == 1
    assert len(set(run(100, 0.005))) == 2
    threads.close()


def test_nobody_waits_for_a_step_that_turns_out_to_be_long() -> None:
    threads, done, may_end = Threads(2, "it"), threading.Semaphore(0), threading.Event()
    threads.submit(*[done.release] * 200)
    assert all(done.acquire(timeout=20) for _ in range(200))
    threads.submit(lambda: may_end.wait(60), *[done.release] * 20)
    assert all(done.acquire(timeout=20) for _ in range(20))
    may_end.set()
    threads.close()


def test_a_thread_that_has_worked_says_when_nothing_is_left() -> None:
    done, idle = threading.Semaphore(0), threading.Event()
    threads = Threads(1, "it", idle.set)
    threads.submit(lambda: done.acquire(timeout=20))
    assert not idle.wait(0.1)
    done.release()
    assert idle.wait(20)
    threads.close()


def test_a_loop_does_what_is_short_and_light() -> None:
    loop, ran = ListLoop(), []
    threads = Threads(1, "it", loop=loop)
    done = threading.Semaphore(0)
    threads.submit(*[done.release] * 200)
    assert all(done.acquire(timeout=20) for _ in range(200))
    assert not loop.steps  # they were not light
    threads.submit(lambda: ran.append(threading.get_ident()), light=True)
    assert not ran
    loop.steps.pop()()
    assert ran == [threading.get_ident()]
    threads.go_on(threads.here(), lambda: ran.append("more"))  # what began on the loop's thread goes on there
    loop.steps.pop()()
    assert ran[1:] == ["more"]
    threads.close()


class ListLoop:
    """A loop whose steps the test runs."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    @property
    def is_here(self) -> bool:
        return True

    def call(self, *steps: Callable[[], None], first: bool = False) -> None:
        self.steps.extend(steps)
