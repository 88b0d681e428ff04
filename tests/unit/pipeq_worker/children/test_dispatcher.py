"""Tasks through a child, without Celery and Redis, and how pipelines affect each other."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import Ref, TaskMessage
from pipeq_worker.children import feeding, looking, runs
from pipeq_worker.children.dispatcher import Dispatcher
from pipeq_worker.children.hooks import Hooks
from pipeq_worker.models.constant_pipeline import ConstantPipeline
from pipeq_worker.models.pipeline import Pipeline, Prepared
from pipeq_worker.models.task_types import find
from pipeq_worker.schedule.task import Task
from pipeq_worker.settings.read import Settings
from pipeq_worker.settings.sections import InputSettings, PipelineSettings, S3Settings
from pipeq_worker.stages.accept import read_inputs
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stages.prepare import least_items
from pipeq_worker.stages.steps import Stage

from tests.thread_child import starter
from tests.unit.media import image_bytes, picture
from tests.waiting import until


def begin(tasks: list[Task], alone: bool) -> None:
    for task in tasks:
        task.started_at = time.time()


def look(tasks: list[Task]) -> None:
    """A look-out for which no task has been cancelled."""


class SlowStore(Fetcher):
    """Its bucket ``slow`` does not answer until it is told to; others answer at once."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        #: Set when its library is there.
        self.is_there = threading.Event()
        self.is_there.set()

    def warm_up_soon(self) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def wait_until_warm(self) -> None:
        self.is_there.wait()

    def check(self, ref: Ref, *, waits: bool = False) -> None:
        """No store is known to be away."""

    def fetch(self, ref: Ref, reserve: Callable[[int], None] = lambda size: None) -> bytes:
        data = image_bytes(picture(8, 8), "PNG")
        reserve(len(data))
        if "slow" in str(ref.uri):
            self.answers.wait()
        return data


class ManyRows(ConstantPipeline):
    """A pipeline whose input is a number of rows, and whose forward pass takes a while."""

    def __init__(self, name: str) -> None:
        super().__init__(name, PipelineSettings(task="constant", max_batch_size=4, max_wait_ms=0))
        self.made: dict[int, int] = {}
        self.threads: dict[int, set[int]] = {}
        #: Set when nobody asks for more items of some task.
        self.left = threading.Event()

    def prepare(self, value: Any, call: Any) -> Iterator[Prepared]:
        try:
            for _ in range(value):
                self.made[value] = self.made.get(value, 0) + 1
                self.threads.setdefault(value, set()).add(threading.get_ident())
                yield Prepared(None, self.name, 1, 1)
        finally:
            self.left.set()

    def forward(self, features: list[Any], call: Any, running: Any = None) -> list[Any]:
        time.sleep(0.002)
        return super().forward(features, call, running)

    def postprocess(self, outputs: list[Any], call: Any) -> Any:
        return len(outputs)


def dispatcher(
    pipelines: dict[str, Pipeline],
    settings: Settings,
    fetcher: Fetcher,
    deliver: Callable[[list[Task]], None],
    look: Callable[[list[Task]], None] = look,
) -> Dispatcher[Task]:
    """One that runs, with a child in a thread."""
    sections = {name: PipelineSettings(task="constant") for name in pipelines}
    settings = settings.model_copy(update={"pipelines": sections})
    hooks = Hooks(begin=begin, look=look, deliver=deliver, died=lambda _: None, hopeless=lambda _: None)
    made = Dispatcher(settings, starter(pipelines, settings, fetcher), hooks)
    made.load()
    made.start()
    return made


def task_of(task_id: str, message: TaskMessage) -> Task:
    return Task(id=task_id, lane=message.pipeline, message=json.dumps(message.to_kwargs()).encode())


class Stages:
    """A dispatcher with one pipeline, and the tasks that it has finished."""

    def __init__(
        self,
        pipeline: ConstantPipeline,
        fetcher: Fetcher | None = None,
        look: Callable[[list[Task]], None] = look,
        **settings: Any,
    ) -> None:
        self.done: list[Task] = []
        self._changed = threading.Condition()
        self.engine = dispatcher(
            {pipeline.name: pipeline},
            Settings(prepare_threads=2, **settings),
            fetcher or SlowStore(),
            self._deliver,
            look,
        )

    def _deliver(self, tasks: list[Task]) -> None:
        with self._changed:
            self.done += tasks
            self._changed.notify_all()

    def submit(self, task_id: str, inputs: Any, pipeline: str = "it", **params: Any) -> Task:
        task = task_of(task_id, TaskMessage(pipeline=pipeline, inputs=inputs, params=params))
        self.engine.submit(task)
        return task

    def wait_for(self, *tasks: Task, timeout_s: float = 30) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: set(tasks) <= set(self.done), timeout_s)


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
    """Neither by waiting threads nor by held bytes."""
    done: list[Task] = []
    settings = Settings(fetch_threads=2, prefetch_bytes=2000, prepare_threads=1)
    pipelines = {name: image_pipeline(name) for name in ("slow", "quick")}
    engine = dispatcher(pipelines, settings, store, done.extend)
    number = itertools.count()

    def submit(name: str, count: int) -> None:
        for _ in range(count):
            message = TaskMessage(pipeline=name, inputs={"uri": f"s3://{name}/a.png"})
            engine.submit(task_of(str(next(number)), message))

    submit("slow", 50)
    submit("quick", 50)
    until(lambda: len(done) == 50)
    assert {task.lane for task in done} == {"quick"}
    assert not any(task.error for task in done)
    store.answers.set()
    assert engine.drain(20) == []
    assert len(done) == 100
    assert not any(task.error for task in done)


