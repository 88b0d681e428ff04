"""A batch gives each item the answer it would have had alone: every task type, mixed lengths, tiny models."""

from __future__ import annotations

import copy
import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from producers.errors import PipeqError
from tests import tiny_models
from tests.parity import assert_same, plain
from tests.samples import WORDS, audio, chats, clips, documents, images, texts
from worker.loading import load
from worker.pipelines import SOLO
from worker.settings import PipelineSettings
from worker.transformers_pipeline import TransformersPipeline as Loaded

torch.set_num_threads(1)

GREEDY = {"max_new_tokens": 12, "do_sample": False}
CASES = [
    ("text-classification", "classifier", texts(), {}),
    ("text-classification", "classifier", texts(), {"top_k": 2}),
    (
        "text-classification",
        "classifier",
        [{"text": a, "text_pair": b} for a, b in zip(texts(), texts()[::-1], strict=True)],
        {},
    ),
    ("text-classification", "classifier", texts(), {"truncation": True, "max_length": 8}),
    ("zero-shot-classification", "nli", texts(5), {"candidate_labels": ["sports", "politics and euros", "fox"]}),
    ("zero-shot-classification", "nli", texts(5), {"candidate_labels": "sports, fox", "multi_label": True}),
    ("feature-extraction", "encoder", texts(), {}),
    ("text-embedding", "encoder", texts(), {}),
    ("text-embedding", "encoder", texts(), {"normalize": False}),
    ("text-generation", "gpt2", texts(), GREEDY),
    ("text-generation", "gpt2", texts(), {**GREEDY, "return_full_text": False}),
    ("text-generation", "gpt2", texts(), {**GREEDY, "return_tensors": True}),
    ("text-generation", "gpt2", texts(), {**GREEDY, "num_beams": 2, "num_return_sequences": 2}),
    ("text-generation", "gpt2", texts(), {"max_length": 40, "do_sample": False}),
    ("text-generation", "gpt2", texts(), {**GREEDY, "stop_sequence": "fox"}),
    ("text-generation", "gpt2", texts(), {**GREEDY, "eos_token_id": list(range(100, 300)), "return_tensors": True}),
    ("text-generation", "gpt2", [*texts(3), ""], {**GREEDY, "return_full_text": False}),
    ("text-generation", "llama", chats(), GREEDY),
    ("image-classification", "vit", images(), {"top_k": 2}),
    ("automatic-speech-recognition", "ctc_group_norm", clips(), {}),
    ("automatic-speech-recognition", "ctc_layer_norm", clips(), {}),
    ("automatic-speech-recognition", "ctc_layer_norm", clips(), {"return_timestamps": "word"}),
    ("automatic-speech-recognition", "ctc_layer_norm", clips(), {"chunk_length_s": 1.0, "stride_length_s": 0.2}),
    ("automatic-speech-recognition", "ctc_group_norm", clips(), {"chunk_length_s": 1.0, "return_timestamps": "char"}),
    ("automatic-speech-recognition", "whisper", clips(), {"max_new_tokens": 12, "language": "en"}),
    (
        "automatic-speech-recognition",
        "whisper",
        [*clips(), audio(42), audio(35, 1)],
        {"max_new_tokens": 12, "return_timestamps": "word", "chunk_length_s": 30},
    ),
    (
        "automatic-speech-recognition",
        "whisper",
        [*clips(), audio(42)],
        {"max_new_tokens": 12, "return_timestamps": True},
    ),
    ("automatic-speech-recognition", "whisper", clips(), {"max_new_tokens": 12, "return_language": True}),
    ("document-question-answering", "layoutlm", documents(), {}),
    ("document-question-answering", "layoutlm", documents(), {"top_k": 3, "max_seq_len": 64, "doc_stride": 16}),
]


@pytest.fixture(scope="module")
def pipelines(tiny: Path) -> dict[tuple[str, str], Loaded]:
    found = {}
    for task, model, _, _ in CASES:
        if (task, model) not in found:
            path = tiny_models.build(model, tiny)
            found[task, model] = load(task, PipelineSettings(model=str(path)), "cpu")
    return found


