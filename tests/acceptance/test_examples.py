"""Every example runs against one real worker, with tiny models instead of the large ones."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pipeq import Client, Ref
from pipeq.demo import embedded
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.process.cli import worker as worker_command
from pipeq_worker.settings import read as settings

from tests import samples, tiny_models
from tests.media import encode_audio, encode_image, picture, tone
from tests.parity import assert_same
from tests.worker_process import worker

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
#: Pipelines that examples name on the worker's command line -> tiny model.
SERVED = {
    "automatic-speech-recognition": "ctc_layer_norm",
    "text-classification": "classifier",
    "image-classification": "vit",
    "zero-shot-classification": "nli",
    "visual-question-answering": "vilt",
    "image-text-to-text": "llava",
    "depth-estimation": "dpt",
}
#: Settings files of examples -> the tiny model that replaces theirs.
SETTINGS = {"parameters.toml": "classifier", "device_map.toml": "llama"}


@dataclass(frozen=True)
class Stage:
    """A worker, and a folder that it may read."""

    client: Client
    inputs: Path
    results: Path
    #: The worker's settings.
    config: Path

    def env(self) -> dict[str, str]:
        redis_url, store = self.client.redis_url, f"{self.results.as_uri()}/"
        return {**os.environ, "PIPEQ_REDIS_URL": redis_url, "PIPEQ_CLIENT_ALLOW": store, "PYTHONWARNINGS": "error"}

    def run(self, name: str, *arguments: object) -> list[str]:
        """The lines that an example prints."""
        return self.output(name, *arguments).splitlines()

    def output(self, name: str, *arguments: object) -> str:
        """The exact output of an example: a random model writes line breaks of every kind."""
        # Run in another folder, because an example must find everything by its arguments.
        done = subprocess.run(
            [sys.executable, EXAMPLES / name, *map(str, arguments)],
            cwd=self.results,
            env={**self.env(), "PYTHONPATH": f"{ROOT}:{ROOT}/producers", "HF_HOME": str(self.results / "hub")},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def ask(self, pipeline: str, inputs: Any, **params: Any) -> Any:
        """The same worker's answer. The other acceptance tests check that it is right."""
        return self.client.result(self.client.submit(pipeline, inputs, params=params), timeout_s=60)

    def audio(self, name: str, seconds: float) -> Path:
        path = self.inputs / name
        path.write_bytes(encode_audio(tone(seconds), path.suffix[1:]))
        return path

    def image(self, name: str, width: int = 96, height: int = 64) -> Path:
        path = self.inputs / name
        path.write_bytes(encode_image(picture(width, height), path.suffix[1:]))
        return path


def settings_of(name: str, model: Path) -> str:
    """An example's settings for a machine without GPUs, with another model."""
    text = (EXAMPLES / name).read_text()
    text = re.sub(r'^model = ".*"$', f'model = "{model}"', text, flags=re.MULTILINE)
    # So small that a part of it goes to the disk.
    text = re.sub(r"max_memory = \{.*?\}", 'max_memory = { cpu = "60KiB" }', text)
    return text.replace('"offload"', f'"{model.parent / "offload"}"')


