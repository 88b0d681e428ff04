"""A connection between two processes, here inside one: order, company, and the end; and the loop that listens to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from pipeq_worker.children import protocol
from pipeq_worker.children.link import GATHER_S, GONE, Link
from pipeq_worker.children.loop import Loop


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    one, other = socket.socketpair()
    links = Link(one, "one"), Link(other, "other")
    yield links
    for link in links:
        link.release()


def number(at: int) -> protocol.Prepared:
    return protocol.Prepared(at)


def receive(link: Link, count: int) -> list[list[int]]:
    """Receives so many messages. Returns the numbers in each write."""
    found: list[list[int]] = []
    while sum(map(len, found)) < count:
        found.append([one.task for one in link.receive(protocol.for_host)])
    return found


def test_messages_stay_in_order_whichever_way_they_are_given(ends: tuple[Link, Link]) -> None:
    here, there = ends
    here.send(number(0))
    here.gather(number(1), number(2))
    here.leave(number(3))
    here.gather(number(4))
    here.send(number(5))
    here.leave(number(6))
    here.write()
    assert _flat(receive(there, 7)) == list(range(7))


def test_what_is_gathered_has_company_and_comes_soon(ends: tuple[Link, Link]) -> None:
    here, there = ends
    began = time.monotonic()
    for at in range(2000):
        here.gather(number(at))
    writes = receive(there, 2000)
    took_s = time.monotonic() - began
    assert _flat(writes) == list(range(2000))
    assert len(writes) <= 2 + took_s / GATHER_S


def test_flush_sends_what_was_gathered_and_nothing_if_there_is_nothing(ends: tuple[Link, Link]) -> None:
    here, there = ends
    here.flush()
    here.send()
    here.write()
    here.gather(number(0))
    here.gather(number(1))
    here.flush()
    assert _flat(receive(there, 2)) == [0, 1]
    here.close()
    with pytest.raises(GONE):
        there.receive(protocol.for_host)


def test_what_is_left_is_due_after_a_while(ends: tuple[Link, Link]) -> None:
    here, there = ends
    assert not here.is_due
    here.leave(number(0))
    time.sleep(2 * GATHER_S)
    assert here.is_due
    here.write()
    assert not here.is_due
    assert receive(there, 1) == [[0]]


def test_a_sender_never_waits_and_nothing_is_lost_when_the_other_end_has_no_room(ends: tuple[Link, Link]) -> None:
    here, there = ends
    far = protocol.Far(0, 0, None, "x" * 300_000)  # more than a socket holds
    for at in range(20):
        here.send(number(2 * at), far)
        here.gather(number(2 * at + 1))
    here.flush()
    found: list[int] = []
    while len(found) < 40:
        found += [one.task for one in there.receive(protocol.for_host) if isinstance(one, protocol.Prepared)]
    assert found == list(range(40))
    here.close()
    with pytest.raises(GONE):
        there.receive(protocol.for_host)


def test_each_thread_keeps_its_order(ends: tuple[Link, Link]) -> None:
    here, there = ends

    def give(first: int) -> None:
        for at in range(first, first + 400):
            (here.send, here.gather)[at % 2](number(at), protocol.Far(0, 0, None, "x" * (at % 7) * 1000))
            if not at % 50:
                here.write()

    threads = [threading.Thread(target=give, args=(1000 * one,)) for one in range(4)]
    for thread in threads:
        thread.start()
    found: list[int] = []
    while len(found) < 1600:
        found += [one.task for one in there.receive(protocol.for_host) if isinstance(one, protocol.Prepared)]
    for thread in threads:
        thread.join()
    for one in range(4):
        assert [at for at in found if at // 1000 == one] == list(range(1000 * one, 1000 * one + 400))


def test_an_end_that_is_gone_is_heard_of_and_takes_nothing(ends: tuple[Link, Link]) -> None:
    here, there = ends
    there.release()
    with pytest.raises(GONE):
        here.receive(protocol.for_host)
    here.leave(number(0))
    here.write()
    here.send(number(1))
    here.gather(number(2))


def test_a_loop_hears_and_runs_steps_in_turn_on_one_thread(ends: tuple[Link, Link]) -> None:
    here, there = ends
    loop, seen, over = Loop(), list[str](), threading.Event()

    def hear() -> bool:
        try:
            for message in here.receive(protocol.for_host):
                seen.append("heard")
                loop.call(*[lambda: seen.append("step")] * message.task)
                loop.call(lambda: seen.append("first"), first=True)
        except GONE:
            return False
        return True

    def run() -> None:
        loop.run(here.fileno(), hear, lambda is_all: seen.append("all") if is_all else None)
        over.set()

    threading.Thread(target=run, daemon=True).start()
    there.send(number(3))
    _wait_for(lambda: seen.count("all") == 2)
    assert seen == ["all", "heard", "first", "step", "step", "step", "all"]
    loop.call(lambda: 1 // 0, lambda: seen.append(str(loop.is_here)))  # from another thread; a step that raises
    _wait_for(lambda: seen[-1] == "all" and "True" in seen)
    assert not loop.is_here
    there.close()
    assert over.wait(20)


def _wait_for(is_so: object) -> None:
    assert callable(is_so)
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


def _flat(writes: list[list[int]]) -> list[int]:
    return [at for one in writes for at in one]
