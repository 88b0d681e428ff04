"""``pipeq worker --check``: finds what a worker would otherwise find out only with its first task.

It checks the parameters of each pipeline, the prefixes of inputs, and the stores of results. It loads no model.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches

from pipeq.contract import shown
from pipeq.contract.errors import PipeqError, SettingsError

from pipeq_worker.models import loading
from pipeq_worker.models.task_types import find, is_task_type
from pipeq_worker.settings.read import PipelineSettings, Settings
from pipeq_worker.stores.allow import AllowList, file_path, split_s3
from pipeq_worker.stores.s3 import S3, S3Error
from pipeq_worker.stores.store import Store

#: How long S3 may take to answer, in seconds.
_TIMEOUT_S = 10.0


def check_all(settings: Settings) -> None:
    """Checks everything in the settings that can be checked without loading a model.

    Raises:
        SettingsError: one sentence for each thing that is wrong.
    """
    found = [*_params(settings), *_inputs(settings), *_stores(settings)]
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
                loading.load(name, section, settings.device)
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


def _inputs(settings: Settings) -> Iterator[str]:
    key = "inputs.allow"
    try:
        AllowList(settings.inputs.allow, key)
    except PipeqError as error:
        yield error.message
    s3 = S3(settings.s3, _TIMEOUT_S, 1)
    for prefix in settings.inputs.allow:
        if prefix.startswith("file://"):
            path = file_path(prefix)
            if not os.path.exists(path):
                yield f"{key}: {shown.uri(prefix)}: there is no such file or folder"
            elif not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
                yield f"{key}: {shown.uri(prefix)} cannot be read by this user"
        elif prefix.startswith("s3://"):
            bucket, start = split_s3(prefix)
            try:
                s3.look(bucket, start)
            except S3Error as error:
                yield f"{key}: {shown.uri(prefix)}: the store {error.reason}"
    s3.close()


def _stores(settings: Settings) -> Iterator[str]:
    places: dict[str, str] = dict.fromkeys(settings.results.allow, "results.allow")
    if settings.results.store:
        places[settings.results.store] = "results.store"
    store, s3 = Store(settings.results, settings.s3), S3(settings.s3, _TIMEOUT_S, 1)
    for place, key in places.items():
        uri = f"{place.rstrip('/')}/.pipeq-check-{secrets.token_hex(4)}"
        try:
            store.put(uri, b"", "application/octet-stream")
        except PipeqError as error:
            yield f"{key}: {error.message}"
        else:
            # We may lack the right to delete. The object that stays behind is empty, and its name says what it is.
            with suppress(S3Error, OSError):
                if uri.startswith("file://"):
                    os.unlink(file_path(uri))
                else:
                    s3.remove(*split_s3(uri))
    store.close()
    s3.close()
