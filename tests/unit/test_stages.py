"""The small parts between the stages."""

from __future__ import annotations

import threading
import time

from worker.budget import Budget
from worker.watchdog import Watchdog


def test_the_budget_holds_back_who_holds_nothing() -> None:
    budget = Budget(100)
    budget.add(0, 80)
    waiter = threading.Thread(target=budget.add, args=(0, 30))
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive()
    budget.add(80, 50)  # whoever holds something never waits, so two half-read tasks cannot lock each other out
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


def test_the_watchdog_barks_once_and_only_when_late() -> None:
    barks: list[float] = []
    watchdog = Watchdog(limit_s=0.15)
    for _ in range(5):
        with watchdog.watch(barks.append):
            time.sleep(0.05)
    time.sleep(0.2)
    assert barks == []
    with watchdog.watch(barks.append):
        time.sleep(0.5)
    assert barks == [0.15]
