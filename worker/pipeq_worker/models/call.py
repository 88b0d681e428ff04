"""One call of a pipeline: a task's parameters, sorted once by where the pipeline uses them. Knows nothing of torch.

a task's params -> Pipeline.merge -> Call -> prepare, forward, postprocess of each of its items
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

#: Group of an item that shares a batch with nobody.
SOLO = "solo"


@dataclass(frozen=True, eq=False)
class Call:
    """The parameters of one task. All its items share it, in many threads: it is only read."""

    #: As the pipeline's call takes them: the pipeline's own, overridden by the task's.
    params: Mapping[str, Any] = field(default_factory=dict)
    #: The same, as each of the pipeline's three steps takes them.
    preprocess: dict[str, Any] = field(default_factory=dict)
    forward: dict[str, Any] = field(default_factory=dict)
    postprocess: dict[str, Any] = field(default_factory=dict)
    #: Equal for calls whose rows may share a forward pass.
    key: Hashable = None

    def handed_out(self) -> Call:
        """The same, in dictionaries and lists of its own, for code that may empty or fill what it is given."""
        return replace(
            self,
            preprocess=_copied(self.preprocess),
            forward=_copied(self.forward),
            postprocess=_copied(self.postprocess),
        )


def _copied(value: Any) -> Any:
    """Copies what JSON is made of; tensors and arrays, which may be large, are shared."""
    if type(value) is dict:
        return {name: _copied(one) for name, one in value.items()}
    return [_copied(one) for one in value] if type(value) is list else value
