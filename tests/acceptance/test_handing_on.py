"""What the next task of a chain gets does not depend on where a result lies; and nobody else reads the store so."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord

from producers import Client, State, embedded, queues
from tests import samples, tiny_models
from tests.worker_process import worker
from worker.outputs import wav

SPEECH, TEXT, PICTURE, LABEL = "automatic-speech-recognition", "text-classification", "image-to-image", "vit"


@dataclass(frozen=True)
class Served:
    app: Celery
    client: Client
    db: redis.Redis
    inputs: Path
    results: Path

    def infer(self, pipeline: str, **kwargs: Any) -> Any:
        return self.app.signature("pipeq.infer", kwargs={"pipeline": pipeline, **kwargs}, queue=pipeline)


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Results of every size go to the store; none of it is allowed as an input."""
    folder = tmp_path_factory.mktemp("chains")
    inputs, results = folder / "inputs", folder / "results"
    inputs.mkdir()
    results.mkdir()
    config = folder / "pipelines.toml"
    lines = [
        f'[inputs]\nallow = ["{inputs.as_uri()}/"]',
        f'[results]\nstore = "{results.as_uri()}/own/"\nallow = ["{results.as_uri()}/"]\ninline_max_bytes = 1',
    ]
    models = {SPEECH: (SPEECH, "ctc_layer_norm"), TEXT: (TEXT, "classifier")}
    models |= {PICTURE: (PICTURE, "upscaler"), LABEL: ("image-classification", "vit")}
    for name, (task, model) in models.items():
        lines.append(f'[pipelines.{name}]\ntask = "{task}"\nmodel = "{tiny_models.build(model, tiny)}"')
    config.write_text("\n".join(lines))
    with embedded.valkey() as url, worker(folder, url, "--config", config) as process, Client(url) as client:
        process.wait_ready(client, *models)
        app = Celery("stock", broker=url, backend=url)
        yield Served(app, client, redis.Redis.from_url(url), inputs, results)


def read(result: Any) -> Any:
    """A result from the store; what its producer sees holds no signature."""
    assert result.keys() == {"uri"}
    return json.loads(Path(result["uri"].removeprefix("file://")).read_text())


def clip(served: Served, at: int) -> dict[str, str]:
    path = served.inputs / f"{at}.wav"
    path.write_bytes(wav(samples.sounds()[at], 16_000))
    return {"uri": path.as_uri()}


def test_the_next_task_reads_what_went_to_the_store(served: Served) -> None:
    heard = chain(served.infer(SPEECH, inputs=clip(served, 0)), served.infer(TEXT)).apply_async()
    got = read(heard.get(timeout=60))
    said = read(heard.parent.get(timeout=10))
    assert said.keys() == {"text"}
    assert got == read(served.infer(TEXT, inputs=said).apply_async().get(timeout=60))
    # Where a producer named the place, too; a list of results; and a result that is itself an object.
    output = {"uri": f"{served.results.as_uri()}/asked/"}
    asked = chain(served.infer(SPEECH, inputs=clip(served, 0), output=output), served.infer(TEXT)).apply_async()
    assert read(asked.get(timeout=60)) == got
    header = [served.infer(SPEECH, inputs=clip(served, at)) for at in (0, 1)]
    both = read(chord(header, served.infer(TEXT)).apply_async().get(timeout=60))
    assert len(both) == 2
    assert both[0] == got
    image = served.inputs / "a.png"
    samples.images()[0].save(image)
    enlarged = chain(served.infer(PICTURE, inputs={"uri": image.as_uri()}), served.infer(LABEL)).apply_async()
    assert read(enlarged.get(timeout=60))[0]["label"]


def test_nothing_else_in_the_store_is_read(served: Served) -> None:
    secret = served.results / "own" / "secret.json"
    secret.write_text('{"text": "the fox"}')
    text, uri = secret.read_bytes(), secret.as_uri()
    sha256 = hashlib.sha256(text).hexdigest()
    guessed = hmac.new(b"", f"result\0{sha256}\0{uri}".encode(), hashlib.sha256).hexdigest()
    key = served.db.get(queues.SIGNING_KEY)
    assert isinstance(key, bytes)

    def signed(what: str, place: str, digest: str = sha256) -> dict[str, str]:
        signature = hmac.new(key, f"{what}\0{digest}\0{place}".encode(), hashlib.sha256).hexdigest()
        return {"uri": place, "sha256": digest, "signature": signature}

    outside = served.inputs.parent / "outside.json"
    outside.write_bytes(text)
    climbing = f"{served.results.as_uri()}/own/../../outside.json"
    for inputs in (
        {"uri": uri},
        {"uri": uri, "sha256": sha256, "signature": guessed},
        {"uri": uri, "sha256": sha256, "signature": "0" * 64},
        {"uri": uri, "sha256": sha256, "signature": "x"},
        {"uri": uri, "sha256": sha256, "signature": None},
        {"uri": uri, "sha256": sha256, "signature": ["a"]},
        {**signed("result", uri), "uri": f"{uri}x"},
        {**signed("result", uri), "sha256": "0" * 64},
        # Even with the key nothing is read beyond the places of results.
        signed("result", outside.as_uri()),
        signed("result", climbing),
        [signed("object", outside.as_uri())],
        signed("result", "https://127.0.0.1/x.json"),
        # What another one has written there since.
        signed("result", uri, hashlib.sha256(b"something else").hexdigest()),
    ):
        status = served.client.wait(served.client.submit(TEXT, inputs), timeout_s=60)
        assert status.state is State.FAILED, inputs
        assert status.error is not None
        assert status.error.code in ("input_forbidden", "invalid_input", "input_undecodable"), (inputs, status.error)
    # The right one is read, so that the others were refused for what they are.
    assert served.client.wait(served.client.submit(TEXT, signed("result", uri)), timeout_s=60).state is State.SUCCEEDED


def test_a_lost_key_is_made_anew(served: Served) -> None:
    for key in (None, b"", b"short", b"\xff" * 100, "a list"):
        served.db.delete(queues.SIGNING_KEY)
        if isinstance(key, bytes):
            served.db.set(queues.SIGNING_KEY, key)
        elif key is not None:
            served.db.rpush(queues.SIGNING_KEY, key)
        heard = chain(served.infer(SPEECH, inputs=clip(served, 0)), served.infer(TEXT)).apply_async()
        assert read(heard.get(timeout=60))
    served.db.delete(queues.SIGNING_KEY)
