"""Where a task type differs from the plain way: preprocess, pad, forward, postprocess.

transformers promises that a batch gives the same output as its items alone; these classes keep that promise where it
does not hold by itself. Each says what differs and how it is undone. The rows of ``models/task_types.py`` name them.
"""

from pipeq_worker.models.quirks import audio, base, multimodal, text, vision

__all__ = ["audio", "base", "multimodal", "text", "vision"]
