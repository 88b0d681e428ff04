"""Every tiny model runs in its pipeline, on decoded inputs, and tells one input from another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests import samples, tiny_models

torch.set_num_threads(1)

GREEDY = {"generate_kwargs": {"max_new_tokens": 8, "do_sample": False}}
LABELS = {"candidate_labels": ["fox", "lazy dog", "politics and sports"]}
#: Builder -> what its model needs beyond transformers.
NEEDS = {"tapas": "pandas", "tapas_cells": "pandas", "mask2former": "scipy", "sam": "torchvision"}
RANDOM = {"vits"}
CASES: list[tuple[str, str, Callable[[], list[Any]], dict[str, Any]]] = [
    ("token-classification", "token_classifier", samples.texts, {"aggregation_strategy": "simple"}),
    ("fill-mask", "masked_bert", lambda: samples.masked_texts("[MASK]"), {"top_k": 2}),
    ("fill-mask", "masked_roberta", lambda: samples.masked_texts("<mask>"), {"top_k": 2}),
    ("table-question-answering", "tapas", samples.tables, {}),
    ("table-question-answering", "tapas_cells", samples.tables, {"sequential": True}),
    ("decision", "decision_chat", samples.decisions, {}),
    ("decision", "decision_head", samples.decisions, {}),
    ("image-feature-extraction", "vit_encoder", samples.images, {"pool": True}),
    ("image-feature-extraction", "dinov2", samples.images, {}),
    ("image-feature-extraction", "resnet", samples.images, {}),
    ("image-feature-extraction", "segformer_encoder", samples.images, {}),
    ("image-segmentation", "segformer", samples.images, {}),
    ("image-segmentation", "detr_panoptic", samples.images, {"threshold": 0.0}),
    ("image-segmentation", "mask2former", samples.images, {"threshold": 0.0}),
    ("object-detection", "detr", samples.images, {"threshold": 0.0}),
    ("object-detection", "yolos", samples.images, {"threshold": 0.0}),
    ("depth-estimation", "dpt", samples.images, {}),
    ("depth-estimation", "glpn", samples.large_images, {}),
    ("keypoint-matching", "superglue", samples.image_pairs, {}),
    ("keypoint-matching", "lightglue", samples.image_pairs, {}),
    (
        "mask-generation",
        "sam",
        samples.images,
        {"points_per_batch": 8, "points_per_crop": 4, "pred_iou_thresh": -100.0, "stability_score_thresh": -1.0},
    ),
    ("zero-shot-image-classification", "clip", samples.images, LABELS),
    ("zero-shot-image-classification", "siglip", samples.images, LABELS),
    ("zero-shot-object-detection", "owlvit", samples.queries, {"threshold": 0.0, "top_k": 3}),
    ("image-text-to-text", "llava", samples.image_chats, GREEDY),
    ("image-text-to-text", "llava_next", samples.image_chats, GREEDY),
    ("any-to-any", "qwen2_audio", samples.audio_chats, GREEDY),
    ("audio-classification", "audio_group_norm", samples.sounds, {}),
    ("audio-classification", "audio_layer_norm", samples.sounds, {}),
    ("audio-classification", "spectrogram_transformer", samples.sounds, {}),
    ("automatic-speech-recognition", "speech2text", samples.sounds, GREEDY),
    ("automatic-speech-recognition", "speech_encoder_decoder", samples.sounds, GREEDY),
    ("automatic-speech-recognition", "whisper_short", samples.short_clips, {**GREEDY, "return_timestamps": True}),
    ("zero-shot-audio-classification", "clap", samples.sounds, LABELS),
    ("text-to-audio", "vits", lambda: samples.texts(4), {}),
    ("text-to-audio", "vits_quiet", lambda: samples.texts(4), {}),
    ("text-to-audio", "musicgen", lambda: samples.texts(4), GREEDY),
]


def frozen(value: Any) -> Any:
    """Pixels, tensors and arrays as lists, so that results can be compared."""
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    if isinstance(value, Image.Image):
        return np.asarray(value).tolist()
    return value.tolist() if hasattr(value, "tolist") else value


def run(pipe: transformers.Pipeline, value: Any, params: dict[str, Any]) -> Any:
    return frozen(pipe(copy.deepcopy(value), **copy.deepcopy(params)))


def check(pipe: transformers.Pipeline, inputs: list[Any], params: dict[str, Any], *, random: bool = False) -> None:
    results = [run(pipe, value, params) for value in inputs]
    assert all(results)
    assert any(result != results[0] for result in results)
    if not random:
        assert run(pipe, inputs[0], params) == results[0]


@pytest.mark.parametrize(
    ("task", "model", "inputs", "params"), CASES, ids=[f"{task}-{model}" for task, model, *_ in CASES]
)
def test_runs(tiny: Path, task: str, model: str, inputs: Callable[[], list[Any]], params: dict[str, Any]) -> None:
    if model in NEEDS:
        pytest.importorskip(NEEDS[model])
    pipe = transformers.pipeline(task, model=str(tiny_models.build(model, tiny)), device="cpu")
    check(pipe, inputs(), params, random=model in RANDOM)


@pytest.mark.parametrize("model", ["videomae", "timesformer"])
def test_videos_run(tiny: Path, tmp_path: Path, model: str) -> None:
    pipe = transformers.pipeline("video-classification", model=str(tiny_models.build(model, tiny)), device="cpu")
    check(pipe, [str(path) for path in samples.videos(tmp_path)], {})


def test_every_builder_builds(tiny: Path) -> None:
    for name in tiny_models.BUILDERS:
        needed = NEEDS.get(name)
        if name != "sam" and needed is not None and find_spec(needed) is None:
            continue
        folder = tiny_models.build(name, tiny)
        assert sum(file.stat().st_size for file in folder.iterdir()) < 2**21
