"""Pictures of more than 8 bits, with hostile headers, and with metadata that must not be read again."""

from __future__ import annotations

import base64
import io
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.images import decode_image

MANY = 10**7
CHANCE = np.random.default_rng(0)
GREY: NDArray[np.uint8] = CHANCE.integers(0, 256, (20, 30), dtype=np.uint8)
COLOUR: NDArray[np.uint8] = CHANCE.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def scaled(pixels: NDArray[np.uint8], most: int) -> NDArray[np.uint16]:
    return np.round(pixels.astype(np.float64) * most / 255).astype(np.uint16)


def saved(pixels: NDArray[np.generic], kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png(pixels: NDArray[np.uint16], colour_type: int) -> bytes:
    """A PNG of 16 bits, which Pillow writes for grey pictures only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: NDArray[np.generic], bits: int, kind: int = 1, order: str = "<", **more: int) -> bytes:
    """An uncompressed TIFF; ``kind`` is its SampleFormat, ``more`` are further tags by number."""
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    if bits == 12:
        rows = ["".join(format(int(value), "012b") for value in row) for row in pixels.reshape(height, -1)]
        data = b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    else:
        letter = {1: "u", 2: "i", 3: "f"}[kind]
        data = pixels.astype(f"{order}{letter}{bits // 8}").tobytes()
    tags = {256: [width], 257: [height], 258: [bits] * samples, 259: [1], 262: [2 if samples == 3 else 1], 273: [8]}
    tags |= {277: [samples], 278: [height], 279: [len(data)], 339: [kind] * samples}
    tags |= {int(tag[1:]): [value] for tag, value in more.items()}
    at, entries, rest = 8 + len(data), struct.pack(order + "H", len(tags)), b""
    for tag in sorted(tags):
        values = struct.pack(order + "H" * len(tags[tag]), *tags[tag])
        if len(values) > 4:
            where = at + 2 + 12 * len(tags) + 4 + len(rest)
            entries += struct.pack(order + "HHII", tag, 3, len(tags[tag]), where)
            rest += values
        else:
            entries += struct.pack(order + "HHI", tag, 3, len(tags[tag])) + values.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", at) + data + entries + struct.pack(order + "I", 0) + rest


def pnm(kind: int, pixels: NDArray[np.uint8], most: int) -> bytes:
    head = f"P{kind} {pixels.shape[1]} {pixels.shape[0]} {most}\n".encode()
    values = scaled(pixels, most)
    return head + (values.astype(">u2").tobytes() if kind > 3 else " ".join(map(str, values.ravel())).encode())


DEEP: dict[str, tuple[NDArray[np.uint8], Callable[[], bytes]]] = {
    "PNG grey": (GREY, lambda: saved(scaled(GREY, 65535), "PNG")),
    "PNG grey and alpha": (
        GREY,
        lambda: png(np.dstack([scaled(GREY, 65535), np.full((20, 30), 65535, np.uint16)]), 4),
    ),
    "PNG RGB": (COLOUR, lambda: png(scaled(COLOUR, 65535), 2)),
    "PNG RGBA": (COLOUR, lambda: png(np.dstack([scaled(COLOUR, 65535), np.full((20, 30), 65535, np.uint16)]), 6)),
    "TIFF": (GREY, lambda: saved(scaled(GREY, 65535), "TIFF")),
    "TIFF LZW": (GREY, lambda: saved(scaled(GREY, 65535), "TIFF", compression="tiff_lzw")),
    "TIFF big endian": (GREY, lambda: tiff(scaled(GREY, 65535), 16, order=">")),
    "TIFF white is zero": (GREY, lambda: tiff(65535 - scaled(GREY, 65535), 16, t262=0)),
    "TIFF RGB": (COLOUR, lambda: tiff(scaled(COLOUR, 65535), 16)),
    "TIFF RGB big endian": (COLOUR, lambda: tiff(scaled(COLOUR, 65535), 16, order=">")),
    "TIFF of 12 bits": (GREY, lambda: tiff(scaled(GREY, 4095), 12)),
    "TIFF of 12 bits in 16": (GREY, lambda: tiff(scaled(GREY, 4095), 16, t281=4095)),
    "TIFF of 8 bits that says its largest value": (GREY, lambda: tiff(GREY, 8, t281=255)),
    "PGM": (GREY, lambda: pnm(5, GREY, 65535)),
    "PGM of 12 bits": (GREY, lambda: pnm(5, GREY, 4095)),
    "PGM of 10 bits in letters": (GREY, lambda: pnm(2, GREY, 1023)),
    "PPM": (COLOUR, lambda: pnm(6, COLOUR, 65535)),
    "PPM of 12 bits": (COLOUR, lambda: pnm(6, COLOUR, 4095)),
    "PPM of 12 bits in letters": (COLOUR, lambda: pnm(3, COLOUR, 4095)),
    "JPEG 2000": (GREY, lambda: saved(scaled(GREY, 65535), "JPEG2000", irreversible=False)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_a_deep_picture_is_its_8_bit_version(kind: str) -> None:
    pixels, make = DEEP[kind]
    found = np.asarray(decode_image(make(), "x", MANY)).astype(int)
    expected = np.asarray(Image.fromarray(pixels).convert("RGB")).astype(int)
    assert np.abs(found - expected).max() == 0


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("floating-point", tiff(GREY, 32, 3)),
        ("floating-point", b"Pf\n30 20\n-1.0\n" + GREY.astype("<f4").tobytes()),
        ("32-bit or signed", tiff(GREY, 32, 1)),
        ("32-bit or signed", tiff(GREY, 32, 2)),
        ("32-bit or signed", tiff(GREY, 16, 2)),
    ],
)
def test_numbers_without_black_and_white_are_refused(kind: str, data: bytes) -> None:
    with pytest.raises(PipeqError, match=f"the samples of s3://b/k are {kind} numbers") as caught:
        decode_image(data, "s3://b/k", MANY)
    assert caught.value.code == ErrorCode.INPUT_UNDECODABLE


# --- metadata

#: EXIF blocks of cameras and bad tools: no TIFF, cut off, an unknown orientation, huge counts.
EXIF = {
    "a namespace": b"http://ns.adobe.com/xap/1.0/\0",
    "nothing": b"",
    "zeros": bytes(64),
    "cut off": b"II*\0\x08\0\0\0\xff\xff",
    "text": b"hello",
    "a strange orientation": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x06abcdef",
    "a count of billions": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\x06\0\0\0",
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("block", EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_exif_block_that_is_none(kind: str, block: str, tmp_path: Path) -> None:
    """transformers reads such a picture by its path, and pipelines read the image that we pass them."""
    from transformers.image_utils import load_image

    data = saved(COLOUR, kind, exif=b"Exif\0\0" + EXIF[block])
    image = decode_image(data, "x", MANY)
    assert image.size == (30, 20)
    assert (image.info, dict(image.getexif())) == ({}, {})
    assert np.array_equal(np.asarray(load_image(image)), np.asarray(image))
    if kind == "JPEG" and block == "a namespace":
        (tmp_path / "a").write_bytes(data)
        assert np.array_equal(np.asarray(load_image(str(tmp_path / "a"))), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_upright_once_and_only_once(kind: str, orientation: int) -> None:
    from transformers.image_utils import load_image

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(COLOUR, kind, exif=exif)
    image = decode_image(data, "x", MANY)
    assert np.array_equal(np.asarray(image), np.asarray(load_image(base64.b64encode(data).decode())))
    assert image.size == ((30, 20) if orientation < 5 else (20, 30))
    assert load_image(image).size == image.size


# --- bombs


def test_a_tile_larger_than_its_picture() -> None:
    side = 20_000
    data = zlib.compress(bytes(1000))
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    bomb = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(PipeqError, match="a tile of x has 20000x20000 pixels") as caught:
        decode_image(bomb, "x", MANY)
    assert caught.value.code == ErrorCode.INPUT_TOO_LARGE


def test_a_gif_of_comments() -> None:
    """Pillow joins the comments one by one, which takes minutes for 3 MB of them."""
    data = saved(GREY, "GIF")
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    for block in (b"\x21\xfe\x01a\x00", b"\x21\xfe" + b"\x01a" * 600_000 + b"\x00"):
        many = block * (600_000 if len(block) < 9 else 1)
        with pytest.raises(PipeqError, match="blocks of comments") as caught:
            decode_image(data[:at] + many + data[at:], "x", MANY)
        assert caught.value.code == ErrorCode.INPUT_UNDECODABLE
    assert decode_image(data[:at] + b"\x21\xfe\x01a\x00" * 9 + data[at:], "x", MANY).size == (30, 20)


def test_text_that_unpacks_to_gigabytes() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data, packed = saved(GREY, "PNG"), zlib.compress(bytes(50_000_000))
    for bomb in (b"zTXt", b"a\0\0" + packed), (b"iTXt", b"a\0\x01\0\0\0" + packed), (b"iCCP", b"a\0\0" + packed):
        with pytest.raises(PipeqError) as caught:
            decode_image(data[:33] + chunk(*bomb) * 20 + data[33:], "x", MANY)
        assert caught.value.code == ErrorCode.INPUT_UNDECODABLE


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
def test_pixels_are_counted_before_they_are_made(kind: str) -> None:
    """In every format, the second picture of a task is refused by its header, before it is decoded."""
    data = saved(np.zeros((500, 400, 3), np.uint8), kind)
    taken: list[int] = []
    decoded = Decoded(400 * 500 * 8 + 1, taken.append)
    decode_image(data, "first", MANY, decoded)
    # Only the header is left, so that decoding it would give another error.
    half = data if kind == "AVIF" else data[: max(1024, len(data) // 2)] if kind != "BMP" else data[:2000]
    with pytest.raises(PipeqError, match=r"second would take .* \(\[inputs\] max_decoded_bytes\)") as caught:
        decode_image(half, "second", MANY, decoded)
    assert caught.value.code == ErrorCode.INPUT_TOO_LARGE
    assert taken == [400 * 500 * 4]


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
def test_our_limit_takes_the_place_of_pillows_and_only_here(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other code in the process, such as ordinary Celery tasks, keeps the protection that Pillow gives."""
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3
    data = saved(COLOUR, kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 20 x 30 is a bomb, then
    found: list[object] = []

    def theirs() -> None:
        try:
            Image.open(io.BytesIO(data)).load()
        except Exception as error:
            found.append(type(error))

    decoded = Decoded(MANY)
    # During our decoding, on another thread.
    monkeypatch.setattr(decoded, "check_answer", lambda *_: run_in_a_thread(theirs))
    assert decode_image(data, "x", MANY, decoded).size == (30, 20)
    theirs()
    assert found == [Image.DecompressionBombError] * 2
    with pytest.raises(PipeqError, match="30x20 pixels, and this worker decodes 599"):
        decode_image(data, "x", 599)
    theirs()
    assert found == [Image.DecompressionBombError] * 3


def run_in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
