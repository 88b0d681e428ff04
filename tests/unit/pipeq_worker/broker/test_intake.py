"""INTAKE: which messages it takes, which it leaves to Celery, and who makes it leave all."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.worker import state, strategy
from pipeq.contract import keys
from pipeq_worker.broker import plain_message
from pipeq_worker.broker.intake import Intake
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.leases.reserved import Reserved

from tests.unit.pipeq_worker.broker.test_plain_message import HEADERS, LIMITS, body_of, raw_of


class Infer(Task):
    name = keys.TASK_NAME

    def run(self) -> None:
        """Is not called."""


class Inside:
    """An intake, and what it took."""

    def __init__(self, task: type[Task] = Infer) -> None:
        self.app = Celery("it", set_as_current=False)
        self.app.register_task(task())
        self.taken: list[Delivery] = []
        self.ids = {"inside"}
        self.consumer: Any = SimpleNamespace(
            app=self.app, hostname="w1@host", event_dispatcher=SimpleNamespace(enabled=False, groups=None),
            connection_errors=(), on_task_message=set(), disable_rate_limits=False,
            task_buckets={keys.TASK_NAME: None},
            task_consumer=SimpleNamespace(channel=SimpleNamespace(leases="leases", limits=lambda _: LIMITS)),
        )  # fmt: skip
        self.intake = Intake(self.consumer, {"it": "pipeline"}, self.taken.extend, self.ids.__contains__)  # type: ignore[dict-item]

    def take(self, *ids: str) -> tuple[list[str], list[str]]:
        """Gives it messages. Returns the ids that it took, and the tags that it left."""
        self.taken.clear()
        left = self.intake.take([message(one, f"tag-{at}") for at, one in enumerate(ids)])
        return [one.id for one in self.taken], [one.tag for one in left]


def message(task_id: str, tag: str = "tag", **headers: Any) -> Reserved:
    return Reserved("it", tag, raw_of({**HEADERS, "id": task_id, **headers}))


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    level = strategy.logger.level
    strategy.logger.setLevel(logging.WARNING)  # as observe/log.py sets it
    yield
    strategy.logger.setLevel(level)
    state.reset_state()


def test_what_a_delivery_knows() -> None:
    one = Inside()
    one.take("a")
    (delivery,) = one.taken
    assert (delivery.id, delivery.lane, delivery.queue, delivery.tag) == ("a", "it", "it", "tag-0")
    assert (delivery.pipeline, delivery.leases, delivery.message) == ("pipeline", "leases", body_of())
    assert state.requests["a"] is delivery.request
    assert set(state.reserved_requests) == {delivery.request}
    # Celery's `revoke(terminate=True)` finds the delivery through its request.
    delivery.request.terminate(SimpleNamespace(), signal="TERM")
    assert delivery.is_terminated


def test_what_is_known_already_is_left() -> None:
    one = Inside()
    state.revoked.add("revoked")
    assert one.take("a", "inside", "b", "revoked", "a") == (["a", "b"], ["tag-1", "tag-3", "tag-4"])


def test_other_queues_and_other_messages_are_left_in_order() -> None:
    one = Inside()
    others = [
        Reserved("elsewhere", "t1", raw_of()), message("x", "t2", eta="2030-01-01"), Reserved("it", "t3", b"{"),
        Reserved("it", "t4", raw_of(body=json.dumps([[], {"pipeline": "other", "inputs": 1}, {}]).encode())),
    ]  # fmt: skip
    assert one.intake.take([*others[:2], message("a"), *others[2:]]) == others
    assert [taken.id for taken in one.taken] == ["a"]


def test_a_fault_of_ours_leaves_the_message_to_celery(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plain_message, "read", lambda *_: 1 // 0)
    assert Inside().take("a") == ([], ["tag-0"])
    assert "ZeroDivisionError" in caplog.text


def watched(one: Inside, how: str) -> None:
    consumer = one.consumer
    if how == "events":
        consumer.event_dispatcher.enabled = True
    elif how == "receiver":
        signals.task_received.connect(lambda **_: None, weak=False, dispatch_uid="test")
    elif how == "callback":
        consumer.on_task_message.add(print)
    elif how == "rate limit":
        consumer.task_buckets[keys.TASK_NAME] = "a bucket"
    elif how == "log":
        strategy.logger.setLevel(logging.INFO)


@pytest.mark.parametrize("how", ["events", "receiver", "callback", "rate limit", "log"])
def test_while_somebody_watches_all_messages_take_celerys_way(how: str) -> None:
    one = Inside()
    assert one.take("a", "b") == (["a", "b"], [])
    watched(one, how)
    try:
        assert one.take("c", "d") == ([], ["tag-0", "tag-1"])
    finally:
        signals.task_received.disconnect(dispatch_uid="test")


@pytest.mark.parametrize("changed", [{"Strategy": "mine:strategy"}, {"Request": "mine:Request"}])
def test_a_task_with_a_way_of_its_own_keeps_it(changed: dict[str, str]) -> None:
    assert Inside(type("Own", (Infer,), changed)).take("a") == ([], ["tag-0"])


def test_events_of_workers_alone_are_no_watch() -> None:
    one = Inside()
    one.consumer.event_dispatcher = SimpleNamespace(enabled=True, groups={"worker"})
    assert one.take("a") == (["a"], [])