@pytest.fixture(scope="module")
def stage(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("examples")
    inputs, results = folder / "inputs", folder / "results"
    inputs.mkdir()
    results.mkdir()
    sections = [settings_of(name, tiny_models.build(model, tiny)) for name, model in SETTINGS.items()]
    for task, model in SERVED.items():
        sections.append(f'[pipelines.{task}]\nmodel = "{tiny_models.build(model, tiny)}"')
    sections.append(f'[inputs]\nallow = ["{inputs.as_uri()}/"]\n[results]\nstore = "{results.as_uri()}/"')
    config = folder / "pipelines.toml"
    config.write_text("\n".join(sections))
    arguments = ("--config", config, "--include", "examples.celery_chain")
    with (
        embedded.valkey() as url,
        worker(folder, url, *arguments, PYTHONPATH=ROOT) as process,
        Client(url, allow=[f"{results.as_uri()}/"]) as client,
    ):
        process.wait_ready(client, *SERVED, "emotions", "large-chat")
        yield Stage(client, inputs, results, config)
        assert process.process.poll() is None, process.text()[-5000:]


# -- one for each example, named after it -----------------------------------------------------------------------------


def test_speech(stage: Stage) -> None:
    path = stage.audio("speech.flac", 2.0)
    want = stage.ask("automatic-speech-recognition", path)["text"]
    assert want
    assert stage.run("speech.py", path) == [want]
    assert stage.run("speech.py", path.as_uri()) == [want]


def test_many_files(stage: Stage) -> None:
    paths = [stage.audio(f"{seconds}.wav", seconds) for seconds in (1.0, 3.0, 2.0)]
    missing = stage.inputs / "missing.wav"
    want = {f"{path}: {stage.ask('automatic-speech-recognition', path)['text']}" for path in paths}
    got = stage.run("many_files.py", *paths, missing)
    assert want <= set(got)
    [failed] = set(got) - want
    assert failed.startswith(f"{missing}: failed, ")
    assert "does not exist" in failed


def test_parameters(stage: Stage) -> None:
    text = "the quick brown fox"
    labels = [answer["label"] for answer in stage.ask("text-classification", text, top_k=3)]
    assert len(labels) == 3
    assert stage.run("parameters.py", text) == [
        f"by default: {labels[0]}",
        f"top_k = 3: {', '.join(labels)}",
        "topk = 3: invalid_params: 'emotions' takes no parameter 'topk'; did you mean 'top_k'?",
    ]


def test_device_map(stage: Stage) -> None:
    said, _, where = stage.output("device_map.py", "hello world ?").strip().rpartition("\n")
    chat = [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "hello world ?"},
    ]
    [answer] = stage.ask("large-chat", chat, max_new_tokens=60)
    assert said == f"assistant: {answer['generated_text'][-1]['content']}"
    assert re.fullmatch(r"\(.*/llama as bfloat16, on cpu, disk\)", where)
    # The settings took effect: the part that does not fit on the CPU is on disk.
    loaded = load_pipeline("large-chat", settings.load_settings(stage.config).pipelines["large-chat"], "cpu")
    assert set(loaded._pipe.model.hf_device_map.values()) == {"cpu", "disk"}


def test_batches(stage: Stage) -> None:
    *batches, padding, done = stage.run("batches.py")
    sizes = [(int(count), int(size)) for count, size in (line.split(" batches of ") for line in batches)]
    assert sum(count * size for count, size in sizes) == 500
    assert sum(count for count, _ in sizes) < 250
    assert int(padding.removeprefix("padding: ").removesuffix("%")) < 30  # in the order of the texts it would be half
    assert done == "done: 500 of 500"
    lines = stage.inputs / "lines.txt"
    lines.write_text("the quick\nbrown fox\n")
    assert stage.run("batches.py", lines)[-1] == "done: 2 of 2"


def test_chunks(stage: Stage) -> None:
    path = stage.audio("long.flac", 20)
    *words, text, batch = stage.run("chunks.py", path, 3)
    params = {"chunk_length_s": 3.0, "stride_length_s": 0.5, "return_timestamps": "word"}
    want = stage.ask("automatic-speech-recognition", path, **params)
    assert text == want["text"]
    assert [line.split("  ")[-1] for line in words] == [one["text"] for one in want["chunks"]]
    assert int(re.fullmatch(r"\((\d+) chunks in the largest batch\)", batch)[1]) > 1  # type: ignore[index]


def test_dataset(stage: Stage) -> None:
    texts = samples.texts(12) * 45  # more than a window
    folder = stage.inputs / "dataset"
    folder.mkdir()
    with (folder / "test.csv").open("w") as file:
        csv.writer(file).writerows([["number", "words"], *enumerate(texts)])
    *rows, streamed = stage.run("dataset.py", folder, "words", "test")
    labels = [answer[0]["label"] for answer in stage.ask("text-classification", texts[:12], top_k=1)] * 45
    assert sorted(rows) == sorted(f"row {at}: {label}" for at, label in enumerate(labels))
    counts = {label: labels.count(label) for label in sorted(set(labels))}
    assert streamed == f"streamed {len(texts)}: {counts}"


