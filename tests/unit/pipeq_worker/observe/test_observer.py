"""Observers: each event reaches those that override it; one that raises affects no other; a faulty one is refused."""

from __future__ import annotations

import inspect
import logging
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.observe import observer as module
from pipeq_worker.observe.observer import EVENTS, Observer, Observers, of_entry_points


class Everything(Observer):
    """Records its calls."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []


def _keeps(name: str) -> Any:
    return lambda self, *args: self.told.append((name, *args))


for _name in EVENTS:
    setattr(Everything, _name, _keeps(_name))


def arguments(name: str) -> list[str]:
    return list(inspect.signature(getattr(Observer, name)).parameters)[1:]


@pytest.mark.parametrize("name", EVENTS)
def test_every_event_reaches_everybody(name: str) -> None:
    one, other = Everything(), Everything()
    args = arguments(name)
    getattr(Observers([one, Observer(), other]), name)(*args)
    assert one.told == other.told == [(name, *args)]


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
@pytest.mark.parametrize("name", EVENTS)
def test_one_that_raises_is_said_once_and_disturbs_nobody(
    name: str, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Everything):
        pass

    def fails(self: Any, *args: Any) -> None:
        raise kind("no metrics today")

    setattr(Broken, name, fails)
    behind = Everything()
    both = Observers([Broken(), behind])
    for _ in range(3):
        getattr(both, name)(*arguments(name))
    assert len(behind.told) == 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "no metrics today" in (caplog.records[0].exc_text or caplog.text)


def test_nobody_listens() -> None:
    for name in EVENTS:
        getattr(Observers([]), name)(*arguments(name))


class NoObserver:
    """Has none of the methods."""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module_anywhere:Mine", "cannot be made: ModuleNotFoundError"),
        (f"{__name__}:no_such_name", "cannot be made: AttributeError"),
        ("builtins:len", "cannot be made: TypeError"),
        (f"{__name__}:NoObserver", "has no method 'task_accepted'"),
    ],
)
def test_a_wrong_entry_point_is_named(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    monkeypatch.setattr(module, "entry_points", lambda group: [EntryPoint("mine", value, group)])
    with pytest.raises(PipeqError) as caught:
        of_entry_points()
    assert caught.value.code == ErrorCode.INVALID_SETTINGS
    assert "'mine'" in caught.value.message
    assert said in caught.value.message


def test_an_entry_point_gives_an_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", f"{__name__}:Everything", module.GROUP)
    monkeypatch.setattr(module, "entry_points", lambda group: [entry])
    assert [type(one).__name__ for one in of_entry_points()] == ["Everything"]
