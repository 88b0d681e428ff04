"""Pipelines of tiny models, each loaded once for all the tests that only use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests import tiny_models

#: Task type and tiny model -> their pipeline.
Loaded = Callable[[str, str], TransformersPipeline]


@pytest.fixture(scope="session")
def loaded(tiny: Path) -> Loaded:
    found: dict[tuple[str, str], TransformersPipeline] = {}

    def get(task: str, model: str) -> TransformersPipeline:
        if (task, model) not in found:
            more = {"vocoder": str(tiny_models.build("vocoder", tiny))} if model == "speecht5" else {}
            settings = PipelineSettings(task=task, model=str(tiny_models.build(model, tiny)), **more)
            pipeline = load_pipeline("it", settings, "cpu")
            assert isinstance(pipeline, TransformersPipeline)
            found[task, model] = pipeline
        return found[task, model]

    return get
