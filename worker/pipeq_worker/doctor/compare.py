"""Compares two outputs of a pipeline. Used by ``pipeq doctor`` and the tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

#: Largest difference that batching may make to a number (docs/decisions/batching.md).
ABSOLUTE, RELATIVE = 1e-5, 1e-4


def differences(got: Any, want: Any, where: str = "result") -> Iterator[str]:
    """Describes in words each place where two outputs differ; yields nothing if they are the same answer.

    Labels and texts must be equal, numbers within 1e-5 absolute plus 1e-4 relative. Pixels may differ by 1 of 255,
    because rounding a depth map can turn the smallest difference into one.
    """
    if hasattr(want, "messages"):  # transformers' Chat
        got, want = getattr(got, "messages", got), want.messages
    if isinstance(want, Image.Image):
        yield from _images(got, want, where)
    elif isinstance(want, Mapping):
        yield from _mappings(got, want, where)
    elif isinstance(want, list | tuple):
        if not isinstance(got, list | tuple) or len(got) != len(want):
            yield f"{where} has {len(got) if isinstance(got, list | tuple) else 'no'} entries, not {len(want)}"
            return
        for at, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            yield from differences(mine, theirs, f"{where}[{at}]")
    elif hasattr(want, "shape") and want.ndim:
        yield from _arrays(got, want, where)
    elif isinstance(want, float | np.floating):
        if not isinstance(got, float | int | np.number) or not _close(float(got), float(want)):
            yield f"{where} is {got}, not {want}"
    elif hasattr(want, "item"):
        yield from differences(got.item() if hasattr(got, "item") else got, want.item(), where)
    elif got != want:
        yield f"{where} is {got!r}, not {want!r}"


def _close(got: float, want: float) -> bool:
    if math.isnan(want) or math.isinf(want):
        return got == want or (math.isnan(got) and math.isnan(want))
    return abs(got - want) <= ABSOLUTE + RELATIVE * abs(want)


def _mappings(got: Any, want: Mapping[Any, Any], where: str) -> Iterator[str]:
    if not isinstance(got, Mapping) or got.keys() != want.keys():
        keys = sorted(map(str, got)) if isinstance(got, Mapping) else "none"
        yield f"{where} has the keys {keys}, not {sorted(map(str, want))}"
        return
    for key in want:
        yield from differences(got[key], want[key], f"{where}.{key}")


def _arrays(got: Any, want: Any, where: str) -> Iterator[str]:
    mine, theirs = (np.asarray(one.detach().cpu().float() if hasattr(one, "detach") else one) for one in (got, want))
    if mine.shape != theirs.shape:
        yield f"{where} is of shape {mine.shape}, not {theirs.shape}"
    elif theirs.dtype.kind in "fc":
        if not np.allclose(mine, theirs, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            yield f"{where} differs by up to {np.abs(mine - theirs).max():g}"
    elif not np.array_equal(mine, theirs):
        yield f"{where} differs in {int((mine != theirs).sum())} of {theirs.size} elements"


def _images(got: Any, want: Image.Image, where: str) -> Iterator[str]:
    if not isinstance(got, Image.Image) or (got.size, got.mode) != (want.size, want.mode):
        yield f"{where} is no {want.mode} image of {want.width}x{want.height}"
        return
    apart = np.abs(np.asarray(got).astype(int) - np.asarray(want).astype(int)).max(initial=0)
    if apart > 1:
        yield f"{where} differs by up to {apart} of 255"
