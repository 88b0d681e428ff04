"""The next task of a chain gets the same input wherever a result lies, and no other reference can read the store."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord
from pipeq import Client, Ref, State
from pipeq.contract import keys
from pipeq.demo import embedded
from pipeq_worker.settings.sections import ResultSettings
from pipeq_worker.stages.files import wav
from pipeq_worker.stores.signed import LEARN_S, Signatures

from tests import samples, tiny_models
from tests.worker_process import worker

SPEECH, TEXT, PICTURE, LABEL = "automatic-speech-recognition", "text-classification", "image-to-image", "vit"


@dataclass(frozen=True)
class Served:
    url: str
    app: Celery
    client: Client
    db: redis.Redis
    inputs: Path
    results: Path
    models: Path

    def infer(self, pipeline: str, **kwargs: Any) -> Any:
        return self.app.signature("pipeq.infer", kwargs={"pipeline": pipeline, **kwargs}, queue=pipeline)


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A worker whose results of every size go to the store, from which no inputs are allowed."""
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
        yield Served(url, app, client, redis.Redis.from_url(url), inputs, results, tiny)


def read(result: Any) -> Any:
    """A result from the store. The form that its producer sees holds no signature."""
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
    # Also if the producer named the place, for a list of results, and for a result that is an object.
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
    key = served.db.get(keys.SIGNING_KEY)
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
        # Even a valid signature opens nothing outside of the places of results.
        signed("result", outside.as_uri()),
        signed("result", climbing),
        [signed("object", outside.as_uri())],
        signed("result", "https://127.0.0.1/x.json"),
        # Another writer has replaced the object since.
        signed("result", uri, hashlib.sha256(b"something else").hexdigest()),
    ):
        status = served.client.wait(served.client.submit(TEXT, inputs), timeout_s=60)
        assert status.state is State.FAILED, inputs
        assert status.error is not None
        assert status.error.code in ("input_forbidden", "invalid_input", "input_undecodable"), (inputs, status.error)
    # The valid reference is read, so the others were refused because of their signatures.
    assert served.client.wait(served.client.submit(TEXT, signed("result", uri)), timeout_s=60).state is State.SUCCEEDED


def test_a_lost_key_is_made_anew(served: Served) -> None:
    for key in (None, b"", b"short", b"\xff" * 100, "a list"):
        served.db.delete(keys.SIGNING_KEY)
        if isinstance(key, bytes):
            served.db.set(keys.SIGNING_KEY, key)
        elif key is not None:
            served.db.rpush(keys.SIGNING_KEY, key)
        heard = chain(served.infer(SPEECH, inputs=clip(served, 0)), served.infer(TEXT)).apply_async()
        assert read(heard.get(timeout=60))
    # A worker that starts after Redis lost the key must learn the new one.
    served.db.delete(keys.SIGNING_KEY)
    newcomer = Signatures(lambda: served.db, ResultSettings())
    newcomer.sign("file:///x", "object")
    time.sleep(LEARN_S + 0.1)
    heard = served.infer(SPEECH, inputs=clip(served, 0)).apply_async(link=served.infer("looked-at"))
    assert heard.get(timeout=60)
    (_, pushed) = served.db.blpop(["looked-at"], 10)  # type: ignore[misc]
    (handed_on,), _, _ = json.loads(base64.b64decode(json.loads(pushed)["body"]))
    assert newcomer.knows(Ref(**handed_on), "result")


def test_the_next_task_may_be_of_another_worker(served: Served, tmp_path: Path) -> None:
    """Each worker serves one pipeline, as on machines with one GPU. Links may also go to a user's own Celery tasks."""
    config = tmp_path / "other.toml"
    model = tiny_models.build("classifier", served.models)
    config.write_text(
        f'[results]\nallow = ["{served.results.as_uri()}/"]\n'
        f'[pipelines.elsewhere]\ntask = "{TEXT}"\nmodel = "{model}"\n'
    )
    with worker(tmp_path, served.url, "--config", config) as process:
        process.wait_ready(served.client, "elsewhere")
        away = chain(served.infer(SPEECH, inputs=clip(served, 0)), served.infer("elsewhere")).apply_async()
        got = away.get(timeout=60)
        assert got == served.infer("elsewhere", inputs=read(away.parent.get(timeout=10))).apply_async().get(timeout=60)
        header = [served.infer(SPEECH, inputs=clip(served, at)) for at in (0, 1)]
        assert len(chord(header, served.infer("elsewhere")).apply_async().get(timeout=60)) == 2
        back = chain(served.infer("elsewhere", inputs="the fox"), served.infer("constant-of-nobody"))
        assert back.apply_async().parent.get(timeout=60)[0]["label"]
        assert served.db.llen("constant-of-nobody") == 1
    mine = served.app.signature("mine.task", immutable=True)
    assert served.infer(TEXT, inputs="the fox").apply_async(link=mine).get(timeout=60)
    assert served.db.llen("celery") == 1
    served.db.delete("celery", "constant-of-nobody")


def test_the_next_task_goes_to_a_queue_and_nowhere_else(served: Served) -> None:
    forbidden = [keys.PIPELINES, keys.SIGNING_KEY, keys.RUNNING, keys.waiting_key("nobody"), keys.record_key("x")]
    forbidden += ["celery-taskset-meta-x", "unacked_index", "_kombu.binding.x", keys.list_key("nobody", 9), "x" * 201]
    places: list[dict[str, Any]] = [{"queue": key} for key in forbidden]
    places += [{"queue": {"name": "nobody"}}, {"queue": ["nobody"]}, {"queue": 5}]
    places += [{"exchange": name, "routing_key": "nobody"} for name in ("nobody", "celery.pidbox", "celeryev")]
    before = {key for key in served.db.keys("*") if not key.startswith(b"celery-task-meta-")}
    for place in places:
        link = {"task": keys.TASK_NAME, "args": [], "kwargs": {}, "options": place, "immutable": True}
        task = served.infer(TEXT, inputs="the fox").apply_async(link=[link])
        with pytest.raises(Exception, match="the next task"):
            task.get(timeout=60)
    after = {key for key in served.db.keys("*") if not key.startswith(b"celery-task-meta-")}
    assert {key for key in after - before if not key.startswith(b"pipeq:")} == set()
    assert keys.waiting_key("nobody").encode() not in after
    # Options beside the queue that would lead elsewhere have no effect.
    options = {"queue": "nobody", "exchange": "celery.pidbox", "routing_key": "celery", "exchange_type": "fanout"}
    link = {"task": keys.TASK_NAME, "args": [], "kwargs": {}, "options": options, "immutable": True}
    assert served.infer(TEXT, inputs="the fox").apply_async(link=[link]).get(timeout=60)
    assert served.db.llen("nobody") == 1
    served.db.delete("nobody")
    assert not served.db.keys("_kombu.binding*nobody*")
