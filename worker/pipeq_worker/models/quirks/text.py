"""Quirks of task types with text as input: classification, embeddings, generation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import transformers
from pipeq.contract.errors import ErrorCode, PipeqError
from transformers.utils.chat_template_utils import Chat

from pipeq_worker.models.call import SOLO, Call
from pipeq_worker.models.foreseen import ENTRY_BYTES, HARMLESS_BYTES, NOTHING, Foreseen, chunks
from pipeq_worker.models.own.text2text import TranslationPipeline
from pipeq_worker.models.quirks.base import JSON_FACTOR, Quirks
from pipeq_worker.models.quirks.generation import Generates


class TextClassification(Quirks):
    """``pipe("text")`` wraps a single result in a list; ``pipe(["text"])`` and ``pipe({"text": ...})`` do not."""

    def result(self, result: Any, value: Any, params: Mapping[str, Any]) -> Any:
        return [result] if isinstance(value, str) and "top_k" not in params else result


class TokenClassification(Quirks):
    """A text longer than the model's limit is cut into chunks with ``stride``. A list of words is one input."""

    cuts = False  # its pipeline would cut texts without being asked to

    def foresee(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Foreseen:
        if (stride := call.params.get("stride")) is None:
            return NOTHING
        text, length = value if isinstance(value, str) else " ".join(value), pipe.tokenizer.model_max_length

        def room() -> int:
            return length - pipe.tokenizer.num_special_tokens_to_add()

        return chunks(len(text.encode()), lambda: _tokens(pipe, text), room, stride, length, length)

    def call_params(self, params: dict[str, Any]) -> dict[str, Any]:
        # The pipeline's call adds these, and its preprocessing requires them.
        return {"is_split_into_words": False, "delimiter": None, **params}

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        if isinstance(value, list) and not params.get("is_split_into_words"):
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                "text is a list of words, which needs the parameter is_split_into_words=true and a delimiter",
            )
        return value

    def alone(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        # A list of words must be wrapped in another list.
        return pipe([value], **params)[0] if isinstance(value, list) else pipe(value, **params)


class ZeroShotClassification(Quirks):
    """Each candidate label is a chunk of its own."""

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        if not value:
            raise PipeqError(ErrorCode.INVALID_INPUT, "text is empty")
        return value

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return "warm up", {"candidate_labels": ["a", "b"]}


class FeatureExtraction(Quirks):
    """Returns one row for each token, so rows of padding are cut off."""

    def json_factor(self, call: Call) -> int:
        return 1 if call.params.get("return_tensors") else JSON_FACTOR

    def trim(
        self,
        pipe: transformers.Pipeline,
        output: Any,
        features: Mapping[str, Any],
        padded: int,
        forward: Mapping[str, Any],
    ) -> Any:
        rows, own = output[0], features["input_ids"].shape[1]
        if rows.ndim < 3 or rows.shape[1] != padded:
            return output
        return (rows[:, -own:] if pipe.tokenizer.padding_side == "left" else rows[:, :own],)


class TextEmbedding(Quirks):
    """Returns one vector for each text. It is pooled on the device, so that the rows of tokens never leave it."""


class TextGeneration(Generates):
    """Accepts chats. A batch is padded on the left, and runs until its longest generation ends."""

    needs_tokens = False  # an empty text begins with the model's first token

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        return Chat(value) if isinstance(value, list) else value

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return "warm up", {"max_new_tokens": 2}

    def check_features(
        self, pipe: transformers.Pipeline, features: Mapping[str, Any], forward: Mapping[str, Any]
    ) -> None:
        super().check_features(pipe, features, forward)
        if self.limit is None or pipe.device.type == "cpu":
            return  # a CPU raises at the first token beyond the limit, if it gets that far
        prompt, more = features["input_ids"].shape[-1], self.in_force(forward).get("max_new_tokens")
        if more is not None and prompt + more > self.limit:
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"the prompt is {prompt} tokens, with max_new_tokens={more} beyond the model's {self.limit}: set "
                f"max_new_tokens to {max(self.limit - prompt, 0)} at most, or shorten the prompt",
            )

    def trim(
        self,
        pipe: transformers.Pipeline,
        output: Any,
        features: Mapping[str, Any],
        padded: int,
        forward: Mapping[str, Any],
    ) -> Any:
        own = features["input_ids"].shape[1]
        rows = self.generated(output["generated_sequence"][0, :, padded - own :], own, forward)
        return {
            **output,
            "generated_sequence": rows[None],
            "input_ids": output["input_ids"][:, padded - own :],
        }


