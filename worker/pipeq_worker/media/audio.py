"""DECODE, of audio: bytes -> samples, as a whole or block by block. Used by decode and by speech recognition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

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

#: Sampling rates beyond these, in Hz, are no audio, and resampling from them would take any amount of memory.
_MIN_RATE, _MAX_RATE = 1_000, 1_000_000

Samples = NDArray[np.float32]
#: Bytes of a sample; and how many times those a feature extractor takes for a moment, measured: Whisper's 9, AST's 12.
_SAMPLE_BYTES = 4
_PREPARED = 11


@dataclass(frozen=True)
class Audio:
    """An audio file that is decoded while it is read, so that an hour of it is never there as a whole.

    As with the ``ffmpeg`` command, which transformers' pipelines run, damaged packets are left out, of a file that
    breaks off the beginning is kept, and channels are mixed with their power kept: (left + right) / sqrt(2).
    """

    #: A file of any common format.
    data: bytes
    #: What errors call it.
    name: str
    #: Of the samples, in Hz.
    sampling_rate: int
    #: Longest audio, in seconds; checked while it is decoded.
    max_seconds: float
    #: Told of the bytes that samples take, before more of them are there.
    decoded: Decoded | None = field(default=None, compare=False)

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return len(self.data)

    def blocks(self, together: int = 0) -> Iterator[Samples]:
        """The samples, mono, in as many blocks as the file has.

        Args:
            together: how many samples the caller prepares in one piece; they are counted.

        Yields:
            Shape ``(any,)``; from -1 to 1, or beyond where several loud channels are mixed.

        Raises:
            PipeqError: ``input_too_large``; ``input_undecodable``, also where not a single sample was decoded.
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
        """All samples, shape ``(samples,)``; raises as :meth:`blocks` does."""
        array, count = np.empty(0, dtype=np.float32), 0
        for block in self.blocks():
            self._take(block.size)
            end = count + block.size
            if end > array.size:
                # In place, and by halves: memory that is not written to is not taken.
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
            # A millisecond for the rounding of the sum.
            if seconds > self.max_seconds + 1e-3:
                reason = (
                    f"{self.name} is longer than {self.max_seconds:g} s, the longest audio that this worker decodes"
                )
                raise PipeqError(ErrorCode.INPUT_TOO_LARGE, f"{reason} ([inputs] max_audio_s)")
            yield frame


def decode_audio(data: bytes, name: str, sampling_rate: int, max_seconds: float) -> Samples:
    """Audio, or the sound of a video, as a whole: see :class:`Audio`."""
    return Audio(data, name, sampling_rate, max_seconds).whole()


#: How much of a recording is asked for its phase, in seconds.
_ASKED_S = 60


class _Phase:
    """Whether the two channels of stereo cancel each other out, as they do where one was wired upside down.

    Mixed down, such a recording is silence, about which a model says anything. A minute tells, unless its
    sum is quiet; what follows costs nothing then.
    """

    def __init__(self) -> None:
        self._is_decided = False
        self._seconds = 0.0
        #: Energy of the channels, and of their sum.
        self._apart = self._mixed = 0.0

    @property
    def cancels(self) -> bool:
        """Whether less than a thousandth (-30 dB) of a sound is left in the mix."""
        return self._apart > 0 and self._mixed < 1e-3 * self._apart

    def add(self, frame: AudioFrame) -> None:
        """Looks at a block."""
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
    """Frames of any kind -> mono float32 at one rate."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._resampler: AudioResampler | None = None
        self._kind: tuple[str, str, int] | None = None

    def add(self, frame: AudioFrame) -> Iterator[Samples]:
        """Takes a frame; one whose rate or channels differ from those before it (as in radio recordings) may follow."""
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or kind != self._kind:
            yield from self.flush()
            self._kind = kind
            self._resampler = AudioResampler(format="flt", layout="mono", rate=self._rate)
        yield from self._resample(frame)

    def flush(self) -> Iterator[Samples]:
        """What is still inside."""
        yield from self._resample(None)

    def _resample(self, frame: AudioFrame | None) -> Iterator[Samples]:
        # Where nothing is to be done, PyAV's resampler hands back what it was given: on a flush, None.
        for made in self._resampler.resample(frame) if self._resampler is not None else ():
            if made is not None and made.samples:
                yield made.to_ndarray()[0]
