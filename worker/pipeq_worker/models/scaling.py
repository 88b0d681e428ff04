"""PREPARE of images: computes the size to which an image processor is going to scale images, before it does.

Many processors scale an image until its *short* side has a given length: 300 bytes of PNG, 1 pixel wide and 60,000
high, become 3 gigapixels. The input is small, and what the model sees is small, but the image in between would exhaust
the machine's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image
from pipeq.contract.errors import ErrorCode, PipeqError

_NAMES = "height width shortest_edge longest_edge max_height max_width min_pixels max_pixels".split()


def check(processor: Any, sizes: Iterator[tuple[int, int]], given: Mapping[str, Any], most: int) -> None:
    """Checks the total size to which the images of one input are going to be scaled.

    Args:
        processor: an image or video processor of transformers; None if the model has none.
        sizes: width and height of each image, in pixels.
        given: parameters of the call, which may have another ``size``.
        most: most pixels, all images together.

    Raises:
        PipeqError: ``input_too_large``.
    """
    if processor is None:
        return
    size, total = _size(processor, given), 0
    for width, height in sizes:
        pixels = scaled(size, width, height)
        total += pixels
        if total > most:
            raise PipeqError(
                ErrorCode.INPUT_TOO_LARGE,
                f"an image of {width} x {height} pixels is scaled to {pixels} pixels for this model, which makes "
                f"{total} in one input, beyond {most} (`max_scaled_pixels` in [param_limits] of the worker's "
                "settings): send fewer or smaller images, or less narrow ones",
            )


def sizes(value: Any) -> Iterator[tuple[int, int]]:
    """Yields width and height of every image in a decoded input, including those in chats."""
    if isinstance(value, Image.Image):
        yield value.size
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from sizes(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from sizes(one)


def scaled(size: Any, width: int, height: int) -> int:
    """Number of pixels of an image after scaling.

    Args:
        size: as image processors of transformers have it: some of ``height, width, shortest_edge, longest_edge,
            max_height, max_width, max_pixels``; None if the processor does not resize.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    if size is None:
        return width * height
    if isinstance(size, int):
        size = {"shortest_edge": size}
    found = size if isinstance(size, Mapping) else {name: getattr(size, name, None) for name in _NAMES}
    side: dict[str, float] = {name: found.get(name) or 0 for name in _NAMES}
    if side["height"] and side["width"]:
        return int(side["height"] * side["width"])
    if side["max_pixels"]:
        return int(min(max(width * height, side["min_pixels"]), side["max_pixels"]))
    factors = []
    if side["shortest_edge"]:
        factors.append(side["shortest_edge"] / min(width, height))
    if side["longest_edge"]:
        factors.append(side["longest_edge"] / max(width, height))
    if side["max_height"] and side["max_width"]:
        factors.append(min(side["max_height"] / height, side["max_width"] / width))
    factor = min(factors, default=1)
    return int(max(1, width * factor) * max(1, height * factor))


def _size(processor: Any, given: Mapping[str, Any]) -> Any:
    inside = given.get("processor_kwargs") or {}
    for place in (given, inside, inside.get("images_kwargs") or {}):
        if place.get("size") is not None:
            return place["size"]
    return getattr(processor, "size", None) if getattr(processor, "do_resize", None) is not False else None
