"""DECODE: bytes -> text | table | image | audio | video. Before: fetch. After: prepare.

The bytes are untrusted: only known formats are tried, sizes are checked before memory is allocated, and no decoder can
open other files. This module imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import Any

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.looks import looks_like
from pipeq_worker.media.tables import decode_table
from pipeq_worker.models.task_type import Media
from pipeq_worker.settings.sections import InputSettings

#: Bytes that a tokenizer takes temporarily for each byte of text: tokens, their positions, and the words.
_TOKENIZED = 32


def decode_text(data: bytes, name: str) -> str:
    """Decodes UTF-8, with or without a byte order mark.

    Raises:
        PipeqError: ``input_undecodable``.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{name} is not UTF-8 text (byte {error.start}); it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error


def decode(
    media: Media,
    data: bytes,
    name: str,
    limits: InputSettings,
    rate: int,
    in_chat: bool = False,
    decoded: Decoded | None = None,
) -> Any:
    """Decodes the bytes of an input to the value that a pipeline prepares.

    Args:
        media: the kind of value that the bytes should hold.
        data: the bytes.
        name: the name that error messages use.
        limits: the largest inputs that are accepted.
        rate: the sampling rate of audio, in Hz.
        in_chat: whether the value is part of a chat, in which audio must be decoded to samples.
        decoded: counts the memory of the task's inputs; by default this input is counted alone.

    Returns:
        Text, columns of a table, or an RGB image; ``Audio`` and ``Video`` are decoded while they are read.

    Raises:
        PipeqError: ``input_too_large`` or ``input_undecodable``.
    """
    decoded = decoded or Decoded(limits.max_decoded_bytes)
    # Pillow and FFmpeg are imported with the first input that needs them, or with the models.
    if media is Media.IMAGE:
        from pipeq_worker.media.images import decode_image

        return decode_image(data, name, limits.max_pixels, decoded)
    if media is Media.AUDIO:
        from pipeq_worker.media.audio import Audio

        audio = Audio(data, name, rate, limits.max_audio_s, decoded)
        return audio.whole() if in_chat else audio
    if media is Media.VIDEO:
        from pipeq_worker.media.video import Video

        return Video(data, name, limits.max_pixels, limits.max_video_frames, decoded)
    if media is Media.TABLE:
        return decode_table(data, name, limits, decoded)
    decoded.take(len(data), name, len(data) * _TOKENIZED)
    return decode_text(data, name)


def keeps_its_bytes(value: Any) -> bool:
    """Whether a value from :func:`decode` still holds the bytes of its file, because it is decoded while it is read."""
    return getattr(value, "keeps_its_bytes", False) is True
