"""Small messages that ask for far too much, on a worker without bounds: each ends its own process, and no other task.

With its bounds a worker refuses all of these before they do anything (test_bad_input.py). Here the settings lift what
settings can lift, and a ``sitecustomize`` module in the children lifts what the code bounds. What is left are the
limits of time (`step_timeout_s`, `hard_timeout_s`) and of memory: `process_max_bytes`, or the kernel's OOM killer. The
test plays the latter, because the real one would look for its victims among all processes of the machine.

`LIFTED=all` in the environment walks all kinds with both limits of memory (`make long`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeq import Client, Ref, State
from pipeq.demo import embedded

from tests import tiny_models
from tests.acceptance.test_bad_input import many_large_pictures
from tests.media import encode_image, picture
from tests.unit.pipeq_worker.media.test_decoded import film, flac
from tests.worker_process import WorkerProcess, worker

ALL = os.environ.get("LIFTED") == "all"
#: In the children only: what the code bounds, and no setting does.
LIFT = """
import sys

if "pipeq_worker.children.main" in sys.orig_argv:
    from pipeq_worker.models.params import rules, table

    rules.Template.check = rules.Number.check = lambda self, value, bounds, where: value
    table.GENERATION["encoder_no_repeat_ngram_size"] = rules.Whole(0, 10**12)
"""
#: The settings that lift the others.
SETTINGS = {
    "inputs__max_pixels": 10**12,
    "inputs__max_decoded_bytes": "1024GiB",
    "prefetch_bytes": "1024GiB",
    "param_limits__max_frames": 10**12,
    "param_limits__max_image_side": 10**9,
    "param_limits__max_scaled_pixels": 10**15,
}
MODELS = {
    # The first two are those of the neighbours.
    "zero-shot-classification": "nli",
    "text-generation": "llama",
    "image-feature-extraction": "vit_encoder",
    "video-classification": "videomae",
    "audio-classification": "audio_layer_norm",
}
#: Seconds that a step may take here.
STEP_S = 10
#: More than a process takes that works on ordinary inputs, and the limit of those that ask for too much.
ENOUGH_BYTES = 1.5 * 2**30
LABELS = {"candidate_labels": ["fox", "dog"]}


def video(folder: Path) -> Ref:
    """A megabyte of video, of which each frame takes 50 MB."""
    path = folder / "film.mkv"
    path.write_bytes(film(4096, 4096, 32))
    return Ref.from_path(path)


def recording(folder: Path) -> Ref:
    """A megabyte of FLAC: four hours, which take a gigabyte at a model's 16 kHz."""
    path = folder / "long.flac"
    path.write_bytes(flac(4 * 3600 - 60, 1000))
    return Ref.from_path(path)


def image(folder: Path) -> Ref:
    return Ref.from_bytes(encode_image(picture(), "png"))


def text(folder: Path) -> str:
    return "the fox"


@dataclass(frozen=True)
class Kind:
    """A message that asks for too much."""

    name: str
    pipeline: str
    inputs: Callable[[Path], Any]
    params: dict[str, Any]
    #: What it takes without a bound: memory, time, or whichever is short first.
    takes: str


HUGE = {"size": {"height": 40_000, "width": 40_000}}
BEAMS = {"num_beams": 2, "length_penalty": 10**12, "max_new_tokens": 3}
NGRAMS = {"encoder_no_repeat_ngram_size": 10**10, "max_new_tokens": 3}
KINDS = [
    Kind("template", "zero-shot-classification", text, {**LABELS, "hypothesis_template": "{:>4000000000}"}, "memory"),
    Kind("pictures", "image-feature-extraction", lambda _: many_large_pictures(None), {}, "memory"),
    Kind("scaled", "image-feature-extraction", image, {"image_processor_kwargs": HUGE}, "memory"),
    Kind("frames", "video-classification", video, {"num_frames": 32}, "memory"),
    Kind("many frames", "video-classification", video, {"num_frames": 10**9}, "memory"),
    Kind("recording", "audio-classification", recording, {}, "memory"),
    # A power of whole numbers: a fast machine runs out of memory first, a slow one out of time.
    Kind("power", "text-generation", text, BEAMS, "either"),
    Kind("n-grams", "text-generation", text, NGRAMS, "either"),
]


@contextmanager
def serving(folder: Path, tiny: Path, **settings: Any) -> Iterator[tuple[WorkerProcess, Client]]:
    (folder / "sitecustomize.py").write_text(LIFT)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    models = dict(list(MODELS.items())[: None if ALL else 2])
    pipelines = [f"{name}={tiny_models.build(model, tiny)}" for name, model in models.items()]
    limits = {
        "inputs__allow": f"{folder.as_uri()}/",
        "step_timeout_s": STEP_S,
        "hard_timeout_s": STEP_S,
        "prepare_processes": 1,
        "max_deaths": 2,
        "prepare_threads": 2,
    }
    with (
        embedded.valkey() as url,
        Client(url) as client,
        worker(
            folder, url, *pipelines, PYTHONPATH=path, log_format="json", **SETTINGS, **limits, **settings
        ) as process,
    ):
        process.wait_ready(client, *models)
        yield process, client


