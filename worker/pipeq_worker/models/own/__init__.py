"""Pipelines for task types that transformers dropped, or never had: one module a family.

Each takes and returns what transformers 4.57.6 did, where it had the task type; inputs are decoded ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import transformers
from transformers.pipelines import PIPELINE_REGISTRY

from pipeq_worker.models.own.generation import PRIVATE
from pipeq_worker.models.own.image_to_image import ImageToImagePipeline
from pipeq_worker.models.own.image_to_text import ImageToTextPipeline
from pipeq_worker.models.own.question_answering import QuestionAnsweringPipeline
from pipeq_worker.models.own.text2text import SummarizationPipeline, Text2TextPipeline, TranslationPipeline
from pipeq_worker.models.own.text_embedding import AutoModelForEmbedding, TextEmbeddingPipeline
from pipeq_worker.models.own.text_ranking import TextRankingPipeline
from pipeq_worker.models.own.visual_question_answering import VisualQuestionAnsweringPipeline
from pipeq_worker.models.task_types import TRANSLATION


@dataclass(frozen=True)
class OwnTask:
    """A task type of ours."""

    pipeline: type[transformers.Pipeline]
    #: Loads its models.
    model: type
    #: Model and revision where the settings name none: those of transformers 4.57.6, where it had the task type.
    default: tuple[str, str]
    #: text, image or multimodal, for transformers.
    kind: str


_T5 = ("google-t5/t5-base", "a9723ea")
OWN: dict[str, OwnTask] = {
    "text-embedding": OwnTask(
        TextEmbeddingPipeline, AutoModelForEmbedding, ("sentence-transformers/all-MiniLM-L6-v2", "main"), "text"
    ),
    "text-ranking": OwnTask(
        TextRankingPipeline,
        transformers.AutoModelForSequenceClassification,
        ("cross-encoder/ms-marco-MiniLM-L6-v2", "c5ee24c"),
        "text",
    ),
    "question-answering": OwnTask(
        QuestionAnsweringPipeline,
        transformers.AutoModelForQuestionAnswering,
        ("distilbert/distilbert-base-cased-distilled-squad", "564e9b5"),
        "text",
    ),
    "text2text-generation": OwnTask(Text2TextPipeline, transformers.AutoModelForSeq2SeqLM, _T5, "text"),
    "summarization": OwnTask(
        SummarizationPipeline, transformers.AutoModelForSeq2SeqLM, ("sshleifer/distilbart-cnn-12-6", "a4f8f3e"), "text"
    ),
    "translation": OwnTask(TranslationPipeline, transformers.AutoModelForSeq2SeqLM, _T5, "text"),
    "visual-question-answering": OwnTask(
        VisualQuestionAnsweringPipeline,
        transformers.AutoModelForVisualQuestionAnswering,
        ("dandelin/vilt-b32-finetuned-vqa", "d0a1f6a"),
        "multimodal",
    ),
    "image-to-text": OwnTask(
        ImageToTextPipeline,
        transformers.AutoModelForImageTextToText,
        ("ydshieh/vit-gpt2-coco-en", "5bebf1e"),
        "multimodal",
    ),
    "image-to-image": OwnTask(
        ImageToImagePipeline,
        transformers.AutoModelForImageToImage,
        ("caidas/swin2SR-classical-sr-x2-64", "cee1c92"),
        "image",
    ),
}


def register(task: str) -> str:
    """Makes a task type of ours known to transformers.

    Args:
        task: a key of :data:`OWN`, or ``translation_xx_to_yy``.

    Returns:
        What ``transformers.pipeline`` calls it: a private name, because it refuses the names that it dropped.
    """
    own = OWN["translation" if TRANSLATION.fullmatch(task) else task]
    name = PRIVATE + task
    if name not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(name, own.pipeline, own.model, {"model": own.default}, own.kind)
    return name
