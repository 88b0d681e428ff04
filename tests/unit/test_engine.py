"""The stages without Celery and Redis: what one pipeline does to another."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from producers.message import Ref, TaskMessage
from tests.unit.media import image_bytes, picture
from worker.constant_pipeline import ConstantPipeline
from worker.engine import Engine
from worker.fetch import Fetcher
from worker.settings import PipelineSettings, Settings
from worker.task_types import find
from worker.work import Work


class Marks:
    """No running marks."""

    def begin(self, works: list[Work], *, alone: bool = False) -> None:
        pass


class SlowStore(Fetcher):
    """Its bucket ``slow`` does not answer until it is told to; the others answer at once."""

    def __init__(self) -> None:
        self.answers = threading.Event()

    def fetch(self, ref: Ref, reserve: Callable[[int], None] = lambda size: None) -> bytes:
        data = image_bytes(picture(8, 8), "PNG")
        reserve(len(data))
        if "slow" in str(ref.uri):
            self.answers.wait()
        return data


class Request:
    """What the stages read of Celery's request."""

    expires = None


@pytest.fixture
def store() -> Iterator[SlowStore]:
    one = SlowStore()
    yield one
    one.answers.set()


def image_pipeline(name: str) -> ConstantPipeline:
    pipeline = ConstantPipeline(name, PipelineSettings(task="constant"))
    pipeline.task_type = find("image-classification")
    return pipeline


def test_a_pipeline_whose_store_is_slow_holds_up_no_other(store: SlowStore) -> None:
    """Neither with threads that wait, nor with bytes that are held."""
    done: list[Work] = []
    settings = Settings(fetch_threads=2, prefetch_bytes=2000)
    pipelines: dict[str, Any] = {name: image_pipeline(name) for name in ("slow", "quick")}
    engine = Engine(pipelines, settings, store, Marks(), done.extend, lambda *_: None, 1)  # type: ignore[arg-type]
    engine.start()
    number = itertools.count()

    def submit(name: str, count: int) -> None:
        for _ in range(count):
            work = Work(str(next(number)), 0, Request(), lambda: None, lambda _: None)
            work.message = TaskMessage(pipeline=name, inputs={"uri": f"s3://{name}/a.png"})
            engine.submit(work)

    submit("slow", 50)
    submit("quick", 50)
    deadline = time.monotonic() + 20
    while len(done) < 50:
        assert time.monotonic() < deadline, f"{len(done)} of 50"
        time.sleep(0.01)
    assert {work.message.pipeline for work in done if work.message} == {"quick"}
    assert not any(work.error for work in done)
    store.answers.set()
    assert engine.drain(20) == []
    assert len(done) == 100
    assert not any(work.error for work in done)
