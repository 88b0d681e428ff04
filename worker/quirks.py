"""Where a task type differs from the plain way: preprocess, pad, forward, postprocess.

transformers promises that a batch gives the same output as its items alone; these classes keep that promise where it
does not hold by itself. Each says what differs and how it is undone.
"""

from __future__ import annotations

import shutil
from collections.abc import Hashable, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils.chat_template_utils import Chat

from producers.errors import ErrorCode, PipeqError
from worker.pipelines import SOLO

#: Features that transformers pads along their second dimension (pipelines/base.py: ``_pad``).
PADDED = frozenset({"input_ids", "attention_mask", "token_type_ids", "special_tokens_mask", "input_values"})
#: An image patch of this many pixels counts like one token (ViT's 16 x 16).
PATCH_PIXELS = 256
#: A mel spectrogram of this many frames counts like one token (Whisper's encoder halves 100 frames a second).
FRAMES_PER_TOKEN = 2
#: This many samples count like one token (wav2vec2's 20 ms at 16 kHz).
SAMPLES_PER_TOKEN = 320


class Quirks:
    """The plain way. ``pipe`` is always the calling thread's own copy of the pipeline."""

    #: Features of different lengths are padded to the longest; False: only equal shapes share a batch.
    pads = True

    def __init__(self, pipe: transformers.Pipeline) -> None:
        self.limit = _position_limit(pipe.model)
        tokenizer = pipe.tokenizer
        if tokenizer is not None and tokenizer.pad_token_id is None:
            # Without it nothing can be padded; the mask hides whatever is there.
            eos = tokenizer.eos_token_id
            if eos is None:
                self.pads = False
                tokenizer.pad_token_id = 0
            else:
                tokenizer.pad_token_id = eos

    def check_params(self, params: Mapping[str, Any]) -> None:
        """Raises ``invalid_params`` where a required parameter is missing or of the wrong kind."""

    def call_input(self, pipe: transformers.Pipeline, value: Any) -> Any:
        """What ``pipe.preprocess`` takes for one input: decoded media, text, or an object of them."""
        return value

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]] | None:
        """A tiny input and parameters for the warm-up; None for the one made from the fields' media."""
        return None

    def check_features(
        self, pipe: transformers.Pipeline, features: Mapping[str, Any], forward: Mapping[str, Any]
    ) -> None:
        """Raises ``invalid_input`` for more tokens than the model has positions.

        On a GPU such an item would not fail alone: it kills the CUDA context.
        """
        tokens = features.get("input_ids")
        if self.limit is not None and isinstance(tokens, torch.Tensor) and tokens.shape[-1] > self.limit:
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"the text is {tokens.shape[-1]} tokens, the model takes {self.limit}: shorten it"
                ", or cut it with the parameter truncation=true where the pipeline has it",
            )

    def cost(self, features: Mapping[str, Any]) -> int:
        """What the item costs in a forward pass, in tokens or what weighs about as much."""
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
        """Items with equal groups may share a batch; :data:`SOLO` for one that may not."""
        tokens = features.get("input_ids")
        if isinstance(tokens, torch.Tensor) and not tokens.shape[-1]:
            return SOLO  # nothing but padding: what a model makes of that depends on its company
        return _signature(features, PADDED if self.pads else frozenset())

    def trim(
        self,
        pipe: transformers.Pipeline,
        output: Any,
        features: Mapping[str, Any],
        padded: int,
        forward: Mapping[str, Any],
    ) -> Any:
        """Undoes in one item's output what padding the batch did to it.

        Args:
            pipe: the calling thread's copy of the pipeline.
            output: the model's output for the item, with a leading dimension of 1.
            features: the item's own features, unpadded.
            padded: length to which the batch was padded, in the second dimension.
            forward: the parameters of the forward pass.
        """
        return output

    def result(self, result: Any, value: Any, params: Mapping[str, Any]) -> Any:
        """The result of a task with one input, where ``pipe(x)`` wraps it differently from ``pipe([x])[0]``."""
        return result


