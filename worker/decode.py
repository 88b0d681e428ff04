"""DECODE: bytes -> text | table | image | audio | video. Before: fetch. After: prepare.

The bytes are anyone's: only known formats are tried, sizes are checked before memory is spent, and no decoder gets to
open anything else. Neither torch nor transformers is needed here.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from producers.errors import ErrorCode, PipeqError
from worker.audio import Audio
from worker.looks import looks_like
from worker.settings import InputSettings
from worker.task_type import Media
from worker.video import Video

# Pillow's own limit is one for the whole process, and warns first. Ours is checked for each image, before decoding.
Image.MAX_IMAGE_PIXELS = None

#: Raster formats that Pillow decodes itself. None that starts another program (EPS), none without a clear signature.
_IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")


def decode_text(data: bytes, name: str) -> str:
    """UTF-8, with or without a byte order mark.

    Raises:
        PipeqError: ``input_undecodable``.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{name} is not UTF-8 text (byte {error.start}); it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error


def decode_image(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """An image in RGB, upright; the first frame of an animated one.

    The pixels are those of ``transformers.image_utils.load_image``: EXIF orientation first, then RGB.

    Raises:
        PipeqError: ``input_too_large`` before anything is decoded; ``input_undecodable``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
            _check_pixels(image, name, max_pixels)
            return ImageOps.exif_transpose(image).convert("RGB")
    except (PipeqError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        reason = f"{name} is no image of a known format; it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error
    except Exception as error:
        # Pillow's decoders raise almost anything on damaged data: OSError, SyntaxError, ValueError, struct.error, ...
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, f"{name} is a damaged image ({error})") from error


def _check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        reason = f"{name} has {width}x{height} pixels, and this worker decodes {max_pixels} ([inputs] max_pixels)"
        raise PipeqError(ErrorCode.INPUT_TOO_LARGE, reason)


def decode_table(data: bytes, name: str) -> dict[str, list[str]]:
    """CSV with a header -> its columns, every cell as text.

    Raises:
        PipeqError: ``input_undecodable``.
    """
    rows = list(csv.reader(io.StringIO(decode_text(data, name))))
    rows = [row for row in rows if row]
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        reason = f"{name} is no table: CSV with a header and rows of as many cells; it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
    return {column: [row[at] for row in rows[1:]] for at, column in enumerate(rows[0])}


def decode(media: Media, data: bytes, name: str, limits: InputSettings, rate: int, in_chat: bool = False) -> Any:
    """What bytes stand for, as a pipeline's preparation takes it.

    Args:
        media: what they are said to be.
        data: the bytes.
        name: what errors call them.
        limits: how large they may be.
        rate: the sampling rate of audio, in Hz.
        in_chat: whether it is part of a chat, where audio is wanted as samples.

    Returns:
        Text, columns of a table, an RGB image; :class:`Audio` and :class:`Video` are decoded while they are read.

    Raises:
        PipeqError: ``input_too_large`` or ``input_undecodable``.
    """
    if media is Media.IMAGE:
        return decode_image(data, name, limits.max_pixels)
    if media is Media.AUDIO:
        audio = Audio(data, name, rate, limits.max_audio_s)
        return audio.whole() if in_chat else audio
    if media is Media.VIDEO:
        return Video(data, name, limits.max_pixels, limits.max_video_frames)
    if media is Media.TABLE:
        return decode_table(data, name)
    return decode_text(data, name)
