"""OWN: pipelines for task types that transformers dropped or never had, one module for each family.

Where transformers 4.57.6 had the task type, a pipeline takes and returns what that version did, for decoded inputs.
The rows of ``models/task_types.py`` name these modules.
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
    """Registers one of our task types with transformers.

    Args:
        task: name of the task type; for a translation, ``translation_xx_to_yy`` if the settings name the pair.
        own: its row's entry for our pipeline.

    Returns:
        The name to pass to ``transformers.pipeline``. It is a private one, because transformers refuses the names of
        the task types that it dropped.
    """
    name = PRIVATE + task
    if name not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(name, own.pipeline(), own.model(), {"model": own.default}, own.kind)
    return name
