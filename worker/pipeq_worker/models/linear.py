"""LINEAR: has a model's linear layers on the CPU run on oneDNN where that is faster than torch's own choice.

For float32 on an x86 CPU torch takes MKL. On AMD's processors MKL does not use AVX-512, and oneDNN, which torch
carries too, takes half the time (docs/decisions/linear-layers.md). Both multiply in float32; sums are added up in
another order, as they are in a batch of another size.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger(__name__)

#: What is less than this is faster with MKL, since oneDNN takes 10 us to begin: rows, and multiplications.
LEAST_ROWS = 4
LEAST_WORK = 2**21
#: oneDNN is taken if it is that much faster, as a factor.
GAIN = 1.15
#: The layer that is timed; it takes half a millisecond or so.
_ROWS, _INPUTS, _OUTPUTS = 64, 768, 768
_TRIALS = 7

Multiply = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


class OneDnnLinear(torch.nn.Linear):
    """A linear layer that runs on oneDNN where that pays, and as any other where it does not."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002, the name that torch gives it
        """Shapes: ``(..., in_features)`` -> ``(..., out_features)``."""
        if _pays(input, self.weight, 1):
            return _one_dnn(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias)


class OneDnnConv1D(Conv1D):
    """The same for GPT-2's way to write a linear layer, whose weight is the other way round."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shapes: ``(..., nx)`` -> ``(..., nf)``."""
        if _pays(x, self.weight, 0):
            return _one_dnn(x, self.weight.t(), self.bias)
        return cast(torch.Tensor, super().forward(x))


#: Layers exactly of these classes become these: a subclass has a way of its own.
_QUICK: dict[type, type] = {torch.nn.Linear: OneDnnLinear, Conv1D: OneDnnConv1D}


def quicken(pipe: Any) -> int:
    """Has those layers of a pipeline's models take oneDNN that may, if it is faster here. Returns their number."""
    models = [part for part in vars(pipe).values() if isinstance(part, torch.nn.Module)]
    layers = [module for model in models for module in model.modules() if _may(module)]
    if not layers or gain(torch.get_num_threads()) < GAIN:
        return 0
    for layer in layers:
        layer.__class__ = _QUICK[type(layer)]  # what else hangs on it (hooks, names, tied weights) stays
    return len(layers)


@functools.cache
def gain(threads: int) -> float:
    """How many times faster oneDNN is here; 0 without it. Takes some milliseconds, once for a number of threads.

    Args:
        threads: of torch, as it is set now; only so that the answer is remembered for it.
    """
    if not torch.backends.mkldnn.enabled:  # somebody turned it off
        return 0.0
    with torch.inference_mode():
        drawn = torch.Generator().manual_seed(0)  # one of its own: a model's random numbers stay as they are
        rows = torch.randn(_ROWS, _INPUTS, generator=drawn)
        weight = torch.randn(_OUTPUTS, _INPUTS, generator=drawn)
        try:
            if not torch.allclose(_one_dnn(rows, weight, None), functional.linear(rows, weight), atol=1e-2):
                return 0.0
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            logger.debug("no linear layers of oneDNN: %r", error, extra={"action": "linear"})
            return 0.0
        # In turn, and the best of each, because others may run on these cores.
        took = [(_seconds(functional.linear, rows, weight), _seconds(_one_dnn, rows, weight)) for _ in range(_TRIALS)]
    usual, other = (min(column) for column in zip(*took, strict=True))
    logger.debug("linear layers: oneDNN is %.2f times as fast", usual / other, extra={"action": "linear"})
    return usual / other


def _may(module: torch.nn.Module) -> bool:
    # A quantised weight, or a layer that accelerate moves, has a way of its own, too.
    if type(module) not in _QUICK or "forward" in vars(module):
        return False
    weight = module.weight
    return (
        type(weight) is torch.nn.Parameter
        and weight.is_cpu
        and weight.dtype is torch.float32
        and weight.layout is torch.strided  # others raise when they are asked for more
        and weight.is_contiguous()
        and weight.numel() > 0
    )


def _pays(rows: torch.Tensor, weight: torch.Tensor, axis: int) -> bool:
    """Whether a layer takes oneDNN for these rows; ``axis`` is that of the weight's inputs."""
    features = weight.shape[axis]
    number = rows.numel() // max(1, features)
    return (
        number >= LEAST_ROWS
        and number * weight.numel() >= LEAST_WORK
        and rows.shape[-1] == features
        # A layer may have been moved, halved, or wrapped since.
        and weight.is_cpu
        and rows.is_cpu
        and weight.dtype is rows.dtype is torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def _one_dnn(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    # What torch.compile takes for a linear layer. Its other arguments would add an activation.
    return torch.ops.mkldnn._linear_pointwise.default(rows, weight, bias, "none", [], "")


def _seconds(multiply: Multiply, rows: torch.Tensor, weight: torch.Tensor) -> float:
    began = time.perf_counter()
    multiply(rows, weight, None)
    return time.perf_counter() - began
