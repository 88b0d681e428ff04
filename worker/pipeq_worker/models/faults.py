"""What an exception of a forward pass says of the device: nothing, too little memory, or beyond use."""

from __future__ import annotations

import sys


def is_fatal(error: Exception) -> bool:
    """Whether a CUDA context is beyond use: every later call would fail, and blame innocent items."""
    return _is_torchs(error, "AcceleratorError") or "CUDA error" in str(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device's memory was too small."""
    # cuBLAS that could not have its workspace says so in other words, and so does a CPU.
    others = ("CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")
    return _is_torchs(error, "OutOfMemoryError") or any(one in str(error) for one in others)


def _is_torchs(error: Exception, name: str) -> bool:
    """Whether it is this one of torch's errors, without importing torch for those who have no use for it."""
    return isinstance(error, getattr(sys.modules.get("torch"), name, ()))
