"""FAULTS: what an exception of a forward pass tells about the device: out of memory, unusable, or nothing."""

from __future__ import annotations

import sys


def is_fatal(error: Exception) -> bool:
    """Whether the CUDA context is unusable: every later call would fail, and innocent items would be blamed."""
    is_faulty = _is_torchs(error, "AcceleratorError") or "CUDA error" in str(error)
    # Too little memory leaves the context as it was, although the driver and cuBLAS call it an error of CUDA.
    return is_faulty and not is_out_of_memory(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device ran out of memory."""
    # The words of the driver beside torch's own pool, of cuBLAS that got no workspace, and of a CPU.
    others = (
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "DefaultCPUAllocator: can't allocate memory",
    )
    return _is_torchs(error, "OutOfMemoryError") or any(one in str(error) for one in others)


def _is_torchs(error: Exception, name: str) -> bool:
    """Whether ``error`` is of this class of torch's, tested without importing torch."""
    return isinstance(error, getattr(sys.modules.get("torch"), name, ()))
