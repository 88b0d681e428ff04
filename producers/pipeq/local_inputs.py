"""LOCAL INPUTS: bytes, pictures and sounds in the caller's memory -> references. Used by submission.

What is small travels inside the message; the rest is uploaded to the client's store (``upload=``), where workers read
it. Neither numpy nor PIL is imported here: who passes their objects has imported them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.protocol import Steps

#: Share of a message that may be base64; inputs beside it, and the envelope, need the rest.
INLINE_SHARE = 0.75
#: Levels that are searched; what is nested deeper is refused as no JSON afterwards.
DEPTH = 20
#: Steps that say where bytes, or the file at a path, with this media type will be in the store.
Placing = Callable[[bytes | Path, str | None], Steps[str]]


class Store(Protocol):
    """Where inputs go that are too large for a message; see uploading."""

    def place(self, data: bytes | Path, media_type: str | None) -> str:
        """The URI of an object, which is not written yet."""

    def write(self, uri: str, data: bytes | Path) -> None:
        """Writes it."""


def has_local(value: Any, files: bool, depth: int = DEPTH) -> bool:
    """Whether there is anything to do for a value. ``files``: whether paths are local files, and not the workers'."""
    if value is None or isinstance(value, str | bool | int | float):
        return False
    if isinstance(value, Mapping):
        return depth > 0 and (_is_sound(value) or any(has_local(item, files, depth - 1) for item in value.values()))
    if isinstance(value, list | tuple):
        return depth > 0 and any(has_local(item, files, depth - 1) for item in value)
    return _is_bytes(value) or _is_array(value) or _is_picture(value) or (files and isinstance(value, Path))


def referenced(value: Any, place: Placing | None, max_message_bytes: int) -> Steps[Any]:
    """Returns a value with references in the place of what is in the caller's memory, or in local files.

    Raises:
        PipeqError: ``invalid_input``: it cannot be sent; ``input_not_found``: there is no such file.
    """
    left = [int(max_message_bytes * INLINE_SHARE)]
    return (yield from _referenced(value, place, left, DEPTH))


def _referenced(value: Any, place: Placing | None, left: list[int], depth: int) -> Steps[Any]:
    if isinstance(value, Mapping) and _is_sound(value):
        return (yield from _sent(wav(value["array"], value["sampling_rate"]), "audio/wav", place, left))
    if depth and isinstance(value, Mapping):
        found = {}
        for key, item in value.items():
            found[key] = yield from _referenced(item, place, left, depth - 1)
        return found
    if depth and isinstance(value, list | tuple):
        items = []
        for item in value:
            items.append((yield from _referenced(item, place, left, depth - 1)))
        return items
    if _is_bytes(value):
        return (yield from _sent(bytes(value), None, place, left))
    if _is_array(value):
        return (yield from _sent(png(value), "image/png", place, left))
    if _is_picture(value):
        return (yield from _sent(_encoded(value), "image/png", place, left))
    if place is not None and isinstance(value, Path):
        return (yield from _sent(value, None, place, left))
    return value


def _sent(data: bytes | Path, media_type: str | None, place: Placing | None, left: list[int]) -> Steps[dict[str, Any]]:
    encoded = (len(data) + 2) // 3 * 4 if isinstance(data, bytes) else 0
    found: dict[str, Any]
    if isinstance(data, bytes) and (place is None or encoded <= left[0]):
        # Without a store, what is too large is said once, of the whole message.
        found = {"base64": base64.b64encode(data).decode("ascii")}
        left[0] -= encoded
    else:
        assert place is not None
        found = {"uri": (yield from place(data, media_type))}
    return found | ({"media_type": media_type} if media_type else {})


# -- what is recognized -----------------------------------------------------------------------------------------------


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes | bytearray | memoryview)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_picture(value: Any) -> bool:
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(value, pil.Image)


def _is_sound(value: Mapping[Any, Any]) -> bool:
    """Whether it is ``{"array", "sampling_rate"}``, as data sets have it, perhaps with the ``path`` it came from."""
    return "array" in value and "sampling_rate" in value and value.keys() <= {"array", "sampling_rate", "path"}


# -- how it is encoded ------------------------------------------------------------------------------------------------


def wav(samples: Any, rate: Any) -> bytes:
    """Encodes one channel of samples from -1 to 1, numpy's or a list's, as 32-bit floats of a WAV file."""
    if isinstance(rate, bool) or not isinstance(rate, int) or not 1 <= rate <= 1_000_000:
        raise _refused(f"`sampling_rate` is {shown.value(rate)}, not a number of samples a second")
    if _is_array(samples):
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise _refused(
                f"`array` has the shape {tuple(samples.shape)} and the type {samples.dtype}: give one channel of "
                "floats from -1 to 1, of shape (samples,)"
            )
        data: bytes = samples.astype("<f4").tobytes()
    else:
        try:
            data = struct.pack(f"<{len(samples)}f", *samples)
        except (TypeError, struct.error, OverflowError) as error:
            raise _refused(f"`array` is no list of samples: {shown.line(str(error))}") from error
    # Format 3: floats.
    form = struct.pack("<HHIIHH", 3, 1, rate, rate * 4, 4, 32)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data))
    return b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data


def png(pixels: Any) -> bytes:
    """Encodes an array of bytes, (height, width) or (height, width, channels), as a PNG file."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}.get(pixels.shape[2] if pixels.ndim == 3 else 1)
    if pixels.ndim not in (2, 3) or colour is None or pixels.dtype != "uint8" or 0 in pixels.shape:
        raise _refused(
            f"an array has the shape {tuple(pixels.shape)} and the type {pixels.dtype}: a picture has uint8 and "
            '(height, width) or (height, width, 1 to 4); sound is {"array": ..., "sampling_rate": ...}'
        )
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows, 1)))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*parts, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _encoded(picture: Any) -> bytes:
    out = io.BytesIO()
    try:
        picture.save(out, format="PNG")
    except Exception as error:  # a mode that PNG has not, a file that was closed, a truncated one
        raise _refused(f"the picture cannot be encoded: {shown.value(error, 300)}") from error
    return out.getvalue()


def _refused(sentence: str) -> PipeqError:
    return PipeqError(ErrorCode.INVALID_INPUT, sentence)


def name_of(data: bytes | Path, media_type: str | None) -> str:
    """The name of an object: the digest of its bytes, so that the same input is there once, and its extension."""
    digest = hashlib.sha256()
    if isinstance(data, Path):
        with data.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest() + "".join(char for char in data.suffix if char.isalnum() or char == ".")[:12]
    digest.update(data)
    return digest.hexdigest() + {"audio/wav": ".wav", "image/png": ".png"}.get(media_type or "", "")
