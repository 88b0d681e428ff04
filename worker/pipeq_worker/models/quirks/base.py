"""The default quirks: the three steps of a transformers pipeline. Other quirks override what differs."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
import transformers
from pipeq.contract.errors import ErrorCode, PipeqError
from transformers.pipelines.base import ChunkPipeline, pad_collate_fn
from transformers.pipelines.pt_utils import PipelineIterator

from pipeq_worker.models import footprint, pinned, tables
from pipeq_worker.models.call import SOLO, Call
from pipeq_worker.models.foreseen import NOTHING, Foreseen
from pipeq_worker.models.quirks.rope import Rope

#: Features that transformers pads along their second dimension (pipelines/base.py: ``_pad``).
PADDED = frozenset(
    "input_ids attention_mask token_type_ids special_tokens_mask offset_mapping p_mask input_values".split()
)
#: Features of an item that is text and nothing else.
TEXT = frozenset("input_ids attention_mask token_type_ids special_tokens_mask offset_mapping is_last".split())
#: An image patch of this many pixels counts as one token (ViT's 16 x 16).
PATCH_PIXELS = 256
#: This many frames of a mel spectrogram count as one token (Whisper's encoder halves 100 frames a second).
FRAMES_PER_TOKEN = 2
#: Bytes of a number in JSON, and of Python's object for it, for each byte of a float32.
JSON_FACTOR = 14
#: This many samples count as one token (wav2vec2's 20 ms at 16 kHz).
SAMPLES_PER_TOKEN = 320


class Quirks:
    """The default. ``pipe`` is always the calling thread's own copy of the pipeline."""

    #: ``[param_limits] max_scaled_pixels``.
    max_scaled_pixels = 2**25
    #: ``[param_limits] max_labels``.
    max_labels = 1000
    #: Most tokens of one item, and most bytes of its forward pass: see :meth:`bound`.
    most_tokens, most_bytes = footprint.MOST_TOKENS, float(2**32)
    #: Whether ``truncation`` cuts a text at the most tokens, if the tokenizer itself has no limit.
    cuts = True
    #: Whether a text without a single token is an error.
    needs_tokens = True
    #: Whether features of different lengths are padded to the longest; if not, only equal shapes share a batch.
    pads = True

    def __init__(self, pipe: transformers.Pipeline) -> None:
        self.limit = tables.position_limit(pipe.model)
        self.tokens = tables.token_limit(pipe.model)
        self.rope = Rope(pipe.model)
        self.footprint = footprint.of_model(pipe.model)
        tokenizer = pipe.tokenizer
        if tokenizer is not None and tokenizer.pad_token_id is None:
            # Without a padding token nothing could be padded. Any token will do, because the mask hides it.
            eos = tokenizer.eos_token_id
            if eos is None:
                self.pads = False
                tokenizer.pad_token_id = 0
            else:
                tokenizer.pad_token_id = eos
                if getattr(pipe.model.config, "pad_token_id", None) is None:
                    # GPT-2's classifiers refuse a batch without a padding token, and find the last token of a text by
                    # it.
                    pipe.model.config.pad_token_id = eos

    def bound(self, pipe: transformers.Pipeline, most_tokens: int | None, most_bytes: int | None) -> None:
        """Sets the largest item: ``max_input_tokens`` and ``max_item_bytes``, or the limits of this model.

        Call it once, before anything is prepared.
        """
        self.most_bytes = most_bytes or footprint.default_bytes(pipe.device)
        if most_tokens is None:
            self.most_tokens = max(1, min(footprint.MOST_TOKENS, self.footprint.most(self.most_bytes)))
        else:
            self.most_tokens = most_tokens
            self.most_bytes = max(self.most_bytes, self.footprint.of(most_tokens))
        tokenizer = pipe.tokenizer
        if self.cuts and tokenizer is not None:
            least = self.most_tokens if self.limit is None else min(self.limit, self.most_tokens)
            tokenizer.model_max_length = min(tokenizer.model_max_length, least)

    def call_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments for ``pipe._sanitize_parameters``: those that ``pipe(x, **params)`` would pass.

        Raises:
            PipeqError: ``invalid_params``.
        """
        return params

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        """Returns the argument of ``pipe.preprocess`` for one input: decoded media, text, or an object of them."""
        return value

    def preprocess(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Iterator[Mapping[str, Any]]:
        """Yields the features of one input's items: one item, or one for each chunk."""
        made = pipe.preprocess(self.call_input(pipe, value, call.params), **call.preprocess)
        yield from made if isinstance(pipe, ChunkPipeline) else (made,)

    def foresee(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Foreseen:
        """What one decoded input becomes, beyond what is counted while it is made."""
        return NOTHING

    def json_factor(self, call: Call) -> int:
        """How many bytes each byte of the tensors in an output takes at most, once it is a result."""
        return 1

    def forward(self, pipe: transformers.Pipeline, features: list[Mapping[str, Any]], call: Call) -> list[Any]:
        """Runs features of one group. Returns each item's output as if it had run alone."""
        if len(features) == 1:
            # A shallow copy, because forward passes remove entries from their argument.
            return [pipe.forward(copy.copy(features[0]), **call.forward)]
        # The same choice of parts as in transformers' own Pipeline.get_iterator.
        collate = pad_collate_fn(pipe.tokenizer, pipe.feature_extractor or pipe.image_processor)
        batch = pipe.forward(pinned.on_device(collate(features), pipe.device), **call.forward)
        if "mems" in batch:
            # XLNet's memory has its batch in another dimension, and nothing reads it.
            batch = {name: one for name, one in batch.items() if name != "mems"}
        outputs = list(PipelineIterator([batch], lambda output: output, {}, loader_batch_size=len(features)))
        padded = max((one["input_ids"].shape[1] for one in features if "input_ids" in one), default=0)
        return [
            self.trim(pipe, output, one, padded, call.forward) for output, one in zip(outputs, features, strict=True)
        ]

    def postprocess(self, pipe: transformers.Pipeline, outputs: list[Any], call: Call) -> Any:
        """Turns the outputs of one input's items, in order, into its result."""
        return pipe.postprocess(outputs if isinstance(pipe, ChunkPipeline) else outputs[0], **call.postprocess)

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]] | None:
        """A tiny input and parameters for the warm-up; None to make one from the media of the task type's fields."""
        return None

    def check_features(
        self, pipe: transformers.Pipeline, features: Mapping[str, Any], forward: Mapping[str, Any]
    ) -> None:
        """Raises ``invalid_input`` for no tokens, and for more tokens than the model's positions or the memory allow.

        On a GPU, too many tokens for the positions would not fail alone, nor a token that the model does not know: they
        kill the CUDA context. Too many for the memory may end the process.
        """
        tokens = features.get("input_ids")
        self._check_tokens(features)
        if self.needs_tokens and isinstance(tokens, torch.Tensor) and not tokens.shape[-1]:
            raise PipeqError(
                ErrorCode.INVALID_INPUT, "the text is empty, or holds nothing that the model's tokenizer knows"
            )
        self.check_length(
            "the text",
            footprint.longest(features),
            ", or cut it with the parameter truncation=true where the pipeline has it",
        )

    def _check_tokens(self, features: Mapping[str, Any]) -> None:
        """Raises ``inference_failed`` for a token without an embedding, as a tokenizer of another model makes them.

        Beside a picture or a sound, a token beyond the embeddings may be its place, which the model fills in.
        """
        tokens = features.get("input_ids")
        if self.tokens is None or not isinstance(tokens, torch.Tensor) or not tokens.numel() or features.keys() - TEXT:
            return
        highest = int(tokens.max())
        if highest >= self.tokens:
            raise PipeqError(
                ErrorCode.INFERENCE_FAILED,
                f"the tokenizer makes token {highest} of this text, and the model knows {self.tokens}, from 0: they do "
                "not belong together",
            )

    def check_length(self, what: str, tokens: int, more: str = "") -> None:
        """Raises ``invalid_input`` if a text is too long.

        Args:
            what: the text, in words.
            tokens: its length.
            more: what else the producer may do about it.
        """
        if self.limit is not None and tokens > self.limit:
            raise PipeqError(
                ErrorCode.INVALID_INPUT, f"{what} is {tokens} tokens, the model takes {self.limit}: shorten it{more}"
            )
        if tokens > self.most_tokens:
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"{what} is {tokens} tokens, beyond the {self.most_tokens} that this pipeline takes "
                f"(`max_input_tokens` of the pipeline in the worker's settings): shorten it{more}",
            )

    def rows(self, forward: Mapping[str, Any]) -> int:
        """Number of rows of a forward pass that an item becomes: its beams, or its sequences."""
        return 1

    def cost(self, features: Mapping[str, Any]) -> int:
        """Cost of the item in a forward pass, in tokens or their equivalent."""
        if (tokens := features.get("input_ids")) is not None:
            return max(1, tokens.shape[-1])
        if (frames := features.get("input_features")) is not None:
            return max(1, frames.shape[-1] // FRAMES_PER_TOKEN)
        if (samples := features.get("input_values")) is not None:
            return max(1, samples.shape[-1] // SAMPLES_PER_TOKEN)
        for value in features.values():
            if isinstance(value, torch.Tensor) and value.ndim >= 4:
                return max(1, value[0].numel() // (3 * PATCH_PIXELS))
        return 1

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        """Items with equal groups may share a batch; :data:`SOLO` means that the item must run alone."""
        tokens = features.get("input_ids")
        if isinstance(tokens, torch.Tensor) and not tokens.shape[-1]:
            return SOLO  # it would be padding only, and a model's output for that depends on the rest of the batch
        own = signature(features, PADDED if self.pads else frozenset())
        if self.rope.limit is None or own == SOLO or not isinstance(tokens, torch.Tensor):
            return own
        length = tokens.shape[-1]
        return (own, length if self.reach(length, forward) > self.rope.limit else 0)

    def reach(self, tokens: int, forward: Mapping[str, Any]) -> int:
        """The last position that an item of ``tokens`` tokens may reach in its forward pass."""
        return tokens

    def trim(
        self,
        pipe: transformers.Pipeline,
        output: Any,
        features: Mapping[str, Any],
        padded: int,
        forward: Mapping[str, Any],
    ) -> Any:
        """Undoes what the batch's padding did to one item's output.

        Args:
            pipe: the calling thread's copy of the pipeline.
            output: the model's output for the item, with a leading dimension of 1.
            features: the item's own features, unpadded.
            padded: length to which the batch was padded, in the second dimension.
            forward: the parameters of the forward pass.
        """
        return output

    def alone(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        """Calls the pipeline as a user of transformers would. A batch must give the same answer."""
        return pipe(value, **params)

    def result(self, result: Any, value: Any, params: Mapping[str, Any]) -> Any:
        """The result of a task with one input, if ``pipe(x)`` has another form than ``pipe([x])[0]``."""
        return result


def signature(features: Mapping[str, Any], padded: frozenset[str]) -> Hashable:
    """What must be equal for features to be collated: their names, types, and the shapes that cannot be padded."""
    parts: list[Hashable] = []
    for key in sorted(features):
        value = features[key]
        if not isinstance(value, torch.Tensor):
            parts.append((key, type(value).__name__))
            continue
        if value.ndim and value.shape[0] != 1:
            return SOLO  # an image that became several, for instance, which transformers would split wrongly
        shape = tuple(value.shape[2:] if key in padded and value.ndim >= 2 else value.shape)
        parts.append((key, str(value.dtype), value.ndim, shape))
    return tuple(parts)
