"""ROPE: rotary positions whose frequencies depend on the longest row of a batch, or on rows of earlier batches.

transformers chooses them by the largest position in the batch: ``longrope`` (Phi-3) has one set for short rows and one
for long rows; ``dynamic`` scales them to the length, and keeps them until a row is short again. So a text would be read
differently beside or after a text longer than those that the model was trained on.
"""

from __future__ import annotations

from typing import Any


class Rope:
    """The rotary positions of one model."""

    def __init__(self, model: Any) -> None:
        kinds = {module: _kinds(module) for module in model.modules()}
        #: Number of tokens, including generated ones, up to which other rows make no difference; None if they never do.
        self.limit = min((limit for module, found in kinds.items() if found for limit in _limits(module)), default=None)
        self._dynamic = [module for module, found in kinds.items() if any("dynamic" in kind for kind in found)]

    def forget(self) -> None:
        """Restores the frequencies of short rows; a longer row scales them again."""
        for module in self._dynamic:
            for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
                prefix = name.removesuffix("max_seq_len_cached")
                before = getattr(module, f"{prefix}original_inv_freq", None)
                if before is not None and getattr(module, name) != module.original_max_seq_len:
                    setattr(module, name, module.original_max_seq_len)
                    module.register_buffer(f"{prefix}inv_freq", before.to(before.device), persistent=False)


def _kinds(module: Any) -> list[str]:
    """The kinds of positions of a module that depend on other rows."""
    kinds = getattr(module, "rope_type", None)
    found = list(kinds.values()) if isinstance(kinds, dict) else [kinds]
    return [kind for kind in found if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope")]


def _limits(module: Any) -> list[int]:
    parameters = getattr(module.config, "rope_parameters", None) or {}
    nested = [one for one in parameters.values() if isinstance(one, dict)]
    found = [one.get("original_max_position_embeddings") for one in (parameters, *nested)]
    found.append(getattr(module, "original_max_seq_len", None))
    return [int(one) for one in found if isinstance(one, int)]
