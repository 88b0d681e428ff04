"""DECODE of audio: bytes -> samples, whole or block by block. Used by the decode stage and by speech recognition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from av.error import FFmpegError
from numpy.typing import NDArray
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.containers import frames, known, open_container
from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.looks import looks_like

#: Lowest and highest sampling rate that is accepted, in Hz. Resampling from a rate outside of these could take any
#: amount of memory.
_MIN_RATE, _MAX_RATE = 1_000, 1_000_000

Samples = NDArray[np.float32]
#: Bytes of one sample, and how many times the samples' bytes a feature extractor takes at its peak (measured: Whisper 9
#: times, AST 12 times).
_SAMPLE_BYTES = 4
_PREPARED = 11


@dataclass(frozen=True)
class Audio:
    """An audio file that is decoded while it is read, so that a long recording is never in memory as a whole.

    It behaves as the ``ffmpeg`` command does, which transformers' pipelines run: damaged packets are skipped, a
    truncated file gives its beginning, and channels are mixed with their power preserved, as (left + right) / sqrt(2).
    """

    #: It still holds the bytes of its file when it has been read.
    keeps_its_bytes: ClassVar[bool] = True

    #: The file's bytes, in any common format.
    data: bytes
    #: The name that error messages use.
    name: str
    #: Sampling rate of the samples that are returned, in Hz.
    sampling_rate: int
    #: Longest audio that is accepted, in seconds. It is checked while decoding.
    max_seconds: float
    #: Counts the bytes of the samples before they are allocated.
    decoded: Decoded | None = field(default=None, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes that this object holds."""
        return len(self.data)

    def blocks(self, together: int = 0) -> Iterator[Samples]:
        """Decodes the file to mono samples, in as many blocks as it has frames.

        Args:
            together: number of samples that the caller prepares in one piece; only these are counted as memory.

        Yields:
            Shape ``(any,)``; values from -1 to 1, or beyond where several loud channels are mixed.

        Raises:
            PipeqError: ``input_too_large``; ``input_undecodable``, also if not a single sample could be decoded.
        """
        count, phase = 0, _Phase()
        with open_container(self.data, self.name) as container:
            for block in self._decoded(container, phase):
                if count < together:
                    self._take(min(block.size, together - count))
                count += block.size
                yield block
        if phase.cancels:
            reason = (
                f"the two channels of {self.name} cancel each other out where they are mixed down to one, as one is "
                "the other upside down: send one of them alone, or turn one over"
            )
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
        if not count:
            reason = f"{self.name} holds no sample of audio that can be decoded; it looks like {looks_like(self.data)}"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)

    def whole(self) -> Samples:
        """Decodes the whole file to shape ``(samples,)``; raises what :meth:`blocks` raises."""
        array, count = np.empty(0, dtype=np.float32), 0
        for block in self.blocks():
            self._take(block.size)
            end = count + block.size
            if end > array.size:
                # Growing by half, in place, is cheap: the system provides memory only for pages that are written.
                array.resize(max(end, array.size * 3 // 2, self.sampling_rate * 30), refcheck=False)
            array[count:end] = block
            count = end
        array.resize(count, refcheck=False)
        return array

    def _decoded(self, container: InputContainer, phase: _Phase) -> Iterator[Samples]:
        stream = self._stream(container)
        resampler = _Resampler(self.sampling_rate)
        try:
            for frame in self._checked(frames(container, stream)):
                phase.add(frame)
                try:
                    yield from resampler.add(frame)
                except FFmpegError as error:
                    reason = f"{self.name} has {frame.layout.name}, which cannot be mixed down to one channel"
                    raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error
            yield from resampler.flush()
        except (PipeqError, MemoryError):
            raise
        except Exception as error:
            reason = f"{self.name} is damaged audio ({type(error).__name__}: {shown.line(str(error))})"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error

    def _stream(self, container: InputContainer) -> Any:
        found, best = known(container.streams.audio), container.streams.best("audio")
        if not found:
            what = "audio of a codec that is not known here" if container.streams.audio else "no audio"
            reason = f"{self.name} holds {what}; it looks like {looks_like(self.data)}"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
        return best if best in found else found[0]

    def _take(self, count: int) -> None:
        if self.decoded is not None:
            self.decoded.take(count * _SAMPLE_BYTES, self.name, count * _SAMPLE_BYTES * _PREPARED)

    def _checked(self, found: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
        seconds = 0.0
        for frame in found:
            if not _MIN_RATE <= frame.sample_rate <= _MAX_RATE:
                raise PipeqError(ErrorCode.INPUT_UNDECODABLE, f"{self.name} is said to have {frame.sample_rate} Hz")
            seconds += frame.samples / frame.sample_rate
            # One millisecond of tolerance for the rounding of the sum.
            if seconds > self.max_seconds + 1e-3:
                reason = (
                    f"{self.name} is longer than {self.max_seconds:g} s, the longest audio that this worker decodes"
                )
                raise PipeqError(ErrorCode.INPUT_TOO_LARGE, f"{reason} ([inputs] max_audio_s)")
            yield frame


def decode_audio(data: bytes, name: str, sampling_rate: int, max_seconds: float) -> Samples:
    """Decodes an audio file, or the sound track of a video, as a whole: see :class:`Audio`."""
    return Audio(data, name, sampling_rate, max_seconds).whole()


#: How much of a recording is examined for opposite phase, in seconds.
_ASKED_S = 60


class _Phase:
    """Detects stereo whose two channels cancel each other out, as they do if one was wired with inverted polarity.

    Mixed down to mono, such a recording is silence, and a model's answer about silence is arbitrary. If the mix of the
    first minute is loud enough, the rest of the recording is not examined.
    """

    def __init__(self) -> None:
        self._is_decided = False
        self._seconds = 0.0
        #: Energy of the separate channels, and energy of their mix.
        self._apart = self._mixed = 0.0

    @property
    def cancels(self) -> bool:
        """Whether the mix keeps less than a thousandth (-30 dB) of the channels' energy."""
        return self._apart > 0 and self._mixed < 1e-3 * self._apart

    def add(self, frame: AudioFrame) -> None:
        """Adds one block to the measurement."""
        if self._is_decided or frame.layout.nb_channels != 2:
            self._is_decided = self._is_decided or frame.layout.nb_channels != 2
            return
        samples = frame.to_ndarray()
        left, right = samples if samples.shape[0] == 2 else (samples[0, 0::2], samples[0, 1::2])
        left, right = left.astype(np.float64), right.astype(np.float64)
        if samples.dtype == np.uint8:
            left, right = left - 128, right - 128
        both = left + right
        self._apart += float(left @ left + right @ right)
        self._mixed += float(both @ both) / 2
        self._seconds += frame.samples / frame.sample_rate
        self._is_decided = self._seconds > _ASKED_S and self._mixed > 1e-2 * self._apart


class _Resampler:
    """Converts frames of any format to mono float32 at one sampling rate."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._resampler: AudioResampler | None = None
        self._kind: tuple[str, str, int] | None = None

    def add(self, frame: AudioFrame) -> Iterator[Samples]:
        """Converts one frame. The rate or the channels may change between frames, as in recordings of radio streams."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or kind != self._kind:
            yield from self.flush()
            self._kind = kind
            self._resampler = AudioResampler(format="flt", layout="mono", rate=self._rate)
        yield from self._resample(frame)

    def flush(self) -> Iterator[Samples]:
        """Returns the samples that the resampler still holds."""
        yield from self._resample(None)

    def _resample(self, frame: AudioFrame | None) -> Iterator[Samples]:
        # If there is nothing to convert, PyAV's resampler returns what it was given: None on a flush.
        for made in self._resampler.resample(frame) if self._resampler is not None else ():
            if made is not None and made.samples:
                yield made.to_ndarray()[0]
