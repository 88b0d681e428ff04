"""BOARD: what threads note is what the other side reads, for steps of one task and of several."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from pipeq_worker.children import board
from pipeq_worker.stages.steps import Stage, Steps


def test_a_step_of_several_tasks_names_each_until_it_ends() -> None:
    descriptor = board.make()
    writer, reader = board.Writer(descriptor), board.Reader(descriptor)
    steps = Steps(writer)
    with steps.step(Stage.PREPARE, 1, 2, 3):
        assert [(one.stage, one.number) for one in reader.read()] == [(Stage.PREPARE, at) for at in (1, 2, 3)]
        assert len({one.since for one in reader.read()}) == 1
    assert not reader.read()
    with steps.step(Stage.FINISH, 4):
        assert [(one.stage, one.number) for one in reader.read()] == [(Stage.FINISH, 4)]
    assert not reader.read()


def test_a_step_that_goes_on_with_another_stage_leaves_nothing_behind() -> None:
    descriptor = board.make()
    steps, reader = Steps(board.Writer(descriptor)), board.Reader(descriptor)
    with steps.step(Stage.PREPARE, 1, 2):
        steps.note(Stage.FORWARD, 9)
    assert not reader.read()


def test_threads_do_not_write_over_each_other() -> None:
    descriptor = board.make()
    steps, reader = Steps(board.Writer(descriptor)), board.Reader(descriptor)
    noted, read = threading.Barrier(5), threading.Barrier(5)

    def work(first: int) -> None:
        for count in (1, 3, 2):
            with steps.step(Stage.PREPARE, *range(first, first + count)):
                noted.wait(20)
                read.wait(20)

    threads = [threading.Thread(target=work, args=(at * 10,)) for at in range(4)]
    for one in threads:
        one.start()
    for count in (1, 3, 2):
        noted.wait(20)
        found = sorted(one.number for one in reader.read())
        read.wait(20)
        assert found == sorted(at * 10 + more for at in range(4) for more in range(count))
    for one in threads:
        one.join(20)
    assert not reader.read()


#: Begins and ends steps as fast as it can, until its input ends.
_BUSY = """
import select, sys
from pipeq_worker.children.board import Writer
from pipeq_worker.stages.steps import Stage
writer, number = Writer(int(sys.argv[1])), 0
print("begins", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(1000):
        number += 1
        writer.begin(Stage.PREPARE, *[number] * 8)
        writer.end()
"""


def test_no_step_is_ever_seen_half_written() -> None:
    """A time of 0 would be a step that hangs since the machine was started, and its process would be ended."""
    descriptor = board.make()
    reader, began, seen = board.Reader(descriptor), time.monotonic(), 0
    command = [sys.executable, "-c", _BUSY, str(descriptor)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, pass_fds=[descriptor], **pipes) as process:  # type: ignore[call-overload]
        process.stdout.readline()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            found = reader.read()
            assert all(one.stage is Stage.PREPARE and one.since >= began and one.number for one in found)
            seen += len(found)
        process.stdin.close()
    assert seen
