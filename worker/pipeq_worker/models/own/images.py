"""A check that a pipeline's input is a decoded image."""

from __future__ import annotations

from typing import Any

from PIL import Image


def decoded(image: Any) -> Image.Image:
    """Returns a PIL image unchanged.

    Raises:
        TypeError: for anything else. An image processor would open a text as a URL, or as a file of this machine.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"the image is {type(image).__name__}, not a decoded image")
    return image
