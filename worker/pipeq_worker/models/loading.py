"""Loads pipelines. Each kind's module is imported only when needed, so a worker without models starts without torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.models.task_types import find, is_task_type
from pipeq_worker.settings.sections import ParamLimits, PipelineSettings, S3Settings


def needs_torch(name: str, settings: PipelineSettings) -> bool:
    """Whether loading this pipeline imports torch and transformers, which takes seconds."""
    task = settings.task or name
    return not is_task_type(task) or find(task).has_model


def any_needs_torch(pipelines: Mapping[str, PipelineSettings]) -> bool:
    """Whether one of these pipelines has a model."""
    return any(needs_torch(name, section) for name, section in pipelines.items())


def load_pipeline(
    name: str,
    settings: PipelineSettings,
    device: str,
    s3: S3Settings | None = None,
    limits: ParamLimits | None = None,
) -> Pipeline:
    """Loads and warms up one pipeline.

    Args:
        name: the pipeline's name. It is the task type if ``settings.task`` is absent; if it is no task type either, the
            model's configuration gives one.
        settings: its section of the settings.
        device: the device if its settings name none: ``cpu``, ``cuda:0``, ``auto``, ...
        s3: how to reach S3, for models that are stored there.
        limits: ceilings of parameters; None for the defaults.

    Raises:
        PipeqError: ``invalid_settings``, naming the pipeline and the reason.
    """
    if needs_torch(name, settings):
        from pipeq_worker.models import transformers_loading as models

        return models.load_transformers_pipeline(name, settings, device, s3, limits)
    from pipeq_worker.models import constant_pipeline

    return constant_pipeline.load_constant_pipeline(name, settings)


def make_room(pipelines: Sequence[Pipeline], most: int | None) -> None:
    """Unloads the first of these pipelines until the weights that stay take no more than ``most`` bytes.

    The last one stays, as it has just been loaded.

    Raises:
        PipeqError: ``invalid_settings``: too many of them cannot be unloaded, or one alone is too large.
    """
    if most is None:
        return
    for one in pipelines[:-1]:
        if _loaded_bytes(pipelines) > most and one.is_loaded and one.can_unload:
            one.unload()
    if (size := _loaded_bytes(pipelines)) > most:
        names = ", ".join(repr(one.name) for one in pipelines if one.is_loaded)
        sentence = f"max_loaded_bytes is {most}, and the weights of {names}, which must be loaded together, take {size}"
        raise PipeqError(ErrorCode.INVALID_SETTINGS, sentence)


def _loaded_bytes(pipelines: Sequence[Pipeline]) -> int:
    return sum(one.weight_bytes for one in pipelines if one.is_loaded)


def dump_ends(pipeline: Pipeline) -> bytes | None:
    """What another process needs to prepare and finish for a pipeline; None if only this process can."""
    # Where a pipeline of transformers was loaded, this module was, too; importing it would take seconds.
    models = sys.modules.get("pipeq_worker.models.transformers_pipeline")
    if models is None or not isinstance(pipeline, models.TransformersPipeline) or pipeline.stream is not None:
        return None
    from pipeq_worker.models import ends

    return ends.dump(pipeline)


def load_ends(data: bytes, name: str, settings: PipelineSettings, limits: ParamLimits | None = None) -> Pipeline:
    """Makes a pipeline without weights of what :func:`dump_ends` returned."""
    from pipeq_worker.models import ends

    return ends.load(data, name, settings, limits)