class TextClassification(Quirks):
    """``pipe("text")`` wraps its single result in a list, ``pipe(["text"])`` and ``pipe({"text": ...})`` do not."""

    def result(self, result: Any, value: Any, params: Mapping[str, Any]) -> Any:
        return [result] if isinstance(value, str) and "top_k" not in params else result


class ZeroShotClassification(Quirks):
    """Each candidate label is a chunk of its own; the labels are a required parameter."""

    def check_params(self, params: Mapping[str, Any]) -> None:
        labels = params.get("candidate_labels")
        valid = isinstance(labels, str) or (isinstance(labels, list) and all(isinstance(x, str) for x in labels))
        if not labels or not valid:
            raise PipeqError(
                ErrorCode.INVALID_PARAMS,
                'zero-shot-classification needs the parameter candidate_labels, for instance ["sports", "politics"]',
            )

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return "warm up", {"candidate_labels": ["a", "b"]}


class FeatureExtraction(Quirks):
    """Returns a row a token: rows of padding are cut off."""

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
    """One vector a text: pooled on the device, so that the rows of tokens never leave it."""


class TextGeneration(Quirks):
    """Takes chats; a batch is padded on the left and runs until its longest generation ends."""

    def call_input(self, pipe: transformers.Pipeline, value: Any) -> Any:
        return Chat(value) if isinstance(value, list) else value

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return "warm up", {"max_new_tokens": 2}

    def check_features(
        self, pipe: transformers.Pipeline, features: Mapping[str, Any], forward: Mapping[str, Any]
    ) -> None:
        super().check_features(pipe, features, forward)
        if self.limit is None or pipe.device.type == "cpu":
            return  # a CPU raises at the first token too many, if it gets that far
        settings = pipe._get_set_generation_params(pipe._prepare_generate_kwargs(dict(forward)))
        prompt, more = features["input_ids"].shape[-1], settings.get("max_new_tokens")
        if more is not None and prompt + more > self.limit:
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"the prompt is {prompt} tokens, with max_new_tokens={more} beyond the model's {self.limit}: set "
                f"max_new_tokens to {max(self.limit - prompt, 0)} at most, or shorten the prompt",
            )

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        length = features["input_ids"].shape[1]
        if not length:
            return SOLO
        base = super().group(features, forward)
        # These count from the beginning of the padded prompt, so only equal prompts mean the same by them.
        return (base, length) if {"max_length", "min_length"} & forward.keys() else base

    def trim(
        self,
        pipe: transformers.Pipeline,
        output: Any,
        features: Mapping[str, Any],
        padded: int,
        forward: Mapping[str, Any],
    ) -> Any:
        own = features["input_ids"].shape[1]
        sequences = output["generated_sequence"][..., padded - own :]
        config = pipe.model.generation_config
        eos = forward.get("eos_token_id", config.eos_token_id)
        pad = forward.get("pad_token_id", config.pad_token_id)
        if "stop_strings" in forward:
            # Ended by a string, a sequence has no end token of its own before the padding.
            eos = None
        ends = _end_of_generation(sequences[0, :, own:], eos, pipe.tokenizer.pad_token_id if pad is None else pad)
        return {
            **output,
            "generated_sequence": sequences[..., : own + ends],
            "input_ids": output["input_ids"][:, padded - own :],
        }


