"""The memory of an answer about a picture is counted before the picture is decoded."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq_worker.media import images, picture_memory
from pipeq_worker.media.decoded import Decoded
from pipeq_worker.media.picture_memory import RULES, PictureMemory
from pipeq_worker.models.call import Call
from pipeq_worker.models.quirks.vision import ImageSegmentation
from pipeq_worker.models.task_type import Media
from pipeq_worker.models.task_types import TASK_TYPES
from pipeq_worker.settings.sections import InputSettings

MOST = InputSettings().max_decoded_bytes
#: 121 million pixels of one grey.
SIDE = 11_000


def pipe_of(config: Any, processor: Any = None) -> Any:
    return SimpleNamespace(model=SimpleNamespace(config=config), image_processor=processor)


def semantic() -> Any:
    return pipe_of(transformers.SegformerConfig(num_labels=150), transformers.SegformerImageProcessorPil())


def panoptic() -> Any:
    return pipe_of(transformers.DetrConfig(num_queries=100), transformers.DetrImageProcessorPil())


def depth() -> Any:
    return pipe_of(transformers.DPTConfig())


def masks() -> Any:
    return pipe_of(transformers.SamConfig())


def larger() -> Any:
    return pipe_of(transformers.Swin2SRConfig())


@pytest.fixture(scope="module")
def small_file() -> bytes:
    file = io.BytesIO()
    Image.new("1", (SIDE, SIDE)).save(file, "PNG")
    assert len(file.getvalue()) < 200_000
    return file.getvalue()


def test_each_task_type_that_takes_images_says_what_its_answer_takes() -> None:
    takes = {
        name
        for name, row in TASK_TYPES.items()
        if {Media.IMAGE, Media.IMAGES} & {*row.fields.values(), *row.chat_media}
    }
    assert takes == RULES.keys()


@pytest.mark.parametrize(
    ("task", "pipe"),
    [
        ("image-segmentation", semantic),
        ("image-segmentation", panoptic),
        ("depth-estimation", depth),
        ("mask-generation", masks),
        ("image-to-image", larger),
    ],
)
def test_a_small_file_of_many_pixels_is_refused_undecoded(
    task: str, pipe: Callable[[], Any], small_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    decoded = Decoded(MOST, answer=picture_memory.of(task, pipe(), {}))
    with pytest.raises(PipeqError, match=r"11000x11000 .* max_decoded_bytes\): send a smaller picture") as caught:
        images.decode_image(small_file, "x", SIDE**2, decoded)
    assert caught.value.code == ErrorCode.INPUT_TOO_LARGE


@pytest.mark.parametrize(
    ("task", "pipe", "width", "height"),
    [
        ("image-segmentation", semantic, 4000, 3000),
        ("image-segmentation", panoptic, 2560, 1920),
        ("depth-estimation", depth, 8000, 6000),
        ("mask-generation", masks, 1920, 1080),
        ("image-to-image", larger, 320, 240),
        ("object-detection", panoptic, SIDE, SIDE),
    ],
)
def test_usual_pictures_pass(task: str, pipe: Callable[[], Any], width: int, height: int) -> None:
    Decoded(MOST, answer=picture_memory.of(task, pipe(), {})).check_answer(width, height, "x")


def test_what_is_kept_of_many_pictures_adds_up_and_what_passes_does_not() -> None:
    decoded = Decoded(1000, answer=PictureMemory(kept=1, passing=5))
    for _ in range(5):
        decoded.check_answer(10, 10, "x")
    with pytest.raises(PipeqError, match="max_decoded_bytes"):
        decoded.check_answer(10, 10, "x")


def test_parameters_that_keep_more_masks_count() -> None:
    pipe = pipe_of(transformers.SamConfig())
    usual = picture_memory.of("mask-generation", pipe, {})
    assert picture_memory.of("mask-generation", pipe, {"points_per_batch": 1}).passing < usual.passing / 10
    assert picture_memory.of("mask-generation", pipe, {"crops_nms_thresh": 1.0}).kept == 3 * 32 * 32


PROCESSORS = [
    name
    for name in dir(transformers)
    if re.fullmatch(r"(Segformer|Beit|DPT|MobileViT|MobileNetV2)ImageProcessorPil", name)
]


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("strides", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(37, 53), (8, 300), (128, 128)])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_few_labels_after_the_other_give_the_masks_that_all_at_once_do(
    name: str, strides: torch.memory_format, size: tuple[int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeq_worker.models.quirks.vision._SINGLE_STEP_BYTES", 0)
    processor = getattr(transformers, name)()
    assert picture_memory.by_label(processor)
    scores = torch.randn(1, count, 16, 16, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=strides)
    config = SimpleNamespace(id2label={at: f"label {at}" for at in range(9)})
    pipe = transformers.ImageSegmentationPipeline.__new__(transformers.ImageSegmentationPipeline)
    pipe.image_processor, pipe.model = processor, SimpleNamespace(config=config)
    output = transformers.utils.ModelOutput(logits=scores, target_size=[size])
    quirks = ImageSegmentation.__new__(ImageSegmentation)
    ours = quirks.postprocess(pipe, [output], Call())
    theirs = pipe.postprocess(output)
    assert len(ours) == count
    assert [one["label"] for one in ours] == [one["label"] for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["score"] is other["score"] is None
        assert one["mask"].mode == other["mask"].mode == "L"
        assert one["mask"].tobytes() == other["mask"].tobytes()
