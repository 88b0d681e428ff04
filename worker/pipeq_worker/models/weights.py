"""Weights that a checkpoint lacks: transformers fills them with random numbers, here they stop the start.

    models.load -> watched(): transformers loads a model and reports on it -> lacking(): what the answers would read

Its pipelines load models themselves and hand the report to the log alone, so it is taken on its way there.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import modeling_utils
from transformers.integrations import peft

#: Modules of transformers that report on a load, by this function's name: one a model, and one an adapter.
_REPORTERS, _REPORT = (modeling_utils, peft), "log_state_dict_report"
_ONE_AT_A_TIME = threading.Lock()
#: Absent from many good checkpoints. The first two are read in training alone (facebook/wav2vec2-base-960h and most
#: vision transformers lack them), the others are counted or computed, not trained.
_NEEDLESS = re.compile(
    r"(^|\.)(masked_spec_embed|mask_token"
    r"|num_batches_tracked|position_ids|token_type_ids|relative_position_index|inv_freq|empty_weight)$"
)
#: Task types that read a model's rows of tokens, never the pooler that is trained for something else; RoBERTa's
#: checkpoints, for instance, have none.
_NO_POOLER = frozenset({"feature-extraction", "text-embedding"})
_POOLER = re.compile(r"(^|\.)pooler\.")
#: Names of modules whose weights are a formula.
_COMPUTED = "Sinusoidal"
#: Weights that a sentence names.
_SHOWN = 6


@dataclass(frozen=True)
class Report:
    """What transformers says of one load."""

    model: torch.nn.Module
    missing: frozenset[str]
    #: Name -> its shape in the checkpoint, and in the model.
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


@contextmanager
def watched() -> Iterator[list[Report]]:
    """Collects the reports of every model, and of every adapter, that is loaded inside."""
    reports: list[Report] = []
    with _ONE_AT_A_TIME:
        originals = [getattr(module, _REPORT) for module in _REPORTERS]

        def report(*args: Any, **kwargs: Any) -> None:
            model = kwargs["model"] if "model" in kwargs else args[0]
            info = kwargs["loading_info"]
            sizes = {name: (tuple(theirs), tuple(ours)) for name, theirs, ours in info.mismatched_keys}
            reports.append(Report(model, frozenset(info.missing_keys), sizes))
            originals[0](*args, **kwargs)

        try:
            for module in _REPORTERS:
                setattr(module, _REPORT, report)
            yield reports
        finally:
            for module, original in zip(_REPORTERS, originals, strict=True):
                setattr(module, _REPORT, original)


def lacking(reports: list[Report], models: Iterable[Any], task: str) -> list[str]:
    """The weights of loaded models that the answers read and that no checkpoint brought, sorted.

    Args:
        reports: as :func:`watched` collected them.
        models: what the pipeline runs; reports on others, given up on the way, do not count.
        task: the task type.
    """
    parts = {id(part) for model in models if isinstance(model, torch.nn.Module) for part in model.modules()}
    names: set[str] = set()
    for one in reports:
        if id(one.model) in parts:
            names |= {name for name in one.missing if _is_read(one.model, name, task)} | one.mismatched.keys()
    return sorted(names)


def shapes(reports: list[Report]) -> str:
    """The weights of another shape than the model's, in words; empty where there are none."""
    found = {name: sizes for one in reports for name, sizes in one.mismatched.items()}
    listed = [f"{name} is {list(theirs)}, not {list(ours)}" for name, (theirs, ours) in sorted(found.items())]
    return shown(listed)


def shown(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _is_read(model: torch.nn.Module, name: str, task: str) -> bool:
    if _NEEDLESS.search(name) or (task in _NO_POOLER and _POOLER.search(name)):
        return False
    where, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(where)
    except AttributeError:
        return True
    if _COMPUTED in type(module).__name__:
        return False
    # An adapter brought a copy of the whole module: PEFT's modules_to_save, a classifier for instance.
    copies = getattr(module, "modules_to_save", None) or {}
    return not any(hasattr(copy, leaf) for copy in dict(copies).values())
