"""When a worker that takes no messages reports it, and when only a new process helps."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from pipeq_worker.leases import receiving
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.receiving import Receiving
from pipeq_worker.leases.reserver import Deaf
from pipeq_worker.leases.server import Server


class Reader:
    """A stand-in for the reserver."""

    def __init__(self) -> None:
        self.says: dict[str, Deaf | None] = {}

    def stalled(self) -> str | None:
        return None

    def deaf(self) -> dict[str, Deaf | None]:
        return self.says


@pytest.fixture
def reader() -> Iterator[Reader]:
    leases, reader = Leases.of(Server(("nowhere", 1, 0))), Reader()
    leases.readers.add(reader)
    yield reader
    leases.readers.discard(reader)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(receiving.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("cause", "helps"),
    [
        (None, True),
        (Deaf("the thread that takes messages has ended"), True),
        (Deaf("ConnectionError: nobody knows why"), True),
        (Deaf("ReadOnlyError: a replica", False), False),
    ],
)
def test_the_process_ends_where_nothing_else_helps(
    reader: Reader, clock: list[float], cause: Deaf | None, helps: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []
    one = Receiving(["a", "b"], lambda: ["a", "b"], ended.append)
    reader.says = {"a": None, "b": None}
    one.beaten(True)
    assert one.deaf() == {}
    # Without a known cause: nobody takes from the queue, as if Celery's consumer were gone.
    reader.says = {"a": None} | ({"b": cause} if cause is not None else {})
    one.beaten(True)
    assert one.deaf() == {}  # a moment is nothing
    clock[0] += 5
    one.beaten(True)
    assert one.deaf().keys() == {"b"}
    clock[0] += 30
    one.beaten(True)
    assert ended == []
    clock[0] += 30
    one.beaten(True)
    assert bool(ended) == helps
    assert len([record for record in caplog.records if "no messages are taken from b" in record.message]) == 1
    reader.says = {"a": None, "b": None}
    one.beaten(True)
    assert one.deaf() == {}
    assert "messages are taken from b again" in caplog.text


def test_while_redis_is_away_nobody_is_to_blame(
    reader: Reader, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []
    one = Receiving(["a"], lambda: ["a"], ended.append)
    reader.says = {"a": Deaf("ConnectionError: refused")}
    for _ in range(300):
        assert one.deaf() == {} or one.deaf().keys() == {"a"}
        one.beaten(False)
        clock[0] += 1
    # The connection is back, but the consumer has not had time to return.
    one.beaten(True)
    assert ended == []
    assert one.deaf().keys() == {"a"}
    one.leave()
    assert one.deaf() == {}
    clock[0] += 300
    one.beaten(True)
    assert ended == []


def test_what_a_remote_control_cancelled_is_no_reason_to_end(reader: Reader, clock: list[float]) -> None:
    ended: list[str] = []
    one = Receiving(["a"], list, ended.append)
    one.beaten(True)
    clock[0] += 300
    one.beaten(True)
    assert "cancel_consumer" in one.deaf()["a"]["reason"]
    assert ended == []


@pytest.fixture(autouse=True)
def _said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
