"""Applies a sentence-transformers checkpoint's settings to its tokenizer: the longest text, and lower case."""

from __future__ import annotations

from typing import Any

from tokenizers.normalizers import Lowercase, Sequence

from pipeq_worker.models.own.checkpoint import Checkpoint


def set_up(tokenizer: Any, checkpoint: Checkpoint, config: Any) -> None:
    """Changes a tokenizer as sentence-transformers 6.2 does (base/modules/transformer.py, ``__init__``).

    Args:
        tokenizer: the model's tokenizer.
        checkpoint: the content of the checkpoint's files.
        config: the model's configuration.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if "model_max_length" not in checkpoint.tokenizer_args:
        if checkpoint.max_seq_length is not None:
            tokenizer.model_max_length = checkpoint.max_seq_length
        elif positions is not None and positions > 0:
            tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    if checkpoint.do_lower_case and tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        there = [] if backend.normalizer is None else [backend.normalizer]
        # If the tokenizer lowers case already, doing it twice makes no difference.
        backend.normalizer = Sequence([Lowercase(), *there])
