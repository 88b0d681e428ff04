"""What only a GPU can show: its memory, its faults, weights on several devices, in a real worker on ``cuda:0``.

`make gpu` runs this file alone, one test after the other, since it measures the memory that is free on the whole
device; then it runs the tests of models on the device, which run on the CPU elsewhere.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pipeq import Client, State
from pipeq.demo import embedded
from pipeq_worker.doctor.doctor import check
from pipeq_worker.models import footprint
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests import samples, tiny_models
from tests.tiny_models.base import CORPUS, wordpiece
from tests.worker_process import WorkerProcess, worker

pytestmark = pytest.mark.gpu

TASK = "text-classification"
TASKS = {"writer": "text-generation"}
#: CUDA's own memory of a process, in bytes, at most.
CONTEXT = 1.5 * 2**30
MIB = 2**20


#: In every process of the worker: a forward pass of a text with this token fails an assertion inside a kernel.
ASSERTS = """
import sys

if "pipeq_worker.children.main" in sys.orig_argv:
    import torch
    import transformers

    real = transformers.BertForSequenceClassification.forward

    def forward(self, input_ids=None, **more):
        if input_ids.is_cuda and bool((input_ids == {bad_token}).any()):
            torch.zeros(1, device=input_ids.device)[torch.tensor([9], device=input_ids.device)]
        return real(self, input_ids=input_ids, **more)

    transformers.BertForSequenceClassification.forward = forward
"""


def free() -> int:
    """Bytes that are free on the device."""
    return int(torch.cuda.mem_get_info(0)[0])


def settles(is_so: Any, timeout_s: float = 60) -> None:
    """Waits for a state of the device; what a process had is free a moment after it ended."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, f"{free() / MIB:.0f} MiB are free"
        time.sleep(0.1)


@contextmanager
def only_free(nbytes: int) -> Iterator[None]:
    """Takes all of the device's memory but so much."""
    taken = [torch.empty(free() - nbytes, dtype=torch.uint8, device="cuda:0")]
    try:
        yield
    finally:
        taken.clear()  # a test that failed keeps its frames
        torch.cuda.empty_cache()


def classifier(folder: Path, width: int, layers: int, without: int = 0) -> Path:
    """Saves a classifier; ``without`` the last so many tokens of its tokenizer."""
    tokenizer = wordpiece()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer) - without,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=16,
        intermediate_size=4 * width,
        num_labels=3,
    )
    with torch.device("cuda:0"):
        model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def serving(
    folder: Path, pipelines: dict[str, str], head: str = "", **env: Any
) -> Iterator[tuple[WorkerProcess, Client]]:
    path = folder / "pipelines.toml"
    sections = (f'[pipelines.{name}]\ntask = "{TASKS.get(name, TASK)}"\n{more}' for name, more in pipelines.items())
    path.write_text(head + "".join(sections))
    with (
        embedded.valkey() as url,
        worker(folder, url, "--config", path, log_format="json", **env) as process,
        Client(url) as client,
    ):
        process.wait_ready(client, *pipelines)
        yield process, client


def lines(process: WorkerProcess, action: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in process.text().splitlines() if line.startswith("{")]
    return [line for line in found if line.get("action") == action]


def states(client: Client, ids: list[str]) -> list[Any]:
    return [client.wait(one, timeout_s=120) for one in ids]


def test_the_device_is_the_default(tmp_path: Path, tiny: Path) -> None:
    model = tiny_models.build("classifier", tiny)
    with serving(tmp_path, {"it": f'model = "{model}"\n'}, device="auto") as (_, client):
        (status,) = states(client, [client.submit("it", "the fox")])
        assert status.model.device == "cuda:0"


@pytest.mark.parametrize("left_mib", [300, 900])
def test_too_little_memory_halves_batches_and_teaches_a_limit(tmp_path: Path, left_mib: int) -> None:
    """Others leave little of the device free, so the driver and cuBLAS have none for large batches."""
    model = classifier(tmp_path / "wide", width=1024, layers=2)
    pipeline = f'model = "{model}"\nmax_batch_size = 64\nmax_batch_cost = 100000\nparams = {{ truncation = true }}\n'
    texts = ["the dog " * (150 + 10 * (at % 10)) for at in range(256)]
    with serving(tmp_path, {"it": pipeline}) as (process, client):
        few = states(client, client.submit_many("it", texts[:2], priority=0))
        assert {one.state for one in few} == {State.SUCCEEDED}
        with only_free(left_mib * MIB):
            found = states(client, client.submit_many("it", texts, priority=0))
            assert {one.state for one in found} == {State.SUCCEEDED}, process.text()[-3000:]
            assert max(one.attempts for one in found) == 1, process.text()[-3000:]
            halved = len(lines(process, "split"))
            print(f"batches halved: {halved}, sizes {sorted({one.batch.size for one in found})}")
            assert halved >= 1
            again = states(client, client.submit_many("it", texts, priority=0))
            assert {one.state for one in again} == {State.SUCCEEDED}
            # Fragments of memory may cost one more.
            assert len(lines(process, "split")) <= halved + 2
            assert lines(process, "child_died") == []


