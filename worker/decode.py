"""DECODE: bytes -> text | image | audio. Before: fetch. After: prepare.

The bytes are anyone's: only known formats are tried, sizes are checked before memory is spent, and no decoder gets to
open anything else. Neither torch nor transformers is needed here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from producers.errors import ErrorCode, PipeqError

# Pillow's own limit is one for the whole process, and warns first. Ours is checked for each image, before decoding.
Image.MAX_IMAGE_PIXELS = None

#: Raster formats that Pillow decodes itself. None that starts another program (EPS), none without a clear signature.
_IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

#: Containers that hold their own streams. Playlists (hls, dash, concat, sdp) and image sequences open other files.
_AUDIO_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,eac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "ogg,tta,voc,w64,wav,wv"
)

#: Sampling rates beyond these, in Hz, are no audio, and resampling from them would take any amount of memory.
_MIN_RATE, _MAX_RATE = 1_000, 1_000_000

#: What the first bytes say, for the errors alone: nothing is decoded by it.
_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a WAV, AVI or WebP file"),
    (b"fLaC", "FLAC audio"),
    (b"OggS", "Ogg audio"),
    (b"ID3", "MP3 audio"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
_TEXT_SIGNATURES = (
    ("<!doctype html", "an HTML page"),
    ("<html", "an HTML page"),
    ("<svg", "an SVG drawing"),
    ("<?xml", "an XML document"),
    ("{", "JSON"),
    ("#extm3u", "a playlist"),
    ("ffconcat", "a playlist"),
)


def looks_like(data: bytes) -> str:
    """What bytes seem to be, in words for an error: ``an HTML page``."""
    if not data:
        return "nothing: it is empty"
    for signature, words in _SIGNATURES:
        if data.startswith(signature):
            return words
    if data[4:8] == b"ftyp":
        return "an MP4, HEIC or AVIF file"
    head = data[:1024]
    # A character may be cut in two at the end.
    text = head.decode("utf-8-sig", errors="ignore").strip().lower()
    if b"\0" in head or len(text.encode()) < 0.9 * len(head.strip()):
        return "binary data of an unknown kind"
    return next((words for begin, words in _TEXT_SIGNATURES if text.startswith(begin)), "plain text")


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


def decode_audio(data: bytes, name: str, sampling_rate: int, max_seconds: float) -> NDArray[np.float32]:
    """Audio, or the sound of a video: mono, at the rate that the model wants.

    As with the ``ffmpeg`` command, which transformers' pipelines run, damaged packets are left out, of a file that
    breaks off the beginning is kept, and channels are mixed with their power kept: (left + right) / sqrt(2).

    Args:
        data: a file of any common format.
        name: what errors call it.
        sampling_rate: of the result, in Hz.
        max_seconds: longest audio, in seconds; checked while it is decoded.

    Returns:
        Shape ``(samples,)``; from -1 to 1, or beyond where several loud channels are mixed.

    Raises:
        PipeqError: ``input_too_large``; ``input_undecodable`` also where not a single sample was decoded.
    """
    samples = _Samples(sampling_rate)
    with _open_audio(data, name) as container:
        if not container.streams.audio:
            reason = f"{name} holds no audio; it looks like {looks_like(data)}"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
        seconds = 0.0
        for frame in _frames(container):
            if not _MIN_RATE <= frame.sample_rate <= _MAX_RATE:
                raise PipeqError(ErrorCode.INPUT_UNDECODABLE, f"{name} is said to have {frame.sample_rate} Hz")
            seconds += frame.samples / frame.sample_rate
            # A millisecond for the rounding of the sum.
            if seconds > max_seconds + 1e-3:
                reason = f"{name} is longer than {max_seconds:g} s, the longest audio that this worker decodes"
                raise PipeqError(ErrorCode.INPUT_TOO_LARGE, f"{reason} ([inputs] max_audio_s)")
            try:
                samples.append(frame)
            except FFmpegError as error:
                reason = f"{name} has {frame.layout.name}, which cannot be mixed down to one channel"
                raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error
    result = samples.finish()
    if not result.size:
        reason = f"{name} holds no sample of audio that can be decoded; it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
    return result


def _open_audio(data: bytes, name: str) -> InputContainer:
    # Two whitelists: should one of these formats open other files after all, there is no protocol to do it by.
    options = {"format_whitelist": _AUDIO_FORMATS, "protocol_whitelist": ""}
    try:
        # Tags are often in another encoding than they say: no reason to refuse the sound.
        return av.open(io.BytesIO(data), mode="r", container_options=options, metadata_errors="replace")
    except (FFmpegError, ValueError) as error:
        reason = f"{name} is no audio or video of a known format; it looks like {looks_like(data)}"
        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error


def _frames(container: InputContainer) -> Iterator[AudioFrame]:
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream):
        return
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            # The end, be it a broken one. demux() has flushed the decoder if it was a proper one.
            return
        with suppress(FFmpegError):
            yield from packet.decode()


class _Samples:
    """Frames of any kind -> one array, in float32 from the start and never held twice."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._resampler: AudioResampler | None = None
        self._kind: tuple[str, str, int] | None = None
        self._array = np.empty(0, dtype=np.float32)
        self._count = 0

    def append(self, frame: AudioFrame) -> None:
        """Adds a frame; one whose rate or channels differ from those before it (as in radio recordings) may follow."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or kind != self._kind:
            self._flush()
            self._kind = kind
            self._resampler = AudioResampler(format="flt", layout="mono", rate=self._rate)
        self._extend(self._resampler.resample(frame))

    def finish(self) -> NDArray[np.float32]:
        """The samples, shape ``(samples,)``."""
        self._flush()
        self._array.resize(self._count, refcheck=False)
        return self._array

    def _flush(self) -> None:
        if self._resampler is not None:
            self._extend(self._resampler.resample(None))

    def _extend(self, frames: Sequence[AudioFrame | None]) -> None:
        for frame in frames:
            # Where nothing is to be done, PyAV's resampler hands back what it was given: on a flush, None.
            if frame is None:
                continue
            end = self._count + frame.samples
            if end > self._array.size:
                # In place, and by halves: memory that is not written to is not taken.
                self._array.resize(max(end, self._array.size * 3 // 2, self._rate * 30), refcheck=False)
            self._array[self._count : end] = frame.to_ndarray()[0]
            self._count = end
