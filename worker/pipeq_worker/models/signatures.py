"""SIGNATURES: the pipeline class of a task type, and the parameters of its calls, without loading a model."""

from __future__ import annotations

import importlib

import transformers

from pipeq_worker.models.params.accepted import named_rules
from pipeq_worker.models.params.rules import Rule
from pipeq_worker.models.params.table import generation_rules
from pipeq_worker.models.task_type import TaskType


def pipeline_class(row: TaskType) -> type[transformers.Pipeline]:
    """The pipeline class of a task type: ours, or that of transformers."""
    if row.own is not None:
        return row.own.pipeline()
    implementation = transformers.pipelines.SUPPORTED_TASKS[row.name]["impl"]
    if not isinstance(implementation, str):
        return implementation
    module, _, name = implementation.rpartition(".")
    return getattr(importlib.import_module(module), name)


def rules_of(row: TaskType) -> dict[str, Rule]:
    """The parameters that a task type's call takes with any model: name -> rule."""
    rules = named_rules(row, pipeline_class(row))
    return {**generation_rules(row.name), **rules} if row.generation == "call" else rules
