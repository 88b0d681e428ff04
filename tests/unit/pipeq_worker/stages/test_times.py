"""Each moment of a task counts once: the parts add up, whatever happens at the same time."""

from __future__ import annotations

import random
import time

import pytest
from pipeq.contract.times import PARTS
from pipeq_worker.stages.times import Times


def told(*steps: tuple[float, str], passes: tuple[tuple[float, float], ...] = (), until: float) -> dict[str, float]:
    times = Times()
    for at, part in steps:
        times.enters(part, at)
    for one in passes:
        times.passed(*one)
    return times.told(until)


def test_a_task_of_one_item() -> None:
    found = told((1, "prepare"), (2, "wait_device"), (5, "deliver"), passes=((3, 5),), until=6)
    assert found == {"prepare": 1000, "wait_device": 1000, "infer": 2000, "deliver": 1000}


def test_reading_the_message_belongs_to_the_fetch_that_follows() -> None:
    times = Times()
    times.enters("prepare", 1.0)
    times.reads()
    times.enters("decode", 4.0)
    times.enters("prepare", 5.0)
    times.enters("fetch", 7.0)  # of further inputs
    assert list(times.told(8.0).items()) == [("fetch", 4000), ("decode", 1000), ("prepare", 2000)]
    times = Times()
    times.reads()
    assert times.began is not None


def test_a_part_without_length_is_not_told() -> None:
    assert told((1, "fetch"), (2, "wait_device"), (2, "deliver"), until=3) == {"fetch": 1000, "deliver": 1000}


def test_nothing_is_told_before_it_began() -> None:
    assert Times().told(5) == {}
    assert Times().began is None


def test_what_is_prepared_while_a_pass_runs_counts_as_infer() -> None:
    found = told((0, "prepare"), (10, "wait_device"), (20, "deliver"), passes=((4, 12), (13, 20)), until=21)
    assert found == {"prepare": 4000, "wait_device": 1000, "infer": 15000, "deliver": 1000}


def test_passes_beside_each_other_count_once_and_may_be_told_late() -> None:
    found = told((0, "prepare"), (1, "wait_device"), (9, "deliver"), passes=((4, 6), (2, 9), (5, 7)), until=9)
    assert found == {"prepare": 1000, "wait_device": 1000, "infer": 7000}


def test_the_end_of_the_last_pass_may_lie_before_the_last_part() -> None:
    times = Times()
    times.enters("prepare", 0.0)
    times.waits(5.0)
    times.passed(1.0, 4.0)
    times.enters("deliver", 4.0)
    assert times.told(6.0) == {"prepare": 2000, "infer": 3000, "deliver": 1000}


def test_work_goes_on_after_a_wait_for_room() -> None:
    times = Times()
    began = time.monotonic()
    times.goes_on()  # nothing was begun
    times.enters("decode", began)
    times.waits(began + 1)
    times._starts.append((began + 2, "decode"))
    assert times.told(began + 3) == {"decode": pytest.approx(2000), "wait_device": pytest.approx(1000)}
    times = Times()
    times.enters("decode")
    times.waits()
    times.goes_on()
    assert [part for _, part in times._starts] == ["decode", "wait_device", "decode"]


@pytest.mark.parametrize("seed", range(200))
def test_the_parts_add_up_whatever_happens(seed: int) -> None:
    """Compared with a clock that looks at each tick who has the task."""
    rng = random.Random(seed)
    ticks = 60
    starts = sorted(rng.sample(range(ticks), rng.randint(1, 8)))
    parts = [rng.choice(["fetch", "decode", "prepare", "wait_device", "deliver"]) for _ in starts]
    passes = []
    for _ in range(rng.randint(0, 6)):
        a, b = sorted(rng.sample(range(starts[0], ticks + 1), 2)) if ticks - starts[0] > 1 else (starts[0], ticks)
        passes.append((float(a), float(b)))
    times = Times()
    times._starts = [(float(at), part) for at, part in zip(starts, parts, strict=True)]
    for one in passes:
        times.passed(*one)
    expected = dict.fromkeys(PARTS, 0.0)
    for tick in range(starts[0], ticks):
        now = tick + 0.5
        part = next(part for at, part in reversed(times._starts) if at <= now)
        expected["infer" if any(a <= now < b for a, b in passes) else part] += 1000
    found = times.told(float(ticks))
    assert {**dict.fromkeys(PARTS, 0.0), **found} == expected
    assert sum(found.values()) == (ticks - starts[0]) * 1000
    assert list(found) == [part for part in PARTS if part in found]
