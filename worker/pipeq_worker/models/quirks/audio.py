"""Quirks of task types with audio as input or output."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from pipeq.contract.errors import ErrorCode, PipeqError
from transformers.utils.chat_template_utils import Chat

from pipeq_worker.media.audio import Audio
from pipeq_worker.models.call import SOLO, Call
from pipeq_worker.models.quirks.base import Quirks
from pipeq_worker.models.quirks.generation import Generates
from pipeq_worker.models.quirks.vision import ComparesLabels


def samples(value: Any) -> NDArray[np.float32]:
    """Returns audio as a whole, shape ``(samples,)``."""
    return value.whole() if isinstance(value, Audio) else value


def hiss(pipe: transformers.Pipeline) -> NDArray[np.float32]:
    """A second of noise for the warm-up. Silence would not do, because some models scale by the volume."""
    return (np.random.default_rng(0).standard_normal(pipe.feature_extractor.sampling_rate) * 0.1).astype(np.float32)


#: The key of features that stand for a piece of audio too short for the model.
_TOO_SHORT = "too_short"


class SpeechRecognition(Generates):
    """Whisper pads to 30 s by itself. CTC models decode every frame, so frames of padding are cut off.

    Audio too short for a single frame of a CTC model gives an empty text, without a forward pass: alone the model would
    raise, and in a batch it would decode the padding.
    """

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        self.whisper = pipe.type == "seq2seq_whisper"
        self.ctc = pipe.type.startswith("ctc")
        config = pipe.model.config
        # Group norm mixes padding into every frame, whatever the mask, so only equal lengths share a batch.
        self.pads = (
            pipe.type == "ctc"
            and getattr(config, "feat_extract_norm", None) == "layer"
            and hasattr(pipe.model, "_get_feat_extract_output_lengths")
        )
        tokenizer = pipe.tokenizer
        #: Tokens after the end of a text that are not read as part of it.
        self.fillers = {None} if tokenizer is None else {None, tokenizer.pad_token_id, tokenizer.eos_token_id}
        #: The fewest samples that give one frame.
        self.least = least_samples(pipe) if self.ctc else 0

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        # The pipeline empties the dictionary that it is given.
        return {"raw": samples(value), "sampling_rate": pipe.feature_extractor.sampling_rate}

    def preprocess(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Iterator[Mapping[str, Any]]:
        chunk_s, stride_s = call.preprocess.get("chunk_length_s") or 0, call.preprocess.get("stride_length_s")
        if not chunk_s:
            value = samples(value)
            if value.size < self.least:
                yield {"is_last": True, _TOO_SHORT: True}
                return
            yield from super().preprocess(pipe, value, call)
            return
        # The same cuts as in the pipeline's own preprocessing, but made while the file is decoded, so that an hour of
        # audio is never in memory as a whole.
        rate = pipe.feature_extractor.sampling_rate
        chunk, left, right = self._cuts(pipe, chunk_s, chunk_s / 6 if stride_s is None else stride_s)
        blocks = value.blocks(chunk) if isinstance(value, Audio) else iter([value])
        for start, piece, is_last in windows(blocks, chunk, chunk - left - right):
            own_left = left if start else 0
            if piece.size <= own_left:
                continue
            if piece.size < self.least:
                yield {"is_last": is_last, _TOO_SHORT: True}
                continue
            features = pipe.feature_extractor(
                piece, sampling_rate=rate, return_tensors="pt", return_attention_mask=True
            )
            features = features if pipe.dtype is None else features.to(dtype=pipe.dtype)
            yield {"is_last": is_last, "stride": (piece.size, own_left, 0 if is_last else right), **features}

    def _cuts(self, pipe: transformers.Pipeline, chunk_s: float, stride_s: Any) -> tuple[int, int, int]:
        """Lengths of a chunk, its left stride and its right stride, in samples."""
        rate, unit = pipe.feature_extractor.sampling_rate, pipe._align_to
        left_s, right_s = stride_s if isinstance(stride_s, list) else (stride_s, stride_s)
        chunk, left, right = (round(seconds * rate / unit) * unit for seconds in (chunk_s, left_s, right_s))
        if chunk - left - right < unit or chunk <= left:
            raise PipeqError(
                ErrorCode.INVALID_PARAMS,
                f"chunk_length_s={chunk_s:g} is no longer than its strides ({left_s:g} and {right_s:g} s) together",
            )
        if chunk < self.least:
            raise PipeqError(
                ErrorCode.INVALID_PARAMS,
                f"chunk_length_s={chunk_s:g} is {chunk} samples, and this model hears nothing in less than "
                f"{self.least}: take chunks of some seconds",
            )
        if self.whisper and chunk > pipe.feature_extractor.n_samples:
            window_s = pipe.feature_extractor.n_samples / rate
            raise PipeqError(
                ErrorCode.INVALID_PARAMS,
                f"chunk_length_s={chunk_s:g} is longer than the {window_s:g} s that this model hears at a time: the "
                "rest of each chunk would be lost",
            )
        return chunk, left, right

    def forward(self, pipe: transformers.Pipeline, features: list[Mapping[str, Any]], call: Call) -> list[Any]:
        if _TOO_SHORT not in features[0]:
            return super().forward(pipe, features, call)
        # Features that are too short form a group of their own.
        if pipe.type == "ctc_with_lm":
            nothing = {"logits": torch.zeros(1, 0, pipe.model.config.vocab_size)}
        else:
            nothing = {"tokens": torch.zeros(1, 0, dtype=torch.long)}
        return [{"is_last": one["is_last"], **nothing} for one in features]

    def alone(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        return pipe(self.call_input(pipe, value, params), **params)

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return hiss(pipe), {"max_new_tokens": 2} if pipe.type.startswith("seq2seq") else {}

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        if _TOO_SHORT in features:
            return _TOO_SHORT
        frames = features.get("input_features")
        if self.whisper and frames is not None and frames.shape[-1] > 3000:
            return SOLO  # long-form decoding moves each item's window by that item's own text
        if self.whisper and forward.get("return_timestamps") == "word":
            return SOLO  # in a batch, its alignment moves words by one frame of 20 ms
        if forward.get("return_language"):
            return SOLO  # the pipeline reads only the language of the batch's first item
        settings = self.in_force(forward) if self.generates else {}
        if settings.get("num_return_sequences", 1) > 1:
            return SOLO  # the pipeline takes each sequence for an item
        if settings.get("pad_token_id") not in self.fillers:
            return SOLO  # nothing shows where a text ended, as Whisper takes the end's token off
        if isinstance(settings.get("temperature"), list | tuple):
            # In a batch, one item's second try skips another item's window, and ends the beam search of all items in
            # the next one.
            goes_on = settings.get("return_timestamps") and settings.get("num_beams", 1) > 1
            if goes_on or settings.get("no_speech_threshold") is not None:
                return SOLO
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


def least_samples(pipe: transformers.Pipeline) -> int:
    """The fewest samples that give a frame of a CTC model; 0 if that cannot be found out."""
    second = pipe.feature_extractor.sampling_rate
    least, enough = 1, second
    if not _hears(pipe, enough):
        return 0
    while least < enough:
        middle = (least + enough) // 2
        least, enough = (least, middle) if _hears(pipe, middle) else (middle + 1, enough)
    return least


def _hears(pipe: transformers.Pipeline, count: int) -> bool:
    """Whether ``count`` samples give a frame; the feature extractor may refuse them, too."""
    try:
        made = pipe.feature_extractor(
            np.zeros(count, dtype=np.float32), sampling_rate=pipe.feature_extractor.sampling_rate, return_tensors="pt"
        )
        length = made[pipe.model.main_input_name].shape[1]
        for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
            frames = getattr(pipe.model, name, None) or getattr(getattr(pipe.model, "encoder", None), name, None)
            if frames is not None:
                return bool(torch.as_tensor(frames(torch.tensor([length]))).min() >= 1)
    except (ValueError, RuntimeError, IndexError, AssertionError):
        return False
    return bool(length >= 1)


def windows(
    blocks: Iterator[NDArray[np.float32]], length: int, step: int
) -> Iterator[tuple[int, NDArray[np.float32], bool]]:
    """Cuts a stream of samples into overlapping pieces.

    Args:
        blocks: the samples, shape ``(any,)`` each.
        length: number of samples in a piece; the last one may be shorter.
        step: number of samples from the beginning of one piece to that of the next.

    Yields:
        Where the piece begins, its samples, and whether it is the last.
    """
    start, kept = 0, np.empty(0, dtype=np.float32)
    more = True
    while True:
        pieces, size = [kept], kept.size
        # One sample more than a piece shows whether it is the last piece.
        while more and size <= length:
            block = next(blocks, None)
            more = block is not None
            if block is not None:
                pieces.append(block)
                size += block.size
        kept = np.concatenate(pieces) if len(pieces) > 1 else kept
        yield start, kept[:length], kept.size <= length
        if kept.size <= length:
            return
        start, kept = start + step, kept[step:]


class AudioClassification(Quirks):
    """Padding changes the scores of most of these models, so only equal lengths share a batch."""

    pads = False

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        return samples(value)

    def alone(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        return pipe(samples(value), **params)

    def check_features(
        self, pipe: transformers.Pipeline, features: Mapping[str, Any], forward: Mapping[str, Any]
    ) -> None:
        super().check_features(pipe, features, forward)
        heard, frames = features.get("input_values"), getattr(pipe.model, "_get_feat_extract_output_lengths", None)
        if isinstance(heard, torch.Tensor) and frames is not None and int(frames(torch.tensor(heard.shape[-1]))) < 1:
            raise PipeqError(
                ErrorCode.INVALID_INPUT, f"the audio is {heard.shape[-1]} samples: this model hears nothing as short"
            )

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return hiss(pipe), {}


class ZeroShotAudio(ComparesLabels, AudioClassification):
    """The labels are parameters, and all items of a batch must have the same ones."""

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return super().sample(pipe)[0], {"candidate_labels": ["a", "b"]}


class TextToAudio(Generates):
    """Items run alone, because models pad the shorter items of a batch, and draw their noise for the whole batch."""

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        self.bark = pipe.model.config.model_type == "bark"

    def call_params(self, params: dict[str, Any]) -> dict[str, Any]:
        params = dict(params)
        for name in ("forward_params", "generate_kwargs"):
            if isinstance(params.get(name), dict):
                # A speaker's voice, for instance, is a tensor, which JSON holds as a list of numbers.
                params[name] = {self._name(key): _tensor(value) for key, value in params[name].items()}
        if self.bark and "padding" in (params.get("preprocess_params") or {}):
            raise PipeqError(
                ErrorCode.INVALID_PARAMS,
                "parameter 'preprocess_params.padding' cannot be set by a task: this model's processor pads by itself",
            )
        return params

    def _name(self, parameter: str) -> str:
        """The name of a parameter in this model's ``generate``."""
        # Bark's generate passes max_new_tokens to each of its three models, although the second one computes its own
        # number of tokens. The first model decides the length of the speech.
        return "semantic_max_new_tokens" if self.bark and parameter == "max_new_tokens" else parameter

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        return Chat(value) if isinstance(value, list) else value

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        return SOLO

    def alone(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        return pipe(self.call_input(pipe, value, params), **self.call_params(dict(params)))

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]] | None:
        voice = {"speaker_embeddings": [[0.0] * 512]} if pipe.model.config.model_type == "speecht5" else {}
        generates = pipe.model.can_generate() and not voice
        return "hi", {"forward_params": voice, **({"generate_kwargs": {"max_new_tokens": 4}} if generates else {})}


def _tensor(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, list) and value and not isinstance(value[0], str) else value
