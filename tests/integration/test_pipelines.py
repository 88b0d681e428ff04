"""What pipelines refuse, and that threads do not affect each other. Parity has a test of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeq.contract.errors import PipeqError
from pipeq_worker.models.calls import overlaid
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_pipeline import TransformersPipeline as Loaded
from pipeq_worker.settings.sections import PipelineSettings

from tests import tiny_models
from tests.device import DEVICE
from tests.samples import WORDS

torch.set_num_threads(1)

MODELS = {
    "text-classification": "classifier",
    "text-generation": "gpt2",
    "feature-extraction": "encoder",
    "zero-shot-classification": "nli",
    "document-question-answering": "layoutlm",
}
SPEECH = ("whisper", "ctc_layer_norm")


@pytest.fixture(scope="module")
def pipelines(tiny: Path) -> dict[tuple[str, str], Loaded]:
    asked = [*MODELS.items(), *(("automatic-speech-recognition", model) for model in SPEECH)]
    return {
        (task, model): load_pipeline(task, PipelineSettings(model=str(tiny_models.build(model, tiny))), DEVICE)
        for task, model in asked
    }


def test_threads_with_different_parameters_do_not_mix(pipelines: dict[tuple[str, str], Loaded]) -> None:
    """A tokenizer that threads share would silently truncate to another thread's length."""
    pipeline = pipelines["text-classification", "classifier"]
    text = " ".join(WORDS * 10)

    def length(limit: int) -> bool:
        features = next(iter(pipeline.preprocess(text, pipeline.call({"truncation": True, "max_length": limit}))))
        return features["input_ids"].shape[1] == limit

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(length, [4, 9, 17, 33, 50, 64] * 200))


def test_too_many_tokens_is_refused_before_the_device_sees_it(
    pipelines: dict[tuple[str, str], Loaded],
) -> None:
    pipeline = pipelines["text-classification", "classifier"]
    with pytest.raises(PipeqError, match="invalid_input: the text is 602 tokens, the model takes 512"):
        list(pipeline.preprocess("fox " * 600, pipeline.call({})))


@pytest.mark.parametrize(
    ("task", "model", "params", "sentence"),
    [
        ("text-classification", "classifier", {"topk": 1}, "did you mean 'top_k'"),
        ("text-classification", "classifier", {"batch_size": 4}, "set `max_batch_size` in"),
        ("text-classification", "classifier", {"device": "cpu"}, "belongs to the worker"),
        ("text-generation", "gpt2", {"custom_generate": "somebody/code"}, "cannot be set by a task"),
        ("text-classification", "classifier", {"function_to_apply": "softmx"}, "not one of sigmoid, softmax, none"),
        ("text-generation", "gpt2", {"max_new_tokens": 0}, "is 0, not 1 or more"),
        ("text-generation", "gpt2", {"max_new_token": 1}, "did you mean 'max_new_tokens'"),
        ("automatic-speech-recognition", "whisper", {"generate_kwargs": {"nonsense": 1}}, "generate_kwargs.nonsense"),
        ("feature-extraction", "encoder", {"tokenize_kwargs": {"maxlen": 1}}, "did you mean 'max_length'"),
        ("zero-shot-classification", "nli", {}, "needs the parameter candidate_labels"),
        ("document-question-answering", "layoutlm", {"tesseract_config": "-c x=1"}, "cannot be set by a task"),
    ],
)
def test_wrong_parameters_are_named(
    pipelines: dict[tuple[str, str], Loaded], task: str, model: str, params: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PipeqError) as caught:
        pipelines[task, model].merge(params)
    assert caught.value.code == "invalid_params"
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("task", "model", "params"),
    [
        ("automatic-speech-recognition", "whisper", {"return_timestamps": "char"}),
        ("automatic-speech-recognition", "ctc_layer_norm", {"return_timestamps": True}),
        ("document-question-answering", "layoutlm", {"top_k": 0}),
    ],
)
def test_what_transformers_refuses_is_invalid_params(
    pipelines: dict[tuple[str, str], Loaded], task: str, model: str, params: dict[str, Any]
) -> None:
    pipeline = pipelines[task, model]
    with pytest.raises(PipeqError) as caught:
        pipeline.merge(params)
    assert caught.value.code == "invalid_params"


def test_a_model_that_cannot_be_loaded_says_which_and_why(tmp_path: Path) -> None:
    with pytest.raises(PipeqError) as caught:
        load_pipeline("text-classification", PipelineSettings(model=str(tmp_path / "nothing")), DEVICE)
    assert caught.value.code == "invalid_settings"
    assert "nothing" in caught.value.message


@pytest.mark.parametrize(
    ("below", "above", "merged"),
    [
        (
            {"generate_kwargs": {"max_new_tokens": 6}},
            {"max_new_tokens": 2},
            {"generate_kwargs": {}, "max_new_tokens": 2},
        ),
        ({"max_new_tokens": 6}, {"generate_kwargs": {"max_new_tokens": 2}}, {"generate_kwargs": {"max_new_tokens": 2}}),
        ({"max_new_tokens": 6}, {"max_new_tokens": 2}, {"max_new_tokens": 2}),
        (
            {"generate_kwargs": {"do_sample": False}},
            {"top_k": 1},
            {"generate_kwargs": {"do_sample": False}, "top_k": 1},
        ),
        ({"max_new_tokens": 6}, {"generate_kwargs": None}, {"max_new_tokens": 6, "generate_kwargs": None}),
    ],
)
def test_a_tasks_parameter_overrides_the_settings_wherever_each_has_it(
    below: dict[str, Any], above: dict[str, Any], merged: dict[str, Any]
) -> None:
    before = (str(below), str(above))
    assert overlaid(below, above) == merged
    assert (str(below), str(above)) == before


@pytest.mark.parametrize("own", [{"max_new_tokens": 6}, {"generate_kwargs": {"max_new_tokens": 6}}])
def test_settings_may_have_a_parameter_of_generate_in_either_place(tiny: Path, own: dict[str, Any]) -> None:
    model = str(tiny_models.build("llava", tiny))
    # The pipeline is loaded, warmed up, and probed for effects of padding.
    pipeline = load_pipeline("it", PipelineSettings(task="image-text-to-text", model=model, params=own), DEVICE)
    for theirs in ({"max_new_tokens": 3}, {"generate_kwargs": {"max_new_tokens": 3}}):
        pipeline.merge(theirs)


@pytest.mark.parametrize("params", [{"num_beams": 4}, {"num_return_sequences": 4, "do_sample": True}])
def test_beams_and_sequences_count_in_a_batch(pipelines: dict[tuple[str, str], Loaded], params: dict[str, Any]) -> None:
    pipeline = pipelines["text-generation", "gpt2"]
    alone, several = (
        next(iter(pipeline.prepare("the quick brown fox", pipeline.merge({"max_new_tokens": 2, **more}))))
        for more in ({}, params)
    )
    assert several.cost == 4 * alone.cost
