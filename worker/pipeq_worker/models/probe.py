"""PROBE: tests, when a model is loaded, whether padding changes its answers.

Most models ignore padding because of its mask. Some do not: convolutions over tokens (ConvBERT), Fourier transforms
(FNet) and pooling (Funnel, CANINE) mix padding in, and recurrent models (RWKV) read it. No documentation lists them, so
the model is tested with a short text, alone and beside a long one. If its answer changes, only items of equal length
share a batch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch

from pipeq_worker.models.calls import overlaid
from pipeq_worker.models.transformers_pipeline import TransformersPipeline

logger = logging.getLogger(__name__)

#: Largest differences, as a share of the output's largest number, that count as rounding: in full and half precision.
ROUNDING, ROUNDING_HALF = 5e-4, 0.1
#: Number of tokens that are generated for the comparison.
TOKENS = 8


def padding_changes(pipeline: TransformersPipeline) -> bool:
    """Whether a text's output depends on the padding that a longer text in its batch causes.

    False if this cannot be tested (no tokens, or text generated in half precision).
    """
    half = pipeline._pipe.model.dtype != torch.float32
    value, params = pipeline.sample()
    merged = overlaid(pipeline.settings.params, params)
    if pipeline.task_type.generation is not None:
        if half or "max_new_tokens" not in params:
            return False
        fixed = {"max_new_tokens": TOKENS, "do_sample": False}
        merged = overlaid(merged, fixed | ({"num_beams": 1} if pipeline.task_type.generation == "call" else {}))
    call = pipeline.call(merged)
    short, long = (next(iter(pipeline.preprocess(one, call))) for one in (value, _longer(value)))
    if not isinstance(short.get("input_ids"), torch.Tensor) or short["input_ids"].shape == long["input_ids"].shape:
        return False
    if pipeline.quirks.group(short, call.forward) != pipeline.quirks.group(long, call.forward):
        return False  # they never share a batch
    (alone,) = pipeline.forward([copy.copy(short)], call)
    beside, _ = pipeline.forward([copy.copy(short), copy.copy(long)], call)
    limit = ROUNDING_HALF if half else ROUNDING
    return any(_moved(beside[name], alone[name], limit, pipeline) for name in _tensors(alone))


def _tensors(output: Any) -> list[str]:
    entries = output.items() if isinstance(output, Mapping) else ()
    return [name for name, one in entries if isinstance(one, torch.Tensor)]


def _moved(beside: torch.Tensor, alone: torch.Tensor, limit: float, pipeline: TransformersPipeline) -> bool:
    if beside.ndim > 1 and beside.shape[1] > alone.shape[1]:
        # The output has one row for each token; rows of padding are dropped.
        own = alone.shape[1]
        beside = beside[:, -own:] if pipeline._pipe.tokenizer.padding_side == "left" else beside[:, :own]
    if beside.shape != alone.shape:
        return True
    if not alone.is_floating_point():
        return not torch.equal(beside, alone)
    scale = alone.abs().max().clamp(min=1e-6)
    return bool(((beside - alone).abs().max() / scale) > limit)


def _longer(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join([value] * 6)
    if isinstance(value, dict):
        return {name: _longer(one) if isinstance(one, str) else one for name, one in value.items()}
    return value
