"""Quirks of task types with images and video as input."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.media import picture_memory
from pipeq_worker.media.video import Video
from pipeq_worker.models import footprint, scaling
from pipeq_worker.models.call import SOLO, Call
from pipeq_worker.models.foreseen import Foreseen
from pipeq_worker.models.quirks.base import JSON_FACTOR, Quirks
from pipeq_worker.models.quirks.generation import Generates

#: Number of labels whose scores are scaled up together.
_LABELS_PER_STEP = 4
#: If all scores, scaled up, take fewer bytes than this, they are scaled up together, as transformers does it.
_SINGLE_STEP_BYTES = 2**28


class ComparesLabels(Quirks):
    """Base class for models that compare labels with images or sounds: labels are limited as the model's texts are."""

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        if self.limit is None:
            self.limit = getattr(getattr(pipe.model.config, "text_config", None), "max_position_embeddings", None)

    def check_features(
        self, pipe: transformers.Pipeline, features: Mapping[str, Any], forward: Mapping[str, Any]
    ) -> None:
        label = features.get("candidate_label")
        which = "a label in its template" if label is None else f"the label {label[:40]!r}"
        self.check_length(f"candidate_labels: {which}", footprint.longest(features))


class ZeroShotImage(ComparesLabels):
    """The labels are parameters, and all items of a batch must have the same ones."""

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return picture(), {"candidate_labels": ["a", "b"]}


