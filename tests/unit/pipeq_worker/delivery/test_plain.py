"""PLAIN: which tasks need nothing of Celery's tracer, and when nobody listens to it."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.app import trace
from celery.app.trace import build_tracer
from celery.loaders.app import AppLoader
from pipeq.contract import keys
from pipeq.contract.errors import PipeqError
from pipeq_worker.broker.requests import facts_of_request
from pipeq_worker.delivery.plain import HOOKS, SIGNALS, Plain, is_plain


class Infer(Task):
    name = keys.TASK_NAME

    def run(self) -> str:
        return "done"


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """The level that observe/log.py sets."""
    logger = logging.getLogger("celery.app.trace")
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield logger
    logger.setLevel(before)


def app_with(task: type[Task] = Infer, **options: Any) -> Celery:
    app = Celery("it", set_as_current=False, backend="cache+memory://", **options)
    app.register_task(task())
    return app


def test_nobody_listens_to_a_worker_of_ours() -> None:
    assert Plain(app_with()).is_possible()


@pytest.mark.parametrize("name", ["task_prerun", "task_success", "task_postrun"])
def test_a_receiver_of_a_signal_may_come_and_go(name: str) -> None:
    plain, signal = Plain(app_with()), getattr(signals, name)

    def receive(**_: Any) -> None:
        pass

    signal.connect(receive)
    assert not plain.is_possible()
    signal.disconnect(receive)
    assert plain.is_possible()


def test_these_are_all_signals_that_the_tracer_sends_for_a_success() -> None:
    app, sent = app_with(), []
    every = [one for one in vars(signals).values() if isinstance(one, signals.Signal)]
    for signal in every:
        # A receiver of its own for each, held until the end.
        signal.connect(lambda signal=signal, **_: sent.append(signal), weak=False, dispatch_uid="test")
    try:
        build_tracer(keys.TASK_NAME, app.tasks[keys.TASK_NAME], app=app)("id", (), {}, {"id": "id"})
    finally:
        for signal in every:
            signal.disconnect(dispatch_uid="test")
    assert {id(one) for one in sent} == {id(one) for one in SIGNALS}


@pytest.mark.parametrize("hook", HOOKS[Task])
def test_a_task_with_a_hook_needs_the_tracer(hook: str) -> None:
    hooked = type("Hooked", (Infer,), {hook: lambda self, *args, **kwargs: None})
    assert not Plain(app_with(hooked)).is_possible()


@pytest.mark.parametrize("hook", ["on_task_init", "on_process_cleanup"])
def test_a_loader_with_a_hook_needs_the_tracer(hook: str) -> None:
    loader = type("Loader", (AppLoader,), {hook: lambda self, *args, **kwargs: None})
    assert not Plain(app_with(loader=loader)).is_possible()


def test_what_only_celery_can_write_needs_the_tracer(monkeypatch: pytest.MonkeyPatch, quiet: logging.Logger) -> None:
    for name, value in {"result_extended": True, "result_serializer": "yaml"}.items():
        app = app_with()
        app.conf.update({name: value})
        assert not Plain(app).is_possible()
    quiet.setLevel(logging.INFO)  # it logs the result
    assert not Plain(app_with()).is_possible()
    quiet.setLevel(logging.WARNING)
    monkeypatch.setattr(trace, "build_tracer", lambda *_, **__: None)
    assert not Plain(app_with()).is_possible()


EMPTY: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def delivery_of(embed: dict[str, Any], error: PipeqError | None = None) -> Any:
    about = {"request_dict": {}, "delivery_info": {}, "expires": None, "group": None, "parent_id": None}
    facts = facts_of_request(SimpleNamespace(_payload=([], {}, embed), **about))
    return SimpleNamespace(error=error, **facts)


def test_a_task_that_nothing_follows_is_plain() -> None:
    assert is_plain(delivery_of(EMPTY))
    assert is_plain(delivery_of({name: [] for name in EMPTY}))
    assert is_plain(delivery_of({}))
    assert not is_plain(delivery_of(EMPTY, PipeqError("internal", "no")))


@pytest.mark.parametrize("name", [*EMPTY, "unheard_of"])
def test_a_task_with_a_follower_is_not(name: str) -> None:
    assert not is_plain(delivery_of({**EMPTY, name: [{"task": "next"}]}))
