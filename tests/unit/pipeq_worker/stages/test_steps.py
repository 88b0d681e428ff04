"""Which steps run beside each other: those of suspects beside few."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pipeq_worker.stages import steps as steps_module
from pipeq_worker.stages.steps import Stage, Steps


@contextmanager
def running(steps: Steps, stage: Stage, *, alone: bool = False) -> Iterator[threading.Event]:
    """Runs a step on another thread until the block ends. Yields what is set once it has begun."""
    begun, ends = threading.Event(), threading.Event()

    def run() -> None:
        with steps.step(stage, 1, alone=alone):
            begun.set()
            ends.wait(30)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield begun
    finally:
        ends.set()
        thread.join(30)


def begins(steps: Steps, stage: Stage, *, alone: bool = False) -> bool:
    """Whether a step begins, although none of those that run ends meanwhile."""
    with running(steps, stage, alone=alone) as begun:
        return begun.wait(10)


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.FORWARD, Stage.FINISH])
def test_a_suspects_step_is_alone_but_for_reads_of_others(stage: Stage) -> None:
    steps = Steps()
    with running(steps, stage, alone=True) as begun:
        assert begun.wait(10)
        assert begins(steps, Stage.FETCH)
        begun_later: list[Stage] = []
        others = [(Stage.PREPARE, False), (Stage.FINISH, True), (Stage.FETCH, True)]
        threads = [threading.Thread(target=note, args=(steps, *one, begun_later), daemon=True) for one in others]
        for thread in threads:
            thread.start()
        time.sleep(0.15)
        assert begun_later == []
    for thread in threads:
        thread.join(10)
    assert sorted(begun_later) == [Stage.FETCH, Stage.PREPARE, Stage.FINISH]


def note(steps: Steps, stage: Stage, alone: bool, begun: list[Stage]) -> None:
    with steps.step(stage, 2, alone=alone):
        begun.append(stage)


def test_a_suspects_read_is_beside_others_but_beside_no_suspects_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps()
    monkeypatch.setattr(steps_module, "STORE_ALONE_S", 1000)
    with running(steps, Stage.FETCH, alone=True) as begun:
        assert begun.wait(10)
        assert begins(steps, Stage.PREPARE)
        assert begins(steps, Stage.FETCH)
        # They wait, and nobody else waits for them.
        later: list[Stage] = []
        for stage in (Stage.FETCH, Stage.PREPARE, Stage.FORWARD):
            threading.Thread(target=note, args=(steps, stage, True, later), daemon=True).start()
        time.sleep(0.1)
        assert begins(steps, Stage.PREPARE)
        assert later == []
    assert begins(steps, Stage.PREPARE, alone=True)

    monkeypatch.setattr(steps_module, "STORE_ALONE_S", 0.2)
    began = time.monotonic()
    with running(steps, Stage.FETCH, alone=True) as begun:
        assert begun.wait(10)
        with steps.step(Stage.FORWARD, 2, alone=True):
            assert 0.2 <= time.monotonic() - began < 5, "a slow store does not hold the device"
        with steps.step(Stage.FORWARD, 2, alone=True):
            pass


def test_a_suspect_that_waits_inside_its_read_lets_others_go_on() -> None:
    steps = Steps()
    with steps.step(Stage.FETCH, 1, alone=True), steps.paused():
        assert begins(steps, Stage.PREPARE, alone=True)
