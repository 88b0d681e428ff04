"""DECODE: text and images of every kind."""

from __future__ import annotations

import base64
import struct

import numpy as np
import pytest
from PIL import Image
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.media.images import decode_image
from pipeq_worker.media.looks import looks_like
from pipeq_worker.stages.decode import decode_text

from tests.unit.media import image_bytes, pcm, picture, wav

MAX_PIXELS = 1_000_000


def code_of(error: pytest.ExceptionInfo[PipeqError]) -> str:
    return error.value.code


# --- text


def test_text_is_utf8_with_or_without_a_byte_order_mark() -> None:
    assert decode_text("Grüße".encode(), "a") == "Grüße"
    assert decode_text("Grüße".encode("utf-8-sig"), "a") == "Grüße"
    assert decode_text(b"", "a") == ""


def test_text_in_another_encoding_is_undecodable() -> None:
    with pytest.raises(PipeqError, match=r"s3://b/k is not UTF-8 text \(byte 2\)") as error:
        decode_text("Grüße".encode("latin-1"), "s3://b/k")
    assert code_of(error) == ErrorCode.INPUT_UNDECODABLE


# --- images


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "GIF", "PPM", "JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_raster_formats(image_format: str) -> None:
    image = decode_image(image_bytes(picture(), image_format), "x", MAX_PIXELS)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
@pytest.mark.parametrize("orientation", [None, 6])
def test_pixels_are_those_of_transformers(mode: str, orientation: int | None) -> None:
    image_utils = pytest.importorskip("transformers.image_utils")
    source = picture(mode=mode)
    options = {}
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    data = image_bytes(source, "TIFF" if mode == "CMYK" else "PNG", **options)
    # From bytes, because Pillow maps an uncompressed TIFF file into memory, and then misreads its orientation.
    expected = image_utils.load_image(base64.b64encode(data).decode())
    actual = decode_image(data, "x", MAX_PIXELS)
    assert actual.size == ((30, 40) if orientation else (40, 30))
    assert actual.tobytes() == expected.tobytes()


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = image_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, "x", MAX_PIXELS).getpixel((0, 0)) == (255, 0, 0)


def test_a_phone_picture_of_two_frames_is_a_jpeg() -> None:
    data = image_bytes(picture(), "MPO", save_all=True, append_images=[picture()])
    assert decode_image(data, "x", MAX_PIXELS).size == (40, 30)


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    # By the header alone: decoding would give another error.
    data = image_bytes(Image.new("1", (20_000, 20_000)), "PNG")[:100]
    with pytest.raises(PipeqError, match=r"x has 20000x20000 pixels.*1000000 \(\[inputs\] max_pixels\)") as error:
        decode_image(data, "x", MAX_PIXELS)
    assert code_of(error) == ErrorCode.INPUT_TOO_LARGE


def test_a_frame_larger_than_its_canvas_counts() -> None:
    canvas = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    data = canvas + b"," + struct.pack("<HHHHB", 0, 0, 20_000, 20_000, 0) + b"\x02\x02\x4c\x01\x00;"
    with pytest.raises(PipeqError) as error:
        decode_image(data, "x", MAX_PIXELS)
    assert code_of(error) == ErrorCode.INPUT_TOO_LARGE


def test_large_images_within_the_limit_are_no_matter_to_pillow() -> None:
    data = image_bytes(Image.new("1", (14_000, 14_000)), "PNG")
    assert decode_image(data, "x", 14_000**2).size == (14_000, 14_000)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000"])
def test_truncated_images_are_undecodable(image_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = image_bytes(noise, image_format)
    for length in (len(data) // 2, 20, 4):
        with pytest.raises(PipeqError) as error:
            decode_image(data[:length], "x", MAX_PIXELS)
        assert code_of(error) == ErrorCode.INPUT_UNDECODABLE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', "an SVG drawing"),
        (b"The quick brown fox", "plain text"),
        (b'{"error": "no such image"}', "JSON"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript document"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
        (b"", "nothing: it is empty"),
        (bytes(range(256)) * 4, "binary data of an unknown kind"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, words: str) -> None:
    with pytest.raises(PipeqError, match=words) as error:
        decode_image(data, "s3://b/k", MAX_PIXELS)
    assert code_of(error) == ErrorCode.INPUT_UNDECODABLE
    assert "s3://b/k" in error.value.message


def test_sound_where_an_image_belongs() -> None:
    with pytest.raises(PipeqError, match="a WAV, AVI or WebP file"):
        decode_image(wav(pcm()), "x", MAX_PIXELS)


def test_looks_like_takes_a_character_that_is_cut_in_two() -> None:
    assert looks_like(("ü" * 2_000).encode()[:1_023]) == "plain text"
