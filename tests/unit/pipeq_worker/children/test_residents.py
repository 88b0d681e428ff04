"""Which pipelines are loaded, where not all of them can be."""

from __future__ import annotations

from typing import Any

import pytest
from pipeq_worker.children import protocol, residents
from pipeq_worker.children.residents import Resident, Residents, choose
from pipeq_worker.schedule.task import Item, Task

NOW = 1000.0


def resident(nbytes: int, *, loaded_s: float | None, wanted_s: float | None = None, **more: Any) -> Resident[Task]:
    """One that was loaded, or has been wanted, for so many seconds."""
    wanted = None if wanted_s is None else NOW - wanted_s
    can_unload, used_s = more.pop("can_unload", True), more.pop("used_s", 100)
    since = NOW - (loaded_s or 0)
    return Resident(nbytes, can_unload, loaded_s is not None, since, wanted_since=wanted, used=NOW - used_s, **more)


A, B = resident(10, loaded_s=100), resident(10, loaded_s=50)
BUSY_A, BUSY_B = resident(10, loaded_s=100, used_s=0), resident(10, loaded_s=50, used_s=1)
NEW = resident(10, loaded_s=None, wanted_s=1)


@pytest.mark.parametrize(
    ("all_of_them", "waiting", "most", "chosen"),
    [
        ({"a": A, "b": B}, {"a": 5}, 20, None),
        ({"a": A, "b": resident(10, loaded_s=None)}, {}, 10, None),
        # There is room.
        ({"a": A, "new": NEW}, {"a": 5}, 20, ("new", [])),
        # One has no work.
        ({"a": BUSY_A, "b": B, "new": NEW}, {"a": 5, "new": 1}, 20, ("new", ["b"])),
        ({"a": A, "b": BUSY_B, "new": NEW}, {"b": 5, "new": 1}, 20, ("new", ["a"])),
        # Both have, and the one with less leaves; tasks that come one by one leave none waiting.
        ({"a": BUSY_A, "b": BUSY_B, "new": NEW}, {"a": 9, "b": 5, "new": 1}, 20, ("new", ["b"])),
        ({"a": BUSY_A, "b": BUSY_B, "new": NEW}, {"new": 1}, 20, ("new", ["a"])),
        # Nobody leaves who has just come,
        ({"a": resident(10, loaded_s=9, used_s=1), "new": NEW}, {"new": 1}, 10, None),
        ({"a": resident(10, loaded_s=9), "new": NEW}, {"new": 1}, 10, ("new", ["a"])),
        ({"a": resident(10, loaded_s=1), "new": NEW}, {"new": 1}, 10, None),
        # or whose loading took long,
        ({"a": resident(10, loaded_s=39, load_s=10, used_s=1), "new": NEW}, {"new": 1}, 10, None),
        ({"a": resident(10, loaded_s=41, load_s=10, used_s=1), "new": NEW}, {"new": 1}, 10, ("new", ["a"])),
        ({"a": resident(10, loaded_s=9, load_s=10), "new": NEW}, {"new": 1}, 10, None),
        # or cannot.
        ({"a": resident(10, loaded_s=100, can_unload=False), "new": NEW}, {"new": 1}, 10, None),
        # As many as are needed, and none if that is not enough.
        ({"a": A, "b": B, "new": resident(20, loaded_s=None, wanted_s=1)}, {"new": 1}, 20, ("new", ["a", "b"])),
        ({"a": A, "b": B, "new": resident(25, loaded_s=None, wanted_s=1)}, {"new": 1}, 20, None),
        # Who has waited for longest is first.
        ({"a": A, "new": NEW, "old": resident(10, loaded_s=None, wanted_s=9)}, {"new": 50, "old": 1}, 20, ("old", [])),
    ],
)
def test_who_comes_and_who_leaves(
    all_of_them: dict[str, Resident[Task]], waiting: dict[str, int], most: int, chosen: Any
) -> None:
    assert choose(all_of_them, waiting, most, NOW) == chosen


def loaded(name: str, *, is_resident: bool = True) -> protocol.Loaded:
    limits = (1, 1, 1, 0.0, False, 1.0)
    return protocol.Loaded(name, "constant", b"{}", *limits, weight_bytes=10, is_resident=is_resident, can_unload=True)


def item(lane: str) -> Item[Task]:
    task = Task(id=lane, lane=lane, message=b"{}", ticket=1)
    return Item(task, 1, 1, "group", lane, 1, 1)


def test_a_move_waits_for_batches_and_brings_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residents, "STAY_S", 0)
    sent: list[Any] = []
    back: list[Item[Task]] = []
    loads: list[str] = []
    running = {"a"}
    made: Residents[Task] = Residents(10, sent.append, back.append, lambda name: name in running, loads.extend)
    made.loaded(loaded("a"))
    made.loaded(loaded("b", is_resident=False))
    first, second, gone = item("b"), item("b"), item("b")
    assert not made.keep(item("a"))
    assert made.keep(first)
    assert made.keep(second)
    assert made.keep(gone)
    gone.task.ticket = 2
    assert loads == ["b"]
    made.look(lambda: {"b": 2})
    assert sent == []  # a batch of the one that leaves is running,
    assert made.keep(item("a"))  # and no other is begun
    running.clear()
    made.look(lambda: {"b": 2})
    made.look(lambda: {"b": 2})
    assert sent == [protocol.Unload(["a"]), protocol.Load(["b"])]
    made.loaded(loaded("b"))
    assert back == [first, second]
    assert not made.keep(first)


def test_without_a_limit_all_stay() -> None:
    made: Residents[Task] = Residents(None, pytest.fail, pytest.fail, pytest.fail, pytest.fail)
    made.loaded(loaded("a", is_resident=False))
    assert not made.keep(item("a"))
    made.look(pytest.fail)
