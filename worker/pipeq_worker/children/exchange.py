"""EXCHANGE: rows and outputs that a child shares with others through slabs, and who may give which place back.

prepare process: item -> keep -> ... -> device process: rows -> forward pass -> answers -> ... -> outputs
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pipeq_worker.children import protocol
from pipeq_worker.children.slab import Slabs, Where
from pipeq_worker.models.call import Call
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.stages.device import Ran
from pipeq_worker.stages.task import Item, Task

#: Calls with different parameters that a device process remembers.
CALLS = 256


class Exchange:
    """One child's part in the exchange. Safe for threads.

    Args:
        slabs: the shared memory.
        pipelines: returns a pipeline of this process, by its name.
    """

    def __init__(self, slabs: Slabs, pipelines: Callable[[str], Pipeline]) -> None:
        self._slabs = slabs
        self._pipelines = pipelines
        #: Prepare process: number of an item -> its place. Device process: number of a batch -> places of its outputs.
        self._kept: dict[int, list[Where]] = {}
        #: ``id`` of a row -> the objects in it that its prepare process wants back: ``id`` -> number, and themselves.
        #: Number of a batch -> its rows.
        self._running: dict[int, list[Item]] = {}
        self._seen: dict[int, tuple[dict[int, int], list[Any]]] = {}
        self._lock = threading.Lock()
        self._call = lru_cache(CALLS)(self._make_call)

    # -- in a prepare process -----------------------------------------------------------------------------------------

    def keep(self, item: Item) -> tuple[Where, bytes]:
        """Puts a prepared item where the device process can read it. Returns its place, and its call's parameters."""
        where = self._slabs.put(item.features, item.nbytes, item.task.originals)
        with self._lock:
            self._kept[item.number] = [where]
        item.features = None
        params = protocol.packed(dict(item.task.call.params)) if item.is_first else b""
        return where, params

    def keep_rows(self, items: Sequence[Item]) -> tuple[list[Where], bytes]:
        """The same for items of a pack that have one call."""
        wheres = [self._slabs.put(item.features, item.nbytes, item.task.originals) for item in items]
        with self._lock:
            for item, where in zip(items, wheres, strict=True):
                self._kept[item.number] = [where]
                item.features = None
        return wheres, protocol.packed(dict(items[0].call.params))

    def outputs(self, message: protocol.Outputs, items: Iterable[Item]) -> dict[int, Any]:
        """Reads the outputs of items, and gives the places of all items of the message back."""
        chosen = list(items)
        outputs = [message.items[item.number] for item in chosen]

        def read(at: int) -> Any:
            output = outputs[at]
            if isinstance(output, protocol.Error):
                return output.error()
            # Copied, because the device process writes other outputs there soon.
            return self._slabs.copied(output, chosen[at].task.originals)

        found = self._slabs.get_all(outputs, read)
        self.give_back(message.items)
        return {item.number: output for item, output in zip(chosen, found, strict=True)}

    # -- in the device process ----------------------------------------------------------------------------------------

    def rows(self, message: protocol.ForwardRows) -> list[Item]:
        """Makes items of the rows of a batch; their tensors are views of the slabs."""
        pipeline = self._pipelines(message.pipeline)
        task = Task(id="", pipeline=pipeline, call=self._call(message.pipeline, message.params), alone=message.alone)
        items = [Item(task, 0, 0, None, None, row.cost, 0) for row in message.rows]
        wheres = [row.where for row in message.rows]
        features = self._slabs.get_all(wheres, lambda at: self._features(items[at], wheres[at]))
        for item, one in zip(items, features, strict=True):
            item.features = one
        with self._lock:
            self._running[message.number] = items
        return items

    def stop(self, message: protocol.Stop) -> None:
        """Notes that the answers of some rows are not wanted any more."""
        with self._lock:
            items = self._running.get(message.number, [])
        for at in message.rows[: len(items)]:
            items[at].row.stop = True

    def far(self) -> list[protocol.FarRows]:
        """How far the rows that run are, of those that say so."""
        with self._lock:
            running = dict(self._running)
        said = []
        for number, items in running.items():
            rows = [(at, one.row.done, one.row.total, one.row.unit) for at, one in enumerate(items) if one.row.done]
            if rows:
                said.append(protocol.FarRows(number, rows))
        return said

    def _features(self, item: Item, where: Where) -> Any:
        if not where.marked:
            return self._slabs.get(where)
        features, seen, objects = self._slabs.get_marked(where)
        with self._lock:
            self._seen[id(item)] = seen, objects
        return features

    def answers(self, ran: Ran, items: list[Item]) -> list[Where | protocol.Error]:
        """Puts the outputs of a batch where the prepare processes can read them."""
        found: list[Where | protocol.Error] = []
        for item in items:
            with self._lock:
                seen, _ = self._seen.pop(id(item), ({}, None))
            if item.error is not None:
                found.append(protocol.Error.of(item.error))
            else:
                found.append(self._slabs.put_back(item.output, seen))
            item.features = item.output = None
        with self._lock:
            self._running.pop(ran.number, None)
            self._kept[ran.number] = [one for one in found if isinstance(one, Where)]
        return found

    def _make_call(self, name: str, params: bytes) -> Call:
        pipeline = self._pipelines(name)
        return pipeline.call(protocol.unpacked(params))

    # -- in both ------------------------------------------------------------------------------------------------------

    def give_back(self, numbers: Iterable[int] | Mapping[int, Any]) -> None:
        """Gives the places of these items, or batches, back."""
        with self._lock:
            places = [where for number in numbers for where in self._kept.pop(number, ())]
        for where in places:
            self._slabs.free(where)
