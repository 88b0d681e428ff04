"""COPIES: a transformers pipeline -> each thread's own copy of it, which shares the model. See transformers_pipeline.

A fast tokenizer that is shared by threads with different truncation returns wrong lengths without an error.
"""

from __future__ import annotations

import copy
import threading

import transformers

from pipeq_worker.models.model_state import PartsState

#: Parts of a pipeline that keep state between calls, so that each thread needs its own copy.
_PARTS = ("tokenizer", "feature_extractor", "image_processor", "video_processor", "processor")


class Copies:
    """Safe for threads.

    Args:
        pipe: the pipeline; nobody calls it itself.
    """

    def __init__(self, pipe: transformers.Pipeline) -> None:
        self._pipe = pipe
        self._local = threading.local()
        self._copying = threading.Lock()

    def mine(self) -> transformers.Pipeline:
        """The calling thread's copy: it has its own tokenizer and processors."""
        own: transformers.Pipeline | None = getattr(self._local, "pipe", None)
        if own is None:
            with self._copying:
                own = copy.copy(self._pipe)
                for part in _PARTS:
                    if hasattr(own, part):
                        setattr(own, part, copy.deepcopy(getattr(self._pipe, part)))
            self._local.pipe = own
            parts = (getattr(own, name, None) for name in _PARTS)
            self._local.parts = PartsState([part for part in parts if part is not None])
        return own

    def restore(self) -> list[str]:
        """Puts back what a call that failed has changed in this thread's parts. Returns what that was."""
        parts: PartsState | None = getattr(self._local, "parts", None)
        return [] if parts is None else parts.restore()
