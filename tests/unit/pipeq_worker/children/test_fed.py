"""FED: counts stay right, whatever is added and taken out, and in whatever order."""

from __future__ import annotations

import random

from pipeq_worker.children.fed import Fed


def test_the_counts_are_those_of_a_set() -> None:
    rng, fed, plain = random.Random(1), Fed(), dict[int, str]()
    for _ in range(5000):
        ticket = rng.randrange(40)
        step = rng.random()
        if step < 0.5:
            # A ticket belongs to one pipeline.
            lane = "ab"[ticket % 2]
            fed.add(ticket, lane)
            plain[ticket] = lane
        elif step < 0.99:
            fed.discard(ticket)
            plain.pop(ticket, None)
        else:
            fed.clear()
            plain.clear()
        assert [fed.count(lane) for lane in "abc"] == [list(plain.values()).count(lane) for lane in "abc"]
