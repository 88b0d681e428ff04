"""DECODED: what a task's inputs take once they are decoded, counted before they are. Used by decode.

What arrives is small, what comes out of it need not be: 34 bytes of WebP are 128 million pixels, a megabyte of FLAC is
four hours. Each decoder says here what it is about to make, and what the preparation will make of that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media.picture_memory import PictureMemory


def _hold_nothing(size: int) -> None:
    """Memory is not budgeted."""


class Decoded:
    """The bytes of one task. Belongs to one thread at a time.

    Args:
        limit: most bytes, what preparation takes for a moment included.
        hold: called with the bytes that are about to be kept.
        large: one for all tasks of a worker. A task beyond an eighth of the limit holds it until :meth:`end`, so that
            what many large tasks take for a moment never adds up.
        answer: what the answer about each picture takes, for each of its pixels.
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
        """Bytes that ``name`` is about to take: some are kept, some only for as long as it is prepared.

        Raises:
            PipeqError: ``input_too_large``; nothing is to be made then.
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
        """To be called before a picture is decoded: whether there is memory for the answer about it.

        The answers about all pictures of a task are kept until it is delivered; they are made one after the other.

        Args:
            width: of the picture, in pixels.
            height: of the picture, in pixels.
            name: what errors call it.

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

    def end(self) -> None:
        """A step of the task's preparation is done, or has failed; the next may be large again."""
        if self._large is not None and self._is_large:
            self._is_large = False
            self._large.release()
