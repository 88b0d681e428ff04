"""TASK TYPES: the table of task types: what each takes, returns and costs. A new task type is one row.

If a type differs from the default (preprocess, pad, forward, postprocess), a small class in ``models/quirks`` says how;
if transformers has no pipeline for it, a class in ``models/own`` is one. A row names these classes in lambdas
(``quirks=lambda: quirks.text.FillMask``), so that reading the table imports no torch (docs/decisions/rows.md). The
tables of the README and ``docs/task-types.md``, and the JSON Schemas in ``docs/schemas``, are made from these rows
(``make docs``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeq.contract.errors import SettingsError

from pipeq_worker.models.later import Later
from pipeq_worker.models.task_type import TOKENIZER_PARAMS, Media, OwnPipeline, TaskType

if TYPE_CHECKING:
    import transformers

    from pipeq_worker.models import own, quirks
else:
    own, quirks = Later("pipeq_worker.models.own"), Later("pipeq_worker.models.quirks")
    transformers = Later("transformers")

_LABELS = "a list of `{label, score}`"
_CANDIDATES = ("candidate_labels", '["sports", "politics"]')
_TEXT = {"text": Media.TEXT}
_IMAGE = {"image": Media.IMAGE}
_AUDIO = {"audio": Media.AUDIO}
_T5 = ("google-t5/t5-base", "a9723ea")

_TEXT_ROWS = (
    TaskType(
        "text-classification",
        {"text": Media.TEXT, "text_pair": Media.TEXT},
        _LABELS,
        main="text",
        optional=frozenset({"text_pair"}),
        params=TOKENIZER_PARAMS,
        quirks=lambda: quirks.text.TextClassification,
        aliases=("sentiment-analysis",),
    ),
    TaskType(
        "token-classification",
        {"text": Media.TEXTS},
        "a list of `{entity, score, word, start, end}`",
        main="text",
        chunks=True,
        quirks=lambda: quirks.text.TokenClassification,
        note='a list of words, `[["Anna", "went"]]`, with `is_split_into_words`; `stride` cuts long texts into chunks',
        aliases=("ner",),
    ),
    TaskType(
        "fill-mask", _TEXT, "a list of `{token_str, score, sequence}`", main="text", quirks=lambda: quirks.text.FillMask
    ),
    TaskType(
        "zero-shot-classification",
        _TEXT,
        "`{labels, scores}`, best first",
        main="text",
        params=frozenset({"candidate_labels", "hypothesis_template", "multi_label"}),
        required=(_CANDIDATES,),
        chunks=True,
        quirks=lambda: quirks.text.ZeroShotClassification,
        note="each label is one item",
    ),
    TaskType(
        "feature-extraction",
        _TEXT,
        "a row of floats for each token",
        main="text",
        objects="NPY with `return_tensors`",
        quirks=lambda: quirks.text.FeatureExtraction,
    ),
    TaskType(
        "text-embedding",
        _TEXT,
        "a list of floats",
        main="text",
        own=OwnPipeline(
            lambda: own.text_embedding.TextEmbeddingPipeline,
            lambda: own.text_embedding.AutoModelForEmbedding,
            ("sentence-transformers/all-MiniLM-L6-v2", "main"),
            "text",
        ),
        quirks=lambda: quirks.text.TextEmbedding,
        note="our own: the vector that sentence-transformers computes with the same checkpoint; `prompt_name`",
    ),
    TaskType(
        "text-ranking",
        {"text": Media.TEXT, "text_pair": Media.TEXT},
        "`{score}`",
        own=OwnPipeline(
            lambda: own.text_ranking.TextRankingPipeline,
            lambda: transformers.AutoModelForSequenceClassification,
            ("cross-encoder/ms-marco-MiniLM-L6-v2", "c5ee24c"),
            "text",
        ),
        note="our own: a cross-encoder; `text` is the query, `text_pair` the document; `prompt_name`",
    ),
    TaskType(
        "text-generation",
        {"text": Media.CHAT},
        "a list of `{generated_text}`",
        main="text",
        params=frozenset({"add_special_tokens", "padding"}),
        generation="call",
        quirks=lambda: quirks.text.TextGeneration,
    ),
    TaskType(
        "text2text-generation",
        _TEXT,
        "a list of `{generated_text}`",
        main="text",
        generation="call",
        own=OwnPipeline(
            lambda: own.text2text.Text2TextPipeline,
            lambda: transformers.AutoModelForSeq2SeqLM,
            _T5,
            "text",
        ),
        quirks=lambda: quirks.text.Text2Text,
        note="dropped by transformers 5",
    ),
    TaskType(
        "summarization",
        _TEXT,
        "a list of `{summary_text}`",
        main="text",
        generation="call",
        own=OwnPipeline(
            lambda: own.text2text.SummarizationPipeline,
            lambda: transformers.AutoModelForSeq2SeqLM,
            ("sshleifer/distilbart-cnn-12-6", "a4f8f3e"),
            "text",
        ),
        quirks=lambda: quirks.text.Text2Text,
        note="dropped by transformers 5",
    ),
    TaskType(
        "translation",
        _TEXT,
        "a list of `{translation_text}`",
        main="text",
        generation="call",
        own=OwnPipeline(
            lambda: own.text2text.TranslationPipeline,
            lambda: transformers.AutoModelForSeq2SeqLM,
            _T5,
            "text",
        ),
        quirks=lambda: quirks.text.Text2Text,
        note="dropped by transformers 5; `translation_en_to_de` names the languages, too",
    ),
    TaskType(
        "question-answering",
        {"question": Media.TEXT, "context": Media.TEXT},
        "`{answer, score, start, end}`",
        chunks=True,
        own=OwnPipeline(
            lambda: own.question_answering.QuestionAnsweringPipeline,
            lambda: transformers.AutoModelForQuestionAnswering,
            ("distilbert/distilbert-base-cased-distilled-squad", "564e9b5"),
            "text",
        ),
        quirks=lambda: quirks.text.QuestionAnswering,
        note="dropped by transformers 5; long contexts are cut into chunks",
    ),
    TaskType(
        "table-question-answering",
        {"table": Media.TABLE, "query": Media.TEXTS},
        "`{answer, coordinates, cells, aggregator}`",
        company="alone",
        quirks=lambda: quirks.multimodal.TableQuestionAnswering,
        needs=("pandas",),
    ),
    TaskType(
        "decision",
        {"state": Media.JSON, "questions": Media.JSON},
        "question name -> `{type, ...}`",
        company="alone",
        quirks=lambda: quirks.multimodal.Decision,
    ),
)

_VISION_ROWS = (
    TaskType("image-classification", _IMAGE, _LABELS, main="image", cost="pixels", company="same shape"),
    TaskType(
        "image-feature-extraction",
        _IMAGE,
        "rows of floats",
        main="image",
        cost="pixels",
        company="same shape",
        objects="NPY with `return_tensors`",
        quirks=lambda: quirks.vision.ImageFeatureExtraction,
    ),
    TaskType(
        "image-segmentation",
        _IMAGE,
        "a list of `{label, score, mask}`",
        main="image",
        params=frozenset({"subtask", "threshold", "mask_threshold", "overlap_mask_area_threshold"}),
        cost="pixels",
        company="same shape",
        objects="masks: PNG",
        quirks=lambda: quirks.vision.ImageSegmentation,
    ),
    TaskType(
        "object-detection",
        _IMAGE,
        "a list of `{label, score, box}`",
        main="image",
        params=frozenset({"threshold"}),
        cost="pixels",
        company="same shape",
        note="images of the same aspect ratio share a batch",
    ),
    TaskType(
        "depth-estimation",
        _IMAGE,
        "`{predicted_depth, depth}`",
        main="image",
        cost="pixels",
        company="same shape",
        objects="`predicted_depth`: NPY; `depth`: PNG",
    ),
    TaskType(
        "keypoint-matching",
        {"images": Media.IMAGES},
        "a list of `{keypoint_image_0, keypoint_image_1, score}`",
        main=None,
        cost="pixels",
        company="alone",
        quirks=lambda: quirks.vision.KeypointMatching,
        note="as in transformers 5.23, x and y are wrong for images that are not square",
    ),
    TaskType(
        "mask-generation",
        _IMAGE,
        "`{masks, scores}`",
        main="image",
        params=frozenset(
            "points_per_batch points_per_crop crops_n_layers crop_overlap_ratio crop_n_points_downscale_factor "
            "pred_iou_thresh stability_score_thresh stability_score_offset mask_threshold crops_nms_thresh".split()
        ),
        cost="pixels",
        company="alone",
        objects="masks: PNG",
        quirks=lambda: quirks.vision.MaskGeneration,
        prepares_with_model=True,
        needs=("torchvision",),
        untested="its last step needs torchvision; the steps before it are tested",
        note="the points of an image run in batches (`points_per_batch`)",
    ),
    TaskType(
        "zero-shot-image-classification",
        _IMAGE,
        _LABELS,
        main="image",
        params=frozenset({"candidate_labels", "hypothesis_template"}),
        required=(_CANDIDATES,),
        cost="pixels",
        company="same shape",
        group_by=("candidate_labels", "hypothesis_template"),
        quirks=lambda: quirks.vision.ZeroShotImage,
        note="all items of a batch have the same labels",
    ),
    TaskType(
        "zero-shot-object-detection",
        {"image": Media.IMAGE, "candidate_labels": Media.JSON},
        "a list of `{label, score, box}`",
        main="image",
        optional=frozenset({"candidate_labels"}),
        params=frozenset({"candidate_labels", "threshold", "top_k"}),
        chunks=True,
        cost="pixels",
        quirks=lambda: quirks.vision.ZeroShotObjectDetection,
        note="each label is one item; give labels with the image or as a parameter",
    ),
    TaskType(
        "video-classification",
        {"video": Media.VIDEO},
        _LABELS,
        main="video",
        cost="pixels",
        company="same shape",
        quirks=lambda: quirks.vision.VideoClassification,
        note="only the sampled frames are kept",
    ),
    TaskType(
        "image-to-image",
        _IMAGE,
        "an image",
        main="image",
        cost="pixels",
        company="same shape",
        own=OwnPipeline(
            lambda: own.image_to_image.ImageToImagePipeline,
            lambda: transformers.AutoModelForImageToImage,
            ("caidas/swin2SR-classical-sr-x2-64", "cee1c92"),
            "image",
        ),
        objects="PNG",
        note="dropped by transformers 5",
    ),
)

_AUDIO_ROWS = (
    TaskType(
        "automatic-speech-recognition",
        _AUDIO,
        "`{text}`, with `chunks` if timestamps are asked for",
        main="audio",
        generation="call",
        chunks=True,
        cost="samples",
        quirks=lambda: quirks.audio.SpeechRecognition,
        note="Whisper and CTC; `chunk_length_s`, `return_timestamps`",
    ),
    TaskType(
        "audio-classification",
        _AUDIO,
        _LABELS,
        main="audio",
        cost="samples",
        company="same shape",
        quirks=lambda: quirks.audio.AudioClassification,
    ),
    TaskType(
        "zero-shot-audio-classification",
        _AUDIO,
        _LABELS,
        main="audio",
        params=frozenset({"candidate_labels", "hypothesis_template"}),
        required=(_CANDIDATES,),
        cost="samples",
        company="same shape",
        group_by=("candidate_labels", "hypothesis_template"),
        quirks=lambda: quirks.audio.ZeroShotAudio,
        note="all items of a batch have the same labels",
    ),
    TaskType(
        "text-to-audio",
        {"text": Media.CHAT},
        "`{audio, sampling_rate}`",
        main="text",
        generation="generate_kwargs",
        company="alone",
        objects="audio: WAV",
        audio_key="audio",
        quirks=lambda: quirks.audio.TextToAudio,
        aliases=("text-to-speech",),
    ),
)

_MULTIMODAL_ROWS = (
    TaskType(
        "document-question-answering",
        {"image": Media.IMAGE, "question": Media.TEXT, "word_boxes": Media.JSON},
        "a list of `{answer, score, start, end}`",
        optional=frozenset({"image", "word_boxes"}),
        chunks=True,
        company="same shape",
        quirks=lambda: quirks.multimodal.DocumentQuestionAnswering,
        note="reads the words in the image if tesseract is installed",
    ),
    TaskType(
        "visual-question-answering",
        {"image": Media.IMAGE, "question": Media.TEXT},
        "a list of `{answer, score}`",
        own=OwnPipeline(
            lambda: own.visual_question_answering.VisualQuestionAnsweringPipeline,
            lambda: transformers.AutoModelForVisualQuestionAnswering,
            ("dandelin/vilt-b32-finetuned-vqa", "d0a1f6a"),
            "multimodal",
        ),
        generation="call",
        company="same shape",
        quirks=lambda: quirks.multimodal.VisualQuestionAnswering,
        note="dropped by transformers 5",
        aliases=("vqa",),
    ),
    TaskType(
        "image-to-text",
        _IMAGE,
        "a list of `{generated_text}`",
        main="image",
        own=OwnPipeline(
            lambda: own.image_to_text.ImageToTextPipeline,
            lambda: transformers.AutoModelForImageTextToText,
            ("ydshieh/vit-gpt2-coco-en", "5bebf1e"),
            "multimodal",
        ),
        generation="generate_kwargs",
        cost="pixels",
        company="same shape",
        quirks=lambda: quirks.vision.ImageToText,
        note="dropped by transformers 5",
    ),
    TaskType(
        "image-text-to-text",
        {"text": Media.CHAT, "images": Media.IMAGES},
        "a list of `{input_text, generated_text}`",
        main="text",
        optional=frozenset({"images"}),
        chat_media=(Media.IMAGE,),
        generation="generate_kwargs",
        company="same shape",
        quirks=lambda: quirks.multimodal.ImageTextToText,
        note="a chat whose turns hold images, or `{images, text}`",
    ),
    TaskType(
        "any-to-any",
        {"text": Media.CHAT, "images": Media.IMAGES},
        "a list of `{input_text, generated_text}`, or audio or an image",
        main="text",
        optional=frozenset({"images"}),
        chat_media=(Media.IMAGE, Media.AUDIO),
        generation="generate_kwargs",
        company="alone",
        objects="images: PNG",
        quirks=lambda: quirks.multimodal.AnyToAny,
        note="models for images and video need the package torchvision",
    ),
)

_ROWS = (
    *_TEXT_ROWS,
    *_VISION_ROWS,
    *_AUDIO_ROWS,
    *_MULTIMODAL_ROWS,
    TaskType(
        "constant",
        {"value": Media.JSON},
        "the text `constant`",
        main="value",
        cost="nothing",
        has_model=False,
        untested="no model",
        note="no model; for trying out and measuring everything else",
    ),
)

TASK_TYPES = {row.name: row for row in _ROWS}
#: Alias -> name: other names that transformers has for a task type.
ALIASES = {alias: row.name for row in _ROWS for alias in row.aliases}
#: Names such as ``translation_en_to_de``, which stand for ``translation``.
TRANSLATION = re.compile(r"translation_([A-Za-z-]+)_to_([A-Za-z-]+)")


def is_task_type(name: str) -> bool:
    """Whether there is a row for a name or an alias."""
    return name in TASK_TYPES or name in ALIASES or TRANSLATION.fullmatch(name) is not None


def find(name: str) -> TaskType:
    """Returns the row of a task type, by its name or an alias.

    Raises:
        PipeqError: ``invalid_settings``, naming the known types.
    """
    if not is_task_type(name):
        raise SettingsError(f"{name!r} is no task type; there are: {', '.join(sorted(TASK_TYPES))}")
    return TASK_TYPES["translation" if TRANSLATION.fullmatch(name) else ALIASES.get(name, name)]
