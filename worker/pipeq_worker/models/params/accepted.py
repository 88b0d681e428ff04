"""ACCEPT: a task's params -> checked params. Before: pool. After: prepare.

The names come from the signatures of the pipeline and of ``generate``; each name either has a rule or is refused.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import transformers
from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.models.params import fitting, refused
from pipeq_worker.models.params.compound import Fields, UnknownNameError
from pipeq_worker.models.params.rules import Bound, Bounds, Rule, UnfitError, display
from pipeq_worker.models.params.table import OF_TASK, PIPELINE, SPEECH, generation_rules
from pipeq_worker.models.task_type import TaskType

if TYPE_CHECKING:
    from pipeq_worker.settings.sections import ParamLimits

#: Most names that an error message lists.
_LISTED = 40
_NO_GENERATION = "this model does not generate"
_NOT_THIS_MODEL = "this model does not take it"


def named_rules(task_type: TaskType, pipeline: type[transformers.Pipeline]) -> dict[str, Rule]:
    """The parameters that a task type takes with any model: name -> rule.

    If the call takes those of ``generate`` directly, ``table.generation_rules`` adds them.
    """
    task = task_type.name
    names = signature_names(pipeline) | task_type.params
    if task_type.generation is not None:
        names |= {"generate_kwargs"}
    rules = {name: _rule(task, name) for name in names if refused.reason(name, task, refused.WORKERS_OWN) is None}
    return {name: rule for name, rule in rules.items() if rule is not None}


def signature_names(pipeline: type[transformers.Pipeline]) -> frozenset[str]:
    """The names of the parameters in a pipeline class's signature."""
    names: set[str] = set()
    for one in pipeline.__mro__:
        if (own := vars(one).get("_sanitize_parameters")) is None:
            continue
        parameters = inspect.signature(own).parameters.values()
        names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break  # without **kwargs, it takes no parameter of its base classes
    return frozenset(names - {"self"})


def ceilings(limits: ParamLimits) -> dict[str, Bound]:
    """The bounds that come from the settings."""
    return {
        name: Bound(value, f"`{name}` in [param_limits] of the worker's settings")
        for name, value in limits.model_dump().items()
    }


class Accepted:
    """The parameters that one pipeline's call accepts."""

    def __init__(self, task_type: TaskType, pipe: transformers.Pipeline, limits: ParamLimits) -> None:
        self.task_type = task_type
        self.pipe = pipe
        self.bounds: Bounds = fitting.bounds(task_type.name, pipe, ceilings(limits))
        #: Parameters of the task type that this model does not take: name -> reason.
        self.refused = fitting.refused(task_type.name, pipe)
        self.rules = self._fit(named_rules(task_type, type(pipe)))
        #: Parameters that name a language, a voice, ...: name -> the values that the model knows.
        self.known = fitting.known(task_type.name, pipe)

    def _fit(self, rules: dict[str, Rule]) -> dict[str, Rule]:
        """Removes the parameters that this model does not take, and adds those of its ``generate``."""
        task, pipe, where = self.task_type.name, self.pipe, self.task_type.generation
        rules = {name: rule for name, rule in rules.items() if name not in self.refused}
        if where is None:
            return rules
        generation, why = generation_rules(task), refused.GENERATION_REFUSED.get(task, {})
        taken = fitting.generation_names(task, pipe)
        fits = {name: rule for name, rule in generation.items() if name in taken and name not in self.refused}
        others = dict.fromkeys(generation.keys() | SPEECH.keys(), _NOT_THIS_MODEL)
        if "forward_params" in rules:
            own = {name: rule for name, rule in SPEECH.items() if name in (taken or fitting.forward_names(pipe))}
            rules["forward_params"] = Fields({**fits, **own}, {**others, **why})
        if taken and "generate_kwargs" in rules:
            rules["generate_kwargs"] = Fields(fits, {**others, **why, **self.refused})
        else:
            rules.pop("generate_kwargs", None)
        outside = "put it into generate_kwargs" if taken else _NO_GENERATION
        if where == "call" and taken:
            self.refused = {**dict.fromkeys(generation.keys() - fits.keys(), _NOT_THIS_MODEL), **self.refused}
            return {**fits, **rules}
        away = {**generation, "generate_kwargs": None}.keys() - rules.keys()
        self.refused = {**dict.fromkeys(away, outside), **self.refused}
        return rules

    def check(self, params: Mapping[str, Any], pipeline: str) -> dict[str, Any]:
        """Returns the parameters as the pipeline needs them.

        A null stays null, and means that the parameter is not given.

        Raises:
            PipeqError: ``invalid_params`` for the first parameter that may not be set, or not to this value.
        """
        checked: dict[str, Any] = {}
        for name, value in params.items():
            rule = self.rules.get(name)
            try:
                if rule is None:
                    raise UnknownNameError("", name, Fields(self.rules, self.refused))  # noqa: TRY301
                checked[name] = None if value is None else rule.check(value, self.bounds, name)
                fitting.check_known(name, checked[name], self.known)
            except UnknownNameError as error:
                raise self._unknown(error, pipeline) from None
            except UnfitError as error:
                raise PipeqError(
                    ErrorCode.INVALID_PARAMS,
                    f"parameter {error.where!r} of {pipeline!r} is {display(error.value)}, {error.sentence}",
                ) from None
        return checked

    def check_together(self, params: Mapping[str, Any], pipeline: str) -> None:
        """Checks that the parameters can be used together.

        Raises:
            PipeqError: ``invalid_params``.
        """
        if (sentence := fitting.conflict(self.task_type.name, self.pipe, params)) is not None:
            raise PipeqError(ErrorCode.INVALID_PARAMS, f"{pipeline!r}: {sentence}")

    def _unknown(self, error: UnknownNameError, pipeline: str) -> PipeqError:
        name, fields = shown.line(error.name[:1000], 60), error.fields
        place = f"{error.where}.{name}" if error.where else name
        if error.name in refused.WORKERS_OWN and error.name not in fields.refused:
            return PipeqError(
                ErrorCode.INVALID_PARAMS,
                f"parameter {place!r} belongs to the worker: set `{refused.WORKERS_OWN[error.name]}` in "
                f"[pipelines.{pipeline}] of its settings",
            )
        why = refused.reason(error.name, "" if error.where else self.task_type.name, dict(fields.refused))
        if why is not None:
            return PipeqError(ErrorCode.INVALID_PARAMS, f"parameter {place!r} cannot be set by a task: {why}")
        close = difflib.get_close_matches(error.name[:60], fields.fields, n=1)
        names = sorted(fields.fields)
        more = f", ... ({len(names)} in all)" if len(names) > _LISTED else ""
        hint = f"did you mean {close[0]!r}?" if close else f"it takes: {', '.join(names[:_LISTED]) or 'none'}{more}"
        return PipeqError(ErrorCode.INVALID_PARAMS, f"{pipeline!r} takes no parameter {place!r}; {hint}")


def _rule(task: str, name: str) -> Rule | None:
    if name == "generate_kwargs":
        return Fields(generation_rules(task), refused.GENERATION_REFUSED.get(task, {}))
    if name == "forward_params":
        return Fields({**generation_rules(task), **SPEECH}, refused.GENERATION_REFUSED.get(task, {}))
    return OF_TASK.get((task, name)) or PIPELINE.get(name)
