"""DECODE of images: bytes -> upright RGB pixels, without the file's metadata. Used by decode.

The pixels equal those of ``transformers.image_utils.load_image``, except for samples of more than 8 bits: Pillow clips
those at 255, which turns a 16-bit picture white. Here they are scaled from the range of their format.
"""

from __future__ import annotations

import io
import warnings
from contextvars import ContextVar
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.looks import looks_like

# Faulty metadata in a producer's picture is not worth a line in the worker's log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

#: Set while :func:`decode_image` reads a file: it checks the number of pixels itself.
_is_ours: ContextVar[bool] = ContextVar("is_ours", default=False)
_check_of_pillow = Image._decompression_bomb_check


def _check_bomb(*args: Any, **kwargs: Any) -> None:
    """Replaces Pillow's check, whose limit (``Image.MAX_IMAGE_PIXELS``) applies to the whole process.

    Our limit is a setting, and applies to :func:`decode_image`. Other code in the process keeps Pillow's limit: a
    user's own Celery tasks, for instance.
    """
    if not _is_ours.get():
        _check_of_pillow(*args, **kwargs)


# Every plugin calls it by this name, some of them only while the pixels are read.
Image._decompression_bomb_check = _check_bomb

#: Raster formats that Pillow decodes itself. Formats that start another program (EPS) or have no clear signature are
#: left out.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
#: Bytes that Pillow keeps for a pixel in RGB. Decoding takes as much again, and so do the arrays of an image processor.
_PIXEL_BYTES = 4
#: EXIF's orientation tag, and how each of its values is undone; the same as in :func:`PIL.ImageOps.exif_transpose`.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: TIFF tags: how white is encoded, the largest sample value, the width and the length of a tile.
_PHOTOMETRIC, _MAX_SAMPLE, _TILE_WIDTH, _TILE_LENGTH = 262, 281, 322, 323
#: Most extension blocks before the first frame of a GIF, because Pillow joins comments in quadratic time.
_MAX_GIF_BLOCKS = 10_000


def decode_image(data: bytes, name: str, max_pixels: int, decoded: Decoded | None = None) -> Image.Image:
    """Decodes an image to upright RGB without metadata; of an animated image, its first frame.

    Args:
        data: a file in one of the formats above.
        name: the name that error messages use.
        max_pixels: most pixels that the image may have.
        decoded: counts the image's bytes before it is decoded.

    Raises:
        PipeqError: ``input_too_large``, before anything is decoded; ``input_undecodable``.
    """
    token = _is_ours.set(True)
    try:
        if data[:4] == b"GIF8":
            _check_gif(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            _check_pixels(width, height, name, max_pixels)
            _check_tiles(image, name, max_pixels)
            if decoded is not None:
                decoded.check_answer(width, height, name)
                size = width * height * _PIXEL_BYTES
                decoded.take(size, name, size)
            # Pillow turns a TIFF upright while it loads it, and updates the orientation tag.
            image.load()
            turn = _TURNS.get(_orientation(image))
            rgb = _rgb(image, name)
            if turn is not None:
                rgb = rgb.transpose(turn)
            # With EXIF left in place, pipelines would turn the image once more, or fail on a malformed block.
            rgb.info = {}
            return rgb
    except (PipeqError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        reason = f"{name} is no image of a known format; it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error
    except Exception as error:
        # Pillow's decoders raise almost anything on damaged data: OSError, SyntaxError, ValueError, struct.error, ...
        reason = f"{name} is a damaged image ({shown.line(str(error) or type(error).__name__)})"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error
    finally:
        _is_ours.reset(token)


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        reason = f"{name} has {width}x{height} pixels, and this worker decodes {max_pixels} ([inputs] max_pixels)"
        raise PipeqError(ErrorCode.INPUT_TOO_LARGE, reason)


def _check_tiles(image: Image.Image, name: str, max_pixels: int) -> None:
    """Checks the tiles of a TIFF: a tile is decoded as a whole, even if the image is smaller than its tile."""
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        sides = [tags.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        if all(isinstance(side, int) for side in sides):
            _check_pixels(sides[0], sides[1], f"a tile of {name}", max_pixels)


def _check_gif(data: bytes) -> None:
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    blocks = 0
    while at + 1 < len(data) and data[at] == 0x21:
        at += 2
        while at < len(data) and data[at]:
            at += data[at] + 1
            blocks += 1
            if blocks > _MAX_GIF_BLOCKS:
                raise ValueError(f"over {_MAX_GIF_BLOCKS} blocks of comments and extensions")
        at += 1


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # The EXIF block is malformed; the picture can still be used.
        return 1


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    most: float = 65535
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        reason = (
            f"the samples of {name} are {kind} numbers, without a defined black and white: save it with 8 or 16 bits"
        )
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
    if image.format == "TIFF":
        # Scanners often store 12 bits in 16-bit samples, and most of them declare it in this tag.
        bits = tags.get(258, (16,))
        most = 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1
        largest = tags.get(_MAX_SAMPLE)
        largest = largest[0] if isinstance(largest, tuple) and largest else largest
        if isinstance(largest, int) and 255 < largest <= most:
            most = largest
    values = np.asarray(image)
    # A lookup table, because arithmetic on all pixels would take several times their bytes.
    table = np.clip(np.round(np.arange(65536) * (255 / most)), 0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        table = 255 - table
    if values.dtype.itemsize > 2:
        values = np.clip(values, 0, 65535).astype(np.uint16)
    return Image.fromarray(table[values]).convert("RGB")
