"""The memory of a task's decoded inputs is bounded before they are decoded, as a sum over all media of the task."""

from __future__ import annotations

import io
import threading
import tracemalloc
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.media.audio import Audio
from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.video import Video
from pipeq_worker.models.task_type import Media
from pipeq_worker.settings.sections import InputSettings
from pipeq_worker.stages.decode import decode

from tests.unit.media import RATE, encoded, pcm, wav

LIMITS = InputSettings()
TOO_LARGE = r"\(\[inputs\] max_decoded_bytes\)"


def flac(seconds: int, rate: int) -> bytes:
    """Silence, which takes a few kilobytes an hour."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as output:
        stream = output.add_stream("flac", rate=rate, layout="mono")
        block = np.zeros((1, rate * 60), np.int16)
        for minute in range(seconds // 60):
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, minute * rate * 60, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def film(width: int, height: int, count: int) -> bytes:
    """Frames of one colour."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream("mpeg4", rate=5, width=width, height=height, pix_fmt="yuv420p")
        for _ in range(count):
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def test_pictures_of_one_task_add_up() -> None:
    """34 bytes of WebP declare 16383 x 7812 pixels: 20 of them in a message of 3 KB are 10 GB."""
    file = io.BytesIO()
    Image.new("RGB", (600, 400)).save(file, "WEBP")
    taken: list[int] = []
    decoded = Decoded(5 * 600 * 400 * 8, taken.append)
    for at in range(20):
        if at < 5:
            decode(Media.IMAGE, file.getvalue(), f"{at}", LIMITS, RATE, decoded=decoded)
        else:
            with pytest.raises(PipeqError, match=TOO_LARGE) as caught:
                decode(Media.IMAGE, file.getvalue(), f"{at}", LIMITS, RATE, decoded=decoded)
            assert caught.value.code == ErrorCode.INPUT_TOO_LARGE
    assert taken == [600 * 400 * 4] * 5


def test_audio_as_a_whole_is_bounded_while_it_grows() -> None:
    """A second at 1 kHz is 4 bytes of FLAC, and 64,000 bytes at the model's rate."""
    data = flac(1200, 1000)
    assert len(data) < 300_000
    tracemalloc.start()
    try:
        with pytest.raises(PipeqError, match=TOO_LARGE) as caught:
            Audio(data, "a", RATE, 4 * 3600, Decoded(100_000_000)).whole()
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.code == ErrorCode.INPUT_TOO_LARGE
    # Audio that is cut into chunks while it is decoded is never in memory as a whole.
    assert sum(block.size for block in Audio(data, "a", RATE, 4 * 3600, Decoded(100_000_000)).blocks(30 * RATE)) > 19e6
    with pytest.raises(PipeqError, match=TOO_LARGE):
        list(Audio(data, "a", RATE, 4 * 3600, Decoded(100_000_000)).blocks(1200 * RATE))
    with pytest.raises(PipeqError, match=TOO_LARGE):
        decode(Media.AUDIO, data, "a", LIMITS, RATE, in_chat=True, decoded=Decoded(100_000_000))


def test_the_limits_that_a_worker_has_by_itself() -> None:
    """Four hours of audio as a whole, 17 frames of 11312 x 11312, 20 pictures of 16383 x 7812."""
    taken: list[int] = []
    audio = Audio(flac(120, 1000), "a", RATE, 600, Decoded(LIMITS.max_decoded_bytes, taken.append))
    assert audio.whole().size == pytest.approx(120 * RATE, rel=0.01)
    for kept, passing, count in (
        (sum(taken), sum(taken) * 11, 4 * 30),
        (11312**2 * 3, 11312**2 * 9, 17),
        (16383 * 7812 * 4, 16383 * 7812 * 4, 20),
    ):
        decoded = Decoded(LIMITS.max_decoded_bytes)
        made = 0
        with pytest.raises(PipeqError, match=TOO_LARGE):  # noqa: PT012
            for _ in range(count):
                decoded.take(kept, "x", passing)
                made += kept
        assert made < LIMITS.max_decoded_bytes // 2 + kept


def test_frames_of_a_video_add_up() -> None:
    data = film(640, 480, 12)
    pixels = 640 * 480
    video = Video(data, "v", 10**6, 1000, Decoded(pixels * (24 + 12 * 4)))
    assert video.frames([0, 3, 6, 9]).shape == (4, 480, 640, 3)
    video = Video(data, "v", 10**6, 1000, Decoded(pixels * (24 + 12 * 4)))
    with pytest.raises(PipeqError, match=TOO_LARGE) as caught:
        video.frames(range(5))
    assert caught.value.code == ErrorCode.INPUT_TOO_LARGE


def test_a_frame_larger_than_its_header_says_is_not_decoded() -> None:
    """The container's header says 64 x 48, and the stream inside says more."""
    small, large = film(64, 48, 2), film(640, 480, 2)
    # Matroska keeps width and height in its header: B0 and BA, each with two bytes.
    assert large.count(b"\xb0\x82\x02\x80") == 1
    faked = large.replace(b"\xb0\x82\x02\x80", b"\xb0\x82\x00\x40").replace(b"\xba\x82\x01\xe0", b"\xba\x82\x00\x30")
    assert faked != large
    assert Video(small, "v", 4000, 10).frames([0]).shape == (1, 48, 64, 3)
    with pytest.raises(PipeqError) as caught:
        Video(faked, "v", 10_000, 10).frames([0])
    assert caught.value.code in (ErrorCode.INPUT_TOO_LARGE, ErrorCode.INPUT_UNDECODABLE)


def test_text_counts_for_what_its_tokens_take() -> None:
    with pytest.raises(PipeqError, match=TOO_LARGE):
        decode(Media.TEXT, b"a" * 1000, "t", LIMITS, RATE, decoded=Decoded(32_000))
    assert decode(Media.TEXT, b"a" * 1000, "t", LIMITS, RATE, decoded=Decoded(33_000)) == "a" * 1000


def test_one_large_task_at_a_time() -> None:
    large = threading.Lock()
    first, small, second = (Decoded(800, large=large) for _ in range(3))
    first.take(101, "a")
    small.take(100, "b")
    done = threading.Event()

    def third() -> None:
        second.take(101, "c")
        done.set()
        second.end()

    thread = threading.Thread(target=third)
    thread.start()
    assert not done.wait(0.1)
    small.end()
    assert not done.wait(0.1)
    first.take(600, "a")
    first.end()
    first.end()
    assert done.wait(60)
    thread.join()
    assert not large.locked()


def test_a_second_of_sound_takes_what_it_is_said_to() -> None:
    taken: list[int] = []
    Audio(wav(pcm(1)), "a", RATE, 60, Decoded(10**9, taken.append)).whole()
    assert sum(taken) == 4 * RATE
    taken.clear()
    Audio(encoded("ogg", "libopus", 48_000, 2), "a", RATE, 60, Decoded(10**9, taken.append)).whole()
    assert sum(taken) == pytest.approx(4 * RATE, rel=0.1)