class SpeechRecognition(Quirks):
    """Whisper pads to 30 s by itself; CTC models decode every frame, those of padding too, unless they are cut."""

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        self.whisper = pipe.type == "seq2seq_whisper"
        config = pipe.model.config
        # Group norm mixes padding into every frame, mask or not, so such models only batch equal lengths.
        self.pads = (
            pipe.type == "ctc"
            and getattr(config, "feat_extract_norm", None) == "layer"
            and hasattr(pipe.model, "_get_feat_extract_output_lengths")
        )

    def call_input(self, pipe: transformers.Pipeline, value: np.ndarray[Any, Any]) -> Any:
        # The pipeline empties the dictionary it is given.
        return {"raw": value, "sampling_rate": pipe.feature_extractor.sampling_rate}

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        silence = np.zeros(pipe.feature_extractor.sampling_rate, dtype=np.float32)
        return silence, {"max_new_tokens": 2} if pipe.type.startswith("seq2seq") else {}

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        frames = features.get("input_features")
        if self.whisper and frames is not None and frames.shape[-1] > 3000:
            return SOLO  # long-form decoding slides each item's window by what that item said
        if self.whisper and forward.get("return_timestamps") == "word":
            return SOLO  # in a batch its alignment moves words by a frame of 20 ms
        if forward.get("return_language"):
            return SOLO  # the pipeline reads the language of the batch's first item only
        return super().group(features, forward)

    def trim(
        self,
        pipe: transformers.Pipeline,
        output: Any,
        features: Mapping[str, Any],
        padded: int,
        forward: Mapping[str, Any],
    ) -> Any:
        if not self.pads or features.get("attention_mask") is None:
            return output
        frames = int(pipe.model._get_feat_extract_output_lengths(features["attention_mask"].sum(-1))[0])
        return {**output, "tokens": output["tokens"][:, :frames]}


class DocumentQuestionAnswering(Quirks):
    """Its masks are plain lists that nothing pads, so only items of equal length share a batch."""

    pads = False

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        self.reads_words = "VisionEncoderDecoder" not in str(pipe.model_type)

    def call_input(self, pipe: transformers.Pipeline, value: Any) -> Any:
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

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        from PIL import Image

        words = [["invoice", [0, 0, 100, 100]], ["42", [100, 0, 200, 100]]]
        return {"image": Image.new("RGB", (64, 64)), "question": "what number?", "word_boxes": words}, {}

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        return super().group(features, forward) if self.reads_words else SOLO


def _signature(features: Mapping[str, Any], padded: frozenset[str]) -> Hashable:
    """What must be equal for features to be collated: names, types, and the shapes that are not padded."""
    parts: list[Hashable] = []
    for key in sorted(features):
        value = features[key]
        if not isinstance(value, torch.Tensor):
            parts.append((key, type(value).__name__))
            continue
        if value.ndim and value.shape[0] != 1:
            return SOLO  # an image that became several, for instance: transformers would split it wrongly
        shape = tuple(value.shape[2:] if key in padded and value.ndim >= 2 else value.shape)
        parts.append((key, str(value.dtype), value.ndim, shape))
    return tuple(parts)


def _end_of_generation(generated: torch.Tensor, eos: int | list[int] | None, pad: int) -> int:
    """How many of the generated tokens an item would have had alone.

    Args:
        generated: ``[sequences, tokens]``, filled up with ``pad`` after each sequence's end.
        eos: the end-of-sequence token or tokens; None where sequences end otherwise.
        pad: the padding token.
    """
    length = generated.shape[-1]
    if not generated.numel():
        return length
    # Sequences that ended otherwise: without the padding at their end.
    ends = torch.where((generated != pad).any(-1), length - (generated != pad).flip(-1).int().argmax(-1), 0)
    if eos is not None:
        is_eos = torch.isin(generated, torch.tensor(eos))
        ends = torch.where(is_eos.any(-1), is_eos.int().argmax(-1) + 1, length)
    return int(ends.max())


def _position_limit(model: Any) -> int | None:
    """Most tokens that a model with a learned table of positions takes; None where positions are computed."""
    names = ("position_embeddings", "wpe", "embed_positions")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.rsplit(".", 1)[-1] in names:
            # RoBERTa and its kin count positions from behind their padding index, OPT and BART from an offset.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - getattr(module, "offset", first))
    return None


def _check_word_boxes(boxes: Any) -> None:
    for at, entry in enumerate(boxes if isinstance(boxes, list) else [None]):
        word, box = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(x, int) and 0 <= x <= 1000 for x in box)
        # Models look up a box's width and height: a negative one is no index.
        if not isinstance(word, str) or box is None or not numbers or box[0] > box[2] or box[1] > box[3]:
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"word_boxes[{at}] is not [word, [left, top, right, bottom]] with whole numbers from 0 to 1000, left "
                "not beyond right and top not beyond bottom",
            )


def _tesseract() -> bool:
    return find_spec("pytesseract") is not None and shutil.which("tesseract") is not None
