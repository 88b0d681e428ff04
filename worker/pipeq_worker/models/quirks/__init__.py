"""Where a task type differs from the plain way: preprocess, pad, forward, postprocess.

transformers promises that a batch gives the same output as its items alone; these classes keep that promise where it
does not hold by itself. Each says what differs and how it is undone. ``models/task_types.py`` names them.
"""

from __future__ import annotations

from importlib import import_module

import transformers

from pipeq_worker.models.quirks.base import CallParams, Quirks

__all__ = ["CallParams", "Quirks", "make"]

_MODULES = ("base", "text", "audio", "vision", "multimodal")


def make(name: str, pipe: transformers.Pipeline) -> Quirks:
    """The quirks of that name, for one pipeline."""
    for module in _MODULES:
        if (found := getattr(import_module(f"pipeq_worker.models.quirks.{module}"), name, None)) is not None:
            quirks: Quirks = found(pipe)
            return quirks
    raise LookupError(f"models/quirks has no class {name}")