class ZeroShotObjectDetection(ComparesLabels):
    """Each candidate label is a chunk of its own."""

    def call_params(self, params: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in params.items() if name != "candidate_labels"}

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        fields = value if isinstance(value, dict) else {"image": value}
        labels = fields.get("candidate_labels", params.get("candidate_labels"))
        if labels is None:
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                'candidate_labels is missing: give it with the image, {"image": ..., "candidate_labels": ["cat"]}, or '
                "as a parameter",
            )
        if isinstance(labels, str):
            # As in transformers, but without the blanks around labels.
            labels = [label.strip() for label in labels.split(",")]
        if not is_labels(labels) or not all(label.strip() for label in labels):
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                'candidate_labels must be a list of texts, or texts separated by commas, none of them blank: ["cat", '
                '"dog"]',
            )
        if len(labels) > self.max_labels:
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"there are {len(labels)} candidate_labels, at most {self.max_labels} are taken (`max_labels` in "
                "[param_limits] of the worker's settings): send them in parts",
            )
        return {"image": fields["image"], "candidate_labels": labels}

    def alone(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        return pipe(self.call_input(pipe, value, params), **self.call_params(dict(params)))

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return {"image": picture(), "candidate_labels": ["a"]}, {}


class ImageFeatureExtraction(Quirks):
    """Returns one row for each patch."""

    def json_factor(self, call: Call) -> int:
        return 1 if call.params.get("return_tensors") else JSON_FACTOR


class KeypointMatching(Quirks):
    """Two images make one input. Items run alone, because the pipeline cannot collate several."""

    def call_input(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        images = value["images"] if isinstance(value, dict) else value
        if len(images) != 2:
            raise PipeqError(ErrorCode.INVALID_INPUT, f"keypoint-matching takes two images, there are {len(images)}")
        return images

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        return SOLO

    def alone(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        return pipe(self.call_input(pipe, value, params), **params)

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return {"images": [picture(), picture()]}, {}


class ImageSegmentation(Quirks):
    """Scales scores up to the size of the picture a few labels at a time, instead of all labels together.

    The masks equal those of transformers, except where two labels differ only in the last bit of a float.
    """

    def postprocess(self, pipe: transformers.Pipeline, outputs: list[Any], call: Call) -> Any:
        processor, output = pipe.image_processor, outputs[0]
        logits = output.get("logits")
        is_semantic = call.postprocess.get("subtask") in (None, "semantic")
        if not is_semantic or not isinstance(logits, torch.Tensor) or not picture_memory.by_label(processor):
            return super().postprocess(pipe, outputs, call)
        [(height, width)] = output["target_size"]
        if logits.shape[1] * height * width * logits.element_size() <= _SINGLE_STEP_BYTES:
            return super().postprocess(pipe, outputs, call)
        scaled_up, best, found, count = processor.post_process_semantic_segmentation, None, None, logits.shape[1]
        for at in range(0, count, _LABELS_PER_STEP):
            # The last group has the full size, too: torch computes a single label by another method, and rounds
            # differently.
            first = max(0, min(at, count - _LABELS_PER_STEP))
            some = transformers.utils.ModelOutput(logits=logits[:, first : first + _LABELS_PER_STEP])
            [made] = scaled_up(some, target_sizes=output["target_size"], return_segmentation_scores=True)
            for label, scores in enumerate(made.segmentation_scores, first):
                if best is None or found is None:
                    best, found = scores.clone(), torch.zeros_like(scores, dtype=torch.int32)
                    continue
                # The first of equal scores wins, as in argmax.
                found.masked_fill_(scores > best, label)
                torch.maximum(best, scores, out=best)
        assert found is not None
        segments = found.numpy()
        return [
            {
                "score": None,
                "label": pipe.model.config.id2label[label],
                "mask": Image.fromarray((segments == label).view(np.uint8) * np.uint8(255)),
            }
            for label in np.flatnonzero(np.bincount(segments.reshape(-1))).tolist()
        ]


class MaskGeneration(Quirks):
    """Its preprocessing runs the vision encoder, so it runs on the device's thread, image by image."""

    def foresee(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Foreseen:
        # Each batch of points is a pass of its own, and each layer of crops has four times as many crops.
        params = call.params
        layers, side = params.get("crops_n_layers") or 0, params.get("points_per_crop") or 32
        less, at_once = params.get("crop_n_points_downscale_factor") or 1, params.get("points_per_batch") or 64
        passes = [4**layer * -(-(max(1, side // less**layer) ** 2) // at_once) for layer in range(layers + 1)]
        return Foreseen(rows=sum(passes))

    def preprocess(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Iterator[Mapping[str, Any]]:
        crops = sum(4**layer for layer in range((call.params.get("crops_n_layers") or 0) + 1))
        # They are scaled, and go through the encoder, all at once.
        scaling.check(
            image_processor(pipe), itertools.repeat(value.size, crops), call.preprocess, self.max_scaled_pixels
        )
        yield {"image": value, "preprocess": call.preprocess}

    def forward(self, pipe: transformers.Pipeline, features: list[Mapping[str, Any]], call: Call) -> list[Any]:
        return [
            [
                # Whether points are an image's last is what transformers' iterator reads, and takes out.
                {name: value for name, value in pipe.forward(points, **call.forward).items() if name != "is_last"}
                for points in pipe.preprocess(one["image"], **one["preprocess"])
            ]
            for one in features
        ]

    def postprocess(self, pipe: transformers.Pipeline, outputs: list[Any], call: Call) -> Any:
        return pipe.postprocess(outputs[0], **call.postprocess)

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        return SOLO

    def cost(self, features: Mapping[str, Any]) -> int:
        return 1


class VideoClassification(Quirks):
    """Frames are chosen while the video is decoded. The pipeline itself would open any path or URL in a string."""

    def preprocess(self, pipe: transformers.Pipeline, value: Any, call: Call) -> Iterator[Mapping[str, Any]]:
        count = call.preprocess.get("num_frames") or pipe.model.config.num_frames
        every = call.preprocess.get("frame_sampling_rate") or 1
        # The same positions as in the pipeline.
        indices = np.linspace(0, count * every - 1, num=count, dtype=np.int64).tolist()
        frames = value.frames(indices) if isinstance(value, Video) else value[indices]
        if len(frames) < count:
            name = value.name if isinstance(value, Video) else "the video"
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"{name} has {len(frames)} of the {count} frames that are asked for (num_frames={count}, "
                f"frame_sampling_rate={every}): take fewer, or closer together",
            )
        height, width = frames[0].shape[:2]
        scaling.check(image_processor(pipe), ((width, height) for _ in frames), {}, self.max_scaled_pixels)
        if getattr(pipe, "video_processor", None) is not None:
            made = pipe.video_processor(list(frames), return_tensors="pt")
        else:
            made = pipe.image_processor(list(frames), return_tensors="pt")
        yield made.to(pipe.dtype)

    def alone(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        # The pipeline accepts only the name of a file.
        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            file.write(value.data)
            file.flush()
            return pipe(file.name, **params)

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return np.zeros((pipe.model.config.num_frames, 64, 64, 3), dtype=np.uint8), {}


class ImageToText(Generates):
    """Images of one shape share a batch. Decoding leaves out the padding of generated sequences."""

    pads = False
    nested = False  # the pipeline takes the parameters out of generate_kwargs

    def sample(self, pipe: transformers.Pipeline) -> tuple[Any, dict[str, Any]]:
        return picture(), {"max_new_tokens": 2}


def image_processor(pipe: transformers.Pipeline) -> Any:
    """The processor that scales a pipeline's images or frames; None if it has none."""
    own = (pipe.image_processor, getattr(pipe, "video_processor", None))
    return next((one for one in (*own, getattr(pipe.processor, "image_processor", None)) if one is not None), None)


def picture() -> Image.Image:
    """A small image for the warm-up. It has several colours, because some models scale by the contrast."""
    ramp = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3) % 251
    return Image.fromarray(ramp.astype(np.uint8))


def is_labels(value: Any) -> bool:
    """Whether a value is a text or a list of texts, and not empty."""
    one_or_more = value if isinstance(value, list) else [value]
    return bool(value) and all(isinstance(label, str) for label in one_or_more)
