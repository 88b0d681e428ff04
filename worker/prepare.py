"""PREPARE: a task's decoded inputs -> items, in CPU threads. Before: decode. After: batch."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch

from producers.errors import PipeqError
from worker.quirks import SOLO
from worker.work import Item, Work

#: What an item's Python objects take beside its tensors, about, in bytes.
OBJECT_BYTES = 4096


def items(work: Work) -> Iterator[Item]:
    """Tokenizes, extracts features, cuts chunks: one item at a time, so that a long audio is never there as a whole.

    Raises:
        PipeqError: ``invalid_input`` or ``invalid_params``, naming the input.
    """
    pipeline = work.pipeline
    assert pipeline is not None
    forward_params = pipeline.call_params(work.params)
    shared = (pipeline.name, forward_params.forward_key)
    for index, one in enumerate(work.inputs):
        chunks = pipeline.preprocess(one.call_value, work.params)
        for chunk, features in enumerate(_located(chunks, f"inputs[{index}]" if work.is_list else "")):
            own: Hashable = pipeline.quirks.group(features, forward_params.forward)
            yield Item(
                work=work,
                index=index,
                chunk=chunk,
                features=features,
                group=(*shared, uuid.uuid4().hex if own == SOLO else own),
                cost=pipeline.quirks.cost(features),
                nbytes=_nbytes(features),
            )


def _located(chunks: Iterator[Mapping[str, Any]], where: str) -> Iterator[Mapping[str, Any]]:
    """Says in an error which of several inputs it is about."""
    try:
        yield from chunks
    except PipeqError as error:
        if not where:
            raise
        raise PipeqError(error.code, f"{where}: {error.message}", error.retryable) from error


def _nbytes(features: Mapping[str, Any]) -> int:
    tensors = sum(value.nbytes for value in features.values() if isinstance(value, torch.Tensor))
    return tensors + OBJECT_BYTES
