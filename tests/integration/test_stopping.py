"""A forward pass ends once nobody wants its answers: every task type that generates, every way to generate.

Each case runs the fullest batch of its inputs four times: as ever; with one row stopped in its middle, which must not
change the others; with all rows stopped, which must end the pass at once; and as ever again, because a pass that was
left in its middle must leave nothing behind.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from pipeq_worker.doctor.compare import differences
from pipeq_worker.models import stopping
from pipeq_worker.models.running import AllStoppedError, Row, Running
from pipeq_worker.models.task_types import TASK_TYPES, find
from pipeq_worker.models.transformers_pipeline import TransformersPipeline

from tests import samples
from tests.integration import test_parity
from tests.integration.conftest import Loaded

torch.set_num_threads(1)

Case = tuple[str, str, Callable[[], list[Any]] | list[Any], dict[str, Any]]
LONG = {"max_new_tokens": 12, "do_sample": False}
#: Those of the parity tests, and what they have not: assisted generation, windows of a long audio, and voices.
CASES: list[Case] = [
    *(case[:4] for case in test_parity.CASES if find(case[0]).generation is not None),
    ("text-generation", "gpt2", samples.texts, {**LONG, "num_beams": 3, "eos_token_id": None}),
    ("text-generation", "writer", samples.texts, {"do_sample": True, "max_new_tokens": 12}),
    (
        "automatic-speech-recognition",
        "whisper_short",
        [samples.audio(9.0), samples.audio(7.0, 1)],
        {"return_timestamps": True, "max_new_tokens": 12},
    ),
    ("text-to-audio", "speecht5", ["hello"], {"forward_params": {"speaker_embeddings": [[0.1] * 512]}}),
]
#: Models that give their answer in one pass, which has no middle.
ONE_PASS = {"vilt", "vits_quiet", "ctc_group_norm", "ctc_layer_norm"}


class Steps:
    """A number of steps of a pass, after which its rows are over."""

    def __init__(self, left: int) -> None:
        self.left = left


class After(Row):
    """A row that is over once the pass has asked a number of times whether it is."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps

    @property
    def is_over(self) -> bool:
        self.steps.left -= 1
        return self.steps.left < 0


def name_of(case: Case) -> str:
    return "-".join([*case[:2], *map(str, case[3])])


def fullest(pipeline: TransformersPipeline, values: list[Any], params: dict[str, Any]) -> tuple[list[Any], Any]:
    """The features of the most items that may share a batch, and their call."""
    call, groups = pipeline.merge(params), defaultdict[Hashable, list[Any]](list)
    for value in values:
        for row in pipeline.prepare(copy.deepcopy(value), call):
            groups[row.group].append(row.features)
    return max(groups.values(), key=len), call


def run(pipeline: TransformersPipeline, features: list[Any], call: Any, rows: list[Row]) -> list[Any]:
    """The results of the rows, as if each were an input of its own; None for a row that is over."""
    torch.manual_seed(0)
    outputs = pipeline.forward(copy.deepcopy(features), call, Running(rows))
    pairs = zip(outputs, rows, strict=True)
    return [None if row.is_over else pipeline.postprocess([output], call) for output, row in pairs]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_rows_that_are_over(loaded: Loaded, case: Case) -> None:
    task, model, inputs, params = case
    pipeline = loaded(task, model)
    features, call = fullest(pipeline, inputs() if callable(inputs) else inputs, params)
    whole = [Row() for _ in features]
    before = run(pipeline, features, call, whole)

    if len(features) > 1:
        rows = [Row() for _ in features]
        rows[1] = After(Steps(7))
        after = run(pipeline, features, call, rows)
        assert (after.pop(1) is None) == (model not in ONE_PASS)
        others = [before[0], *before[2:]]
        assert [list(differences(one, other)) for one, other in zip(after, others, strict=True)] == [[] for _ in others]

    if model not in ONE_PASS:
        steps = Steps(3)
        rows = [After(steps) for _ in features]
        with pytest.raises(AllStoppedError):
            run(pipeline, features, call, rows)
        if whole[0].done:
            assert rows[0].done < whole[0].done

    again = run(pipeline, features, call, [Row() for _ in features])
    assert [list(differences(one, other)) for one, other in zip(again, before, strict=True)] == [[] for _ in features]


def test_assisted_generation(loaded: Loaded) -> None:
    """Only a model's own configuration asks for it; several tokens come at once."""
    pipe = loaded("text-generation", "gpt2").pipe()
    prompt = pipe.tokenizer("hello world hello world hello", return_tensors="pt")
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "prompt_lookup_num_tokens": 3}
    row = Row()
    with stopping.watched(Running([row])):
        pipe.model.generate(**prompt, **settings)
    assert (row.done, row.total) == (40, 40)
    row = After(Steps(9))
    with stopping.watched(Running([row])), contextlib.suppress(AllStoppedError):
        pipe.model.generate(**prompt, **settings)
    assert 0 < row.done < 40


def test_every_task_type_that_generates_is_here() -> None:
    generating = {name for name, row in TASK_TYPES.items() if row.generation is not None}
    assert generating == {find(case[0]).name for case in CASES}


@pytest.mark.parametrize(
    ("params", "total"),
    [({"max_new_tokens": 9}, 9), ({"max_new_tokens": 9, "num_beams": 2}, 9), ({"max_length": 50}, None)],
)
def test_tokens_are_counted(loaded: Loaded, params: dict[str, Any], total: int | None) -> None:
    pipeline = loaded("text-generation", "gpt2")
    features, call = fullest(pipeline, ["hello world", "the dog"], {"do_sample": False, "eos_token_id": None, **params})
    rows = [Row() for _ in features]
    run(pipeline, features, call, rows)
    total = total or 50 - max(one["input_ids"].shape[-1] for one in features)
    assert [(row.done, row.total, row.unit) for row in rows] == [(total, total, "tokens")] * len(features)


def test_windows_of_a_long_audio_are_counted_together(loaded: Loaded) -> None:
    pipeline = loaded("automatic-speech-recognition", "whisper_short")
    features, call = fullest(pipeline, [samples.audio(9.0)], {"return_timestamps": True, "max_new_tokens": 4})
    row = Row()
    run(pipeline, features, call, [row])
    assert row.done > 4
    assert row.total is None


class Late(Row):
    """A row whose time is over once the pass has come some way, however long that takes."""

    @property
    def is_over(self) -> bool:
        if self.done >= 3:
            self.deadline = time.monotonic()
        return super().is_over


def test_a_deadline_stops_a_pass(loaded: Loaded) -> None:
    pipeline = loaded("text-generation", "gpt2")
    features, call = fullest(pipeline, ["hello"], {"max_new_tokens": 400, "do_sample": False, "eos_token_id": None})
    row = Late()
    with pytest.raises(AllStoppedError):
        run(pipeline, features, call, [row])
    assert row.is_late
    assert 0 < row.done < 400


def test_without_rows_nothing_is_counted(loaded: Loaded) -> None:
    pipeline = loaded("text-generation", "gpt2")
    features, call = fullest(pipeline, ["hello"], {"max_new_tokens": 4, "do_sample": False})
    assert len(pipeline.forward(features, call)) == 1