def test_the_library_of_a_store_is_no_part_of_a_read(store: SlowStore) -> None:
    """The time of a read is limited, and that of an import on a busy machine is not the task's fault."""
    store.is_there.clear()
    stages = Stages(image_pipeline("it"), store)
    far = stages.submit("a", {"uri": "s3://quick/a.png"})
    near = stages.submit("b", {"base64": base64.b64encode(image_bytes(picture(8, 8), "PNG")).decode()})
    stages.wait_for(near)
    assert far not in stages.done
    assert not any(step.stage is Stage.FETCH for step in stages.engine._crew.doing())
    store.is_there.set()
    stages.wait_for(far)
    assert far.error is None
    stages.engine.drain(5)


def test_reads_wait_for_a_warm_up_and_for_none_that_failed() -> None:
    fetcher, read = Fetcher(InputSettings(), S3Settings()), threading.Event()
    fetcher.wait_until_warm()  # none was to come
    fetcher.warm_up_soon()
    threading.Thread(target=lambda: (fetcher.wait_until_warm(), read.set()), daemon=True).start()
    assert not read.wait(0.1)
    fetcher._allow = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        fetcher.warm_up()
    assert read.wait(20)


def test_tasks_of_many_items_hold_up_nobody() -> None:
    """Two long tasks on two threads: later short tasks finish long before them."""
    pipeline = ManyRows("it")
    stages = Stages(pipeline)
    large = [stages.submit("a", 3000), stages.submit("b", 3001)]
    while min(pipeline.made.get(one, 0) for one in (3000, 3001)) < 10:
        time.sleep(0.01)
    small = [stages.submit(f"small-{at}", 1) for at in range(50)]
    stages.wait_for(*small)
    assert not set(large) & set(stages.done)
    stages.wait_for(*large)
    assert [json.loads(task.result_json) for task in large] == [3000, 3001]
    assert not any(task.error for task in (*large, *small))
    # A task continues on the thread where it began, because that holds its tokenizer.
    assert [len(pipeline.threads[one]) for one in (3000, 3001)] == [1, 1]
    stages.engine.drain(5)


def test_items_are_counted_while_they_are_made() -> None:
    pipeline = ManyRows("it")
    stages = Stages(pipeline, max_items=100)
    task = stages.submit("a", 10**9)
    fits = stages.submit("b", 100)
    stages.wait_for(task, fits)
    assert task.error is not None
    assert task.error.code == ErrorCode.INPUT_TOO_LARGE
    assert "max_items" in task.error.message
    assert pipeline.made[10**9] == 101
    assert fits.error is None
    stages.engine.drain(5)


LABELS = [f"label {at}" for at in range(1000)]


@pytest.mark.parametrize(
    ("task", "inputs", "params"),
    [
        ("zero-shot-classification", ["fox"] * 101, {"candidate_labels": LABELS}),
        ("zero-shot-classification", ["fox"] * 101, {"candidate_labels": ",".join(LABELS)}),
        ("zero-shot-image-classification", [{"uri": "s3://b/k"}] * 101, {"candidate_labels": LABELS}),
        ("zero-shot-object-detection", [{"image": {"uri": "s3://b/k"}, "candidate_labels": LABELS}] * 101, {}),
        ("zero-shot-audio-classification", [{"uri": "s3://b/k"}] * 101, {"candidate_labels": LABELS}),
        ("fill-mask", ["fox"] * 101, {"targets": LABELS}),
        ("table-question-answering", [{"table": {"a": ["1"]}, "query": LABELS}] * 101, {}),
        ("decision", [{"state": 1, "questions": {key: {} for key in LABELS}}] * 101, {}),
        ("text-classification", ["fox"] * 20_001, {}),
    ],
)
def test_what_the_message_tells_is_refused_before_anything_is_made(task: str, inputs: Any, params: Any) -> None:
    inputs, _ = read_inputs(find(task), inputs)
    assert least_items(inputs, params) > 20_000
    # For comparison, a task of the usual kind.
    assert least_items(inputs[:1], {}) in (1, 1000)


class Cancelled:
    """Reports every task as ended, once it is told to."""

    def __init__(self) -> None:
        self.says_so = threading.Event()

    def look(self, tasks: list[Task]) -> None:
        for task in tasks:
            if self.says_so.is_set():
                task.fail(PipeqError(ErrorCode.CANCELLED, "nobody wants it"))


