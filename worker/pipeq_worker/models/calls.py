"""CALLS: a task's parameters, over the pipeline's own -> the parameters of each step. Used by transformers_pipeline."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.models.call import Call
from pipeq_worker.models.copies import Copies
from pipeq_worker.models.params.accepted import Accepted
from pipeq_worker.models.quirks.base import Quirks
from pipeq_worker.models.quirks.vision import is_labels
from pipeq_worker.models.task_type import TaskType

#: Calls with different parameters that are remembered, and the longest parameters (as JSON) that are.
CALLS, MOST_KEY = 256, 1024


class Calls:
    """Checks and sorts parameters. Safe for threads.

    Args:
        name: the pipeline's.
        task_type: its task type.
        accepted: which parameters it takes.
        quirks: what its kind of pipeline does differently.
        copies: of the pipeline, which sorts parameters itself.
        own: the settings' parameters for it, not checked.

    Raises:
        PipeqError: ``invalid_params``: one of its own is refused.
    """

    def __init__(
        self,
        name: str,
        task_type: TaskType,
        accepted: Accepted,
        quirks: Quirks,
        copies: Copies,
        own: Mapping[str, Any],
    ) -> None:
        self._name = name
        self._task_type = task_type
        self._accepted = accepted
        self._quirks = quirks
        self._copies = copies
        #: Parameters of a task, as JSON -> its call.
        self._calls: dict[str, Call] = {}
        #: The pipeline's own parameters. A required one may be missing, because a task may still give it.
        self.own = self._checked(accepted.check(own, name))
        if self.own:
            self.call(self.own)

    def merge(self, params: Mapping[str, Any], check: Callable[[Call], None]) -> Call:
        """The call of a task with these parameters.

        Args:
            params: what the task says.
            check: raises if the call cannot be served.
        """
        try:
            key = json.dumps(params)
        except (TypeError, ValueError):  # objects and endless numbers, which no message can hold
            return self._merge(params, check)
        if len(key) > MOST_KEY:
            return self._merge(params, check)
        if (call := self._calls.get(key)) is None:
            call = self._merge(params, check)
            if len(self._calls) >= CALLS:
                self._calls.clear()
            self._calls[key] = call
        return call

    def call(self, params: Mapping[str, Any]) -> Call:
        """Sorts parameters by the step that uses them, as ``pipe(x, **params)`` would.

        Args:
            params: checked, and merged over the pipeline's own, as in :meth:`merge`.

        Raises:
            PipeqError: ``invalid_params``, with transformers' own message.
        """
        pipe = self._copies.mine()
        try:
            # A copy, because several pipelines change the dictionaries that they are given.
            mine = self._quirks.call_params(copy.deepcopy(dict(params)))
            preprocess, forward, postprocess = pipe._sanitize_parameters(**mine)
        except (ValueError, TypeError, KeyError) as error:
            raise PipeqError(ErrorCode.INVALID_PARAMS, f"{self._name!r} refuses the parameters: {error}") from error
        forward = {**pipe._forward_params, **forward}
        alike = [params.get(name) for name in self._task_type.group_by]
        return Call(
            params,
            {**pipe._preprocess_params, **preprocess},
            forward,
            {**pipe._postprocess_params, **postprocess},
            key=json.dumps([forward, *alike], sort_keys=True, default=lambda value: type(value).__name__),
        )

    def over_own(self, params: Mapping[str, Any]) -> Call:
        """The call with parameters that need no check, over the pipeline's own."""
        return self.call(overlaid(self.own, params))

    def _merge(self, params: Mapping[str, Any], check: Callable[[Call], None]) -> Call:
        merged = overlaid(self.own, self._accepted.check(params, self._name))
        merged = {name: value for name, value in merged.items() if value is not None or self._means_all(name)}
        for name, example in self._task_type.required:
            if not is_labels(merged.get(name)):
                raise PipeqError(
                    ErrorCode.INVALID_PARAMS,
                    f"{self._task_type.name} needs the parameter {name}, for instance {example}",
                )
        self._accepted.check_together(merged, self._name)
        call = self.call(merged)
        check(call)
        return call

    def _checked(self, params: Mapping[str, Any]) -> dict[str, Any]:
        checked = {name: value for name, value in params.items() if value is not None or self._means_all(name)}
        self._accepted.check_together(checked, self._name)
        return checked

    def _means_all(self, name: str) -> bool:
        """Whether null is a value of its own; for all other parameters it means transformers' default."""
        return name == "top_k" and self._task_type.name == "text-classification"


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merges a pipeline's own parameters with a task's, which win, also if only one of them uses ``generate_kwargs``.

    transformers refuses a parameter of ``generate`` that is given in both places.
    """
    merged = {**below, **above}
    ours, theirs = below.get("generate_kwargs"), above.get("generate_kwargs")
    if ours and theirs is None and "generate_kwargs" in merged:
        merged["generate_kwargs"] = {name: value for name, value in ours.items() if name not in above}
    for name in theirs or ():
        if name not in above:
            merged.pop(name, None)
    return merged
