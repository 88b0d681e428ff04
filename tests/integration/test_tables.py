"""No kernel sees an index beyond a table of the model: tokens that it does not know, positions that it does not have.

A CPU raises for such an index, so that only its task fails. On a GPU it would break the context of the whole process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from pipeq.contract.errors import PipeqError
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.running import Row
from pipeq_worker.models.stopping import positions_of
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stages.infer import infer

from tests import tiny_models
from tests.device import DEVICE
from tests.integration.test_parity import CASES

torch.set_num_threads(1)

#: Task type and tiny model -> an input.
INPUTS: dict[tuple[str, str], Any] = {(case[0], case[1]): case[2] for case in reversed(CASES)}
BEYOND = 20
#: Those that have the parameters of ``generate`` in a dictionary of their own.
NESTED = ("text-to-audio", "image-to-text")


@contextmanager
def beyond(model: Any) -> Iterator[list[str]]:
    """The tables that were asked for an index that they do not have."""
    found: list[str] = []

    def look(name: str) -> Callable[[Any, Any], None]:
        def hook(table: torch.nn.Embedding, args: Any) -> None:
            if args and args[0].numel() and int(args[0].max()) >= table.num_embeddings:
                found.append(f"{name}: {int(args[0].max())} of {table.num_embeddings}")

        return hook

    tables = [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Embedding)]
    handles = [part.register_forward_pre_hook(look(name)) for name, part in tables]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def run(pipeline: TransformersPipeline, value: Any, params: dict[str, Any]) -> Any:
    """The error of one input, or its result."""
    call = pipeline.call(params)
    try:
        rows = list(pipeline.preprocess(value, call))
    except PipeqError as error:
        return error
    task = SimpleNamespace(call=call)
    items: list[Any] = [
        SimpleNamespace(task=task, call=call, features=row, output=None, error=None, cost=1, row=Row()) for row in rows
    ]
    infer(pipeline, items[:1])
    return items[0].error


def most_positions(pipeline: TransformersPipeline) -> int | None:
    parts = [one for one in pipeline._pipe.model.modules() if isinstance(one, transformers.generation.GenerationMixin)]
    return min(filter(None, map(positions_of, parts)), default=None)


@pytest.mark.parametrize(("task", "model"), INPUTS)
def test_nobody_generates_beyond_the_positions(
    loaded: Callable[[str, str], TransformersPipeline], task: str, model: str
) -> None:
    pipeline = loaded(task, model)
    if not getattr(pipeline.quirks, "generates", False):
        return
    most = most_positions(pipeline)
    asked: dict[str, Any] = {"max_new_tokens": (most or 0) + BEYOND, "do_sample": False, "eos_token_id": None}
    inputs = INPUTS[task, model]
    value = (inputs() if callable(inputs) else inputs)[0]
    nested = getattr(pipeline.quirks, "nested", False) or task in NESTED
    with beyond(pipeline._pipe.model) as found:
        error = run(pipeline, value, {"generate_kwargs": asked} if nested else asked)
    assert found == []
    assert error is None or "index out of range" not in error.message
    if error is not None:
        print(f"{most} positions: {error}")


@pytest.mark.parametrize(("task", "model"), [("text-generation", "writer"), ("text2text-generation", "bart")])
def test_who_asks_for_more_is_told_how_many_there_are(
    loaded: Callable[[str, str], TransformersPipeline], task: str, model: str
) -> None:
    pipeline = loaded(task, model)
    most = most_positions(pipeline)
    assert most is not None
    params = {"do_sample": False, "num_beams": 1, "eos_token_id": None}
    error = run(pipeline, "fox", {**params, "max_new_tokens": most + BEYOND})
    assert isinstance(error, PipeqError)
    assert f"beyond the {most} positions of the model" in error.message
    assert run(pipeline, "fox", {**params, "max_new_tokens": most - BEYOND}) is None


def test_a_tokenizer_of_another_model_is_found_before_the_pass(tiny: Path, tmp_path: Path) -> None:
    path = tiny_models.build("classifier", tiny)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model.resize_token_embeddings(len(tokenizer) - 1)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipeline = load_pipeline("it", PipelineSettings(task="text-classification", model=str(tmp_path)), DEVICE)
    assert isinstance(pipeline, TransformersPipeline)
    words = sorted({word for line in tiny_models.base.CORPUS for word in line.split()})
    unknown = next(word for word in words if len(tokenizer) - 1 in tokenizer(word)["input_ids"])
    with beyond(pipeline._pipe.model) as found:
        error = run(pipeline, unknown, {})
    assert isinstance(error, PipeqError)
    assert error.code == "inference_failed"
    assert f"token {len(tokenizer) - 1} of this text, and the model knows {len(tokenizer) - 1}" in error.message
    assert found == []
    assert run(pipeline, "the", {}) is None