def test_an_assertion_in_a_kernel_costs_its_own_task_alone(tmp_path: Path) -> None:
    """The context of CUDA is broken for good, whoever calls next."""
    model, text = classifier(tmp_path / "small", width=64, layers=2), "the fox"
    (tmp_path / "more").mkdir()
    bad_token = wordpiece()("fox")["input_ids"][1]
    (tmp_path / "more" / "sitecustomize.py").write_text(ASSERTS.format(bad_token=bad_token))
    path = os.pathsep.join(filter(None, [str(tmp_path / "more"), os.environ.get("PYTHONPATH")]))
    with serving(tmp_path, {"it": f'model = "{model}"\n'}, PYTHONPATH=path) as (process, client):
        good = client.submit_many("it", ["the dog"] * 40, priority=0)
        bad = client.submit("it", text)
        good += client.submit_many("it", ["the dog"] * 40, priority=0)
        (status,) = states(client, [bad])
        assert status.error is not None
        assert status.error.code == "worker_lost", status.error
        found = states(client, good)
        assert {one.state for one in found} == {State.SUCCEEDED}, process.text()[-5000:]
        assert max(one.attempts for one in found) <= 2
        deaths = lines(process, "child_died")
        print([(one["message"][:80], len(one["tasks"])) for one in deaths])
        assert all("CUDA error" in one["message"] for one in deaths), deaths
        assert deaths[-1]["tasks"] == [bad]


def test_an_index_beyond_a_table_is_found_before_a_kernel_sees_it(tmp_path: Path, tiny: Path) -> None:
    """Tokens that the model does not know, and positions that it does not have; the process lives."""
    tokenizer = wordpiece()
    short = classifier(tmp_path / "short", width=64, layers=2, without=1)
    words = {word for line in CORPUS for word in line.split()}
    text = next(word for word in sorted(words) if len(tokenizer) - 1 in tokenizer(word)["input_ids"])
    writer = tiny_models.build("writer", tiny)
    pipelines = {"it": f'model = "{short}"\n', "writer": f'model = "{writer}"\n'}
    with serving(tmp_path, pipelines) as (process, client):
        params = {"max_new_tokens": 600, "do_sample": False, "eos_token_id": None}
        bad = [client.submit("it", text), client.submit("writer", "fox", params=params)]
        good = client.submit_many("it", ["the dog"] * 40, priority=0)
        messages = [one.error and one.error.message for one in states(client, bad)]
        print(messages)
        assert "they do not belong together" in messages[0]
        assert "512 positions" in messages[1]
        assert {one.state for one in states(client, good)} == {State.SUCCEEDED}
        assert lines(process, "child_died") == []


def test_a_killed_device_process_gives_its_memory_back_and_loses_nothing(tmp_path: Path) -> None:
    model = classifier(tmp_path / "wide", width=1024, layers=4)
    free()  # which gives this process its context
    before = free()
    with serving(tmp_path, {"it": f'model = "{model}"\nmax_batch_size = 8\n'}, prepare_processes=1) as (
        process,
        client,
    ):
        ids = client.submit_many("it", ["the dog " * 50] * 3000)
        for _ in range(2):
            (pid,) = process.roles()["device"]
            done = sum(one.state is State.SUCCEEDED for one in client.status_many(ids))
            settles(lambda done=done: sum(one.state is State.SUCCEEDED for one in client.status_many(ids)) > done)
            os.kill(pid, signal.SIGKILL)
            settles(lambda pid=pid: process.roles()["device"] not in ([], [pid]))
        found = states(client, ids)
        assert {one.state for one in found} == {State.SUCCEEDED}, process.text()[-5000:]
        assert max(one.attempts for one in found) <= 2
    settles(lambda: free() > before - 64 * MIB)


def test_an_idle_device_process_gives_its_memory_back(tmp_path: Path) -> None:
    model = classifier(tmp_path / "wide", width=2048, layers=2)
    free()  # which gives this process its context
    before = free()
    with serving(tmp_path, {"it": f'model = "{model}"\n'}, idle_unload_s=2) as (_, client):
        settles(lambda: free() > before - 64 * MIB)
        # The first message loads it again.
        (status,) = states(client, [client.submit("it", "the fox")])
        assert status.state is State.SUCCEEDED
        assert free() < before - 300 * MIB
        settles(lambda: free() > before - 64 * MIB)


