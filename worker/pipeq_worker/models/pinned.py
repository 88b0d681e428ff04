"""PINNED: a collated batch -> the same batch on a CUDA device, by way of memory that the device reads by itself.

Ordinary memory has to be copied by the driver a piece at a time, and the thread that launches kernels waits for it.
Memory that cannot be moved (pinned) is read by the device while this thread goes on: what it launches next on the same
stream comes after the copy. torch keeps a pinned block until the copies that it knows of have ended, so that none is
used anew too early. Of rows that wait nothing is pinned: they are padded and put together in between.
"""

from __future__ import annotations

from typing import Any

import torch


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch, with the tensors of its top level on their way to the device; as it is if that is no CUDA device.

    Args:
        batch: what a collate function of transformers returned: name -> tensor, or anything else.
        device: where the model is.
    """
    if device.type != "cuda" or type(batch) is not dict:
        return batch
    return {name: _copied(value, device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
