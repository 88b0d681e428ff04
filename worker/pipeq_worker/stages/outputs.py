"""CONVERT: a pipeline's output -> JSON, and objects for the parts that are not JSON. Used by placing.

Images and masks become PNG, audio becomes WAV, arrays and tensors become NPY (safetensors if numpy lacks the type).
numpy's scalars become numbers; vectors and tuples become lists. In the JSON, an object is ``{"uri": ...}`` or
``{"base64": ...}`` with its media type, shape and dtype, so that it can be the input of another task unchanged.

Outputs repeat what producers sent: chats, labels, names of questions. Therefore the keys of a mapping never make it an
object, and a key becomes part of an object's name only if it is one of :data:`NAMES`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image
from pipeq.contract.errors import ErrorCode, PipeqError

#: Modes that are written to PNG unchanged; others are converted to RGB.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
#: Keys of outputs that become part of the names of the objects below them. Other keys are replaced by their position.
NAMES = frozenset(
    "audio bounding_boxes depth generated_audio generated_image mask masks predicted_depth rle_mask scores".split()
)
_IMAGE_DTYPES = {"1": "bool", "I;16": "uint16", "I": "uint16"}
#: Extension of an object's name, by its media type.
_EXTENSIONS = {
    "image/png": ".png",
    "audio/wav": ".wav",
    "application/x-npy": ".npy",
    "application/x-safetensors": ".safetensors",
}


@dataclass(eq=False)
class Object:
    """One part of a result that is not JSON."""

    #: Its place in the output, for instance ``0/mask``: numbers and :data:`NAMES`, joined by slashes.
    path: str
    data: bytes
    media_type: str
    #: The dictionary that represents it in the JSON; ``uri`` or ``base64`` is added last.
    entry: dict[str, Any]

    @property
    def name(self) -> str:
        """Its path with the extension of its media type."""
        return self.path + _EXTENSIONS[self.media_type]

    @property
    def inline_size(self) -> int:
        """Size as base64, in bytes."""
        return (len(self.data) + 2) // 3 * 4

    def put_inline(self) -> None:
        """Puts the bytes into the JSON."""
        self.entry["base64"] = base64.b64encode(self.data).decode("ascii")

    def put_at(self, uri: str) -> None:
        """Writes the URI of the bytes into the JSON."""
        self.entry["uri"] = uri


def convert(
    output: Any, echoes: Mapping[int, Any] | None = None, audio_key: str | None = None
) -> tuple[Any, list[Object]]:
    """Converts what a pipeline returned. Returns JSON, and the objects that it refers to.

    Args:
        output: numbers, text, lists, dictionaries, arrays, tensors, images, audio, nested in any way.
        echoes: ``id`` of a part of the input as it was read -> what the producer sent for it. An output that repeats
            its input (a chat with images, for instance) then holds what was sent instead of the pixels.
        audio_key: for a task type whose results are audio, the key of its samples (:attr:`TaskType.audio_key`).

    Raises:
        PipeqError: ``output_failed`` for anything else.
    """
    found: list[Object] = []
    return _Converter(found, echoes or {}, audio_key).convert(output, (), is_result=True), found


class _Converter:
    def __init__(self, found: list[Object], echoes: Mapping[int, Any], audio_key: str | None) -> None:
        self._found = found
        self._echoes = echoes
        self._audio_key = audio_key

    def convert(self, value: Any, path: tuple[str, ...], is_result: bool = False) -> Any:
        """Converts one value of the output; ``is_result`` for the output itself and for the entries of its lists."""
        if value is None or isinstance(value, bool | int | float | str):
            return value.value if isinstance(value, Enum) else value
        if id(value) in self._echoes:
            return self._echoes[id(value)]
        if isinstance(value, Mapping):
            return self._convert_mapping(value, path, is_result)
        if isinstance(value, list | tuple):
            return [self.convert(one, (*path, str(at)), is_result) for at, one in enumerate(value)]
        if isinstance(value, Image.Image):
            dtype = _IMAGE_DTYPES.get(value.mode, "uint8")
            return self._add(path, _png(value), "image/png", _image_shape(value), dtype)
        if hasattr(value, "messages"):  # transformers' Chat
            return self.convert(value.messages, path)
        if hasattr(value, "detach"):  # a tensor; torch itself is not imported here
            return self._convert_tensor(value.detach().cpu(), path)
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            return self._convert_array(value, path)
        raise PipeqError(
            ErrorCode.OUTPUT_FAILED,
            f"the output holds a {type(value).__name__}: neither JSON nor an array",
            False,
        )

    def _convert_mapping(self, value: Mapping[Any, Any], path: tuple[str, ...], is_result: bool) -> dict[str, Any]:
        converted: dict[str, Any] = {}
        for at, (key, one) in enumerate(value.items()):
            below = (*path, key if key in NAMES else str(at))
            is_audio = is_result and key == self._audio_key
            converted[str(key)] = self._convert_audio(value, below) if is_audio else self.convert(one, below)
        return converted

    def _convert_audio(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> Any:
        samples, rate = value[self._audio_key], int(value["sampling_rate"])
        if isinstance(samples, list | tuple):  # several recordings of different lengths
            return [self._add_audio(_array(one), rate, (*path, str(at))) for at, one in enumerate(samples)]
        return self._add_audio(_array(samples), rate, path)

    def _add_audio(self, samples: Any, rate: int, path: tuple[str, ...]) -> dict[str, Any]:
        samples = np.asarray(samples)
        return self._add(path, wav(samples, rate), "audio/wav", samples.shape, str(samples.dtype))

    def _convert_tensor(self, value: Any, path: tuple[str, ...]) -> Any:
        try:
            array = value.numpy()
        except TypeError:  # bfloat16, float8: numpy has no such type
            if value.ndim <= 1:
                return value.tolist()
            from safetensors.torch import save

            dtype = str(value.dtype).removeprefix("torch.")
            data = save({"tensor": value.contiguous()})
            return self._add(path, data, "application/x-safetensors", tuple(value.shape), dtype)
        return self._convert_array(array, path)

    def _convert_array(self, value: np.ndarray[Any, Any], path: tuple[str, ...]) -> Any:
        if value.ndim <= 1:
            return self.convert(value.tolist(), path)
        if value.dtype == np.bool_ and value.ndim == 2:
            return self._add(path, _png(Image.fromarray(value)), "image/png", value.shape, "bool")
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(value), allow_pickle=False)
        return self._add(path, buffer.getvalue(), "application/x-npy", value.shape, str(value.dtype))

    def _add(
        self, path: tuple[str, ...], data: bytes, media_type: str, shape: tuple[int, ...], dtype: str
    ) -> dict[str, Any]:
        entry = {"media_type": media_type, "shape": list(shape), "dtype": dtype}
        self._found.append(Object("/".join(path) or "result", data, media_type, entry))
        return entry


def wav(samples: np.ndarray[Any, Any], rate: int) -> bytes:
    """Returns samples as a WAV file, without loss: 32-bit float for floats, 16-bit integers for 16-bit integers.

    Args:
        samples: shape ``(samples,)`` or ``(channels, samples)``.
        rate: samples a second, in Hz.
    """
    rows = np.atleast_2d(samples)
    if rows.ndim > 2:
        rows = rows.reshape(-1, rows.shape[-1])
    codec, kind, dtype = ("pcm_s16le", "s16", np.int16) if rows.dtype == np.int16 else ("pcm_f32le", "flt", np.float32)
    layout = {1: "mono", 2: "stereo"}.get(len(rows), f"{len(rows)}c")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        interleaved = np.ascontiguousarray(rows.T.reshape(1, -1).astype(dtype))
        frame = av.AudioFrame.from_ndarray(interleaved, format=kind, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def _png(image: Image.Image) -> bytes:
    if image.mode == "I":
        # PNG has at most 16 bits; Pillow's 32-bit modes hold no larger values in practice.
        image = Image.fromarray(np.asarray(image).clip(0, 2**16 - 1).astype(np.uint16))
    elif image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    buffer = io.BytesIO()
    # The fastest level, because masks shrink a hundredfold at every level.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _image_shape(image: Image.Image) -> tuple[int, ...]:
    channels = len(image.getbands())
    return (image.height, image.width) if channels == 1 else (image.height, image.width, channels)


def _array(value: Any) -> Any:
    value = value.detach().cpu() if hasattr(value, "detach") else value
    return value.float().numpy() if hasattr(value, "numpy") else value
