"""What is said of a task type; the types themselves are in ``models/task_types.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pipeq_worker.models.later import Later

if TYPE_CHECKING:
    import transformers

    from pipeq_worker.models.quirks import base
else:
    base = Later("pipeq_worker.models.quirks.base")


class Media(StrEnum):
    """What a field of the input holds."""

    TEXT = "text"
    #: A text, or a list of them, which belongs to one input.
    TEXTS = "texts"
    #: Text, or a list of ``{"role", "content"}`` turns.
    CHAT = "chat"
    IMAGE = "image"
    #: A list of images, which belongs to one input; or one.
    IMAGES = "images"
    AUDIO = "audio"
    VIDEO = "video"
    #: An object of columns or a list of rows; or a reference to CSV.
    TABLE = "table"
    #: Anything JSON, handed on as it is.
    JSON = "json"

    @property
    def is_bytes(self) -> bool:
        """Whether a plain string is a URI, as in transformers, rather than the value itself."""
        return self in (Media.IMAGE, Media.IMAGES, Media.AUDIO, Media.VIDEO)


#: Parameters of a tokenizer's call that a producer may set.
TOKENIZER_PARAMS = frozenset(
    {"truncation", "padding", "max_length", "add_special_tokens", "pad_to_multiple_of", "padding_side"}
)

#: In what company an item runs: with longer and shorter ones; with those of its own shape; with nobody.
Company = Literal["any length", "same shape", "alone"]


@dataclass(frozen=True)
class OwnPipeline:
    """A pipeline class of ours, for a task type that transformers dropped, or never had."""

    #: In ``models/own``.
    pipeline: Callable[[], type[transformers.Pipeline]]
    #: Loads its models: one of transformers' ``AutoModelFor...``, or a class of ours like them.
    model: Callable[[], Any]
    #: Model and revision where the settings name none: those of transformers 4.57.6, where it had the task type.
    default: tuple[str, str]
    #: For transformers.
    kind: Literal["text", "image", "multimodal"]


@dataclass(frozen=True)
class TaskType:
    """One row."""

    name: str
    #: Field name -> what it holds.
    fields: dict[str, Media]
    #: What the result is, in words.
    output: str
    #: The field that a plain value stands for; None where the input must be an object.
    main: str | None = None
    #: Fields that may be left out of an object.
    optional: frozenset[str] = frozenset()
    #: What the turns of a chat may hold beside text.
    chat_media: tuple[Media, ...] = ()
    #: Parameters beyond those that the pipeline class names itself.
    params: frozenset[str] = frozenset()
    #: Parameters that each task, or the settings, must give: name -> an example.
    required: tuple[tuple[str, str], ...] = ()
    #: Where the parameters of ``generate`` go: into the call beside the others, or only into ``generate_kwargs``.
    generation: Literal["call", "generate_kwargs"] | None = None
    #: Whether one input becomes several items, which batch with those of others.
    chunks: bool = False
    #: What an item's cost counts.
    cost: Literal["tokens", "pixels", "frames", "samples", "nothing"] = "tokens"
    company: Company = "any length"
    #: Parameters that a batch's items must have in common, beside those of the forward pass: the pipeline reads them
    #: of the first item only.
    group_by: tuple[str, ...] = ()
    #: Which parts of the result are no JSON, and what they become.
    objects: str = ""
    #: Where a result is audio, the key of its samples, beside ``sampling_rate``. Nothing else is ever taken for audio:
    #: a mapping of these two keys may come from a producer.
    audio_key: str | None = None
    #: Returns the class, in ``models/quirks``, that says where it differs from the plain way.
    quirks: Callable[[], type[base.Quirks]] = lambda: base.Quirks
    #: The pipeline class where it is ours; None where it is that of transformers.
    own: OwnPipeline | None = None
    #: Whether it runs a model of transformers.
    has_model: bool = True
    #: Python packages it takes beyond pipeq's own.
    needs: tuple[str, ...] = ()
    #: Why its batches are not compared with transformers' own answers in the tests; empty where they are.
    untested: str = ""
    #: What else a user should know.
    note: str = ""
    aliases: tuple[str, ...] = ()

    def missing(self) -> tuple[str, ...]:
        """The packages it takes that are not installed here."""
        return tuple(name for name in self.needs if find_spec(name) is None)
