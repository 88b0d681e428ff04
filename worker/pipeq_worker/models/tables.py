"""TABLES: how many rows a model's learned tables have: positions and tokens. Needs torch.

A CPU raises for an index beyond a table. On a GPU the kernel that looks it up fails an assertion, after which the whole
process is unusable: so indices are compared with these sizes before a kernel sees them.
"""

from __future__ import annotations

from typing import Any

import torch


def position_limit(model: Any) -> int | None:
    """Most tokens of a model with a learned table of positions; None if positions are computed."""
    names = ("position_embeddings", "wpe", "embed_positions")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and name.rsplit(".", 1)[-1] in names:
            # RoBERTa and related models start counting after their padding index, OPT and BART at an offset.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - getattr(module, "offset", first))
    return None


def token_limit(model: Any) -> int | None:
    """Number of tokens that a model has embeddings for; None if it does not say so."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return int(table.num_embeddings) if isinstance(table, torch.nn.Embedding) else None
