"""SLAB: shared memory through which rows and outputs go from one child to another, without passing through the host.

    writer: value -> put() -> Where -> (a message) -> reader: get() -> value -> (a message) -> writer: free()

A slab is a file without a name (memfd), made by the host and inherited by all children: it needs no room in /dev/shm,
of which a container has 64 MB, and leaves nothing behind when everybody dies. Only one process writes into a slab.
Tensors and arrays lie in it as they are, and the reader sees them without a copy; all else is pickled beside them.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import threading
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import msgspec

from pipeq_worker.children.flat import aligned, flattened, joined, unflattened, unflattened_all

#: Bytes of address space of a slab. Memory is taken as it is used, and given back.
SIZE = 2**29
#: Values smaller than this go into the message itself.
SMALL = 4096
_NONE: Mapping[int, Any] = MappingProxyType({})
#: Free room of at least this size is given back to the system.
_GIVEN_BACK = 2**22


class Where(msgspec.Struct, tag="where", array_like=True, frozen=True):
    """Where a value is."""

    #: Its pickle. Buffers that are not in the slab are inside it. Of a mapping of tensors, its head (:mod:`.flat`).
    head: bytes
    #: The slab, and the place of its buffers there; -1 if they are inside the pickle.
    slab: int = -1
    start: int = 0
    #: Length of each buffer, in bytes.
    lengths: tuple[int, ...] = ()
    #: Objects that the value refers to by number: number -> its pickle.
    marked: dict[int, bytes] = {}
    #: Of a mapping of tensors: their bytes, unless they are in the slab.
    data: bytes = b""
    is_flat: bool = False


def make() -> int:
    """Makes a slab. Returns its file descriptor, which children inherit."""
    descriptor = os.memfd_create("pipeq-slab")
    os.truncate(descriptor, SIZE)
    return descriptor


class Slabs:
    """All slabs of a worker, in one child.

    Args:
        descriptors: of the slabs.
        own: index of the one that this child writes into.
    """

    def __init__(self, descriptors: list[int], own: int) -> None:
        self._maps = [mmap.mmap(one, SIZE) for one in descriptors]
        self._views = [memoryview(one) for one in self._maps]
        self._own = own
        self._rooms = Rooms(SIZE)

    def put(self, value: Any, nbytes: int = SMALL, originals: Mapping[int, Any] = _NONE) -> Where:
        """Writes a value. If there is no room it goes into the message, which is slower and always works.

        Args:
            value: anything that can be pickled.
            nbytes: about its size; small values go into the message at once.
            originals: ``id`` of objects -> themselves. Where the value holds one of them, what comes back should hold
                that very object again, and not one like it.
        """
        if originals:
            marked, numbers = dict[int, bytes](), {at: at for at in originals}
            head = _marked(value, numbers, originals, marked)
            if marked:
                return Where(head, marked=marked)
        if (flat := flattened(value)) is not None:
            return self._put_flat(*flat)
        if nbytes < SMALL:
            return Where(_dumped(value, None))
        buffers: list[pickle.PickleBuffer] = []
        head = _dumped(value, buffers.append)
        if not buffers:
            return Where(head)
        where = self._placed(head, [one.raw() for one in buffers])
        return where or Where(_dumped(value, None))

    def _put_flat(self, head: bytes, arrays: list[Any]) -> Where:
        where = None
        if sum(one.nbytes for one in arrays) >= SMALL:
            where = self._placed(head, [memoryview(one.reshape(-1)).cast("B") for one in arrays], True)
        return where or Where(head, data=joined(arrays), is_flat=True)

    def _placed(self, head: bytes, raws: list[memoryview], is_flat: bool = False) -> Where | None:
        """Writes buffers into the slab, if they are worth it and there is room."""
        lengths = tuple(raw.nbytes for raw in raws)
        total = sum(map(aligned, lengths))
        start = self._rooms.take(total) if total >= SMALL else None
        if start is None:
            return None
        view, at = self._views[self._own], start
        for raw, length in zip(raws, lengths, strict=True):
            view[at : at + length] = raw
            at += aligned(length)
        return Where(head, self._own, start, lengths, is_flat=is_flat)

    def put_back(self, value: Any, seen: Mapping[int, int]) -> Where:
        """Writes what was made of a value with marked objects: ``seen`` is what :meth:`get_marked` returned."""
        return Where(_marked(value, seen, {}, {})) if seen else self.put(value)

    def get_marked(self, where: Where) -> tuple[Any, dict[int, int], list[Any]]:
        """Reads a value with marked objects. Returns it, ``id`` -> number of each such object, and these objects."""
        found: dict[int, Any] = {}

        def load(number: int) -> Any:
            if number not in found:
                found[number] = _loaded(where.marked[number], load)
            return found[number]

        value = _loaded(where.head, load)
        return value, {id(one): number for number, one in found.items()}, list(found.values())

    def get(self, where: Where) -> Any:
        """Reads a value. Its tensors and arrays are views of the slab, until the writer frees it."""
        if where.is_flat:
            in_slab = where.slab >= 0
            return unflattened(where.head, self._views[where.slab], where.start) if in_slab else _unjoined(where)
        if where.slab < 0:
            return pickle.loads(where.head)  # noqa: S301 - written by a process of this worker
        view, at, buffers = self._views[where.slab], where.start, []
        for length in where.lengths:
            buffers.append(view[at : at + length])
            at += aligned(length)
        return pickle.loads(where.head, buffers=buffers)  # noqa: S301 - written by a process of this worker

    def get_all(self, wheres: Sequence[Any], read: Callable[[int], Any]) -> list[Any]:
        """Reads many values at once.

        Args:
            wheres: their places. Small mappings of tensors of one shape are read together, in less than half the time.
            read: reads each of the others; gets its position.
        """
        found: list[Any] = [None] * len(wheres)
        alike: dict[bytes, list[int]] = {}
        for at, where in enumerate(wheres):
            if isinstance(where, Where) and where.is_flat and where.slab < 0:
                alike.setdefault(where.head, []).append(at)
            else:
                found[at] = read(at)
        for head, places in alike.items():
            rows = unflattened_all(head, [wheres[at].data for at in places])
            for at, row in zip(places, rows, strict=True):
                found[at] = row
        return found

    def copied(self, where: Where, originals: Mapping[int, Any] = _NONE) -> Any:
        """Reads a value into memory of its own, with the very objects that were marked in :meth:`put`."""
        if where.slab < 0:
            return _unjoined(where) if where.is_flat else _loaded(where.head, originals.__getitem__)
        if where.is_flat:
            size = sum(map(aligned, where.lengths))
            return unflattened(where.head, bytearray(self._views[where.slab][where.start : where.start + size]))
        view, at, buffers = self._views[where.slab], where.start, []
        for length in where.lengths:
            buffers.append(bytearray(view[at : at + length]))
            at += aligned(length)
        return pickle.loads(where.head, buffers=buffers)  # noqa: S301 - written by a process of this worker

    def free(self, where: Where) -> None:
        """Gives the room of a value that this child has written back. Nobody may read it any more."""
        if where.slab == self._own:
            size = sum(map(aligned, where.lengths))
            self._rooms.give(where.start, size)
            if size >= _GIVEN_BACK:
                first = -(-where.start // mmap.PAGESIZE) * mmap.PAGESIZE
                last = (where.start + size) // mmap.PAGESIZE * mmap.PAGESIZE
                self._maps[self._own].madvise(mmap.MADV_REMOVE, first, last - first)


class Rooms:
    """Free and taken parts of a slab: first fit. Safe for threads."""

    def __init__(self, size: int) -> None:
        #: Start and size of each free part, by start. No two of them touch.
        self._free = [(0, size)]
        self._lock = threading.Lock()

    def take(self, size: int) -> int | None:
        """Takes a part. Returns its start; None if no free part is large enough."""
        with self._lock:
            for at, (start, room) in enumerate(self._free):
                if room >= size:
                    if room == size:
                        del self._free[at]
                    else:
                        self._free[at] = (start + size, room - size)
                    return start
        return None

    def give(self, start: int, size: int) -> None:
        """Gives a part back."""
        with self._lock:
            insort(self._free, (start, size))
            at = self._free.index((start, size))
            if at + 1 < len(self._free) and start + size == self._free[at + 1][0]:
                self._free[at : at + 2] = [(start, size + self._free[at + 1][1])]
            if at and sum(self._free[at - 1]) == start:
                before = self._free[at - 1]
                self._free[at - 1 : at + 1] = [(before[0], before[1] + self._free[at][1])]

    @property
    def free_bytes(self) -> int:
        """Bytes that are free, in all parts together."""
        with self._lock:
            return sum(size for _, size in self._free)


def _unjoined(where: Where) -> Any:
    # What is read-only cannot become a tensor without a warning of torch.
    return unflattened(where.head, bytearray(where.data))


def _dumped(value: Any, outside: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, 5, buffer_callback=outside).dump(value)
    return stream.getvalue()


def _loaded(data: bytes, load: Callable[[int], Any]) -> Any:
    reader = pickle.Unpickler(io.BytesIO(data))  # noqa: S301 - written by a process of this worker
    reader.persistent_load = load  # type: ignore[method-assign]
    return reader.load()


def _marked(value: Any, numbers: Mapping[int, int], originals: Mapping[int, Any], marked: dict[int, bytes]) -> bytes:
    """Pickles a value with numbers in place of some objects; adds the pickles of those of them that are known here."""
    stream, used = io.BytesIO(), set[int]()
    writer = _Pickler(stream, 5)

    def number_of(one: Any) -> int | None:
        number = None if one is value else numbers.get(id(one))
        if number is not None:
            used.add(number)
        return number

    writer.persistent_id = number_of  # type: ignore[method-assign]
    writer.dump(value)
    for number in used:
        if number in originals and number not in marked:
            marked[number] = b""  # so that it is not pickled again while it is
            marked[number] = _marked(originals[number], numbers, originals, marked)
    return stream.getvalue()


class _Pickler(pickle.Pickler):
    """Writes tensors as buffers, as pickle itself does with arrays: torch's own way copies them into the pickle."""

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind.__name__ == "Tensor" and kind.__module__ == "torch":
            return _reduced(value)
        if kind.__name__ == "BatchEncoding" and kind.__module__ == "transformers.tokenization_utils_base":
            # Its `encodings` are four times as large as its tensors, and no row of a larger batch has any.
            return _batch_encoding, (value.data,)
        return NotImplemented


def _reduced(tensor: Any) -> Any:
    # Here, because the host only makes slabs, and needs neither.
    import numpy as np
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        return NotImplemented
    name, shape = str(tensor.dtype)[6:], tuple(tensor.shape)
    if not tensor.numel():
        return _tensor, (b"", name, shape)
    try:
        array = tensor.numpy(force=True)
    except TypeError:  # bfloat16, float8: numpy has no such type
        array = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return _tensor, (pickle.PickleBuffer(cast(Any, np.ascontiguousarray(array))), name, shape)


def _batch_encoding(data: dict[str, Any]) -> Any:
    from transformers import BatchEncoding

    return BatchEncoding(data)


def _tensor(data: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    kind = getattr(torch, dtype)
    if 0 in shape:
        return torch.empty(shape, dtype=kind)
    # A buffer inside the pickle is read-only, of which torch would warn.
    # A buffer that came inside the pickle cannot be written to, of which torch would warn.
    buffer = bytearray(data) if isinstance(data, bytes) or memoryview(data).readonly else data
    return torch.frombuffer(buffer, dtype=kind).reshape(shape)
