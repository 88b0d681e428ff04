"""PACKED: the chunks of a packed body, one after the other, so that a bomb is noticed before it has unfolded."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

#: Most memory for the dictionary of an LZMA stream, whose size the stream declares.
_LZMA_MEMORY = 32 * 2**20
_CHUNK = 64 * 2**10

Chunks = Callable[[bytes], Iterator[bytes]]


def _unzipped(data: bytes) -> Iterator[bytes]:
    one = zlib.decompressobj()
    while data:
        yield one.decompress(data, _CHUNK)
        data = one.unconsumed_tail
    yield one.flush(_CHUNK)
    if not one.eof:
        raise EOFError("it is cut off")


def _streams(make: Callable[[], Any]) -> Chunks:
    def unpack(data: bytes) -> Iterator[bytes]:
        while data:
            one = make()
            yield one.decompress(data, _CHUNK)
            while not one.eof:
                if one.needs_input:
                    raise EOFError("it is cut off")
                yield one.decompress(b"", _CHUNK)
            # kombu reads all streams that follow each other.
            data = one.unused_data

    return unpack


#: kombu's names for its compressions -> what unpacks them. It raises an error of its module for what is no such stream,
#: and EOFError for one that is cut off.
CHUNKS: dict[str, Chunks] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), _unzipped),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), _streams(bz2.BZ2Decompressor)),
    **dict.fromkeys(
        ("application/x-lzma", "lzma", "xz"), _streams(lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY))
    ),
}
