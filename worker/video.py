"""DECODE, of video: bytes -> the frames that are asked for. Used by decode and by video classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from producers.errors import ErrorCode, PipeqError
from worker.containers import frames, open_container
from worker.looks import looks_like


@dataclass(frozen=True)
class Video:
    """A video file that is sampled while it is decoded: no more than the frames that are asked for are ever there."""

    data: bytes
    #: What errors call it.
    name: str
    #: Largest frame, in pixels.
    max_pixels: int
    #: Most frames that are decoded, those that are skipped too.
    max_frames: int

    @property
    def nbytes(self) -> int:
        """What it holds."""
        return len(self.data)

    def frames(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """The frames at rising positions, shape ``(frames, height, width, 3)``; fewer where the video is shorter.

        Raises:
            PipeqError: ``input_too_large``; ``input_undecodable``, also where there is not a single frame.
        """
        wanted, kept = set(indices), []
        if max(wanted) >= self.max_frames:
            reason = f"frame {max(wanted)} of {self.name} is asked for, and this worker decodes {self.max_frames}"
            raise PipeqError(ErrorCode.INPUT_TOO_LARGE, f"{reason} ([inputs] max_video_frames)")
        with open_container(self.data, self.name) as container:
            if not container.streams.video:
                reason = f"{self.name} holds no video; it looks like {looks_like(self.data)}"
                raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
            stream = container.streams.video[0]
            self._check_size(stream.width, stream.height)
            for at, frame in enumerate(frames(container, stream)):
                if at in wanted:
                    self._check_size(frame.width, frame.height)
                    kept.append(frame.to_ndarray(format="rgb24"))
                if at >= max(wanted):
                    break
        if not kept:
            reason = f"{self.name} holds no frame that can be decoded; it looks like {looks_like(self.data)}"
            raise PipeqError(ErrorCode.INPUT_UNDECODABLE, reason)
        return np.stack(kept)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            reason = f"{self.name} has {width}x{height} pixels, and this worker decodes {self.max_pixels}"
            raise PipeqError(ErrorCode.INPUT_TOO_LARGE, f"{reason} ([inputs] max_pixels)")