def test_weights_that_make_room_leave_the_device(tmp_path: Path) -> None:
    """Three pipelines of 800 MB each, of which two may be loaded."""
    model = classifier(tmp_path / "wide", width=4096, layers=1)
    size = (model / "model.safetensors").stat().st_size
    free()  # which gives this process its context
    before = least = free()
    names = ["first", "second", "third"]
    pipelines = dict.fromkeys(names, f'model = "{model}"\n')
    with serving(tmp_path, pipelines, f"max_loaded_bytes = {int(2.5 * size)}\n") as (process, client):
        for name in (*names, names[0]):
            ids = client.submit_many(name, [f"the fox {at}" for at in range(5)], priority=0)
            assert {one.state for one in states(client, ids)} == {State.SUCCEEDED}, process.text()[-5000:]
            least = min(least, free())
        print(f"at most {(before - least) / MIB:.0f} MiB for weights of {size / MIB:.0f} MiB each")
        assert before - least < 2.5 * size + CONTEXT


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("task", "model", "params"),
    [
        (TASK, "classifier", {}),
        ("text-generation", "llama", {"max_new_tokens": 12, "do_sample": False}),
        ("automatic-speech-recognition", "whisper", {"max_new_tokens": 12, "language": "en"}),
        ("image-classification", "vit", {"top_k": 2}),
    ],
)
def test_half_precision(tiny: Path, dtype: str, task: str, model: str, params: dict[str, Any]) -> None:
    """Everybody has an answer, and none depends on where weights of half precision are."""
    settings = PipelineSettings(task=task, model=str(tiny_models.build(model, tiny)), dtype=dtype)
    pipeline = load_pipeline("it", settings, "cuda:0")
    assert isinstance(pipeline, TransformersPipeline)
    assert str(pipeline._pipe.model.dtype) == f"torch.{dtype}"
    inputs: dict[str, Any] = {"vit": samples.images, "whisper": samples.clips}
    report = check(pipeline, inputs.get(model, samples.texts)(), params)
    print(model, dtype, "differ from single calls:", report.wrong)
    assert report.failed == {}


@pytest.mark.parametrize("memory", [{"0": "120KB", "cpu": "1GB"}, {"0": "60KB", "cpu": "60KB", "disk": "1GB"}])
def test_weights_on_several_devices(tiny: Path, tmp_path: Path, memory: dict[str, str]) -> None:
    """Layers that wait in the machine's memory or on disk come to the device for their part of a pass."""
    path = str(tiny_models.build("llama", tiny))
    params = {"max_new_tokens": 12, "do_sample": False}
    whole = load_pipeline("it", PipelineSettings(task="text-generation", model=path), "cuda:0")
    settings = PipelineSettings(
        task="text-generation", model=path, device_map="auto", max_memory=memory, offload_folder=tmp_path
    )
    spread = load_pipeline("it", settings, "cuda:0")
    assert isinstance(whole, TransformersPipeline)
    assert isinstance(spread, TransformersPipeline)
    places = {str(one) for one in spread._pipe.model.hf_device_map.values()}
    assert places == {"disk" if key == "disk" else key for key in memory}, places
    for text in samples.texts(4):
        assert spread.alone(text, dict(params)) == whole.alone(text, dict(params))
    report = check(spread, samples.texts(), params)
    assert (report.failed, report.wrong) == ({}, {})


def test_an_item_may_take_a_quarter_of_the_device() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    assert footprint.default_bytes(torch.device("cuda:0")) == max(2**32, total / 4)


def test_costs_that_are_learned_fit_the_device(tmp_path: Path) -> None:
    """What a pass of a batch takes by the fit, against what it took: the middle one of all batches."""
    model = classifier(tmp_path / "wide", width=1024, layers=12)
    texts = ["the dog " * (4 + at % 90) for at in range(1000)]
    with serving(tmp_path, {"it": f'model = "{model}"\nparams = {{ truncation = true }}\n'}) as (_, client):
        for _ in range(3):
            found = states(client, client.submit_many("it", texts, priority=0))
            assert {one.state for one in found} == {State.SUCCEEDED}
        deadline = time.monotonic() + 30
        while not (known := [costs for one in client.queues() for costs in one.costs.values() if "cost_s" in costs]):
            assert time.monotonic() < deadline, client.queues()
            time.sleep(0.1)
        (costs,) = known
        shares = sorted(
            (costs["launch_s"] + costs["cost_s"] * one.batch.size * (2 + 2 * len(text.split())))
            * 1000
            / one.timing_ms["infer"]
            for one, text in zip(found, texts, strict=True)
        )
        print(costs, f"foreseen / taken: {shares[50]:.2f} {shares[500]:.2f} {shares[950]:.2f}")
        assert 0.3 < shares[500] < 3
