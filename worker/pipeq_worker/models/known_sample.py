"""KNOWN SAMPLE: checks that a pipeline still gives the answer that it gave for its own sample when it was loaded.

The check follows a forward pass that raised, after everything comparable was restored (``models/model_state.py``). It
takes one tiny pass. If the answer differs, or the pass fails, the pipeline is loaded again. What the model computes
first belongs to the answer: of a generation, two tokens may stay the same though the weights are others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pipeq.contract.errors import PipeqError

#: Largest differences, as a share of the answer's largest number, that count as rounding: in full and half precision.
ROUNDING, ROUNDING_HALF = 1e-3, 5e-2
_SEED = 0


class KnownSample:
    """The sample of a pipeline that is loaded and warmed up.

    Args:
        run: runs one forward pass over the sample.
        model: what it calls.
        device: the device that it runs on.
        half: whether it runs in half precision.
    """

    def __init__(self, run: Callable[[], Any], model: torch.nn.Module, device: torch.device, *, half: bool) -> None:
        self._forward, self._model, self._devices = run, model, [device] if device.type == "cuda" else []
        self._limit = ROUNDING_HALF if half else ROUNDING
        self._answer = self._run()
        #: Whether the model repeats its answer; False for one that differs even with the same random numbers.
        self.repeats = self._is_answer(self._run())

    def is_known(self) -> bool:
        """Whether the pipeline still gives its answer; a wrong answer is checked once more.

        Raises:
            Exception: whatever the forward pass raises.
        """
        return self._is_answer(self._run()) or self._is_answer(self._run())

    def _run(self) -> list[np.ndarray]:
        computed: list[np.ndarray] = []

        def look(module: Any, args: Any, output: Any) -> None:
            if not computed:
                computed.extend(_arrays(output))

        hook = self._model.register_forward_hook(look)
        try:
            with torch.random.fork_rng(devices=self._devices):
                torch.manual_seed(_SEED)
                output = self._forward()
        finally:
            hook.remove()
        if isinstance(output, PipeqError):
            raise output
        return computed + list(_arrays(output))

    def _is_answer(self, found: list[np.ndarray]) -> bool:
        return len(found) == len(self._answer) and all(map(self._close, found, self._answer))

    def _close(self, found: np.ndarray, known: np.ndarray) -> bool:
        if found.shape != known.shape:
            return False
        if known.dtype.kind != "f" or not known.size:
            return np.array_equal(found, known)
        finite = np.isfinite(known)
        if not np.array_equal(np.isfinite(found), finite):
            return False
        scale = max(float(np.abs(known[finite]).max(initial=0)), 1e-6)
        return bool(np.abs(found[finite] - known[finite]).max(initial=0) <= self._limit * scale)


def _arrays(output: Any) -> Iterator[np.ndarray]:
    """Yields all arrays of an output, in order."""
    if isinstance(output, torch.Tensor):
        tensor = output.detach().cpu()
        yield np.asarray(tensor.float() if tensor.is_floating_point() else tensor)
    elif isinstance(output, np.ndarray):
        yield output
    elif isinstance(output, Mapping):
        for name in output:
            yield from _arrays(output[name])
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _arrays(one)