def test_a_cancelled_task_stops_between_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "LOOK_S", 0.01)
    pipeline, cancelled = ManyRows("it"), Cancelled()
    stages = Stages(pipeline, look=cancelled.look, max_items=10**9)
    task = stages.submit("a", 10**8)
    while pipeline.made.get(10**8, 0) < 100:
        time.sleep(0.01)
    cancelled.says_so.set()
    stages.wait_for(task)
    # The child hears of it a moment after the task has ended.
    assert pipeline.left.wait(30)
    assert pipeline.made[10**8] < 10**5
    stages.engine.drain(5)


def test_a_cancelled_task_stops_between_references(monkeypatch: pytest.MonkeyPatch, store: SlowStore) -> None:
    monkeypatch.setattr(looking, "LOOK_S", 0.01)
    fetched: list[Ref] = []

    class Counted(SlowStore):
        def fetch(self, ref: Ref, reserve: Callable[[int], None] = lambda size: None) -> bytes:
            fetched.append(ref)
            time.sleep(0.005)
            return super().fetch(ref, reserve)

    cancelled = Cancelled()
    stages = Stages(image_pipeline("it"), Counted(), cancelled.look, fetch_threads=1)
    task = stages.submit("a", [{"uri": "s3://quick/a.png"}] * 5000)
    while len(fetched) < 20:
        time.sleep(0.01)
    # It does not delay the tasks after it either, although there is one thread.
    later = stages.submit("b", [{"uri": "s3://quick/a.png"}])
    stages.wait_for(later)
    assert task not in stages.done
    cancelled.says_so.set()
    stages.wait_for(task)
    assert len(fetched) < 5000
    stages.engine.drain(5)


def test_what_has_not_begun_is_given_back_at_once() -> None:
    class Slow(ManyRows):
        begun, ends = threading.Event(), threading.Event()

        def forward(self, features: list[Any], call: Any, running: Any = None) -> list[Any]:
            self.begun.set()
            self.ends.wait(20)
            return super().forward(features, call, running)

    pipeline = Slow("it")
    stages = Stages(pipeline)
    first = stages.submit("a", 1)
    assert pipeline.begun.wait(20)
    waiting = [stages.submit(str(at), 1) for at in range(20)]
    assert set(stages.engine.withdraw()) == set(waiting)
    assert stages.engine.withdraw() == []
    stages.submit("late", 1)
    pipeline.ends.set()
    assert stages.engine.drain(20) == []
    assert stages.done == [first]


def test_a_drain_waits_no_longer_than_it_is_told() -> None:
    pipeline = ManyRows("it")
    stages = Stages(pipeline, max_items=10**9)
    task = stages.submit("a", 10**8)
    while not pipeline.made:
        time.sleep(0.01)
    began = time.monotonic()
    assert stages.engine.drain(0.2) == [task]
    assert 0.2 <= time.monotonic() - began < 10


class Gate(ConstantPipeline):
    """A pipeline of batches of one, whose forward pass waits until it is let through."""

    def __init__(self, name: str) -> None:
        super().__init__(name, PipelineSettings(task="constant", max_batch_size=1, max_wait_ms=0))
        self.opens = threading.Event()
        self.runs = 0

    def forward(self, features: list[Any], call: Any, running: Any = None) -> list[Any]:
        self.runs += 1
        assert self.opens.wait(30)
        return super().forward(features, call, running)


def test_what_has_not_begun_can_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is: in the host, being prepared, or ready for the device. The rest is done, and it can come again."""
    monkeypatch.setattr(feeding, "FEED", 2)
    # Where a start takes long, as all does on a busy machine, the device gets more batches ahead.
    monkeypatch.setattr(runs, "MOST_AHEAD", 2)
    pipeline = Gate("it")
    stages = Stages(pipeline)
    engine = stages.engine
    tasks = [stages.submit(str(at), 1) for at in range(10)]
    # One that runs, and the next.
    until(lambda: pipeline.runs and sum(task.started_at is not None for task in tasks) == 2)
    began = [task for task in tasks if task.started_at is not None]
    spare = engine.spare("it")
    assert spare == [task for task in tasks if task not in began]
    assert engine.spare("other") == []
    # Tasks with which a process has died stay.
    spare[0].deaths = 1
    assert engine.spare("it") == spare[1:]
    back = engine.give_back([*began, *spare[1:]], 5)
    assert back == spare[1:6]
    assert engine.give_back([*back, *began], 5) == []
    assert engine.in_flight() == {"it": 5}
    again = Task(id=back[0].id, lane="it", message=back[0].message)
    engine.submit(again)
    pipeline.opens.set()
    stages.wait_for(again, *began, spare[0], *spare[6:])
    assert engine.drain(20) == []
    assert len(stages.done) == pipeline.runs == 6
    assert not any(task.error for task in stages.done)
    assert engine.spare("it") == []
    assert not engine.is_open
