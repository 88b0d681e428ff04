"""CONTRACT: what a worker computes under a pipeline's name, and in which words two workers differ in it.

A worker says it in its heartbeat: aspect (``model``, ``revision``, ``params.top_k``, ...) -> a short text. Two workers
whose texts are equal give equal answers, up to rounding. Used by workers and by ``pipeq queues``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

from pipeq.contract import shown

#: What people call the model. It is shown and not compared: a folder may have another path on each machine.
NAME = "name"
#: Longest value that is stored as it is; of a longer one its hash is.
MOST = 80
#: Most differences that one sentence names.
_SHOWN = 5


def short(value: str) -> str:
    """A value as it is stored: itself, or, if it is long, its beginning and its hash."""
    if len(value) <= MOST:
        return value
    return f"{value[: MOST - 20]}...{hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """What ``theirs`` has otherwise than ``ours``, as a part of a sentence; None if they are equal, or one is unknown.

    For instance ``model 'b' (not 'a'), params.top_k 5 (not set otherwise)``.
    """
    if not ours or not theirs:
        return None
    found = [name for name in {**ours, **theirs} if name != NAME and ours.get(name) != theirs.get(name)]
    if not found:
        return None
    said = [f"{shown.line(name, 60)} {_of(theirs, name)} (not {_of(ours, name)})" for name in found]
    more = f", and {len(said) - _SHOWN} more" if len(said) > _SHOWN else ""
    return ", ".join(said[:_SHOWN]) + more


def odd_ones(served: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Worker -> how it serves a pipeline otherwise than most workers do; empty if all are alike.

    Args:
        served: worker -> what it computes.
    """
    known = {worker: compared(one) for worker, one in sorted(served.items()) if one}
    counts = Counter(known.values())
    if len(counts) < 2:
        return {}
    # Of equally many, those of the worker whose name comes first.
    usual = max(counts, key=lambda one: counts[one])
    other = next(worker for worker, one in known.items() if one == usual)
    return {
        worker: f"{differences(served[other], served[worker])}, as {other} has it"
        for worker, one in known.items()
        if one != usual
    }


def compared(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What of it is compared, in a fixed order."""
    return tuple(sorted((name, value) for name, value in facts.items() if name != NAME))


def _of(facts: Mapping[str, str], name: str) -> str:
    value = facts.get(name)
    if value is None:
        return "unset"
    text = shown.line(value, MOST + 20)
    return f"{text} of {shown.line(facts[NAME], 100)}" if name == "files" and NAME in facts else text
