"""Texts that are prepared in one call give the rows that each gives alone, or are not prepared in one call at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from pipeq_worker.models import together
from pipeq_worker.models.pipeline import Prepared
from pipeq_worker.models.task_type import Media
from pipeq_worker.models.task_types import TASK_TYPES
from transformers import BatchEncoding

from tests.integration.conftest import Loaded
from tests.integration.test_parity import CASES, PAIRS, Case, name_of
from tests.samples import texts

TEXTS = [
    *texts(),
    "the fox",
    "dog " * 700,
    "Ünïcode £ 日本語 🦊",
    "the fox",
    "[MASK] <mask> </s> [SEP]",
    "\n\t the  dog ",
]
#: Task type, tiny model, and parameters with which texts are prepared in one call.
ABLE: list[tuple[str, str, dict[str, Any]]] = [
    (task, model, {**params, **more})
    for task, model in (
        ("text-classification", "classifier"),
        ("text-classification", "gpt2_classifier"),
        ("text-classification", "fnet"),
        ("feature-extraction", "encoder"),
        ("text-embedding", "encoder"),
    )
    for params in (
        [{"truncation": True}, {"truncation": True, "max_length": 8}, {"truncation": "longest_first", "max_length": 3}]
        if task == "text-classification"
        else [{"truncation": True}, {"tokenize_kwargs": {"truncation": True, "max_length": 8}}]
    )
    for more in ([{}, {"top_k": 2}] if task == "text-classification" else [{}])
]
#: The same with parameters that pad, or that make more of a text than a row.
UNABLE: list[tuple[str, str, dict[str, Any]]] = [
    ("text-classification", "classifier", {"truncation": True, "padding": "max_length", "max_length": 16}),
    ("text-classification", "classifier", {"truncation": True, "padding": True}),
    ("text-classification", "classifier", {"truncation": True, "add_special_tokens": False}),
    ("feature-extraction", "encoder", {"tokenize_kwargs": {"truncation": True, "padding": "max_length"}}),
    ("text-embedding", "encoder", {"prompt": "query: "}),
    ("text-embedding", "encoder", {"tokenize_kwargs": {"padding": "max_length", "max_length": 16}}),
]
TEXT_CASES = [
    case
    for case in CASES
    if (row := TASK_TYPES.get(case[0])) is not None and {Media.TEXT, Media.TEXTS, Media.CHAT} & set(row.fields.values())
]


def assert_same(one: Prepared, other: Prepared) -> None:
    """Every name, type, shape and number is the same, and so is what the scheduling reads."""
    assert type(one.features) is type(other.features)
    assert list(one.features) == list(other.features)
    for name, value in one.features.items():
        assert value.dtype == other.features[name].dtype
        assert torch.equal(value, other.features[name])
    assert (one.group, one.cost, one.nbytes) == (other.group, other.cost, other.nbytes)


def ids(case: tuple[str, str, Mapping[str, Any]]) -> str:
    return "-".join(map(str, case))


@pytest.mark.parametrize("case", ABLE, ids=ids)
def test_rows_are_those_of_single_calls(loaded: Loaded, case: tuple[str, str, dict[str, Any]]) -> None:
    task, model, params = case
    pipeline = loaded(task, model)
    call = pipeline.merge(copy.deepcopy(params))
    rows = pipeline.prepare_together(TEXTS, call)
    assert rows is not None
    for text, row in zip(TEXTS, rows, strict=True):
        (alone,) = pipeline.prepare(text, call)
        assert_same(row, alone)
    # Nor does a call for many change what the next call for one gives.
    (again,) = pipeline.prepare(TEXTS[0], pipeline.merge({}))
    assert pipeline.prepare_together(TEXTS[::-1], call) is not None
    (once_more,) = pipeline.prepare(TEXTS[0], pipeline.merge({}))
    assert_same(once_more, again)


@pytest.mark.parametrize("case", UNABLE, ids=ids)
def test_other_parameters_are_for_single_calls(loaded: Loaded, case: tuple[str, str, dict[str, Any]]) -> None:
    task, model, params = case
    pipeline = loaded(task, model)
    assert pipeline.prepare_together(texts(), pipeline.merge(params)) is None


@pytest.mark.parametrize("case", TEXT_CASES, ids=name_of)
def test_every_case_with_text_gives_the_same_rows_or_none(loaded: Loaded, case: Case) -> None:
    task, model, inputs, params, _ = case
    pipeline = loaded(task, model)
    values = inputs() if callable(inputs) else inputs
    call = pipeline.merge(copy.deepcopy(params))
    rows = pipeline.prepare_together(copy.deepcopy(values), call)
    plain = task in {one for one, _, _ in ABLE} and all(isinstance(one, str) for one in values)
    assert (rows is not None) is plain
    for value, row in zip(values, rows or (), strict=False):
        (alone,) = pipeline.prepare(copy.deepcopy(value), call)
        assert_same(row, alone)


@pytest.mark.parametrize("bad", ["", "dog " * 5000])
def test_with_a_text_that_fails_each_is_prepared_alone(loaded: Loaded, bad: str) -> None:
    """An empty one makes a row of special tokens, or fails; a long one fails without truncation."""
    pipeline = loaded("text-classification", "classifier")
    call, values = pipeline.merge({}), [*texts(3), bad, *texts(3)]
    rows = pipeline.prepare_together(values, call)
    assert (rows is None) is bool(bad)
    for value, row in zip(values, rows or (), strict=False):
        (alone,) = pipeline.prepare(value, call)
        assert_same(row, alone)


def test_pairs_are_prepared_alone(loaded: Loaded) -> None:
    pipeline = loaded("text-classification", "classifier")
    assert pipeline.prepare_together(PAIRS, pipeline.merge({})) is None


def test_a_tokenizer_that_fails_for_many_is_put_back(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = loaded("text-classification", "classifier")
    tokenizer, call = pipeline.pipe().tokenizer, pipeline.merge({"truncation": True, "max_length": 8})
    (want,) = pipeline.prepare("the fox", call)
    real = type(tokenizer)._encode_plus

    def fails(self: Any, text: Any, **kwargs: Any) -> BatchEncoding:
        if isinstance(text, list):
            self.padding_side = "left"
            raise TypeError("no")
        return real(self, text=text, **kwargs)

    before = tokenizer.padding_side
    monkeypatch.setattr(type(tokenizer), "_encode_plus", fails)
    assert pipeline.prepare_together(texts(), call) is None
    assert tokenizer.padding_side == before
    (got,) = pipeline.prepare("the fox", call)
    assert_same(got, want)


def test_only_pipelines_that_do_nothing_else_are_able(loaded: Loaded) -> None:
    pipeline = loaded("text-classification", "classifier")
    pipe, quirks = pipeline._pipe, pipeline.quirks

    class Own(transformers.TextClassificationPipeline):
        def preprocess(self, inputs: Any, **kwargs: Any) -> Any:
            return super().preprocess(inputs.lower(), **kwargs)

    class Looks(type(quirks)):  # type: ignore[misc]
        def call_input(self, pipe: Any, value: Any, params: Any) -> Any:
            return value.lower()

    assert together.is_able(pipe, quirks)
    other = copy.copy(pipe)
    other.__class__ = Own
    assert not together.is_able(other, quirks)
    looks = copy.copy(quirks)
    looks.__class__ = Looks
    assert not together.is_able(pipe, looks)
    for task, model in (("token-classification", "token_classifier"), ("fill-mask", "masked_bert")):
        assert not loaded(task, model).prepares_together
