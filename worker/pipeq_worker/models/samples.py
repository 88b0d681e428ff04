"""SAMPLES: a task type -> a tiny input, for the warm-up of a pipeline. Used by transformers_pipeline."""

from __future__ import annotations

from typing import Any

from pipeq_worker.models.quirks.vision import picture
from pipeq_worker.models.task_type import Media, TaskType


def sample_input(task_type: TaskType) -> Any:
    """Returns an input with every field that text or a picture can fill."""
    samples = {Media.IMAGE: picture(), Media.TEXT: "warm up", Media.TEXTS: "warm up", Media.CHAT: "warm up"}
    if task_type.main is not None:
        return samples[task_type.fields[task_type.main]]
    return {name: samples[media] for name, media in task_type.fields.items() if media in samples}
