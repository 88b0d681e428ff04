"""``pipeq worker --check``: finds what a worker would otherwise find out only with its first task.

It checks the parameters of each pipeline, the prefixes of inputs, and the stores of results. It loads no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from pipeq.contract import shown
from pipeq.contract.errors import PipeqError, SettingsError

from pipeq_worker.models import loading
from pipeq_worker.models.task_types import find, is_task_type
from pipeq_worker.settings.read import Settings
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stores import places


def check_all(settings: Settings) -> None:
    """Checks everything in the settings that can be checked without loading a model.

    Raises:
        SettingsError: one sentence for each thing that is wrong.
    """
    found = [*_params(settings), *_places(settings)]
    if found:
        raise SettingsError("; ".join(found))


def _params(settings: Settings) -> Iterator[str]:
    for name, section in settings.pipelines.items():
        task = section.task or name
        # If only the model's configuration says what the task type is, the parameters are checked when the model is
        # loaded.
        if not is_task_type(task):
            continue
        if not find(task).has_model:
            try:
                loading.load_pipeline(name, section, settings.device)
            except PipeqError as error:
                yield f"pipelines.{name}: {error.message}"
        elif section.params:
            yield from _params_of(name, task, section, settings)


def _params_of(name: str, task: str, section: PipelineSettings, settings: Settings) -> Iterator[str]:
    # Imported here because the rules read the signatures of transformers' pipelines, which take seconds to import.
    from pipeq_worker.models.params.accepted import ceilings
    from pipeq_worker.models.params.compound import UnknownNameError
    from pipeq_worker.models.params.rules import UnfitError, display
    from pipeq_worker.models.signatures import rules_of

    rules, bounds = rules_of(find(task)), ceilings(settings.param_limits)
    for parameter, value in section.params.items():
        where, fields = f"pipelines.{name}.params.{shown.line(parameter)}", rules
        try:
            if parameter in rules:
                if value is not None:
                    rules[parameter].check(value, bounds, where)
                continue
        except UnknownNameError as error:
            where, parameter, fields = f"{error.where}.{shown.line(error.name)}", error.name, dict(error.fields.fields)
        except UnfitError as error:
            yield f"{error.where} is {display(error.value)}, {error.sentence}"
            continue
        close = get_close_matches(parameter[:60], fields, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(sorted(fields)) or 'none'}"
        yield f"{where}: {find(task).name} takes no such parameter{hint}"


def _places(settings: Settings) -> Iterator[str]:
    try:
        for one in places.look(settings.inputs, settings.results, settings.s3):
            if one.problem is not None:
                yield f"{one.key}: {one.problem}"
    except PipeqError as error:
        yield error.message
