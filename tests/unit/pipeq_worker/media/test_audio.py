"""DECODE: sound of every kind, and playlists, which must open nothing."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.media.audio import decode_audio
from pipeq_worker.media.images import decode_image

from tests.unit.media import RATE, encoded, image_bytes, pcm, picture, pitch, wav

MAX_PIXELS = 1_000_000


def code_of(error: pytest.ExceptionInfo[PipeqError]) -> str:
    return error.value.code


def test_sixteen_bit_samples_at_the_wanted_rate_are_exact() -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (50_001, 1), dtype=np.int16)
    audio = decode_audio(wav(samples), "x", RATE, 60)
    assert (audio.dtype, audio.ndim, audio.flags.owndata) == (np.float32, 1, True)
    np.testing.assert_array_equal(audio, samples[:, 0].astype(np.float32) / 32768)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "channels", "sample_format"),
    [
        ("wav", "pcm_s16le", 8_000, 1, None),
        ("wav", "pcm_s24le", 48_000, 2, None),
        ("wav", "pcm_f32le", 192_000, 1, None),
        ("wav", "pcm_s16le", 44_100, 6, None),
        ("flac", "flac", 44_100, 2, "s16"),
        ("flac", "flac", 96_000, 1, "s32"),
        ("mp3", "libmp3lame", 44_100, 2, None),
        ("ipod", "aac", 44_100, 2, None),
        ("mp4", "aac", 48_000, 1, None),
        ("ogg", "libopus", 48_000, 2, None),
        ("webm", "libopus", 48_000, 1, None),
        ("adts", "aac", 44_100, 1, None),
        ("aiff", "pcm_s16be", 22_050, 2, None),
    ],
)
def test_formats(container: str, codec: str, rate: int, channels: int, sample_format: str | None) -> None:
    audio = decode_audio(encoded(container, codec, rate, channels, sample_format), "x", RATE, 60)
    assert (audio.dtype, audio.ndim) == (np.float32, 1)
    # Lossy codecs pad the end to whole frames.
    assert len(audio) == pytest.approx(RATE, abs=0.1 * RATE)
    assert pitch(audio) == pytest.approx(440, abs=5)
    if channels < 6:
        # Two equal channels come out louder by the square root of two: see the next test.
        assert np.abs(audio[2_000:14_000]).max() == pytest.approx(0.5 * channels**0.5, abs=0.05)


def test_stereo_is_mixed_like_ffmpeg_does() -> None:
    """libswresample keeps the power when it mixes floats: (left + right) / sqrt(2), like ``ffmpeg -ac 1 -f f32le``.

    transformers' own pipelines run this command on a file, so models are used to it.
    """
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (8_000, 2), dtype=np.int16)
    expected = samples.astype(np.float64).sum(axis=1) / 32768 * 0.5**0.5
    np.testing.assert_allclose(decode_audio(wav(samples), "x", RATE, 60), expected, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 192_000])
def test_resampled_length(rate: int) -> None:
    audio = decode_audio(wav(pcm(2, rate), rate), "x", RATE, 60)
    assert len(audio) == pytest.approx(2 * RATE, abs=2)


def test_the_sound_of_a_video() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        video = output.add_stream("mpeg4", rate=5)
        video.width, video.height = 64, 64
        video.pix_fmt = "yuv420p"
        sound = output.add_stream("aac", rate=RATE, layout="mono")
        for _ in range(5):
            output.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(pcm(1).reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = RATE
        output.mux(sound.encode(frame))
        for stream in (video, sound):
            output.mux(stream.encode(None))
    assert pitch(decode_audio(buffer.getvalue(), "x", RATE, 60)) == pytest.approx(440, abs=5)


def test_a_video_without_sound() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        video = output.add_stream("mpeg4", rate=5)
        video.width, video.height = 64, 64
        output.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        output.mux(video.encode(None))
    with pytest.raises(PipeqError, match="x holds no audio") as error:
        decode_audio(buffer.getvalue(), "x", RATE, 60)
    assert code_of(error) == ErrorCode.INPUT_UNDECODABLE


def test_the_limit_of_seconds() -> None:
    data = wav(pcm(2))
    assert len(decode_audio(data, "x", RATE, 2)) == 2 * RATE
    with pytest.raises(PipeqError, match=r"x is longer than 1.9 s.*\[inputs\] max_audio_s") as error:
        decode_audio(data, "x", RATE, 1.9)
    assert code_of(error) == ErrorCode.INPUT_TOO_LARGE


def test_the_limit_holds_against_a_header_that_says_less() -> None:
    data = bytearray(wav(pcm(2)))
    data[40:44] = b"\xff\xff\xff\xff"  # the length of a stream that did not know it
    with pytest.raises(PipeqError) as error:
        decode_audio(bytes(data), "x", RATE, 1)
    assert code_of(error) == ErrorCode.INPUT_TOO_LARGE


@pytest.mark.parametrize("rate", [1, 900, 2_000_000])
def test_rates_that_are_no_audio(rate: int) -> None:
    with pytest.raises(PipeqError, match=f"{rate} Hz") as error:
        decode_audio(wav(pcm(), rate), "x", RATE, 10_000)
    assert code_of(error) == ErrorCode.INPUT_UNDECODABLE


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("wav", "pcm_s16le", 16_000), ("flac", "flac", 16_000), ("mp3", "libmp3lame", 16_000), ("ogg", "libopus", 48_000)],
)
def test_of_a_file_that_breaks_off_the_beginning_is_kept(container: str, codec: str, rate: int) -> None:
    data = encoded(container, codec, rate, 1, seconds=10)
    whole = decode_audio(data, "x", RATE, 60)
    half = decode_audio(data[: len(data) // 2], "x", RATE, 60)
    assert 0.25 * len(whole) < len(half) < 0.75 * len(whole)
    np.testing.assert_allclose(half[:2_000], whole[:2_000], atol=1e-3)


def test_damage_in_the_middle_costs_only_what_it_hit() -> None:
    data = bytearray(encoded("mp3", "libmp3lame", 16_000, 1))
    middle = len(data) // 2
    data[middle : middle + 300] = bytes(300)
    audio = decode_audio(bytes(data), "x", RATE, 60)
    assert len(audio) > 0.7 * RATE
    assert pitch(audio[:4_000]) == pytest.approx(440, abs=5)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "nothing: it is empty"),
        (b"<html>not found</html>", "an HTML page"),
        (bytes(1000), "binary data"),
        (wav(pcm())[:20], "WAV"),
        (wav(pcm(0)), "WAV"),
        (encoded("mp4", "aac", 16_000, 1)[:200], "MP4"),
        (image_bytes(picture(), "PNG"), "a PNG image"),
        (image_bytes(picture(), "JPEG"), "a JPEG image"),
    ],
)
def test_what_is_no_audio_is_named(data: bytes, words: str) -> None:
    with pytest.raises(PipeqError, match=words) as error:
        decode_audio(data, "s3://b/k", RATE, 60)
    assert code_of(error) == ErrorCode.INPUT_UNDECODABLE
    assert "s3://b/k" in error.value.message


def test_tags_in_another_encoding_do_not_matter() -> None:
    data = encoded("wav", "pcm_s16le", RATE, 1)
    title = "Grüße".encode("latin-1") + b"\0"
    info = b"INFOINAM" + len(title).to_bytes(4, "little") + title
    data += b"LIST" + len(info).to_bytes(4, "little") + info
    assert len(decode_audio(data, "x", RATE, 60)) == RATE


def test_a_stream_that_changes_its_rate_midway() -> None:
    # Chained Ogg, as internet radio sends it: 48 kHz after 44.1 kHz.
    data = encoded("ogg", "flac", 44_100, 2, "s16") + encoded("ogg", "flac", 48_000, 1, "s16")
    audio = decode_audio(data, "x", RATE, 60)
    assert len(audio) >= 0.95 * RATE
    assert pitch(audio[:RATE]) == pytest.approx(440, abs=5)


class _Tripwire(http.server.ThreadingHTTPServer):
    """A server on loopback that counts connections."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
        self.connections = 0

    def get_request(self) -> object:  # type: ignore[override]
        self.connections += 1
        return super().get_request()


