"""The small parts between the stages."""

from __future__ import annotations

import threading

from pipeq_worker.stages.budget import Budget
from pipeq_worker.stages.lane import Threads


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