class FillMask(Quirks):
    """Each text must have a mask.

    Only the scores at the masks are kept: those of all tokens would take 60 MB for a text, until its task ends.
    """

    def foresee(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Foreseen:
        masks = value.count(pipe.tokenizer.mask_token or "\0")
        entries = masks * (call.postprocess.get("top_k") or 5)
        # Each entry repeats the text.
        kept = entries * (len(value) + ENTRY_BYTES)
        return NOTHING if kept < HARMLESS_BYTES else Foreseen(kept=kept)

    def forward(self, pipe: transformers.Pipeline, features: list[Mapping[str, Any]], call: Call) -> list[Any]:
        mask = pipe.tokenizer.mask_token_id
        return [
            {**output, "logits": output["logits"][:, output["input_ids"][0] == mask].clone()}
            for output in super().forward(pipe, features, call)
        ]

    def postprocess(self, pipe: transformers.Pipeline, outputs: list[Any], call: Call) -> Any:
        output, scores = outputs[0], outputs[0]["logits"]
        tokens = output["input_ids"][0]
        # As the pipeline expects it: scores of each token, of which it reads those of the masks.
        every = scores.new_zeros((1, len(tokens), scores.shape[-1]))
        every[:, tokens == pipe.tokenizer.mask_token_id] = scores
        return super().postprocess(pipe, [{**output, "logits": every}], call)

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        mask = pipe.tokenizer.mask_token
        if mask is None or mask not in value:
            raise PipeqError(
                ErrorCode.INVALID_INPUT, f"text has no mask: put {mask} where a word is missing, as often as you like"
            )
        return value

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return f"warm {pipe.tokenizer.mask_token}", {}


class Text2Text(Generates):
    """An encoder reads a padded batch with its mask; the pipeline cuts off the padding of generated sequences."""

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        params: dict[str, Any] = {"max_new_tokens": 2, "min_length": 0}
        if isinstance(pipe, TranslationPipeline) and hasattr(pipe.tokenizer, "_build_translation_inputs"):
            # This tokenizer requires languages, which tasks bring.
            params |= dict.fromkeys(("src_lang", "tgt_lang"), pipe.tokenizer.src_lang)
        return "warm up", params

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        base = super().group(features, forward)
        # All texts of a batch are generated in one language.
        return SOLO if base == SOLO else (base, features.get("forced_bos_token_id"))


class QuestionAnswering(Quirks):
    """A long context is cut into chunks, each with the mapping of its tokens to characters."""

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        # Padding on the left would shift a text in the model's table of positions.
        self.pads = self.pads and pipe.tokenizer.padding_side == "right"

    def foresee(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Foreseen:
        question, context = str(value.get("question", "")), str(value.get("context", ""))
        length, stride = pipe.chunk_sizes(call.preprocess.get("max_seq_len"), call.preprocess.get("doc_stride"))

        def room() -> int:
            return length - pipe.tokenizer.num_special_tokens_to_add(pair=True) - _tokens(pipe, question)

        entries = min(2 * (call.postprocess.get("top_k") or 1) + 10, length * length)
        return chunks(len(context.encode()), lambda: _tokens(pipe, context), room, stride, length, entries)

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return {"question": "what?", "context": "warm up"}, {}


def _tokens(pipe: transformers.Pipeline, text: str) -> int:
    return len(pipe.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
