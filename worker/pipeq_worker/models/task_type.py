"""The class of a task type, and what its rows may hold. The rows themselves are in ``models/task_types.py``."""

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
    """The kind of value that a field of the input holds."""

    TEXT = "text"
    #: A text, or a list of texts that belongs to one input.
    TEXTS = "texts"
    #: Text, or a list of ``{"role", "content"}`` turns.
    CHAT = "chat"
    IMAGE = "image"
    #: An image, or a list of images that belongs to one input.
    IMAGES = "images"
    AUDIO = "audio"
    VIDEO = "video"
    #: An object of columns, a list of rows, or a reference to CSV.
    TABLE = "table"
    #: Any JSON value, passed on unchanged.
    JSON = "json"

    @property
    def is_bytes(self) -> bool:
        """Whether a plain string is a URI, as in transformers, rather than the value itself."""
        return self in (Media.IMAGE, Media.IMAGES, Media.AUDIO, Media.VIDEO)


#: Parameters of a tokenizer's call that a producer may set.
TOKENIZER_PARAMS = frozenset(
    {"truncation", "padding", "max_length", "add_special_tokens", "pad_to_multiple_of", "padding_side"}
)

#: With which items an item may share a batch: items of any length, only items of the same shape, or none.
Company = Literal["any length", "same shape", "alone"]


@dataclass(frozen=True)
class OwnPipeline:
    """A pipeline class of our own, for a task type that transformers dropped or never had."""

    #: Returns the class, which is in ``models/own``.
    pipeline: Callable[[], type[transformers.Pipeline]]
    #: Returns the class that loads its models: one of transformers' ``AutoModelFor...``, or one of ours like them.
    model: Callable[[], Any]
    #: Model and revision if the settings name none: those of transformers 4.57.6, where it had the task type.
    default: tuple[str, str]
    #: The kind of its inputs, for transformers.
    kind: Literal["text", "image", "multimodal"]


@dataclass(frozen=True)
class TaskType:
    """One row of the table of task types: what the worker needs to know of a task type."""

    name: str
    #: Field name -> the kind of its value.
    fields: dict[str, Media]
    #: The form of the result, in words.
    output: str
    #: The field that a plain value stands for; None if the input must be an object.
    main: str | None = None
    #: Fields that an input may omit.
    optional: frozenset[str] = frozenset()
    #: Media that the turns of a chat may hold beside text.
    chat_media: tuple[Media, ...] = ()
    #: Parameters in addition to those that the pipeline class names itself.
    params: frozenset[str] = frozenset()
    #: Parameters that must be given by each task or by the settings: name -> an example.
    required: tuple[tuple[str, str], ...] = ()
    #: Where parameters of ``generate`` are passed: directly in the call, or only inside ``generate_kwargs``.
    generation: Literal["call", "generate_kwargs"] | None = None
    #: Whether one input becomes several items, which may share batches with items of other inputs.
    chunks: bool = False
    #: The unit of an item's cost.
    cost: Literal["tokens", "pixels", "frames", "samples", "nothing"] = "tokens"
    company: Company = "any length"
    #: Parameters that all items of a batch must share, beside those of the forward pass, because the pipeline reads
    #: them from the first item only.
    group_by: tuple[str, ...] = ()
    #: Parts of the result that are not JSON, and what they are converted to.
    objects: str = ""
    #: If a result is audio, the key of its samples, beside ``sampling_rate``. Nothing else is treated as audio, because
    #: a producer's own mapping may have these two keys.
    audio_key: str | None = None
    #: Returns the class in ``models/quirks`` that says how it differs from other task types.
    quirks: Callable[[], type[base.Quirks]] = lambda: base.Quirks
    #: Our own pipeline; None if transformers has one.
    own: OwnPipeline | None = None
    #: Whether it runs a transformers model.
    has_model: bool = True
    #: Whether preparing an input runs the model, so that it cannot be done in a process without weights.
    prepares_with_model: bool = False
    #: Python packages that it needs beyond pipeq's own.
    needs: tuple[str, ...] = ()
    #: Why the tests do not compare its batches with transformers' own answers; empty if they do.
    untested: str = ""
    #: Anything else that a user should know.
    note: str = ""
    aliases: tuple[str, ...] = ()

    def missing(self) -> tuple[str, ...]:
        """The packages that it needs and that are not installed."""
        return tuple(name for name in self.needs if find_spec(name) is None)
