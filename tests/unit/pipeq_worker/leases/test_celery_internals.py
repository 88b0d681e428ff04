"""What pipeq uses of the inside of Celery, kombu and redis-py is still there, and still means what we think."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.app import trace
from celery.worker.request import Request
from kombu import Connection, Consumer, Queue
from kombu.asynchronous import Hub
from kombu.message import Message
from pipeq.demo import embedded
from pipeq_worker.leases import celery_internals
from pipeq_worker.leases.celery_internals import INHERITED

PACKAGE = Path(celery_internals.__file__).parents[1]
NAMES = [(kind, name) for kind, names in INHERITED.items() for name in names]
#: Modules of ours that define subclasses of their classes.
OURS = ("broker.transport", "broker.consumer", "broker.pool", "broker.routes", "broker.serving", "delivery.backend")
THEIRS = ("celery", "kombu", "redis")


def source_of(kind: type) -> str:
    return "\n".join(inspect.getsource(one) for one in kind.__mro__ if one.__module__.split(".")[0] in THEIRS)


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_an_inherited_name_is_still_there(kind: type, name: str) -> None:
    said, found = INHERITED[kind][name], getattr(kind, name, None)
    if said.parameters:
        assert str(inspect.signature(found)) == said.parameters  # type: ignore[arg-type]
    else:
        assert not inspect.isfunction(found)
        assert hasattr(kind, name) or f"self.{name} = " in source_of(kind)


def private_names(tree: ast.AST) -> dict[str, set[str]]:
    """Private attribute -> whose it is, in words of the source."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found.setdefault(node.attr, set()).add(ast.unparse(node.value))
    return found


@pytest.mark.parametrize("module", OURS)
def test_our_subclasses_use_no_other(module: str) -> None:
    """Each private name that stands in such a class is ours alone, or in the table."""
    for ours in vars(import_module(f"pipeq_worker.{module}")).values():
        if not isinstance(ours, type) or ours.__module__ != f"pipeq_worker.{module}":
            continue
        theirs = [one for one in ours.__mro__ if one.__module__.split(".")[0] in THEIRS]
        if not theirs:
            continue
        text, before = inspect.getsource(ours), "\n".join(map(source_of, theirs))
        listed = {name for kind, names in INHERITED.items() if issubclass(ours, kind) for name in names}
        defined = {one for one in vars(ours) if one.startswith("_") and not one.startswith("__")}
        used = {name for name, whose in private_names(ast.parse(text)).items() if whose & {"self", "super()"}}
        for name in defined | used:
            known = f"def {name}(" in before or f"self.{name} =" in before or f"    {name} = " in before
            assert name in listed or not known, f"{ours.__name__}.{name} is {theirs[0].__name__}'s"


def test_no_other_module_reads_a_private_name_of_theirs() -> None:
    """Of objects that are not `self`: os._exit is public, whatever it is called."""
    for path in PACKAGE.rglob("*.py"):
        district = path.relative_to(PACKAGE).parts[0]
        if district in ("models", "media", "doctor") or path.name == "celery_internals.py":
            continue  # transformers and Pillow have insides of their own
        for name, whose in private_names(ast.parse(path.read_text())).items():
            assert whose <= {"self", "cls", "super()", "os"} or name in ("_of", "_of_lock"), f"{path}: {whose}.{name}"


def test_a_loop_says_whether_it_is_in_a_turn() -> None:
    hub, found = Hub(), []
    assert not celery_internals.is_running(hub)
    hub.call_soon(lambda: found.append(celery_internals.is_running(hub)))
    hub.call_soon(hub.stop)
    # Something to poll, or it sleeps for ever.
    ours, theirs = os.pipe()
    hub.add_reader(ours, lambda: None)
    os.write(theirs, b"!")
    hub.run_forever()
    assert found == [True]
    assert not celery_internals.is_running(hub)
    hub.close()


def message_of(body: list[Any]) -> Message:
    headers = {"id": "t", "task": "pipeq.infer", "lang": "py"}
    return Message(
        body=json.dumps(body), content_type="application/json", content_encoding="utf-8", headers=headers, channel=None
    )


def test_a_request_has_read_what_follows_the_task() -> None:
    app = Celery("it", set_as_current=False)
    embed = {"callbacks": [{"task": "next"}], "errbacks": None, "chain": None, "chord": None}

    @app.task(name="pipeq.infer", shared=False)
    def infer(a: int) -> int:
        return a

    request = Request(message_of([[], {"a": 1}, embed]), app=app, task=infer)
    assert celery_internals.embed_of(request) == embed


def test_a_tracer_that_somebody_has_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert celery_internals.has_stock_tracer()
    stock = trace.build_tracer

    class Wrapper:
        __module__ = stock.__module__

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return stock(*args, **kwargs)

    for other in (lambda *args, **kwargs: stock(*args, **kwargs), functools.wraps(stock)(lambda: None), Wrapper()):
        monkeypatch.setattr(trace, "build_tracer", other)
        assert not celery_internals.has_stock_tracer()


def test_a_message_is_not_decoded_again() -> None:
    message = message_of([[], {}, {}])
    celery_internals.set_payload(message, "ours")
    assert message.payload == "ours"
    assert message.decode() == "ours"


def test_a_message_goes_to_the_consumer_of_its_queue() -> None:
    found: list[Any] = []
    with Connection("memory://") as connection, connection.channel() as channel:
        with Consumer(channel, [Queue("q")], callbacks=[lambda body, _: found.append(body)]):
            frame = {
                "body": json.dumps({"b": 2}),
                "content-type": "application/json",
                "content-encoding": "utf-8",
                "properties": {"delivery_tag": "t", "delivery_info": {}},
            }
            celery_internals.hand_to_consumer(connection.transport, frame, "q")
        assert found == [{"b": 2}]
        with pytest.raises(KeyError):
            celery_internals.hand_to_consumer(connection.transport, frame, "nobody's")


def test_a_connection_has_a_socket_once_it_is_connected() -> None:
    with embedded.valkey() as url:
        connection = redis.Redis.from_url(url).connection_pool.make_connection()
        assert celery_internals.socket_of(connection) is None
        connection.connect()
        assert celery_internals.socket_of(connection).fileno() > 0
        connection.disconnect()
        assert celery_internals.socket_of(connection) is None
