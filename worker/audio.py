"""DECODE, of audio: bytes -> samples, as a whole or block by block. Used by decode and by speech recognition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.error import FFmpegError
from numpy.typing import NDArray

from producers.errors import ErrorCode, PipeqError
from worker.containers import frames, open_container
from worker.looks import looks_like

#: Sampling rates beyond these, in Hz, are no audio, and resampling from them would take any amount of memory.
_MIN_RATE, _MAX_RATE = 1_000, 1_000_000

Samples = NDArray[np.float32]


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

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return len(self.data)

    def blocks(self) -> Iterator[Samples]:
        """The samples, mono, in as many blocks as the file has.

        Yields:
            Shape ``(any,)``; from -1 to 1, or beyond where several loud channels are mixed.

        Raises:
            PipeqError: ``input_too_large``; ``input_undecodable``, also where not a single sample was decoded.
        """
        empty = True
        with open_container(self.data, self.name) as container:
            if not container.streams.audio:
                reason = f"{self.name} holds no audio; it looks like {looks_like(self.data)}"
                raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
            stream = container.streams.best("audio")
            if isinstance(stream, AudioStream):
                resampler = _Resampler(self.sampling_rate)
                for frame in self._checked(frames(container, stream)):
                    try:
                        for block in resampler.add(frame):
                            empty = False
                            yield block
                    except FFmpegError as error:
                        reason = f"{self.name} has {frame.layout.name}, which cannot be mixed down to one channel"
                        raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error
                for block in resampler.flush():
                    empty = False
                    yield block
        if empty:
            reason = f"{self.name} holds no sample of audio that can be decoded; it looks like {looks_like(self.data)}"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)

    def whole(self) -> Samples:
        """All samples, shape ``(samples,)``; raises as :meth:`blocks` does."""
        array, count = np.empty(0, dtype=np.float32), 0
        for block in self.blocks():
            end = count + block.size
            if end > array.size:
                # In place, and by halves: memory that is not written to is not taken.
                array.resize(max(end, array.size * 3 // 2, self.sampling_rate * 30), refcheck=False)
            array[count:end] = block
            count = end
        array.resize(count, refcheck=False)
        return array

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
