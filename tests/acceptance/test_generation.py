"""A task that generates for long: it says how far it is, and a cancelled one leaves the device to the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from pipeq import Client, Ref, State, TaskFailedError
from pipeq.contract import keys
from pipeq.contract.status import Progress
from pipeq.demo import embedded

from tests import samples, tiny_models
from tests.unit.media import wav
from tests.worker_process import WorkerProcess, worker

#: Without an end token it goes on for all of them: many seconds on any machine.
ENDLESS = {"max_new_tokens": 30_000, "do_sample": False, "eos_token_id": None}

#: Ten minutes are 6,000 such chunks, which take many seconds, too.
MANY_CHUNKS = {"chunk_length_s": 0.2, "stride_length_s": 0.05}

#: The time of a task that goes on for longer.
TIMEOUT_S = 2.5


@dataclass
class Served:
    client: Client
    db: redis.Redis
    process: WorkerProcess
    audio: str


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A worker with a model that knows any number of positions, and another pipeline on the same device."""
    here = tmp_path_factory.mktemp("generation")
    folder = here / "inputs"
    folder.mkdir()
    (folder / "long.wav").write_bytes(wav((samples.audio(600) * 3000).astype(np.int16)[:, None], 16_000))
    config = here / "pipelines.toml"
    config.write_text(
        f'[inputs]\nallow = ["{folder.as_uri()}/"]\n'
        f'[pipelines.text-generation]\nmodel = "{tiny_models.build("llama", tiny)}"\nmax_batch_size = 4\n'
        f'[pipelines.automatic-speech-recognition]\nmodel = "{tiny_models.build("ctc_layer_norm", tiny)}"\n'
        "max_batch_size = 2\n"
        f'[pipelines.stream]\ntask = "text-generation"\nmodel = "{tiny_models.build("llama", tiny)}"\n'
        "max_batch_size = 4\ncontinuous = true\n"
        "[pipelines.constant]\n"
    )
    with (
        embedded.valkey() as url,
        Client(url) as client,
        redis.Redis.from_url(url) as db,
        worker(here, url, "--config", config) as process,
    ):
        process.wait_ready(client, "text-generation", "constant", "automatic-speech-recognition", "stream")
        yield Served(client, db, process, f"{folder.as_uri()}/long.wav")


