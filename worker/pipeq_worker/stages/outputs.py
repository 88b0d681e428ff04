"""CONVERT: a pipeline's output -> JSON, and objects for the parts that are not JSON. Used by placing.

Images and masks become PNG, audio becomes WAV, arrays and tensors become NPY (safetensors if numpy lacks the type).
numpy's scalars become numbers; vectors and tuples become lists. In the JSON, an object is ``{"uri": ...}`` or
``{"base64": ...}`` with its media type, shape and dtype, so that it can be the input of another task unchanged.

Outputs repeat what producers sent: chats, labels, names of questions. Therefore the keys of a mapping never make it an
object, and a key becomes part of an object's name only if it is one of :data:`NAMES`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from pipeq.contract.errors import ErrorCode, PipeqError

if TYPE_CHECKING:
    from pipeq_worker.stages.files import File

#: Keys of outputs that become part of the names of the objects below them. Other keys are replaced by their position.
NAMES = frozenset(
    "audio bounding_boxes depth generated_audio generated_image mask masks predicted_depth rle_mask scores".split()
)
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
    if type(output) in (str, float, int, bool):
        return output, []
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
        if hasattr(value, "messages"):  # transformers' Chat
            return self.convert(value.messages, path)
        return self._convert_rest(value, path)

    def _convert_rest(self, value: Any, path: tuple[str, ...]) -> Any:
        # Here, because numpy, Pillow and FFmpeg take long to import, and a pipeline without a model needs none of them.
        from pipeq_worker.stages.files import File, made_of

        made = made_of(value)
        if made is None:
            sentence = f"the output holds a {type(value).__name__}: neither JSON nor an array"
            raise PipeqError(ErrorCode.OUTPUT_FAILED, sentence, False)
        return self._add(path, made) if isinstance(made, File) else self.convert(made, path)

    def _convert_mapping(self, value: Mapping[Any, Any], path: tuple[str, ...], is_result: bool) -> dict[str, Any]:
        converted: dict[str, Any] = {}
        for at, (key, one) in enumerate(value.items()):
            below = (*path, key if key in NAMES else str(at))
            is_audio = is_result and key == self._audio_key
            converted[str(key)] = self._convert_audio(value, below) if is_audio else self.convert(one, below)
        return converted

    def _convert_audio(self, value: Mapping[Any, Any], path: tuple[str, ...]) -> Any:
        from pipeq_worker.stages.files import audio_of

        samples, rate = value[self._audio_key], int(value["sampling_rate"])
        if isinstance(samples, list | tuple):  # several recordings of different lengths
            return [self._add((*path, str(at)), audio_of(one, rate)) for at, one in enumerate(samples)]
        return self._add(path, audio_of(samples, rate))

    def _add(self, path: tuple[str, ...], made: File) -> dict[str, Any]:
        entry = {"media_type": made.media_type, "shape": list(made.shape), "dtype": made.dtype}
        self._found.append(Object("/".join(path) or "result", made.data, made.media_type, entry))
        return entry
