"""WEIGHTS: finds weights that a checkpoint lacks, and lets them stop the start.

transformers fills them with random numbers.

    loading -> watched(): transformers loads a model and reports on it -> lacking(): what the answers would read

The pipelines of transformers load models themselves and pass the report only to the log, so it is intercepted there.
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

#: Modules of transformers that report on loading, with this function: one for models, one for adapters.
_REPORTERS, _REPORT = (modeling_utils, peft), "log_state_dict_report"
_ONE_AT_A_TIME = threading.Lock()
#: Weights that many good checkpoints lack. The first two are read in training only (facebook/wav2vec2-base-960h and
#: most vision transformers lack them); the others are counted or computed, not trained.
_NEEDLESS = re.compile(
    r"(^|\.)(masked_spec_embed|mask_token"
    r"|num_batches_tracked|position_ids|token_type_ids|relative_position_index|inv_freq|empty_weight)$"
)
#: Task types that read a model's token vectors but not its pooler, which is trained for something else. RoBERTa's
#: checkpoints, for instance, lack it.
_NO_POOLER = frozenset({"feature-extraction", "text-embedding"})
_POOLER = re.compile(r"(^|\.)pooler\.")
#: Part of the class names of modules whose weights are computed by a formula.
_COMPUTED = "Sinusoidal"
#: Most weights that an error message names.
_SHOWN = 6


@dataclass(frozen=True)
class Report:
    """What transformers reports about one load."""

    model: torch.nn.Module
    missing: frozenset[str]
    #: Name -> its shape in the checkpoint, and its shape in the model.
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


@contextmanager
def watched() -> Iterator[list[Report]]:
    """Collects the reports on every model and every adapter that is loaded inside the block."""
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
    """Returns, sorted, the weights of loaded models that the answers depend on and that no checkpoint holds.

    Args:
        reports: the reports that :func:`watched` collected.
        models: the models that the pipeline runs; reports on others, discarded during loading, do not count.
        task: the task type.
    """
    parts = {id(part) for model in models if isinstance(model, torch.nn.Module) for part in model.modules()}
    names: set[str] = set()
    for one in reports:
        if id(one.model) in parts:
            names |= {name for name in one.missing if _is_read(one.model, name, task)} | one.mismatched.keys()
    return sorted(names)


def shapes(reports: list[Report]) -> str:
    """Describes the weights whose shape differs from the model's; empty if there are none."""
    found = {name: sizes for one in reports for name, sizes in one.mismatched.items()}
    listed = [f"{name} is {list(theirs)}, not {list(ours)}" for name, (theirs, ours) in sorted(found.items())]
    return shown(listed)


def shown(names: list[str]) -> str:
    """The first few names, and the number of the others."""
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
    # An adapter may bring a copy of the whole module: PEFT's modules_to_save, a classifier for instance.
    copies = getattr(module, "modules_to_save", None) or {}
    return not any(hasattr(copy, leaf) for copy in dict(copies).values())