def until(answer: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := answer()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def progress(client: Client, task_id: str) -> Progress | None:
    return client.status(task_id).progress


def test_a_cancelled_generation_leaves_the_device(served: Served) -> None:
    client = served.client
    # While the device is busy both become ready, and then run in one batch.
    client.submit("constant", 1, params={"seconds": 0.5})
    long = [client.submit("text-generation", text, params=ENDLESS) for text in ("the fox", "hello world")]
    first = until(lambda: progress(client, long[0]))
    assert (first.total, first.unit) == (30_000, "tokens")
    later = until(lambda: (found := progress(client, long[0])) and found.done > first.done and found)
    assert later.done < 30_000
    # Another pipeline's task waits for the device.
    other = client.submit("constant", 1)
    client.cancel(long[0])
    time.sleep(2.5)
    assert client.status(other).state is State.QUEUED, "the batch's other task goes on"
    assert client.status(long[1]).state is State.RUNNING
    cancelled = time.monotonic()
    client.cancel(long[1])
    client.wait(other, timeout_s=20)
    assert time.monotonic() - cancelled < 5
    assert [client.status(one).state for one in long] == [State.CANCELLED] * 2
    until(lambda: not served.db.hlen(keys.RUNNING) and not served.db.hlen(keys.UNACKED))
    # The model is as it was.
    params = {"max_new_tokens": 5, "do_sample": False}
    answers = [client.wait(client.submit("text-generation", "the fox", params=params), timeout_s=30) for _ in range(2)]
    assert answers[0].result == answers[1].result
    assert progress(client, answers[0].id) is None


@pytest.mark.parametrize("pipeline", ["text-generation", "stream"])
def test_a_generation_whose_time_is_over_leaves_the_device(served: Served, pipeline: str) -> None:
    client = served.client
    # While the device is busy both become ready, and then run in one batch.
    busy = client.submit("constant", 1, params={"seconds": 0.5})
    neighbour = client.submit(pipeline, "hello world", params={**ENDLESS, "max_new_tokens": 50})
    late = client.submit(pipeline, "the fox", params={**ENDLESS, "max_new_tokens": 10_000}, timeout_s=TIMEOUT_S)
    began = time.monotonic()
    status = client.wait(late, timeout_s=20)
    assert TIMEOUT_S - 0.5 < time.monotonic() - began < TIMEOUT_S + 3
    assert status.error is not None
    assert (status.state, status.error.code, status.attempts) == (State.FAILED, "timeout", 1)
    assert "timeout_s" in status.error.message
    assert "it was in a forward pass" in status.error.message
    client.wait(client.submit("constant", 1), timeout_s=20)
    assert time.monotonic() - began < 20
    assert [client.wait(one, timeout_s=60).state for one in (busy, neighbour)] == [State.SUCCEEDED] * 2
    until(lambda: not served.db.hlen(keys.RUNNING) and not served.db.hlen(keys.UNACKED))


def test_an_audio_whose_time_is_over_leaves_before_its_next_chunk(served: Served) -> None:
    client = served.client
    late = client.submit("automatic-speech-recognition", Ref(served.audio), params=MANY_CHUNKS, timeout_s=2)
    status = client.wait(late, timeout_s=20)
    assert status.error is not None
    assert status.error.code == "timeout"
    ended = time.monotonic()
    client.wait(client.submit("constant", 1), timeout_s=20)
    assert time.monotonic() - ended < 5
    until(lambda: not served.db.hlen(keys.UNACKED))


def test_a_cancelled_audio_leaves_before_its_next_chunk(served: Served) -> None:
    client = served.client
    task = client.submit("automatic-speech-recognition", Ref(served.audio), params=MANY_CHUNKS)
    found = until(lambda: progress(client, task))
    assert (found.unit, found.done > 0) == ("chunks", True)
    client.cancel(task)
    cancelled = time.monotonic()
    client.wait(client.submit("constant", 1), timeout_s=20)
    assert time.monotonic() - cancelled < 5
    until(lambda: not served.db.hlen(keys.UNACKED))
    assert client.status(task).state is State.CANCELLED


def test_a_list_says_how_many_of_its_inputs_are_done(served: Served) -> None:
    client = served.client
    seen: set[tuple[int, int, str]] = set()
    tokens = 150
    # The worker says it once a second, so the task must take longer than that.
    while len(seen) < 2:
        assert tokens < 10_000
        params = {**ENDLESS, "max_new_tokens": tokens}
        task = client.submit("text-generation", [f"{at} fox" for at in range(12)], params=params)
        seen.clear()
        while not client.status(task).is_final:
            if (found := progress(client, task)) is not None:
                seen.add((found.done, found.total, found.unit))
            time.sleep(0.05)
        assert client.status(task).state is State.SUCCEEDED
        assert {(total, unit) for _, total, unit in seen} <= {(12, "inputs")}
        assert {done for done, _, _ in seen} <= set(range(13))
        tokens *= 2


def test_a_continuous_pipeline(served: Served) -> None:
    """Its answers are those of batches; short tasks pass long ones; progress and cancel are as ever."""
    client, short = served.client, {"max_new_tokens": 6, "do_sample": False}
    long = [client.submit("stream", f"{at} fox", params={**ENDLESS, "max_new_tokens": 4000}) for at in range(3)]
    until(lambda: all(client.status(one).state is State.RUNNING for one in long))
    texts = samples.texts(8)
    ids = client.submit_many("stream", texts, params=short)
    found = {one.id: one.result for one in client.as_completed(ids, timeout_s=60)}
    assert [client.status(one).state for one in long] == [State.RUNNING] * 3
    far = until(lambda: progress(client, long[0]))
    assert (far.total, far.unit, far.done > 0) == (4000, "tokens", True)
    for one in long:
        client.cancel(one)
    cancelled = time.monotonic()
    until(lambda: not served.db.hlen(keys.UNACKED) and not served.db.hlen(keys.RUNNING))
    assert time.monotonic() - cancelled < 8
    batch = client.submit_many("text-generation", texts, params=short)
    assert [found[one] for one in ids] == [client.wait(one, timeout_s=60).result for one in batch]
    with pytest.raises(TaskFailedError, match="'num_beams' is 2") as caught:
        client.result(client.submit("stream", "fox", params={"num_beams": 2}), timeout_s=60)
    assert caught.value.code == "invalid_params"


def test_the_death_of_its_process_loses_no_task_of_a_stream(served: Served) -> None:
    client = served.client
    params = {**ENDLESS, "max_new_tokens": 150}
    ids = client.submit_many("stream", [f"{at} fox" for at in range(6)], params=params)
    until(lambda: client.status(ids[0]).state is State.RUNNING)
    [child] = served.process.children()
    os.kill(child, signal.SIGKILL)
    statuses = [client.wait(one, timeout_s=200) for one in ids]
    assert {one.state for one in statuses} == {State.SUCCEEDED}


def test_a_hurried_stop_while_it_generates_loses_nothing(served: Served) -> None:
    """The last test: it ends the worker. What the next worker does with these tasks: test_lifecycle.py."""
    client = served.client
    params, texts = {**ENDLESS, "max_new_tokens": 10_000}, [f"{at} fox" for at in range(8)]
    ids = [client.submit(name, one, params=params) for name in ("text-generation", "stream") for one in texts]
    # Which of them runs first is not said: threads prepare them side by side.
    for some in (ids[:8], ids[8:]):
        until(lambda some=some: any(one.state is State.RUNNING for one in client.status_many(some)))
    began = time.monotonic()
    served.process.process.send_signal(signal.SIGQUIT)
    assert served.process.process.wait(60) == 0
    assert time.monotonic() - began < 30
    assert served.db.llen("text-generation") == served.db.llen("stream") == 8
    assert {status.state for status in client.status_many(ids)} == {State.QUEUED}
    assert not served.db.hlen(keys.RUNNING)
    assert not served.db.hlen(keys.UNACKED)
