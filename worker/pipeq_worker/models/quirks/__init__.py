"""QUIRKS: how task types differ from the default in their steps: preprocess, pad, forward, postprocess.

transformers promises that a batch gives the same outputs as its items alone. These classes keep that promise where
transformers itself does not. Each says what differs and how it is undone. The rows of ``models/task_types.py`` name
them.
"""

from pipeq_worker.models.quirks import audio, base, multimodal, text, vision

__all__ = ["audio", "base", "multimodal", "text", "vision"]
