"""FED: counts stay right, whatever is added and taken out, and in whatever order."""

from __future__ import annotations

import itertools
import random

from pipeq_worker.children.fed import Fed


def test_the_counts_are_those_of_a_set() -> None:
    rng, fed, plain = random.Random(1), Fed(), dict[int, tuple[str, int]]()
    for _ in range(5000):
        ticket = rng.randrange(40)
        step = rng.random()
        if step < 0.5:
            # A ticket belongs to one pipeline, and one child has it.
            has = ("ab"[ticket % 2], ticket % 3)
            fed.add(ticket, *has, nbytes=ticket)
            plain[ticket] = has
        else:
            fed.discard(ticket)
            plain.pop(ticket, None)
        held = list(plain.values())
        for lane, child in itertools.product("abc", range(3)):
            assert fed.count(lane, child) == held.count((lane, child))
            assert fed.nbytes(lane, child) == sum(one for one, has in plain.items() if has == (lane, child))
