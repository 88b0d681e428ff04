"""CALL: a task's parameters, sorted once by the step of the pipeline that uses them. Does not import torch.

a task's params -> Pipeline.merge -> Call -> prepare, forward, postprocess of each of its items
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: The group of an item that must run alone.
SOLO = "solo"


@dataclass(frozen=True, eq=False)
class Call:
    """The parameters of one task. All its items share it, on many threads, so it must not be changed."""

    #: The arguments of the pipeline's call: the pipeline's own parameters, overridden by the task's.
    params: Mapping[str, Any] = field(default_factory=dict)
    #: The same parameters as arguments of the pipeline's three steps.
    preprocess: dict[str, Any] = field(default_factory=dict)
    forward: dict[str, Any] = field(default_factory=dict)
    postprocess: dict[str, Any] = field(default_factory=dict)
    #: Rows of calls with equal keys may share a forward pass.
    key: Hashable = None

    def handed_out(self) -> Call:
        """Returns a copy with new dictionaries and lists, for code that may change its arguments."""
        return replace(
            self,
            preprocess=_copied(self.preprocess),
            forward=_copied(self.forward),
            postprocess=_copied(self.postprocess),
        )


def _copied(value: Any) -> Any:
    """Copies dictionaries and lists; tensors and arrays, which may be large, are shared."""
    if type(value) is dict:
        return {name: _copied(one) for name, one in value.items()}
    return [_copied(one) for one in value] if type(value) is list else value
