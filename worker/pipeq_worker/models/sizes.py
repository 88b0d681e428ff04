"""SIZES: how many bytes prepared rows and outputs take. Used by transformers_pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

#: Estimate of what an item's Python objects take in addition to its tensors, in bytes.
OBJECT_BYTES = 4096


def row_bytes(features: Mapping[str, Any]) -> int:
    """Bytes of one prepared row."""
    tensors = sum(value.nbytes for value in features.values() if isinstance(value, torch.Tensor))
    images = sum(value.width * value.height * 3 for value in features.values() if isinstance(value, Image.Image))
    return tensors + images + OBJECT_BYTES


def tensor_bytes(output: Any) -> int:
    """Bytes of all tensors and arrays in an output, at any depth."""
    if isinstance(output, torch.Tensor | np.ndarray):
        return output.nbytes
    if isinstance(output, Mapping):
        return sum(tensor_bytes(one) for one in output.values())
    return sum(tensor_bytes(one) for one in output) if isinstance(output, list | tuple) else 0
