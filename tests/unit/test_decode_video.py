"""Videos: only the frames that are asked for, and nothing that is too large."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from producers.errors import PipeqError
from tests.samples import video
from tests.unit.media import image_bytes, pcm, picture, wav
from worker.video import Video


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
