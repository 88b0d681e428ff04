"""Tiny models that are the same on every machine and with every version, and inputs for them.

For results that transformers 4.57.6 gave once, in ``tests/integration/transformers_4_57_6.json``.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pipeq_worker.models.task_types import find

from tests import tiny_models

Change = Callable[[Any], None]


def _ends(bias: float, **generation: Any) -> Change:
    """How likely BART is to end, and the content of its generation_config.json."""

    def change(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if "shared" in name or "embed" in name:  # else each token repeats the one before
                parameter.data *= 1.2 if "positions" in name else 0.3
        model.final_logits_bias[0, :5] = -1e4
        model.final_logits_bias[0, model.config.eos_token_id] = bias
        model.generation_config.update(**generation)

    return change


def _t5_ends(model: Any) -> None:
    model.lm_head.weight.data[model.config.eos_token_id] *= 2.5


def _nothing(model: Any) -> None: ...


#: Name -> task type whose class loads it, tiny model, scale of its weights, other differences.
MODELS: dict[str, tuple[str, str, float, Change]] = {
    "reader": ("question-answering", "reader", 1.5, _nothing),
    "unsure_reader": ("question-answering", "reader", 0.3, _nothing),
    "byte_reader": ("question-answering", "byte_reader", 1.5, _nothing),
    "left_reader": ("question-answering", "left_reader", 1.5, _nothing),
    "bart": ("text2text-generation", "bart", 3, _ends(-0.6)),
    "bart_ends": ("text2text-generation", "bart", 3, _ends(0.3)),
    "bart_beams": ("text2text-generation", "bart", 3, _ends(0.3, num_beams=2, max_new_tokens=10)),
    "bart_lengths": (
        "text2text-generation",
        "bart",
        3,
        _ends(-0.6, max_length=30, min_length=5, num_beams=2, length_penalty=2.0, no_repeat_ngram_size=3),
    ),
    "t5": ("text2text-generation", "t5", 1.5, _nothing),
    "t5_ends": ("text2text-generation", "t5", 1.5, _t5_ends),
    "translator": ("translation", "translator", 3, _ends(0)),
    "vilt": ("visual-question-answering", "vilt", 2, _nothing),
    "blip_vqa": ("visual-question-answering", "blip_vqa", 2, _nothing),
    "blip2": ("visual-question-answering", "blip2", 2, _nothing),
    "captioner": ("image-to-text", "captioner", 2, _nothing),
    "blip_caption": ("image-to-text", "blip_caption", 2, _nothing),
    "git_caption": ("image-to-text", "git_caption", 2, _nothing),
    "upscaler": ("image-to-image", "upscaler", 0.7, _nothing),
}


def build(name: str, folder: Path) -> Path:
    """Writes the checkpoint ``name`` of :data:`MODELS` below ``folder`` unless it is there."""
    task, tiny, gain, change = MODELS[name]
    path = folder / "transformers_4" / name
    if not path.exists():
        shutil.copytree(tiny_models.build(tiny, folder), path)
        ours = find(task).own
        assert ours is not None
        model = ours.model().from_pretrained(path)
        for parameter, weights in model.named_parameters():
            if weights.ndim > 1:  # the others, biases and norms, begin as zeros and ones
                random = np.random.RandomState(zlib.crc32(parameter.encode()))
                values = random.standard_normal(tuple(weights.shape)) * gain / weights.shape[-1] ** 0.5
                weights.data = torch.from_numpy(values).to(weights.dtype)
        model.tie_weights()
        change(model)
        model.save_pretrained(path)
    return path


def gradient(width: int, height: int, seed: int) -> Image.Image:
    """A computed picture."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 4, y * 5, (x + y + seed * 40) * 3], -1).astype(np.uint8))


def decoded(value: Any) -> Any:
    """An input of the fixture, with a picture made from the ``[width, height, seed]`` under ``image``."""
    if isinstance(value, dict) and "image" in value:
        return {**value, "image": gradient(*value["image"])}
    return gradient(*value) if isinstance(value, list) else value
