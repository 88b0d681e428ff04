"""TOGETHER: several texts -> a row each, in one call of the tokenizer. Used by transformers_pipeline.py.

Half of what a tokenizer takes for a short text is the same for one text as for many. This is done only for pipelines
whose preparation is nothing else than a call of a fast tokenizer, found out by their methods, and only with parameters
that cut a text but do not pad it. The rows are those of single calls: ``tests/integration/test_together.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import BatchEncoding, FeatureExtractionPipeline, TextClassificationPipeline

from pipeq_worker.models.own.text_embedding import TextEmbeddingPipeline
from pipeq_worker.models.quirks.base import Quirks

#: Methods that do no more for a text than ``self.tokenizer(text, return_tensors="pt", **params)``.
_PLAIN = (
    TextClassificationPipeline.preprocess,
    FeatureExtractionPipeline.preprocess,
    TextEmbeddingPipeline.preprocess,  # without a prompt
)
#: Parameters of these methods that mean the same for each of several texts.
_PARAMS = frozenset({"truncation", "max_length"})
#: Methods of quirks that may see a text, or what was made of it, before it is a row. Only the default ones see no more
#: than names, types and shapes.
_QUIRKS = ("preprocess", "call_input", "check_features", "check_length", "group", "reach", "cost", "rows")


def is_able(pipe: transformers.Pipeline, quirks: Quirks) -> bool:
    """Whether texts of several tasks may be prepared in one call."""
    tokenizer = pipe.tokenizer
    return (
        type(pipe).preprocess in _PLAIN
        and all(getattr(type(quirks), name) is getattr(Quirks, name) for name in _QUIRKS)
        and isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
        and type(tokenizer).__call__ is transformers.PreTrainedTokenizerBase.__call__
        and type(tokenizer).__module__.startswith("transformers.")
    )


def takes(params: Collection[str]) -> bool:
    """Whether texts with these parameters of ``preprocess`` may."""
    return _PARAMS.issuperset(params)


def features(tokenizer: Any, texts: Sequence[str], params: Mapping[str, Any]) -> list[BatchEncoding] | None:
    """What ``tokenizer(text, return_tensors="pt", **params)`` returns for each text, without its ``encodings``.

    Returns:
        None if that cannot be said for sure: each text must then be given to the tokenizer alone.
    """
    data = tokenizer(list(texts), **params).data
    rows: list[dict[str, torch.Tensor]] = [{} for _ in texts]
    for name, lists in data.items():
        if len(lists) != len(rows):
            return None
        for row, numbers in zip(rows, lists, strict=True):
            array = np.array([numbers])
            if array.dtype != np.int64 or not array.size:
                return None
            row[name] = torch.from_numpy(array)
    return [BatchEncoding(row) for row in rows]
