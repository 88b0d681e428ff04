"""A stock Celery app submits and reads results without importing pipeq, and its features keep working."""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path

import pytest
import redis
import transformers
from celery import Celery, chain, chord, group
from pipeq import Client, State
from pipeq.contract import keys
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests.acceptance.conftest import Service
from tests.device import DEVICE
from tests.parity import assert_same, plain
from tests.worker_process import worker

WORDS = "invoice total amount euros model queue worker batch cat dog image sound speech paper river stone light".split()

#: Place of a bad argument -> the argument, and the code that its task must end with.
BAD = {
    17: ({"pipeline": "text-embedding", "inputs": 17}, "invalid_input"),
    101: ({"pipeline": "text-embedding", "inputs": "fine", "params": {"top_q": 1}}, "invalid_params"),
    202: ({"pipeline": "text-embedding", "inputs": {"uri": "s3://secret/key.txt"}}, "input_forbidden"),
    303: ({"pipeline": "text-embedding", "inputs": {"base64": "//79"}}, "input_undecodable"),
    404: ({"pipeline": "text-embedding"}, "invalid_message"),
}


def stock_app(url: str) -> Celery:
    return Celery("somebody", broker=url, backend=url)


def texts(count: int) -> list[str]:
    rng = random.Random(5)
    return [" ".join(rng.choices(WORDS, k=max(1, round(rng.lognormvariate(0, 1) * 15)))) for _ in range(count)]


def test_five_hundred_texts_five_of_them_bad(redis_url: str, minilm: Path, tmp_path: Path) -> None:
    app, inputs = stock_app(redis_url), texts(500)
    ids = []
    for at, text in enumerate(inputs):
        message = BAD[at][0] if at in BAD else {"pipeline": "text-embedding", "inputs": text}
        # Submitted before any worker runs.
        ids.append(app.send_task("pipeq.infer", kwargs=message, queue="text-embedding").id)
    with worker(tmp_path, redis_url, f"text-embedding={minilm}"), Client(redis_url) as client:
        statuses = {status.id: status for status in client.as_completed(ids, timeout_s=180)}
    by_position = [statuses[task] for task in ids]
    failed = {at: status.error.code for at, status in enumerate(by_position) if status.error}
    assert failed == {at: code for at, (_, code) in BAD.items()}
    assert sum(status.state is State.SUCCEEDED for status in by_position) == 495
    batches = [status.batch.size for status in by_position if status.batch]
    # A batch of n appears in n statuses. How large they are depends on how fast the machine is just then.
    assert len(batches) / sum(1 / size for size in batches) > 5
    pipe = embedding_pipeline(minilm)
    for at in range(0, 500, 7):
        if at not in BAD:
            assert_same(app.AsyncResult(ids[at]).get(timeout=5), plain(pipe(inputs[at])))


def embedding_pipeline(model: Path) -> transformers.Pipeline:
    """transformers' own call, without queue and batch, for a checkpoint whose files limit the length of texts."""
    loaded = load_pipeline("it", PipelineSettings(task="text-embedding", model=str(model)), DEVICE)
    assert isinstance(loaded, TransformersPipeline)
    return loaded.pipe()


MESSAGE = {"pipeline": "text-classification", "inputs": "the quick brown fox"}


def test_the_result_is_the_pipelines_output(service: Service) -> None:
    app = stock_app(service.client.redis_url)
    pipe = transformers.pipeline("text-classification", model=str(service.models / "classifier"), device=DEVICE)
    send = {"queue": "text-classification"}
    got = app.send_task("pipeq.infer", kwargs=MESSAGE, **send).get(timeout=30)
    assert_same(got, plain(pipe(MESSAGE["inputs"])))
    several = app.send_task("pipeq.infer", kwargs={**MESSAGE, "inputs": ["a fox", "a dog"]}, **send).get(timeout=30)
    assert_same(several, plain(pipe(["a fox", "a dog"])))
    pair = {"text": "a fox", "text_pair": "a dog"}
    assert_same(
        app.send_task("pipeq.infer", kwargs={**MESSAGE, "inputs": pair}, **send).get(timeout=30), plain(pipe(pair))
    )


