"""Quirks of task types with several media in one input, and with tables."""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import transformers
from pipeq.contract.errors import ErrorCode, PipeqError
from transformers.pipelines.any_to_any import Chat as AnyChat
from transformers.utils.chat_template_utils import Chat

from pipeq_worker.models import footprint
from pipeq_worker.models.call import SOLO, Call
from pipeq_worker.models.foreseen import NOTHING, Foreseen, chunks
from pipeq_worker.models.quirks.base import Quirks
from pipeq_worker.models.quirks.generation import Generates
from pipeq_worker.models.quirks.vision import picture


class DocumentQuestionAnswering(Quirks):
    """Its masks are plain lists, which nothing pads, so only items of equal length share a batch."""

    pads = False

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        self.reads_words = "VisionEncoderDecoder" not in str(pipe.model_type)

    def foresee(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Foreseen:
        boxes = value.get("word_boxes")
        if not self.reads_words or not isinstance(boxes, list):
            return NOTHING
        text = " ".join(str(one[0]) for one in boxes if isinstance(one, list) and one)
        length = call.preprocess.get("max_seq_len") or pipe.tokenizer.model_max_length
        stride = call.preprocess.get("doc_stride")

        def room() -> int:
            question = _tokens(pipe, str(value.get("question", "")))
            return length - pipe.tokenizer.num_special_tokens_to_add(pair=True) - question

        stride = min(length // 2, 256) if stride is None else stride
        entries = min(call.postprocess.get("top_k") or 1, length * length)
        return chunks(len(text.encode()), lambda: _tokens(pipe, text), room, stride, length, entries)

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        boxes = value.get("word_boxes")
        if boxes is not None:
            _check_word_boxes(boxes)
        elif self.reads_words and value.get("image") is None:
            raise PipeqError(ErrorCode.INVALID_INPUT, "the input has neither an `image` nor `word_boxes`: send one")
        elif self.reads_words and not _tesseract():
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                "reading words off an image takes tesseract, which this worker lacks: send `word_boxes` with the "
                "image, or install the tesseract program and the Python package pytesseract beside the worker",
            )
        return value

    def preprocess(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Iterator[Mapping[str, Any]]:
        try:
            yield from super().preprocess(pipe, value, call)
        except BaseException as error:
            # The tokenizer raises if there is no room for any word, and panics if chunks overlap by more than their
            # length.
            if type(error).__name__ != "PanicException" and "Truncation error" not in str(error):
                raise
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                "the question leaves too little room in max_seq_len tokens for the document's words: shorten it, or "
                "set another max_seq_len or doc_stride",
            ) from error

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        words = [["invoice", [0, 0, 100, 100]], ["42", [100, 0, 200, 100]]]
        return {"image": picture(), "question": "what number?", "word_boxes": words}, {}

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        return super().group(features, forward) if self.reads_words else SOLO


class VisualQuestionAnswering(Generates):
    """Questions of any length share a batch if their images have one shape and the model ignores padding."""

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        # BLIP's decoder reads every token of the question, also padding (its generate makes a mask of ones).
        self.pads = not pipe.model.can_generate()

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        params = {"max_new_tokens": 2} if pipe.model.can_generate() else {}
        return {"image": picture(), "question": "what?"}, params


class ImageTextToText(Generates):
    """A chat with images, or text and images; generated text is cut where it would have ended alone."""

    nested = True

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        # Generation continues at the right end, so padding must be on the left. The pipeline does not set this.
        for tokenizer in (pipe.tokenizer, getattr(pipe.processor, "tokenizer", None)):
            if tokenizer is not None:
                tokenizer.padding_side = "left"

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        if isinstance(value, dict) and "images" not in value:
            value = value["text"]
        return Chat(_with_last_part(value, params)) if isinstance(value, list) else value

    def call(self, pipe: transformers.Pipeline, value: Any, params: dict[str, Any]) -> Any:
        if isinstance(value, dict) and "images" in value:
            return pipe(images=value["images"], text=value["text"], **params)
        return pipe(text=value["text"] if isinstance(value, dict) else value, **params)

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        if getattr(pipe.processor, "chat_template", None) is None:
            # BLIP and similar models, which have no chats; they need an image.
            return {"images": [picture()], "text": "warm up"}, {"max_new_tokens": 2}
        return "warm up", {"max_new_tokens": 2}

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        # Whether the prompt is a chat or a text makes no difference to the model.
        return super().group({key: value for key, value in features.items() if key != "text"}, forward)

    def trim(
        self,
        pipe: transformers.Pipeline,
        output: Any,
        features: Mapping[str, Any],
        padded: int,
        forward: Mapping[str, Any],
    ) -> Any:
        sequences = output["generated_sequence"]
        # A decoder repeats the prompt after its padding; an encoder-decoder returns only the generated text.
        decodes = pipe.model.config.is_encoder_decoder
        repeats = "input_ids" in features and not decodes and sequences.shape[-1] >= padded
        own = features["input_ids"].shape[1] if repeats else 0
        start = padded - own if repeats else 0
        written = sequences[..., start:]
        rows = self.generated(written.reshape(-1, written.shape[-1]), own or int(decodes), forward)
        return {
            **output,
            "generated_sequence": rows.reshape(*written.shape[:-1], rows.shape[-1]),
            "input_ids": output["input_ids"][:, padded - own :] if own else output["input_ids"],
        }


def _with_last_part(chat: list[dict[str, Any]], params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turns the content of a last turn that is to be continued into parts: the pipeline accepts no plain text there."""
    last, goes_on = chat[-1], params.get("continue_final_message")
    if not isinstance(last["content"], str) or not (last["role"] == "assistant" if goes_on is None else goes_on):
        return chat
    return [*chat[:-1], {**last, "content": [{"type": "text", "text": last["content"]}]}]


class AnyToAny(ImageTextToText):
    """Items run alone, because its processors return different things, and pad on different sides."""

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        value = super().call_input(pipe, value, params)
        # transformers has another class of the same name for it.
        return AnyChat(value.messages) if isinstance(value, Chat) else value

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        return SOLO


class TableQuestionAnswering(Generates):
    """Items run alone, because the table is a data frame, which nothing collates."""

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        import pandas as pd

        if not value["query"]:
            raise PipeqError(ErrorCode.INVALID_INPUT, "query is empty")
        return {**value, "table": pd.DataFrame(value["table"])}

    def call(self, pipe: transformers.Pipeline, value: Any, params: dict[str, Any]) -> Any:
        return pipe(self.call_input(pipe, value, params), **params)

    def check_features(
        self, pipe: transformers.Pipeline, features: Mapping[str, Any], forward: Mapping[str, Any]
    ) -> None:
        super().check_features(pipe, features, forward)
        rows = len(features["input_ids"])
        # TAPAS reads the table for all questions in one pass, unless they follow one another.
        if (
            not forward.get("sequential")
            and self.footprint.of(footprint.longest(features), rows=rows) > self.most_bytes
        ):
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"{rows} questions of {footprint.longest(features)} tokens with their table are more than fits into "
                "the bytes of one item (`max_item_bytes` of the pipeline in the worker's settings): send fewer "
                "questions in one input, or set sequential=true",
            )

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        return SOLO

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return {"table": {"a": ["1", "2"]}, "query": "how many ?"}, {}


class Decision(Quirks):
    """Items run alone, because the pipeline itself runs a forward pass for each prompt."""

    def preprocess(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Iterator[Mapping[str, Any]]:
        try:
            yield from super().preprocess(pipe, value, call)
        except ValueError as error:
            # The message names the faulty question.
            raise PipeqError(ErrorCode.INVALID_INPUT, f"the questions cannot be asked: {error}"[:500]) from error

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        return SOLO

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return {"state": "warm up", "questions": {"warm": {"type": "noul", "instructions": "warm?"}}}, {}


def _check_word_boxes(boxes: Any) -> None:
    for at, entry in enumerate(boxes if isinstance(boxes, list) else [None]):
        word, box = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(x, int) and 0 <= x <= 1000 for x in box)
        # Models use a box's width and height as indices, which must not be negative.
        if not isinstance(word, str) or box is None or not numbers or box[0] > box[2] or box[1] > box[3]:
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"word_boxes[{at}] is not [word, [left, top, right, bottom]] with whole numbers from 0 to 1000, left "
                "not beyond right and top not beyond bottom",
            )


def _tokens(pipe: transformers.Pipeline, text: str) -> int:
    """About how many tokens a text has; tokenizers of documents take it only with boxes."""
    backend = getattr(pipe.tokenizer, "backend_tokenizer", None)
    return len(text) if backend is None else len(backend.encode(text, add_special_tokens=False).ids)


def _tesseract() -> bool:
    return find_spec("pytesseract") is not None and shutil.which("tesseract") is not None