@pytest.fixture
def tripwire() -> Iterator[_Tripwire]:
    server = _Tripwire()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_playlists_open_nothing(tripwire: _Tripwire, tmp_path: Path) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(pcm()))
    for target in (f"http://127.0.0.1:{tripwire.server_port}/a.wav", f"file://{secret}", str(secret)):
        manifest = (
            f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
            f'<Representation id="0"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>'
        )
        for script in (
            f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
            f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n",
            f"ffconcat version 1.0\nfile '{target}'\n",
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{target}\n"
            "m=audio 5004 RTP/AVP 0\n",
            f"[Playlist]\nFile1={target}\n",
            manifest,
        ):
            with pytest.raises(PipeqError) as error:
                decode_audio(script.encode(), "x", RATE, 60)
            assert code_of(error) == ErrorCode.INPUT_UNDECODABLE
            with pytest.raises(PipeqError):
                decode_image(script.encode(), "x", MAX_PIXELS)
    assert tripwire.connections == 0


def test_the_playlists_above_would_open_files_without_the_whitelist(tmp_path: Path) -> None:
    """Shows that the playlist of the test above works, so that the test means something."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes(wav(pcm()))
    script = f"ffconcat version 1.0\nfile '{secret}'\n".encode()
    options = {"safe": "0", "protocol_whitelist": "file"}
    with av.open(io.BytesIO(script), mode="r", container_options=options) as container:
        assert container.streams.audio


# --- phase


@pytest.mark.parametrize("level", [0.0, 0.01])
@pytest.mark.parametrize("form", ["s16", "s16p", "u8", "fltp", "s32"])
def test_channels_that_cancel_each_other_out(form: str, level: float) -> None:
    """One channel is the other inverted, except for some noise: mixed down they are silence."""
    tone = pcm(2)[:, 0].astype(np.float64) / 2**15
    noise = np.random.default_rng(0).standard_normal((2, tone.size)) * level * 0.5
    for sign in (-1, 1):
        channels = np.stack([tone, sign * tone]) + noise
        if form == "u8":
            samples = np.round(channels * 127 + 128).astype(np.uint8)
        elif form == "fltp":
            samples = channels.astype(np.float32)
        else:
            kind, most = (np.int32, 2**31 - 1) if form == "s32" else (np.int16, 2**15 - 1)
            samples = np.round(channels * most).astype(kind)
        if not form.endswith("p"):
            samples = samples.T.reshape(1, -1)
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="matroska") as output:
            codec = {"u8": "pcm_u8", "s16": "pcm_s16le", "s16p": "libmp3lame", "fltp": "aac", "s32": "pcm_s32le"}[form]
            stream = output.add_stream(codec, rate=RATE, layout="stereo")
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=form, layout="stereo")
            frame.sample_rate = RATE
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        if sign == 1:
            assert np.abs(decode_audio(buffer.getvalue(), "x", RATE, 60)).max() > 0.5
            continue
        with pytest.raises(PipeqError, match="the two channels of x cancel each other out") as error:
            decode_audio(buffer.getvalue(), "x", RATE, 60)
        assert error.value.code == ErrorCode.INPUT_UNDECODABLE


def test_silence_and_one_silent_channel_are_fine() -> None:
    assert not decode_audio(wav(np.zeros((RATE, 2), np.int16)), "x", RATE, 60).any()
    one = np.hstack([pcm(1), np.zeros((RATE, 1), np.int16)])
    assert np.abs(decode_audio(wav(one), "x", RATE, 60)).max() > 0.3
