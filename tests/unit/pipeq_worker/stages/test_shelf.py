"""SHELF: bounds what lies ready of each pipeline, by bytes and by batches, and makes tasks wait, never threads."""

from __future__ import annotations

from pipeq_worker.models.call import Call
from pipeq_worker.models.constant_pipeline import ConstantPipeline
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stages.shelf import Shelf
from pipeq_worker.stages.task import Item, Task

LIMITS = BatchLimits(max_size=8, max_cost=100, max_wait_s=0)


def item(lane: str = "a", *, cost: int = 5, nbytes: int = 8) -> Item:
    pipeline = ConstantPipeline(lane, PipelineSettings(task="constant"))
    return Item(Task(id="x", pipeline=pipeline, call=Call({})), 0, 0, None, "g", cost, nbytes)


def test_who_finds_it_full_goes_on_when_there_is_room() -> None:
    shelf, resumed = Shelf(10), list[str]()
    first = [item(), item()]
    for one in first:
        shelf.put(one)
    assert shelf.is_full("a", LIMITS)
    shelf.when_room("a", LIMITS, lambda: resumed.append("first"))
    shelf.when_room("a", LIMITS, lambda: resumed.append("second"))
    assert resumed == []
    assert shelf.remove(first) == first
    assert resumed == ["first", "second"]


def test_one_larger_than_the_shelf_is_let_in_alone() -> None:
    shelf, large = Shelf(10), item(nbytes=1000)
    assert not shelf.is_full("a", LIMITS)
    shelf.put(large)
    assert shelf.is_full("a", LIMITS)
    assert shelf.find([large.number]) == [large]
    shelf.remove([large])
    assert not shelf.is_full("a", LIMITS)


def test_a_full_lane_holds_up_no_other() -> None:
    shelf, resumed = Shelf(10), list[str]()
    for _ in range(2):
        shelf.put(item("a"))
    assert shelf.is_full("a", LIMITS)
    assert not shelf.is_full("b", LIMITS)
    shelf.when_room("b", LIMITS, lambda: resumed.append("b"))
    assert resumed == ["b"]


def test_beyond_two_batches_little_more_is_kept() -> None:
    """Of an hour of audio in chunks, for instance, only as many wait as batches can be chosen from."""
    shelf = Shelf(100)
    put = list[Item]()
    while not shelf.is_full("a", LIMITS):
        put.append(item(cost=50, nbytes=10))  # a batch is two of them
        shelf.put(put[-1])
    assert len(put) == 4
    for _ in range(6):
        shelf.put(item("b", cost=1, nbytes=10))  # small ones: not two batches yet
    assert not shelf.is_full("b", LIMITS)
    resumed: list[str] = []
    shelf.when_room("a", LIMITS, lambda: resumed.append("a"))
    shelf.remove(put[:1])
    assert resumed == ["a"]
