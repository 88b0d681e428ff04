from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from pipeq.contract.errors import PipeqError
from pipeq_worker.models.scaling import check, scaled, sizes


class Processor:
    def __init__(self, size: Any, do_resize: bool | None = True) -> None:
        self.size, self.do_resize = size, do_resize


@pytest.mark.parametrize(
    ("size", "width", "height", "pixels"),
    [
        (None, 100, 50, 5000),
        (32, 1, 60_000, 32 * 60_000 * 32),
        ({"height": 32, "width": 16}, 1, 60_000, 512),
        ({"shortest_edge": 224}, 448, 448, 224 * 224),
        ({"shortest_edge": 224}, 1, 60_000, 224 * 224 * 60_000),
        ({"shortest_edge": 64, "longest_edge": 96}, 1, 60_000, 96),
        ({"longest_edge": 96}, 1, 60_000, 96),
        ({"max_height": 10, "max_width": 10}, 100, 50, 50),
        ({"min_pixels": 100, "max_pixels": 1000}, 1, 60_000, 1000),
        ({"min_pixels": 100, "max_pixels": 1000}, 2, 2, 100),
    ],
)
def test_how_large_an_image_becomes(size: Any, width: int, height: int, pixels: int) -> None:
    assert scaled(size, width, height) == pixels


def test_the_images_of_one_input_are_added_up() -> None:
    images = {"images": [Image.new("RGB", (10, 10))] * 3, "text": [{"content": [{"image": Image.new("RGB", (5, 5))}]}]}
    check(Processor(None), sizes(images), {}, 325)
    with pytest.raises(PipeqError, match=r"input_too_large: an image of 5 x 5 pixels is scaled to 25 .* makes 325"):
        check(Processor(None), sizes(images), {}, 324)
    check(None, sizes(images), {}, 1)


@pytest.mark.parametrize("given", [{"size": 40}, {"processor_kwargs": {"images_kwargs": {"size": 40}}}])
def test_a_call_may_scale_otherwise(given: dict[str, Any]) -> None:
    with pytest.raises(PipeqError, match="scaled to 1600 pixels"):
        check(Processor({"height": 8, "width": 8}), iter([(9, 9)]), given, 1000)


def test_without_scaling_the_image_is_what_it_is() -> None:
    with pytest.raises(PipeqError, match="scaled to 10000 pixels"):
        check(Processor({"height": 8, "width": 8}, do_resize=False), iter([(100, 100)]), {}, 1000)
