"""Videos: only the frames that are asked for are kept, and what is too large is refused."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.media.video import Video

from tests.samples import video
from tests.unit.media import image_bytes, pcm, picture, wav


def clip(tmp_path: Path, frames: int = 12) -> bytes:
    return video(tmp_path / "clip.mp4", frames, 64, 48).read_bytes()


def opened(data: bytes, max_pixels: int = 10**6, max_frames: int = 1000) -> Video:
    return Video(data, "s3://b/clip.mp4", max_pixels, max_frames)


def test_the_frames_that_are_asked_for(tmp_path: Path) -> None:
    data = clip(tmp_path)
    with av.open(io.BytesIO(data)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    got = opened(data).frames([0, 3, 11])
    assert got.shape == (3, 48, 64, 3)
    assert np.array_equal(got, np.stack([every[0], every[3], every[11]]))


def test_a_bound_that_ffmpeg_cannot_hold_bounds_nothing(tmp_path: Path) -> None:
    assert len(opened(clip(tmp_path), max_pixels=10**12).frames([0, 1])) == 2


def test_a_video_that_is_too_short_gives_what_it_has(tmp_path: Path) -> None:
    assert len(opened(clip(tmp_path, 5)).frames([0, 4, 8])) == 2


@pytest.mark.parametrize("at", [0.3, 0.6])
def test_a_damaged_video_gives_what_can_be_decoded(tmp_path: Path, at: float) -> None:
    data = bytearray(clip(tmp_path, 30))
    middle = int(len(data) * at)
    data[middle : middle + 40] = bytes(40)
    assert 1 <= len(opened(bytes(data)).frames(range(30))) <= 30


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"nonsense" * 100, "is no audio or video of a known format; it looks like plain text"),
        (image_bytes(picture(), "PNG"), "it looks like a PNG image"),
        (wav(pcm(), 16_000), "holds no video; it looks like a WAV, AVI or WebP file"),
        (b"", "it looks like nothing: it is empty"),
    ],
)
def test_what_is_no_video(data: bytes, sentence: str) -> None:
    with pytest.raises(PipeqError) as caught:
        opened(data).frames([0])
    assert caught.value.code == "input_undecodable"
    assert sentence in caught.value.message


def test_what_is_too_large(tmp_path: Path) -> None:
    data = clip(tmp_path)
    with pytest.raises(PipeqError, match=r"has 64x48 pixels, .* \(\[inputs\] max_pixels\)"):
        opened(data, max_pixels=3000).frames([0])
    with pytest.raises(PipeqError, match=r"frame 11 of .* this worker decodes 10 \(\[inputs\] max_video_frames\)"):
        opened(data, max_frames=10).frames([0, 11])


@pytest.mark.parametrize("cover", ["marked", "not marked"])
def test_the_cover_picture_is_not_the_film(cover: str) -> None:
    """Music shops put a cover picture into mp4 files; some mark it as one, and some do not."""
    data = with_cover(cover == "marked")
    with av.open(io.BytesIO(data)) as container:
        sizes = [stream.width for stream in container.streams.video]
        assert sorted(sizes) == [32, 64]
        if cover == "marked":
            assert any(stream.disposition & Disposition.attached_pic for stream in container.streams.video)
        else:
            assert sizes[0] == 32
    assert opened(data).frames([0, 1, 2, 3]).shape == (4, 48, 64, 3)


def test_nothing_but_a_cover_picture() -> None:
    with pytest.raises(PipeqError, match="holds no video but a cover picture") as error:
        opened(with_cover(True, film=False)).frames([0])
    assert error.value.code == ErrorCode.INPUT_UNDECODABLE


def with_cover(marked: bool, film: bool = True) -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "JPEG")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        cover = output.add_stream("mjpeg", rate=5, width=32, height=32, pix_fmt="yuvj420p")
        if marked:
            cover.disposition = Disposition.attached_pic
        if film:
            other = output.add_stream("mpeg4", rate=5, width=64, height=48, pix_fmt="yuv420p")
        else:
            other = output.add_stream("aac", rate=16_000, layout="mono")
        output.start_encoding()
        packet = av.Packet(picture.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, Fraction(1, 5)
        packet.is_keyframe = True
        output.mux(packet)
        for at in range(6 if film else 0):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), at * 40, np.uint8), format="rgb24")
            output.mux(other.encode(frame))
        if not film:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16_000
            output.mux(other.encode(frame))
        output.mux(other.encode(None))
    return buffer.getvalue()
