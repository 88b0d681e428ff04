"""Loads pipelines. Each kind is imported when asked for: a worker without models starts without torch."""

from __future__ import annotations

from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.models.task_types import find, is_task_type
from pipeq_worker.settings.read import ParamLimits, PipelineSettings, S3Settings


def needs_torch(name: str, settings: PipelineSettings) -> bool:
    """Whether loading this pipeline imports torch and transformers, which takes seconds."""
    task = settings.task or name
    return not is_task_type(task) or find(task).has_model


def load(
    name: str,
    settings: PipelineSettings,
    device: str,
    s3: S3Settings | None = None,
    limits: ParamLimits | None = None,
) -> Pipeline:
    """Loads and warms up one pipeline.

    Args:
        name: its name, which is its task type where ``settings.task`` is absent; where it is none either, the model
            says what it is for.
        settings: its section of the settings.
        device: where it goes unless its settings say otherwise: ``cpu``, ``cuda:0``, ``auto``, ...
        s3: how to reach S3, for models that are there.
        limits: ceilings of parameters; the usual ones where it is None.

    Raises:
        PipeqError: ``invalid_settings``, naming the pipeline and why it cannot be loaded.
    """
    if needs_torch(name, settings):
        from pipeq_worker.models import transformers_loading as models

        return models.load(name, settings, device, s3, limits)
    from pipeq_worker.models import constant_pipeline

    return constant_pipeline.load(name, settings)