@contextmanager
def served(stage: Stage, name: str, *arguments: str, ready: bytes) -> Iterator[str]:
    """A web app of the examples, in a server of its own."""
    [port] = embedded.free_ports(1)
    log = stage.results / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / name, *(one.format(port) for one in arguments)],
            cwd=stage.results,
            env={**stage.env(), "PYTHONPATH": f"{ROOT}:{ROOT}/producers", "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + 120
        while ready not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text()


def call(url: str, body: str | None = None, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(url, body.encode() if body else None, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def follow(url: str, body: str, **headers: str) -> Any:
    """Submits a text to a web app, and polls for its result."""
    code, answer = call(f"{url}/tasks", body, **headers)
    assert code == 202
    poll, states = f"{url}/tasks/{answer['id']}", set()
    deadline = time.monotonic() + 120
    while code == 202:
        assert time.monotonic() < deadline
        code, answer = call(poll)
        states.add(answer.get("state"))
    assert code == 200
    # It may end between the two looks of the app.
    assert states <= {None, "queued", "running", "succeeded"}
    return answer["result"]


def answers_of_a_web_app(stage: Stage, url: str) -> None:
    """What every web app says of tasks that there are not, and of those that failed."""
    assert call(f"{url}/tasks/nobody") == (404, {"id": "nobody", "state": "unknown"})
    bad = stage.client.submit("text-classification", {"txt": "fox"})
    stage.client.wait(bad, timeout_s=30)
    code, answer = call(f"{url}/tasks/{bad}")
    assert (code, answer["error"]) == (422, "invalid_input")


def test_fastapi_app(stage: Stage) -> None:
    text = "the quick brown fox"
    body, headers = json.dumps({"text": text}), {"Content-Type": "application/json"}
    want = stage.ask("text-classification", text)
    with served(stage, "fastapi_app.py", "{}", ready=b"Uvicorn running") as url:
        code, answer = call(f"{url}/classify", body, **headers)
        assert code == 200
        assert_same(answer["result"], want)
        # Tasks that make the next one wait, and many requests that wait for theirs; none of them holds a thread.
        stage.client.submit_many("text-classification", samples.texts(1000), priority=0)
        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(call, f"{url}/classify", body, **headers) for _ in range(20)]
            assert call(f"{url}/tasks/nobody")[0] == 404
            assert not all(one.done() for one in waiting)
            assert_same(follow(url, body, **headers), want)
            for one in waiting:
                assert_same(one.result()[1]["result"], want)
        answers_of_a_web_app(stage, url)
        assert call(f"{url}/tasks", json.dumps({"txt": text}), **headers)[0] == 422


def test_django_app(stage: Stage) -> None:
    text = "the quick brown fox"
    want = stage.ask("text-classification", text)
    arguments = ("runserver", "{}", "--noreload")
    with served(stage, "django_app.py", *arguments, ready=b"Starting development server at") as url:
        body, headers = urlencode({"text": text}), {"Content-Type": "application/x-www-form-urlencoded"}
        code, answer = call(f"{url}/tasks", body, **headers)
        assert code == 202
        code, answer = call(f"{url}/tasks/{answer['id']}?wait")
        assert code == 200
        assert_same(answer["result"], want)
        stage.client.submit_many("text-classification", samples.texts(1000), priority=0)
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _: follow(url, body, **headers), range(8)):
                assert_same(found, want)
        answers_of_a_web_app(stage, url)


def test_vision(stage: Stage) -> None:
    paths = [stage.image("one.png"), stage.image("two.jpg", 40, 80)]
    got = stage.run("vision.py", paths[0], paths[1].as_uri())
    want = []
    for shown in (str(paths[0]), paths[1].as_uri()):
        labels = stage.ask("image-classification", Ref(shown) if "://" in shown else Path(shown), top_k=3)
        want += [shown, *(f"  {label['score']:.3f}  {label['label']}" for label in labels)]
    assert got == want
    assert len(got) == 8


def test_text(stage: Stage) -> None:
    got = stage.run("text.py", "the quick brown fox", "sports", "politics", "world")
    want = stage.ask(
        "zero-shot-classification", "the quick brown fox", candidate_labels=["sports", "politics", "world"]
    )
    assert got == [f"{score:.3f}  {label}" for label, score in zip(want["labels"], want["scores"], strict=True)]
    assert len(stage.run("text.py")) == 5


def test_multimodal(stage: Stage) -> None:
    path, question = stage.image("asked.png"), "is this a fox or a dog ?"
    got = stage.output("multimodal.py", path, question)
    image = Ref.from_path(path)
    [best, *_] = stage.ask("visual-question-answering", {"image": image, "question": question})
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
    [said] = stage.ask("image-text-to-text", chat, max_new_tokens=40)
    assert got == f"answer: {best['answer']}\nchat: {said['generated_text'][-1]['content']}\n"


@pytest.mark.parametrize(("size", "kept"), [((96, 64), "base64"), ((320, 240), "uri")], ids=["inline", "store"])
def test_objects(stage: Stage, tmp_path: Path, size: tuple[int, int], kept: str) -> None:
    path = stage.image("deep as it looks.png", *size)
    want = stage.ask("depth-estimation", path)
    assert kept in want["predicted_depth"]
    [image, array] = stage.run("objects.py", path, tmp_path / "depth.png")
    width, height = size
    assert image == f"depth: image/png [{height}, {width}], now {tmp_path / 'depth.png'}"
    with Image.open(tmp_path / "depth.png") as depth:
        assert depth.size == size
        assert len(np.unique(np.asarray(depth))) > 10
    assert re.fullmatch(rf"predicted_depth: float32 \[{height}, {width}\], -?\d+\.\d+ to -?\d+\.\d+", array)


def test_celery_chain(stage: Stage) -> None:
    texts = samples.texts(6)
    labels = [best["label"] for [best] in stage.ask("text-classification", texts, top_k=1)]
    summary, *answers = stage.run("celery_chain.py", *texts)
    assert summary == f"6 texts: {', '.join(f'{n} {label}' for label, n in Counter(labels).most_common())}"
    assert answers == [f"{label}: {text}" for label, text in zip(labels, texts, strict=True)]


# -- what is said of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_an_example_is_short_and_stands_alone(path: Path) -> None:
    assert f"test_{path.stem}" in globals(), "no test runs it"
    text = path.read_text()
    assert 15 <= len(text.splitlines()) <= 55
    for other in PROGRAMS:
        assert not re.search(rf"^\s*(import|from) (examples\.)?{other.stem}\b", text, re.MULTILINE)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_worker_command_serves_the_example(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    [command] = re.findall(r"^    pipeq worker (.*)$", text, re.MULTILINE)
    assert f"`pipeq worker {command}`" in (EXAMPLES / "README.md").read_text()
    done = CliRunner().invoke(worker_command, [*command.split(), "--check"])
    assert done.exit_code == 0, done.output
    served = json.loads(done.stdout)
    submitted = set(re.findall(r'(?:\bsubmit(?:_many)?(?:, |\(\s*)|PIPELINE = |"pipeline": )"([^"]+)"', text))
    assert submitted
    assert submitted <= served["pipelines"].keys()
    for uri in re.findall(r'"(https://[^"]+)"', text):
        assert any(uri.startswith(prefix) for prefix in served["inputs"]["allow"]), uri


def test_the_table_leads_to_every_example() -> None:
    linked = set(re.findall(r"\]\(([\w.]+\.py)\)", (EXAMPLES / "README.md").read_text()))
    assert linked == {path.name for path in PROGRAMS}
