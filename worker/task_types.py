"""The declarative table of task types: what each takes and how it may be batched. A task type more is one row.

Where a type differs from the plain way (preprocess, pad, forward, postprocess), a small class in ``worker/quirks.py``
says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from producers.errors import ErrorCode, PipeqError


class Media(StrEnum):
    """What a field of the input holds."""

    TEXT = "text"
    #: Text, or a list of ``{"role", "content"}`` turns.
    CHAT = "chat"
    IMAGE = "image"
    AUDIO = "audio"
    #: Anything JSON, handed on as it is.
    JSON = "json"

    @property
    def is_bytes(self) -> bool:
        """Whether a plain string is a URI, as in transformers, rather than the value itself."""
        return self in (Media.IMAGE, Media.AUDIO)


#: Parameters of a tokenizer's call that a producer may set.
TOKENIZER_PARAMS = frozenset(
    {"truncation", "padding", "max_length", "stride", "add_special_tokens", "pad_to_multiple_of", "padding_side"}
)


@dataclass(frozen=True)
class TaskType:
    """One row."""

    name: str
    #: Field name -> what it holds.
    fields: dict[str, Media]
    #: The field that a plain value stands for; None where the input must be an object.
    main: str | None = None
    #: Fields that may be left out of an object.
    optional: frozenset[str] = frozenset()
    #: Parameters beyond those that the pipeline class names itself.
    params: frozenset[str] = frozenset()
    #: Whether the parameters of ``generate`` are parameters of the call.
    generates: bool = False
    #: Whether it runs a model of transformers.
    has_model: bool = True
    #: Class in ``worker/quirks.py``.
    quirks: str = "Quirks"


_ROWS = (
    TaskType(
        "text-classification",
        fields={"text": Media.TEXT, "text_pair": Media.TEXT},
        main="text",
        optional=frozenset({"text_pair"}),
        params=TOKENIZER_PARAMS,
        quirks="TextClassification",
    ),
    TaskType(
        "zero-shot-classification",
        fields={"text": Media.TEXT},
        main="text",
        params=frozenset({"candidate_labels", "hypothesis_template", "multi_label"}),
        quirks="ZeroShotClassification",
    ),
    TaskType("text-embedding", fields={"text": Media.TEXT}, main="text", quirks="TextEmbedding"),
    TaskType("feature-extraction", fields={"text": Media.TEXT}, main="text", quirks="FeatureExtraction"),
    TaskType(
        "text-generation",
        fields={"text": Media.CHAT},
        main="text",
        params=frozenset({"add_special_tokens", "padding"}),
        generates=True,
        quirks="TextGeneration",
    ),
    TaskType("image-classification", fields={"image": Media.IMAGE}, main="image"),
    TaskType(
        "automatic-speech-recognition",
        fields={"audio": Media.AUDIO},
        main="audio",
        generates=True,
        quirks="SpeechRecognition",
    ),
    TaskType(
        "document-question-answering",
        fields={"image": Media.IMAGE, "question": Media.TEXT, "word_boxes": Media.JSON},
        optional=frozenset({"image", "word_boxes"}),
        quirks="DocumentQuestionAnswering",
    ),
    # No model: see worker/constant_pipeline.py.
    TaskType("constant", fields={"value": Media.JSON}, main="value", has_model=False),
)

TASK_TYPES = {row.name: row for row in _ROWS}
#: Other names that transformers knows a task type by.
ALIASES = {"sentiment-analysis": "text-classification"}


def find(name: str) -> TaskType:
    """The row of a task type, by its name or an alias.

    Raises:
        PipeqError: ``invalid_settings``, naming the types there are.
    """
    try:
        return TASK_TYPES[ALIASES.get(name, name)]
    except KeyError:
        raise PipeqError(
            ErrorCode.INVALID_SETTINGS, f"{name!r} is no task type; there are: {', '.join(sorted(TASK_TYPES))}"
        ) from None