def anonymous_bytes(pid: int) -> int:
    """Memory that a process alone has."""
    with suppress(OSError):
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


@contextmanager
def oom_killer(process: WorkerProcess) -> Iterator[None]:
    """Kills children that take too much memory, as the kernel would."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.03):
            for pid in process.children():
                if anonymous_bytes(pid) > ENOUGH_BYTES:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def charged(process: WorkerProcess) -> list[list[str]]:
    """The tasks that each death was charged to."""
    lines = [json.loads(line) for line in process.text().splitlines() if '"child_died"' in line]
    return [line["tasks"] for line in lines]


def good(client: Client, count: int) -> list[str]:
    """Submits ordinary tasks to two pipelines."""
    ids = client.submit_many("zero-shot-classification", ["the fox"] * count, params=LABELS, priority=0)
    return ids + client.submit_many("text-generation", ["the fox"] * count, params={"max_new_tokens": 3}, priority=0)


def walk(process: WorkerProcess, client: Client, kind: Kind) -> tuple[str, int]:
    """Submits one bad message among good ones. Returns its error's code, and the number of deaths."""
    before, began = len(charged(process)), time.monotonic()
    inputs = kind.inputs(process.log.parent)
    neighbours = good(client, 15)
    bad = client.submit(kind.pipeline, inputs, params=kind.params)
    neighbours += good(client, 15)
    status = client.wait(bad, timeout_s=200)
    assert status.state is State.FAILED, process.text()[-5000:]
    assert status.error is not None
    statuses = [client.wait(one, timeout_s=120) for one in neighbours]
    deaths = charged(process)[before:]
    took_s = time.monotonic() - began
    said = status.error.message[:150]
    print(f"{kind.name}: {status.error.code}, {len(deaths)} deaths, {took_s:.0f} s: {said}", flush=True)
    # Nobody else fails, and nobody else has met more than the one death that they could not be told apart at.
    assert [one.state for one in statuses] == [State.SUCCEEDED] * len(neighbours), [
        one.error for one in statuses if one.error
    ]
    assert max(one.attempts for one in statuses) <= 2
    assert all(bad in tasks for tasks in deaths)
    # The host stays, and no lease has lapsed.
    assert process.process.poll() is None
    assert process.text().count("ready: serving") == 1
    assert "leases are gone" not in process.text()
    return status.error.code, len(deaths)


@pytest.fixture(scope="module")
def unlimited(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, Client]]:
    with serving(tmp_path_factory.mktemp("lifted"), tiny) as (process, client), oom_killer(process):
        yield process, client


@pytest.fixture(scope="module")
def limited(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerProcess, Client]]:
    with serving(tmp_path_factory.mktemp("limited"), tiny, process_max_bytes=int(ENOUGH_BYTES)) as (process, client):
        yield process, client


@pytest.mark.timeout(400)
def test_a_row_of_a_prepare_process_leaves_the_device_when_its_time_is_over(
    limited: tuple[WorkerProcess, Client],
) -> None:
    process, client = limited
    endless = {"max_new_tokens": 30_000, "min_new_tokens": 30_000}
    before = len(charged(process))
    late = client.submit("text-generation", "the fox", params=endless, timeout_s=2)
    neighbours = good(client, 5)
    status = client.wait(late, timeout_s=60)
    assert status.error is not None
    assert status.error.code == "timeout"
    assert "timeout_s" in status.error.message
    assert [client.wait(one, timeout_s=60).state for one in neighbours] == [State.SUCCEEDED] * len(neighbours)
    # No process had to be ended for that.
    assert len(charged(process)) == before


#: What limits memory, and what is sent.
CASES = [
    ("limited" if limit else "unlimited", kind)
    for limit in (True, False)
    for kind in KINDS
    if ALL or (limit and kind.name in ("template", "power"))
]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("memory", "kind"), CASES, ids=[f"{memory}-{kind.name}" for memory, kind in CASES])
def test_each_ends_its_own_process_at_most(request: pytest.FixtureRequest, memory: str, kind: Kind) -> None:
    code, deaths = walk(*request.getfixturevalue(memory), kind)
    if kind.takes == "time":
        assert code == "timeout"
        assert 1 <= deaths <= 2
    elif memory == "limited":
        # The step that asked for it has got an error, or has taken too long to.
        assert code not in ("input_forbidden", "input_too_large", "invalid_params")
        assert deaths == 0 or (kind.takes == "either" and code == "timeout")
    else:
        # Who asks for memory may also take too long to get it.
        assert code in ("worker_lost", "timeout")
        assert 1 <= deaths <= 2
