"""Pipelines for task types that transformers dropped, or never had: one module a family.

Each takes and returns what transformers 4.57.6 did, where it had the task type; inputs are decoded ones. The rows of
``models/task_types.py`` name them.
"""

from __future__ import annotations

from transformers.pipelines import PIPELINE_REGISTRY

from pipeq_worker.models.own import (
    image_to_image,
    image_to_text,
    question_answering,
    text2text,
    text_embedding,
    text_ranking,
    visual_question_answering,
)
from pipeq_worker.models.own.generation import PRIVATE
from pipeq_worker.models.task_type import OwnPipeline

__all__ = [
    "image_to_image",
    "image_to_text",
    "question_answering",
    "register",
    "text2text",
    "text_embedding",
    "text_ranking",
    "visual_question_answering",
]


def register(task: str, own: OwnPipeline) -> str:
    """Makes a task type of ours known to transformers.

    Args:
        task: its name; of a translation, ``translation_xx_to_yy`` where the settings say so.
        own: what its row says of it.

    Returns:
        What ``transformers.pipeline`` calls it: a private name, because it refuses the names that it dropped.
    """
    name = PRIVATE + task
    if name not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(name, own.pipeline(), own.model(), {"model": own.default}, own.kind)
    return name
