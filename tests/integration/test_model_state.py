"""A forward pass that raised leaves no changes: state is compared and restored, or the model is loaded again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pipeq.contract.errors import PipeqError
from pipeq_worker.doctor.compare import differences
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.model_state import ModelState
from pipeq_worker.models.running import Row
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings
from pipeq_worker.stages.infer import infer

from tests import samples, tiny_models
from tests.device import DEVICE

torch.set_num_threads(1)

GREEDY = {"max_new_tokens": 4, "do_sample": False}


WALKED = [
    ("text-generation", "writer"),
    ("text2text-generation", "bart"),
    ("automatic-speech-recognition", "whisper_short"),
]
#: `make long` walks all of them.
EVERY = bool(os.environ.get("TASKS"))


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Callable[[str, str], TransformersPipeline]:
    found: dict[str, TransformersPipeline] = {}

    def get(task: str, model: str) -> TransformersPipeline:
        if model not in found:
            pipeline = load_pipeline(
                "it", PipelineSettings(task=task, model=str(tiny_models.build(model, tiny))), DEVICE
            )
            assert isinstance(pipeline, TransformersPipeline)
            found[model] = pipeline
        return found[model]

    return get


def run(pipeline: TransformersPipeline, value: Any, params: dict[str, Any]) -> Any:
    """Runs one item through the device stage: its result, or its error."""
    call = pipeline.call(params)
    task = SimpleNamespace(call=call)
    item = SimpleNamespace(task=task, call=call, features=None, output=None, error=None, cost=1, row=Row())
    try:
        item.features = next(iter(pipeline.preprocess(value, call)))
    except PipeqError as error:
        return error
    infer(pipeline, [item])  # type: ignore[list-item]
    return item.error or pipeline.postprocess([item.output], call)


@pytest.mark.parametrize(("task", "model"), WALKED if EVERY else WALKED[:1])
def test_no_field_of_a_generation_configuration_leaves_anything_behind(
    loaded: Callable[[str, str], TransformersPipeline], task: str, model: str
) -> None:
    """All parameters, also those that no task may set, because checkpoints may set them."""
    pipeline = loaded(task, model)
    value = samples.short_clips()[0] if model == "whisper_short" else "hello world user"
    before, state, raised = run(pipeline, value, GREEDY), pipeline._state, 0
    assert state is not None
    for name in sorted(transformers.GenerationConfig().to_dict().keys() - {"max_new_tokens", "_from_model_config"}):
        for given in (1, -1, "x"):  # each makes sense for some, and none for others
            failed = isinstance(run(pipeline, value, {**GREEDY, name: given}), PipeqError)
            assert pipeline._state is state, f"{name}={given} made the model forget its sample"
            assert state.restore_configs() == [], f"{name}={given} left something behind"
            # Hooks that a successful pass has installed for good do no damage, and may be removed, too.
            changed = state.restore()
            assert changed == [] or not failed, f"{name}={given} left something behind"
            raised += failed
    assert raised > 40
    assert list(differences(run(pipeline, value, GREEDY), before)) == []


def test_an_early_exit_that_raises_is_undone(
    loaded: Callable[[str, str], TransformersPipeline], caplog: pytest.LogCaptureFixture
) -> None:
    """It sets the number of layers in the shared configuration, and does not restore it."""
    pipeline = loaded("text-generation", "writer")
    before, layers = run(pipeline, "hello", GREEDY), pipeline._pipe.model.config.num_hidden_layers
    for given in (1, -1):
        with caplog.at_level(logging.WARNING, "pipeq_worker"):
            error = run(pipeline, "hello", {**GREEDY, "assistant_early_exit": given})
        assert isinstance(error, PipeqError)
        assert error.code == "inference_failed"
        assert pipeline._pipe.model.config.num_hidden_layers == layers
        assert list(differences(run(pipeline, "hello", GREEDY), before)) == []
    assert "put back what a failed call had changed" in caplog.text


def test_word_timestamps_leave_the_kind_of_attention_as_it_was(
    loaded: Callable[[str, str], TransformersPipeline],
) -> None:
    pipeline = loaded("automatic-speech-recognition", "whisper_short")
    before = pipeline._pipe.model.config._attn_implementation
    assert before != "eager"
    run(pipeline, samples.short_clips()[0], {**GREEDY, "return_timestamps": "word"})
    assert pipeline._pipe.model.config._attn_implementation == before


def test_flags_hooks_modules_and_defaults_are_put_back(loaded: Callable[[str, str], TransformersPipeline]) -> None:
    pipeline = loaded("text2text-generation", "bart")
    pipe, before = pipeline._pipe, run(pipeline, "hello world", GREEDY)
    model, state = pipe.model, ModelState(pipe)
    head, encoder = model.lm_head, model.model.encoder
    hooks = len(encoder._forward_hooks)
    model.train()
    encoder.register_forward_hook(lambda *_: 1 / 0)
    model.lm_head = torch.nn.Identity()
    model.a_cache = {1: 2}
    model.generation_config.num_beams = 7
    del model.config.d_model
    model.config.bos_token_id = 9
    pipe._forward_params["num_beams"] = 9
    encoder.layers[0].forward = None
    changed = state.restore()
    for what in (
        "num_beams",
        "d_model",
        "bos_token_id",
        "a_cache",
        "training",
        "_forward_hooks",
        "_modules",
        "forward",
    ):
        assert what in " ".join(changed)
    assert (model.training, encoder.layers[0].training, len(encoder._forward_hooks)) == (False, False, hooks)
    assert model.lm_head is head
    assert not hasattr(model, "a_cache")
    assert "num_beams" not in pipe._forward_params
    assert state.restore() == []
    assert list(differences(run(pipeline, "hello world", GREEDY), before)) == []


def test_a_tokenizer_that_raises_is_as_it_was(loaded: Callable[[str, str], TransformersPipeline]) -> None:
    pipeline = loaded("text2text-generation", "bart")
    run(pipeline, "hello", GREEDY)
    tokenizer = pipeline.pipe().tokenizer
    sides = tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length

    def breaks(*_: object, **__: object) -> None:
        tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length = "left", "left", 1
        tokenizer.src_lang = "de"
        tokenizer._tokenizer.enable_truncation(3)
        tokenizer._tokenizer.enable_padding(length=99)
        raise RuntimeError("in the middle")

    try:
        type(tokenizer).encode_plus_before = None
        original, type(tokenizer)._encode_plus = type(tokenizer)._encode_plus, breaks
        with pytest.raises(PipeqError, match="in the middle"):
            list(pipeline.preprocess("hello", pipeline.call(GREEDY)))
    finally:
        type(tokenizer)._encode_plus = original
        del type(tokenizer).encode_plus_before
    assert (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length) == sides
    assert not hasattr(tokenizer, "src_lang")
    assert (tokenizer._tokenizer.truncation, tokenizer._tokenizer.padding) == (None, None)


@pytest.mark.parametrize("factor", [0.0, 1.05])  # with the latter, its own sample gets the same tokens
def test_what_cannot_be_put_back_is_loaded_anew(tiny: Path, caplog: pytest.LogCaptureFixture, factor: float) -> None:
    """Weights are not compared; the pipeline's own sample detects that they have changed."""
    pipeline = load_pipeline(
        "it", PipelineSettings(task="text-generation", model=str(tiny_models.build("writer", tiny))), DEVICE
    )
    assert isinstance(pipeline, TransformersPipeline)
    pipe, before = pipeline._pipe, run(pipeline, "hello world", GREEDY)
    too_long = {**GREEDY, "max_new_tokens": 600, "eos_token_id": None}
    assert isinstance(run(pipeline, "fox", too_long), PipeqError)
    assert pipeline._pipe is pipe, "a pass that raised is no reason by itself"
    with torch.no_grad():
        pipe.model.transformer.ln_f.weight.mul_(factor)
    with caplog.at_level(logging.ERROR, "pipeq_worker"):
        assert isinstance(run(pipeline, "fox", too_long), PipeqError)
    assert "the model's own sample gives another answer: loading it anew" in caplog.text
    assert pipeline._pipe is not pipe
    assert list(differences(run(pipeline, "hello world", GREEDY), before)) == []


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("text-classification", "classifier"),
        ("zero-shot-classification", "nli"),
        ("text-embedding", "encoder"),
        ("image-segmentation", "segformer"),
        ("object-detection", "detr"),
        ("text-to-audio", "vits"),
        ("text-to-audio", "musicgen"),
        ("automatic-speech-recognition", "ctc_layer_norm"),
        ("zero-shot-audio-classification", "clap"),
        ("image-text-to-text", "llava"),
    ],
)
def test_every_kind_of_model_knows_its_sample(
    loaded: Callable[[str, str], TransformersPipeline], task: str, model: str
) -> None:
    """The same random numbers give the same answer, also for models that sample, unless the weights have changed."""
    pipeline = loaded(task, model)
    assert pipeline._known is not None
    state = torch.random.get_rng_state()
    assert pipeline._known.is_known()
    assert torch.equal(torch.random.get_rng_state(), state), "the random numbers of tasks go on as they were"
    weights = [weight.detach().clone() for weight in pipeline._pipe.model.parameters()]
    with torch.no_grad():
        for weight in pipeline._pipe.model.parameters():
            weight.mul_(1.5).add_(0.05)
        assert not pipeline._known.is_known()
        for weight, before in zip(pipeline._pipe.model.parameters(), weights, strict=True):
            weight.copy_(before)
    assert pipeline._known.is_known()
    assert np.isfinite(sum(float(array.sum()) for array in pipeline._known._answer))
    assert pipeline.sample()
