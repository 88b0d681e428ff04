"""Ctrl-C in commands of `pipeq`, each in a process of its own with a real Valkey: what is said, and what goes on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis
from pipeq import Client
from pipeq.contract import keys

from tests.waiting import until

NAME = "text-classification"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(db: redis.Redis) -> Iterator[Start]:
    """Starts a command whose stdin stays open."""

    def started(*arguments: str) -> subprocess.Popen[str]:
        return stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "pipeq", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                # A suite that runs in the background has it ignored.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )  # fmt: skip

    with ExitStack() as stack:
        yield started


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Presses Ctrl-C. Returns the exit code, stdout and stderr."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert "Aborted" not in err
    return process.returncode, out, err


def waits(db: redis.Redis, how: str) -> Callable[[], bool]:
    """Whether a client is in the middle of this command of Redis."""
    return lambda: any(one["cmd"] == how for one in db.client_list())


@pytest.mark.parametrize("command", ["wait ID", "result ID --wait", "wait -", "result - --wait"])
def test_a_wait_says_what_is_known_and_that_tasks_go_on(
    db: redis.Redis, client: Client, start: Start, command: str
) -> None:
    task = client.submit(NAME, "x")
    process = start(*command.replace("ID", task).split())
    if "-" in command.split():
        assert process.stdin is not None
        process.stdin.write(f"{task}\n")
        process.stdin.flush()
    until(lambda: db.pubsub_numsub(keys.record_key(task))[0][1])
    code, out, err = interrupted(process)
    assert (code, err.splitlines()[0]) == (3, "pipeq: interrupted: the tasks go on")
    assert f"{task}  queued" in out or f"task {task} is queued" in err
    assert client.status(task).state == "queued"


def test_a_stream_of_events_that_is_ended_is_no_failure(db: redis.Redis, client: Client, start: Start) -> None:
    client.keep_events(100)
    process = start("events", "--follow")
    until(waits(db, "xread"))
    assert interrupted(process) == (0, "", "")


def test_a_wait_for_a_job_says_how_to_wait_again(client: Client, start: Start) -> None:
    client.jobs.submit(NAME, ["a"], job_id="night 1", check=False)
    process = start("job", "wait", "night 1")
    assert process.stderr is not None
    assert "0/1 rows" in process.stderr.readline()
    code, _, err = interrupted(process)
    assert (code, err.splitlines()[-1]) == (
        3,
        "pipeq: interrupted: the job goes on, and `pipeq job wait 'night 1'` waits for it again",
    )


def test_a_job_that_is_being_submitted_says_how_it_goes_on(client: Client, start: Start) -> None:
    process = start("job", "submit", NAME, "-", "--format", "lines", "--max-backlog", "1", "--no-check")
    assert process.stdin is not None
    assert process.stderr is not None
    # Enough for several packs; the second ones wait for room.
    process.stdin.write("x\n" * 5000)
    process.stdin.flush()
    job_id = process.stderr.readline().split()[0]
    until(lambda: client.jobs.status(job_id).submitted)
    code, _, err = interrupted(process)
    assert code == 130
    assert f"pipeq: interrupted: the rows that are queued go on; the same submit with --job-id {job_id} queues" in err


def test_ids_are_not_lost(client: Client, start: Start) -> None:
    process = start("submit", NAME, "-", "--lines", "--wait")
    assert process.stdin is not None
    count = 60  # their ids are more than a line on stderr may have
    # Redis has tasks a moment before the process knows it; of the first ones, it knew when it read the next line.
    for lines, depth in ((count, count), (1, count + 1)):
        process.stdin.write("x\n" * lines)
        process.stdin.flush()
        until(lambda depth=depth: client.queue(NAME).depth == depth)
    code, _, err = interrupted(process)
    assert code == 130
    ids = re.findall(r"^[0-9a-f]{8}-[0-9a-f-]{27}$", err, re.MULTILINE)
    assert len(ids) >= count
    assert {one.state for one in client.status_many(ids)} == {"queued"}
    assert err.splitlines()[-1] == "pipeq: interrupted: ended by Ctrl-C"
