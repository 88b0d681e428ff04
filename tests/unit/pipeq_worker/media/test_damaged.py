"""Damaged files of every format end as `input_undecodable`, or decode: bytes are changed, cut out, doubled, by seeds.

MUTANTS=5000 makes more of each file than `make test` does.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, features
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.media.audio import Audio
from pipeq_worker.media.video import Video
from pipeq_worker.models.task_type import Media
from pipeq_worker.settings.sections import InputSettings
from pipeq_worker.stages.decode import decode

from tests.unit.media import RATE, encoded, pcm, picture, wav

MUTANTS = int(os.environ.get("MUTANTS", "40"))
#: Small, so that a false header costs little.
LIMITS = InputSettings(max_pixels=200_000, max_audio_s=30, max_video_frames=50, max_decoded_bytes=50_000_000)


def image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    picture(mode=mode).save(file, kind, **options)
    return file.getvalue()


def deep(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(file, kind)
    return file.getvalue()


def film(container: str, codec: str, pixel_format: str = "yuv420p") -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=5, width=64, height=48, pix_fmt=pixel_format)
        sound = None if container == "gif" else output.add_stream("mp2", rate=16_000, layout="mono")
        for at in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), at * 30, np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if sound is not None:
            tone = av.AudioFrame.from_ndarray(pcm(0.5).reshape(1, -1), format="s16", layout="mono")
            tone.sample_rate, tone.pts, tone.time_base = 16_000, 0, Fraction(1, 16_000)
            output.mux(sound.encode(tone))
            output.mux(sound.encode(None))
    return file.getvalue()


FILES: dict[str, tuple[Media, Callable[[], bytes]]] = {
    **{
        f"{kind} {mode}": (Media.IMAGE, lambda kind=kind, mode=mode: image(kind, mode))
        for kind, mode in [
            ("PNG", "RGB"),
            ("PNG", "P"),
            ("PNG", "RGBA"),
            ("JPEG", "RGB"),
            ("JPEG", "CMYK"),
            ("GIF", "P"),
            ("BMP", "RGB"),
            ("TIFF", "RGB"),
            ("TIFF", "CMYK"),
            ("PPM", "RGB"),
            ("WEBP", "RGBA"),
            ("JPEG2000", "RGB"),
            ("AVIF", "RGB"),
        ]
    },
    "TIFF deflated": (Media.IMAGE, lambda: image("TIFF", compression="tiff_adobe_deflate")),
    "TIFF LZW": (Media.IMAGE, lambda: image("TIFF", compression="tiff_lzw")),
    "TIFF JPEG": (Media.IMAGE, lambda: image("TIFF", compression="jpeg")),
    "PNG deep": (Media.IMAGE, lambda: deep("PNG")),
    "TIFF deep": (Media.IMAGE, lambda: deep("TIFF")),
    "JPEG2000 deep": (Media.IMAGE, lambda: deep("JPEG2000")),
    "wav": (Media.AUDIO, lambda: wav(pcm(0.3, channels=2))),
    **{
        f"{container} {codec}": (
            Media.AUDIO,
            lambda container=container, codec=codec, rate=rate: encoded(container, codec, rate, 2, seconds=0.5),
        )
        for container, codec, rate in [
            ("flac", "flac", 16_000),
            ("ogg", "libopus", 48_000),
            ("mp3", "libmp3lame", 44_100),
            ("adts", "aac", 44_100),
            ("mp4", "aac", 44_100),
            ("matroska", "pcm_s16le", 16_000),
            ("aiff", "pcm_s16be", 16_000),
            ("mp4", "alac", 44_100),
            ("wv", "wavpack", 44_100),
            ("tta", "tta", 44_100),
            ("ac3", "ac3", 44_100),
            ("caf", "pcm_s16be", 16_000),
            ("asf", "mp2", 44_100),
        ]
    },
    **{
        f"film {container} {codec}": (
            Media.VIDEO,
            lambda container=container, codec=codec, pixels=pixels: film(container, codec, pixels),
        )
        for container, codec, pixels in [
            ("matroska", "mpeg4", "yuv420p"),
            ("mp4", "mpeg4", "yuv420p"),
            ("mp4", "libx264", "yuv420p"),
            ("matroska", "libvpx-vp9", "yuv420p"),
            ("avi", "mjpeg", "yuvj420p"),
            ("mpegts", "mpeg2video", "yuv420p"),
            ("matroska", "ffv1", "yuv420p"),
            ("avi", "png", "rgb24"),
        ]
    },
    "table": (Media.TABLE, lambda: b'a,b,"c d"\n1,"2,3",4\n"5""",6,7\n' * 20),
    "text": (Media.TEXT, lambda: "grüße aus 東京".encode() * 20),
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 40))):
        # Most of the bytes that a decoder trusts are at the beginning.
        at = chance.randrange(min(len(changed), chance.choice((64, 512, len(changed)))) or 1)
        kind = chance.randrange(5)
        if kind == 0:
            changed[at : at + 1] = bytes([chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))])
        elif kind == 1:
            changed[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\xff\xff"))
        elif kind == 2:
            del changed[at : at + chance.choice((1, 4, 100))]
        elif kind == 3:
            changed[at:at] = changed[at : at + chance.choice((1, 8, 200))]
        else:
            changed = changed[: max(1, chance.randrange(len(changed) or 1))]
        if not changed:
            return b""
    return bytes(changed)


def read(media: Media, data: bytes) -> None:
    value = decode(media, data, "s3://b/k", LIMITS, RATE)
    if isinstance(value, Audio):
        value.whole()
    elif isinstance(value, Video):
        value.frames([0, 2, 5])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", FILES)
def test_damaged_files(kind: str) -> None:
    media, make = FILES[kind]
    if kind == "AVIF RGB" and not features.check("avif"):
        pytest.fail("Pillow was built without AVIF")
    data = make()
    read(media, data)
    chance = random.Random(kind)
    for number in range(MUTANTS):
        changed = mutated(data, chance)
        try:
            read(media, changed)
        except PipeqError as error:
            if error.code not in (ErrorCode.INPUT_UNDECODABLE, ErrorCode.INPUT_TOO_LARGE):
                pytest.fail(f"mutant {number}: {error}")
            if not error.message.isprintable() or "s3://b/k" not in error.message:
                pytest.fail(f"mutant {number}: {error.message!r}")