def test_celery_features(service: Service) -> None:
    """Celery's Request and tracer treat our tasks like any other task."""
    app = stock_app(service.client.redis_url)

    def infer(**options: object) -> object:
        return app.signature("pipeq.infer", kwargs=MESSAGE, queue="text-classification", immutable=True, **options)

    want = infer().apply_async().get(timeout=30)
    assert group(infer() for _ in range(5)).apply_async().get(timeout=30) == [want] * 5
    assert chord([infer(), infer()], infer()).apply_async().get(timeout=30) == want
    assert chain(infer(), infer(), infer()).apply_async().get(timeout=30) == want
    linked = infer()
    linked.set(task_id="linked-task")
    parent = infer()
    parent.link(linked)
    parent.apply_async().get(timeout=30)
    assert app.AsyncResult("linked-task").get(timeout=30) == want
    began = time.monotonic()
    assert infer().apply_async(countdown=1.5).get(timeout=30) == want
    assert time.monotonic() - began > 1.4
    expired = infer().apply_async(expires=-1)
    assert service.client.wait(expired.id, timeout_s=30).state is State.EXPIRED
    revoked = infer().apply_async(countdown=2)
    app.control.revoke(revoked.id)
    assert service.client.wait(revoked.id, timeout_s=30).state is State.CANCELLED


def test_inspect(service: Service) -> None:
    inspect = stock_app(service.client.redis_url).control.inspect(timeout=10, limit=1)
    stats = next(iter(inspect.stats().values()))
    assert stats["pool"]["processes"] == [service.process.process.pid]
    assert stats["pool"]["pipelines"]["text-embedding"]["device"] == DEVICE
    # A task of an earlier test leaves the worker just after its result is known.
    deadline = time.monotonic() + 10
    while active := next(iter(inspect.active().values())):
        assert time.monotonic() < deadline, active
        time.sleep(0.05)
    assert "pipeq.infer" in next(iter(inspect.registered().values()))


def test_priority_zero_overtakes(redis_url: str, tmp_path: Path) -> None:
    app, config = stock_app(redis_url), tmp_path / "pipelines.toml"
    config.write_text("[pipelines.constant]\nmax_batch_size = 1\nmax_wait_ms = 0\n")
    send = {"kwargs": {"pipeline": "constant", "inputs": "fox", "params": {"seconds": 0.03}}, "queue": "constant"}
    bulk = [app.send_task("pipeq.infer", priority=9, **send).id for _ in range(60)]
    urgent = [app.send_task("pipeq.infer", priority=0, **send).id for _ in range(10)]
    with worker(tmp_path, redis_url, "--config", config, prefetch=8), Client(redis_url) as client:
        ended = {status.id: status.finished_at for status in client.as_completed(bulk + urgent, timeout_s=200)}
    assert statistics.mean(ended[task] or 0 for task in urgent) < statistics.mean(ended[task] or 0 for task in bulk)


@pytest.fixture
def raw(service: Service) -> redis.Redis:
    return redis.Redis.from_url(service.client.redis_url)


def test_a_task_is_published_once_however_often_it_is_delivered(service: Service, raw: redis.Redis) -> None:
    """The broker delivers at least once; the record makes a task end once."""
    waiting = keys.waiting_key("text-classification")
    task = service.client.submit("text-classification", "fox", delay_s=3600)
    (member,) = (one for one in raw.zrange(waiting, 0, -1) if task.encode() in one)
    with raw.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(f"celery-task-meta-{task}")
        raw.lpush("text-classification", json.loads(member)["message"])
        raw.zadd(waiting, {member: time.time() + 1})
        assert service.client.wait(task, timeout_s=30).state is State.SUCCEEDED
        assert service.client.result(service.client.submit("text-classification", "later", delay_s=1.5), timeout_s=30)
        published, deadline = 0, time.monotonic() + 1
        while time.monotonic() < deadline:
            published += channel.get_message(timeout=0.1) is not None
    assert published == 1
