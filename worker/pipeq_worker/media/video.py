"""DECODE of video: bytes -> the frames that are asked for. Used by decode and by video classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.containers import frames, known, open_container
from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.looks import looks_like

#: Bytes for each pixel inside a decoder, which keeps up to 16 frames; and for each pixel of a returned frame: as RGB,
#: in the array of all frames, and in the arrays of the image processor.
_DECODER_BYTES = 24
_FRAME_BYTES = 12
#: Extra pixels that a decoder may need because it rounds sides up. The decoded frame is measured exactly.
_ALIGNED = 2**16


@dataclass(frozen=True)
class Video:
    """A video file that is sampled while it is decoded: only the frames that are asked for are kept in memory."""

    #: It still holds the bytes of its file when it has been read.
    keeps_its_bytes: ClassVar[bool] = True

    data: bytes
    #: The name that error messages use.
    name: str
    #: Largest frame, in pixels.
    max_pixels: int
    #: Most frames that are decoded, including those that are skipped.
    max_frames: int
    #: Counts the bytes of frames before they are allocated.
    decoded: Decoded | None = field(default=None, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes that this object holds."""
        return len(self.data)

    def frames(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Returns the frames at ascending positions, shape ``(frames, height, width, 3)``.

        There are fewer frames than positions if the video is shorter.

        Raises:
            PipeqError: ``input_too_large``; ``input_undecodable``, also if there is not a single frame.
        """
        wanted, kept = set(indices), []
        if max(wanted) >= self.max_frames:
            reason = f"frame {max(wanted)} of {self.name} is asked for, and this worker decodes {self.max_frames}"
            raise PipeqError(ErrorCode.INPUT_TOO_LARGE, f"{reason} ([inputs] max_video_frames)")
        # Opened with a higher bound, so that a frame slightly too large is reported as such, and not as damaged.
        with open_container(self.data, self.name, self.max_pixels * 4) as container:
            stream = self._stream(container)
            self._check_size(stream.width, stream.height)
            self._take(stream.width * stream.height, _DECODER_BYTES)
            try:
                for at, frame in enumerate(frames(container, stream, self.max_pixels * 2 + _ALIGNED)):
                    self._check_size(frame.width, frame.height)
                    if at in wanted:
                        self._take(frame.width * frame.height, _FRAME_BYTES)
                        kept.append(frame.to_ndarray(format="rgb24"))
                    if at >= max(wanted):
                        break
            except (PipeqError, MemoryError):
                raise
            except Exception as error:
                # A frame cannot be converted to RGB, or differs in size from the frames before it.
                reason = f"{self.name} is a damaged video ({type(error).__name__}: {shown.line(str(error))})"
                raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason) from error
        if not kept:
            reason = f"{self.name} holds no frame that can be decoded; it looks like {looks_like(self.data)}"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
        if len({frame.shape for frame in kept}) > 1:
            reason = f"the frames of {self.name} that are asked for differ in size"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
        return np.stack(kept)

    def _stream(self, container: InputContainer) -> Any:
        """The stream that a player would show: the default one, else the first; never a cover picture."""
        streams = container.streams.video
        films = [one for one in streams if not one.disposition & Disposition.attached_pic]
        found = known(films)
        if not found:
            what = "no video"
            if films:
                what = "a video of a codec that is not known here"
            elif streams:
                what = "no video but a cover picture"
            reason = f"{self.name} holds {what}; it looks like {looks_like(self.data)}"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
        found = [one for one in found if one.frames != 1] or found
        return next((one for one in found if one.disposition & Disposition.default), found[0])

    def _take(self, pixels: int, each_bytes: int) -> None:
        if self.decoded is not None:
            self.decoded.take(pixels * 3, self.name, pixels * (each_bytes - 3))

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            reason = f"{self.name} has {width}x{height} pixels, and this worker decodes {self.max_pixels}"
            raise PipeqError(ErrorCode.INPUT_TOO_LARGE, f"{reason} ([inputs] max_pixels)")
