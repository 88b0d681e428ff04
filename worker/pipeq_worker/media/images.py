"""DECODE, of images: bytes -> RGB, upright, and nothing of the file's but its pixels. Used by decode.

The pixels are those of ``transformers.image_utils.load_image``, but for samples of more than 8 bits: Pillow cuts those
off at 255, so that a 16-bit picture is white. Here they are scaled from the range that their format gives them.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.looks import looks_like

# What is wrong with the metadata of somebody's picture is nothing for the log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Pillow's own limit is one for the whole process, and warns first. Ours is checked for each image, before decoding.
Image.MAX_IMAGE_PIXELS = None

#: Raster formats that Pillow decodes itself. None that starts another program (EPS), none without a clear signature.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
#: Bytes that Pillow keeps of a pixel in RGB; decoding, and the arrays of an image processor, take as much again.
_PIXEL_BYTES = 4
#: Where a pixel goes by EXIF's orientation, as :func:`PIL.ImageOps.exif_transpose` has it.
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
#: Tags of TIFF: how white is written, the largest value there is, the size of a tile.
_PHOTOMETRIC, _MAX_SAMPLE, _TILE_WIDTH, _TILE_LENGTH = 262, 281, 322, 323
#: Extension blocks that may stand before the first frame of a GIF: Pillow joins comments in quadratic time.
_MAX_GIF_BLOCKS = 10_000


def decode_image(data: bytes, name: str, max_pixels: int, decoded: Decoded | None = None) -> Image.Image:
    """An image in RGB, upright, without metadata; the first frame of an animated one.

    Args:
        data: a file of one of the formats above.
        name: what errors call it.
        max_pixels: the most it may have.
        decoded: told of the bytes it takes, before it is decoded.

    Raises:
        PipeqError: ``input_too_large`` before anything is decoded; ``input_undecodable``.
    """
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
            # A TIFF is turned while it is loaded, and then says so.
            image.load()
            turn = _TURNS.get(_orientation(image))
            rgb = _rgb(image, name)
            if turn is not None:
                rgb = rgb.transpose(turn)
            # Pipelines read EXIF again, and turn again, or fail on a block that is none.
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


def _check_pixels(width: int, height: int, name: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        reason = f"{name} has {width}x{height} pixels, and this worker decodes {max_pixels} ([inputs] max_pixels)"
        raise PipeqError(ErrorCode.INPUT_TOO_LARGE, reason)


def _check_tiles(image: Image.Image, name: str, max_pixels: int) -> None:
    """A tile of a TIFF is decoded as a whole, however small the image that it is part of."""
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
        # What stands there is no EXIF, whatever it says; the picture is one all the same.
        return 1


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    most: float = 65535
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        reason = (
            f"the samples of {name} are {kind} numbers, whose black and white nobody defines: save it with 8 or 16 bits"
        )
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
    if image.format == "TIFF":
        # 12 bits in 16: those who scan films and bodies write so, and most of them say so.
        bits = tags.get(258, (16,))
        most = 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1
        largest = tags.get(_MAX_SAMPLE)
        largest = largest[0] if isinstance(largest, tuple) and largest else largest
        if isinstance(largest, int) and 255 < largest <= most:
            most = largest
    values = np.asarray(image)
    # A table, as arithmetic on all pixels would take several times their bytes.
    table = np.clip(np.round(np.arange(65536) * (255 / most)), 0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:
        table = 255 - table
    if values.dtype.itemsize > 2:
        values = np.clip(values, 0, 65535).astype(np.uint16)
    return Image.fromarray(table[values]).convert("RGB")
