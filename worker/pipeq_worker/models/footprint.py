"""PREPARE of texts: estimates the memory that the forward pass of one item takes, before it runs.

    the model's configuration -> bytes a token, a pair of tokens, a token that generate keeps -> most tokens of an item

A message of 256 KB holds 60,000 to 200,000 tokens, and attention compares each pair of them. If a model has a table of
positions, the table bounds the length; T5, VITS, Llama or Mamba have none, or one of a hundred thousand. The numbers
are upper estimates of what torch's profiler measures for transformers 5.23 (docs/decisions/input-tokens.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers

#: Most tokens of an item if the settings give no limit and memory would allow more, because a CPU takes minutes for
#: them.
MOST_TOKENS = 32_768
_HEADS = (
    "num_attention_heads encoder_attention_heads decoder_attention_heads num_heads n_head n_heads attention_heads"
).split()
#: Bytes for each head and pair of tokens if attention is not fused: scores, masks and their softmax, in float32.
_EAGER = 5 * 4
_EAGER_OF = {"vits": 10 * 4, "deberta": 7 * 4, "deberta-v2": 7 * 4}
#: Bytes for each pair of tokens if attention is fused: masks of a bidirectional model; a causal one usually has none.
_MASKS, _CAUSAL = 16, 4
#: Models that declare their attention as fused although it is not.
_NOT_FUSED = frozenset({"falcon"})
#: Models whose memory grows linearly with the length of the text, not with its square.
_NOT_SQUARE = frozenset(
    "longformer led big_bird bigbird_pegasus longt5 reformer fnet nystromformer canine perceiver funnel rwkv xlstm "
    "mamba mamba2 falcon_mamba".split()
)


@dataclass(frozen=True)
class Footprint:
    """Bytes that a model takes in addition to its weights."""

    #: For each pair of tokens that one row reads together.
    square: float
    #: For each token that a row reads.
    linear: float
    #: For each token that a row keeps while it generates.
    kept: float
    #: Whether an encoder reads the input once, for all rows of ``generate``.
    encodes: bool = False

    def of(self, tokens: int, new: int = 0, rows: int = 1) -> float:
        """Bytes that one item takes.

        Args:
            tokens: number of tokens that it reads.
            new: number of tokens that it may generate.
            rows: number of beams or sequences, each of which reads and generates separately.
        """
        reading = tokens * (tokens * self.square + self.linear) * (1 if self.encodes else rows)
        return reading + rows * (tokens + new) * self.kept

    def most(self, most_bytes: float) -> int:
        """Most tokens of an item that generates nothing."""
        linear = self.linear + self.kept
        if not self.square:
            return int(most_bytes / linear) if linear else MOST_TOKENS
        return int((math.sqrt(linear**2 + 4 * self.square * most_bytes) - linear) / (2 * self.square))


def of_model(model: Any) -> Footprint:
    """The footprint of a loaded model: the largest of its parts' footprints."""
    parts = [one for one in model.modules() if isinstance(one, transformers.PreTrainedModel)] or [model]
    configs = list({id(one.config): one.config for one in parts if getattr(one, "config", None) is not None}.values())
    biased = any(name.endswith("relative_attention_bias") for name, _ in model.named_modules())
    item = getattr(getattr(model, "dtype", None), "itemsize", 4)
    encodes = bool(getattr(model.config, "is_encoder_decoder", False))
    causal = model.can_generate() and not encodes
    kept = max((_kept(config) for config in configs), default=0) * item if model.can_generate() else 0
    return Footprint(
        square=max((_square(config, biased=biased, causal=causal) for config in configs), default=0),
        linear=max((_linear(config) for config in configs), default=0) * item,
        kept=kept,
        encodes=encodes,
    )


def default_bytes(device: torch.device) -> float:
    """Bytes that one item may take if the settings give no limit. A GPU with less free memory fails that item alone."""
    if device.type == "cuda":
        return max(2**32, torch.cuda.get_device_properties(device).total_memory / 4)
    return 2**32


def longest(features: Any) -> int:
    """Number of tokens of the longest text in an item's features, at any depth of lists and mappings."""
    return max(_lengths(features), default=0)


def _lengths(features: Any) -> Iterator[int]:
    if isinstance(features, Mapping | transformers.BatchEncoding):
        for name, value in features.items():
            if name in ("input_ids", "decoder_input_ids") and isinstance(value, torch.Tensor) and value.ndim:
                yield value.shape[-1]
            else:
                yield from _lengths(value)
    elif isinstance(features, list | tuple):
        for value in features:
            if isinstance(value, Mapping | transformers.BatchEncoding | list | tuple):
                yield from _lengths(value)


def _numbers(config: Any, *names: str) -> float:
    """The largest number that a configuration has under these names, or 0; a list has one entry for each layer."""
    found: list[float] = [0]
    for name in names:
        value = getattr(config, name, None)
        found += [
            one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, int | float)
        ]
    return max(found)


def _square(config: Any, *, biased: bool, causal: bool) -> float:
    kind = getattr(config, "model_type", "")
    heads = _numbers(config, *_HEADS)
    if kind in _NOT_SQUARE or not heads:
        return 0
    fused = getattr(config, "_attn_implementation", None) not in (None, "eager")
    if not fused or biased or kind in _NOT_FUSED:
        return heads * _EAGER_OF.get(kind, _EAGER)
    return _CAUSAL if causal else _MASKS


def _linear(config: Any) -> float:
    """Numbers for each token: inputs, outputs and intermediate values of a layer, and the states of a state space."""
    width = _numbers(config, "hidden_size", "d_model", "n_embd")
    inner = _numbers(config, "intermediate_size", "d_ff", "ffn_dim", "encoder_ffn_dim", "n_inner") or 4 * width
    states = _numbers(config, "state_size", "ssm_state_size", "mamba_d_state")
    if states and not transformers.utils.import_utils.is_mamba_ssm_available():
        heads, chunk = _numbers(config, "num_heads", "mamba_n_heads"), _numbers(config, "chunk_size")
        # Without its own kernels a state space model stores its states: Mamba for each channel, Mamba 2 for each head
        # and pair of tokens in a chunk.
        states *= 4 * inner if not (heads and chunk) else heads * chunk
    return 3 * inner + 8 * width + states


def _kept(config: Any) -> float:
    """Numbers that attention keeps for each token: keys and values of all layers."""
    layers = _numbers(config, "num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_layers", "n_layer")
    heads = _numbers(config, *_HEADS)
    width = _numbers(config, "hidden_size", "d_model", "n_embd")
    if not heads or getattr(config, "model_type", "") in _NOT_SQUARE:
        return 0
    kept_heads = _numbers(config, "num_key_value_heads") or heads
    return 2 * layers * kept_heads * (_numbers(config, "head_dim", "d_kv") or width / heads)
