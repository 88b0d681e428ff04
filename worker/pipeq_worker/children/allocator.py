"""ALLOCATOR: has the C library keep the memory that a child frees, because the next batch needs it again.

glibc gives a large block back to the system when it is freed, and the system clears each page of the next one: for a
small model that takes a quarter of a forward pass (docs/decisions/allocator.md). torch keeps the memory of a GPU in the
same way. What the largest batch took stays with the process until it ends.
"""

from __future__ import annotations

import ctypes
import os
import sys

#: Most bytes that are kept at the end of the heap.
KEPT_BYTES = 2**30
#: By how much the heap grows at a time, in bytes; what is not used takes no memory.
GROWTH_BYTES = 2**26
#: How many kernels oneDNN keeps, each for one shape of a layer's input, and up to a megabyte large. Batches of texts
#: have all shapes, and it would keep a thousand; to make another takes a tenth of a millisecond.
KERNELS = 64
#: Numbers of mallopt's parameters, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def bound_kernels() -> None:
    """Bounds what oneDNN keeps; what the environment says already, holds. Call it before torch is imported."""
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):  # of torch's binding, and of oneDNN itself
        os.environ.setdefault(name, str(KERNELS))


def keep_freed_memory(*, one_arena: bool, process_max_bytes: int | None = None) -> None:
    """Sets it up; does nothing where the C library is not glibc. Call it before threads that work start.

    Args:
        process_max_bytes: what the process may take; no more than a quarter of it is kept.
        one_arena: whether all threads share one heap, which may be of any size. Heaps of threads end at 64 MB, and
            blocks that do not fit are given back after all; but threads do not wait for each other there.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    if one_arena:
        mallopt(_M_ARENA_MAX, 1)
    kept = KEPT_BYTES if process_max_bytes is None else min(KEPT_BYTES, process_max_bytes // 4)
    mallopt(_M_TRIM_THRESHOLD, kept)
    mallopt(_M_TOP_PAD, min(GROWTH_BYTES, kept))
    # Before glibc 2.35 half of a thread's heap was the most.
    if not mallopt(_M_MMAP_THRESHOLD, kept):
        mallopt(_M_MMAP_THRESHOLD, 2**25)
