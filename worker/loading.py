"""Loads pipelines. Each kind is imported when asked for: a worker without models starts without torch."""

from __future__ import annotations

from worker.pipelines import Pipeline
from worker.settings import PipelineSettings
from worker.task_types import find


def needs_torch(name: str, settings: PipelineSettings) -> bool:
    """Whether loading this pipeline imports torch and transformers, which takes seconds."""
    return find(settings.task or name).has_model


def load(name: str, settings: PipelineSettings, device: str) -> Pipeline:
    """Loads and warms up one pipeline.

    Args:
        name: its name, which is its task type where ``settings.task`` is absent.
        settings: its section of the settings.
        device: where it goes unless its settings say otherwise: ``cpu``, ``cuda:0``, ``auto``, ...

    Raises:
        PipeqError: ``invalid_settings``, naming the pipeline and why it cannot be loaded.
    """
    if needs_torch(name, settings):
        from worker import transformers_pipeline

        return transformers_pipeline.load(name, settings, device)
    from worker import constant_pipeline

    return constant_pipeline.load(name, settings)
