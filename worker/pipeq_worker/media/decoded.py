"""DECODED: counts the memory that a task's inputs take once decoded, before they are decoded. Used by decode.

A small file can decode to a large amount of data: 34 bytes of WebP to 128 million pixels, a megabyte of FLAC to four
hours of audio. Each decoder declares here what it is about to allocate, and what the preparation of it will allocate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.picture_memory import PictureMemory


def _hold_nothing(size: int) -> None:
    """The default, when memory is not budgeted."""


class Decoded:
    """The decoded bytes of one task. Not thread-safe: one thread uses it at a time.

    Args:
        limit: most bytes for one task, including what its preparation takes temporarily.
        hold: called with the number of bytes that are about to be kept.
        large: a lock shared by all tasks of a worker. A task that takes more than an eighth of the limit holds it until
            :meth:`end`, so that only one large task is prepared at a time.
        answer: bytes that the pipeline's answer takes for each pixel of a picture.
    """

    def __init__(
        self,
        limit: int,
        hold: Callable[[int], None] = _hold_nothing,
        large: threading.Lock | None = None,
        answer: PictureMemory | None = None,
    ) -> None:
        self._limit = limit
        self._hold = hold
        self._large = large
        self._answer = answer or PictureMemory()
        self._answer_bytes = 0.0
        self._is_large = False
        self._count = 0

    def take(self, kept: int, name: str, passing: int = 0) -> None:
        """Counts bytes that are about to be allocated for ``name``, before they are.

        Args:
            kept: bytes that stay until the task ends.
            name: the name that error messages use.
            passing: bytes that are needed only during preparation.

        Raises:
            PipeqError: ``input_too_large``; the caller must not allocate anything then.
        """
        self._count += kept + passing
        if self._count > self._limit:
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"{name} would take the decoded inputs of its task beyond {self._limit} bytes, the most that this "
                "worker makes of one task ([inputs] max_decoded_bytes)",
            )
        if self._large is not None and not self._is_large and self._count > self._limit // 8:
            self._large.acquire()
            self._is_large = True
        self._hold(kept)

    def check_answer(self, width: int, height: int, name: str) -> None:
        """Checks that the answer about a picture fits into memory. Call it before the picture is decoded.

        The answers about all pictures of a task are kept until the task is delivered; they are computed one after the
        other.

        Args:
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            name: the name that error messages use.

        Raises:
            PipeqError: ``input_too_large``.
        """
        self._answer_bytes += width * height * self._answer.kept
        needed = self._answer_bytes + width * height * self._answer.passing
        if needed > self._limit:
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"{name} has {width}x{height} pixels, and this pipeline's answer of that size may take "
                f"{needed / 2**30:.1f} GiB of memory, beyond the {self._limit / 2**30:.1f} GiB of one task "
                "([inputs] max_decoded_bytes): send a smaller picture, or fewer in one task",
            )

    def check_made(self, passing: int, kept: int) -> None:
        """Checks what preparing an input makes at once, and the size of its answer. Call it before it is prepared.

        Args:
            passing: bytes that are needed until :meth:`end`.
            kept: bytes that the answer takes; those of all inputs of a task add up.

        Raises:
            PipeqError: ``input_too_large``.
        """
        self._answer_bytes += kept
        if self._answer_bytes + passing > self._limit:
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"its chunks, or its answer with that many of the best, may take {self._answer_bytes + passing:.1e} "
                f"bytes, beyond the {self._limit} that this worker makes of one task ([inputs] max_decoded_bytes): ask "
                "for fewer answers (top_k), let chunks overlap less, or send less in one task",
            )
        if self._large is not None and not self._is_large and passing > self._limit // 8:
            self._large.acquire()
            self._is_large = True

    def end(self) -> None:
        """Ends a preparation step, successful or not, and lets another large task begin."""
        if self._large is not None and self._is_large:
            self._is_large = False
            self._large.release()