def run_batched(pipeline: Loaded, inputs: list[Any], params: dict[str, Any]) -> tuple[list[Any], int]:
    """All inputs through the stages, in batches as large as their groups allow. Returns results, largest batch."""
    merged = pipeline.merge(params)
    groups: dict[Any, list[tuple[int, int, Any]]] = defaultdict(list)
    outputs: list[dict[int, Any]] = [{} for _ in inputs]
    for index, value in enumerate(inputs):
        for chunk, features in enumerate(pipeline.preprocess(copy.deepcopy(value), merged)):
            key = pipeline.quirks.group(features, pipeline.call_params(merged).forward)
            groups[(index, chunk) if key == SOLO else key].append((index, chunk, features))
    for members in groups.values():
        random.Random(0).shuffle(members)
        for (index, chunk, _), output in zip(
            members, pipeline.forward([features for _, _, features in members], merged), strict=True
        ):
            outputs[index][chunk] = output
    results = []
    for value, chunks in zip(inputs, outputs, strict=True):
        result = pipeline.postprocess([chunks[at] for at in sorted(chunks)], merged)
        results.append(pipeline.quirks.result(result, value, merged))
    return results, max(map(len, groups.values()))


@pytest.mark.parametrize(("task", "model", "inputs", "params"), CASES)
def test_batched_is_the_same_as_alone(
    pipelines: dict[tuple[str, str], Loaded],
    task: str,
    model: str,
    inputs: list[Any],
    params: dict[str, Any],
) -> None:
    pipeline = pipelines[task, model]
    got, largest = run_batched(pipeline, inputs, params)
    if not params.get("return_language") and (model != "whisper" or params.get("return_timestamps") != "word"):
        assert largest > 1, "nothing was batched, so nothing was tested"
    for value, mine in zip(inputs, got, strict=True):
        alone = pipeline._pipe(copy.deepcopy(value), **copy.deepcopy(params))
        assert_same(plain(mine), plain(alone))


def test_threads_with_different_parameters_do_not_mix(pipelines: dict[tuple[str, str], Loaded]) -> None:
    """A tokenizer shared by threads truncates to another thread's length, silently."""
    pipeline = pipelines["text-classification", "classifier"]
    text = " ".join(WORDS * 10)

    def length(limit: int) -> bool:
        features = next(iter(pipeline.preprocess(text, {"truncation": True, "max_length": limit})))
        return features["input_ids"].shape[1] == limit

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(length, [4, 9, 17, 33, 50, 64] * 200))


def test_too_many_tokens_is_refused_before_the_device_sees_it(
    pipelines: dict[tuple[str, str], Loaded],
) -> None:
    pipeline = pipelines["text-classification", "classifier"]
    with pytest.raises(PipeqError, match="invalid_input: the text is 602 tokens, the model takes 512"):
        list(pipeline.preprocess("fox " * 600, {}))


@pytest.mark.parametrize(
    ("task", "model", "params", "sentence"),
    [
        ("text-classification", "classifier", {"topk": 1}, "did you mean 'top_k'"),
        ("text-classification", "classifier", {"batch_size": 4}, "set `max_batch_size` in"),
        ("text-classification", "classifier", {"device": "cpu"}, "belongs to the worker"),
        ("text-generation", "gpt2", {"custom_generate": "somebody/code"}, "cannot be set by a task"),
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
        pipeline.call_params(pipeline.merge(params))
    assert caught.value.code == "invalid_params"


def test_a_model_that_cannot_be_loaded_says_which_and_why(tmp_path: Path) -> None:
    with pytest.raises(PipeqError) as caught:
        load("text-classification", PipelineSettings(model=str(tmp_path / "nothing")), "cpu")
    assert caught.value.code == "invalid_settings"
    assert "nothing" in caught.value.message
