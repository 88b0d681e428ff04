"""DECODE of images: how much memory the answer about a picture takes, computed before the picture is decoded.

    task type, model, parameters -> bytes for each pixel -> media/decoded.py, called by images.py

The model sees a picture scaled to a fixed size. Several task types then scale the answer back to the original size, in
float32, for each label, query or mask: a small file of 121 million pixels with 150 labels would take 72 GB.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_FLOAT = 4
#: Bytes for each pixel beside the answer itself: the scores of a few labels, the best score, its label, and copies.
_PASSING = 72
#: Parameters of mask-generation that decide how many masks are filtered out.
_FILTERS = ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "crops_nms_thresh", "mask_threshold")
#: Masks of one picture that remain with the default filters: one for each object.
_USUAL_MASKS = 256


@dataclass(frozen=True)
class PictureMemory:
    """Bytes for each pixel of a picture, in addition to the picture itself."""

    #: Bytes that the answer keeps until its task is delivered; those of all pictures of a task add up.
    kept: float = 0
    #: Bytes that are needed only while the answer about one picture is computed.
    passing: float = 0


def none(pipe: Any, params: Mapping[str, Any]) -> PictureMemory:
    """For labels, boxes, points, text and features: their size does not depend on the picture's."""
    return PictureMemory()


def segmentation(pipe: Any, params: Mapping[str, Any]) -> PictureMemory:
    """One mask for each label found. If the model's queries propose masks, all of those are scaled up at once."""
    labels = max(1, _number(pipe.model.config, "num_labels"))
    if by_label(pipe.image_processor):
        return PictureMemory(labels, _PASSING)
    queries = max(_number(config, "num_queries") for config in _configs(pipe.model))
    layers = max(labels, queries) if params.get("subtask") == "semantic" or not queries else queries
    return PictureMemory(layers, layers * _FLOAT + _PASSING)


def by_label(processor: Any) -> bool:
    """Whether scores can be scaled up a few labels at a time: see ``ImageSegmentation`` in models/quirks."""
    proposes = any(hasattr(processor, f"post_process_{kind}_segmentation") for kind in ("panoptic", "instance"))
    semantic = getattr(processor, "post_process_semantic_segmentation", None)
    return (
        not proposes and semantic is not None and "return_segmentation_scores" in inspect.signature(semantic).parameters
    )


def depth(pipe: Any, params: Mapping[str, Any]) -> PictureMemory:
    """The depth map, in float32 and as a picture."""
    return PictureMemory(_FLOAT + 1, _PASSING)


def masks(pipe: Any, params: Mapping[str, Any]) -> PictureMemory:
    """Three masks for each point of a batch, in float32, compared twice; then the masks that remain."""
    points = params.get("points_per_batch") or 64
    kept = _USUAL_MASKS
    if any(params.get(name) is not None for name in _FILTERS):
        crops = sum(4**layer for layer in range((params.get("crops_n_layers") or 0) + 1))
        kept = 3 * (params.get("points_per_crop") or 32) ** 2 * crops
    return PictureMemory(kept, points * 3 * (_FLOAT + 2) + _PASSING)


def image_to_image(pipe: Any, params: Mapping[str, Any]) -> PictureMemory:
    """All pixels go through the model at once; the output is ``upscale`` times as wide and as high."""
    config = pipe.model.config
    area, width = max(1, _number(config, "upscale")) ** 2, max(64, _number(config, "embed_dim", "hidden_size"))
    heads, window = max(1, _number(config, "num_heads")), max(1, _number(config, "window_size"))
    inner = width * max(1, _number(config, "mlp_ratio"))
    pass_floats = 8 * width + 3 * inner + 3 * heads * window**2 + 3 * 64 * area
    return PictureMemory(area * 3, _FLOAT * (pass_floats + 9 * area) + _PASSING)


#: The rule for each task type that takes an image.
RULES: dict[str, Callable[[Any, Mapping[str, Any]], PictureMemory]] = {
    "image-classification": none,
    "image-feature-extraction": none,
    "image-segmentation": segmentation,
    "object-detection": none,
    "depth-estimation": depth,
    "keypoint-matching": none,
    "mask-generation": masks,
    "zero-shot-image-classification": none,
    "zero-shot-object-detection": none,
    "image-to-image": image_to_image,
    "document-question-answering": none,
    "visual-question-answering": none,
    "image-to-text": none,
    "image-text-to-text": none,
    "any-to-any": none,
}


def of(task: str, pipe: Any, params: Mapping[str, Any]) -> PictureMemory:
    """Memory that the answer about each picture of a task takes.

    Args:
        task: name of the task type.
        pipe: the transformers pipeline that will run.
        params: the task's parameters, merged over those of the settings.
    """
    return RULES.get(task, none)(pipe, params)


def _configs(model: Any) -> list[Any]:
    """A model's configuration, and the configurations of its parts."""
    config = model.config
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or {}]
    return [config, *(part for part in [*parts, getattr(config, "decoder_config", None)] if part is not None)]


def _number(config: Any, *names: str) -> int:
    """The largest of the numbers that a configuration has under these names; a list counts with its largest entry."""
    found = [0]
    for name in names:
        value = getattr(config, name, None)
        values = value if isinstance(value, list | tuple) else [value]
        found += [int(one + 0.999) for one in values if isinstance(one, int | float)]
    return max(found)
