"""ENDS: a loaded pipeline without its weights, for the processes that prepare inputs and finish outputs.

    device process: TransformersPipeline -> dump -> bytes -> prepare process: load -> TransformersPipeline on "meta"

torch's ``meta`` device has shapes and types, and no numbers: the model keeps all of its configuration and takes no
memory. Tokenizer and processors are complete. So nobody but the device process reads the checkpoint, and both prepare
in the same way.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch.nn.utils.parametrize import is_parametrized
from transformers.dynamic_module_utils import init_hf_modules

from pipeq_worker.models.task_types import find
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import ParamLimits, PipelineSettings


def dump(pipeline: TransformersPipeline) -> bytes | None:
    """The ends of a pipeline; None if they cannot leave its process.

    They cannot if preparing needs the weights, and if something in the pipeline cannot be pickled: the hooks by which
    accelerate spreads a model over devices, for instance.
    """
    if pipeline.task_type.prepares_with_model:
        return None
    stream = io.BytesIO()
    try:
        _Pickler(stream, pipeline).dump(
            (pipeline.task_type.name, pipeline._pipe, pipeline.model, pipeline.limits, pipeline.quirks.pads)
        )
    except Exception:
        return None
    return stream.getvalue()


def load(data: bytes, name: str, settings: PipelineSettings, limits: ParamLimits | None = None) -> TransformersPipeline:
    """A pipeline that prepares and finishes as the one that was dumped does. Its ``forward`` cannot be used.

    Args:
        data: what :func:`dump` returned, in a process of this worker.
        name: the pipeline's name.
        settings: its section of the settings.
        limits: ceilings of parameters.
    """
    # Makes code importable that came with a model (`trust_remote_code`).
    init_hf_modules()
    task, pipe, model, batch_limits, pads = pickle.loads(data)  # noqa: S301 - written by a process of this worker
    pipeline = TransformersPipeline(name, find(task), settings, pipe, limits)
    pipeline.model = model
    pipeline.limits = batch_limits
    pipeline.quirks.pads = pads
    return pipeline


#: Attributes by which accelerate, and models/stopping.py, replace methods of one module.
_AROUND = frozenset({"forward", "_old_forward", "_hf_hook", "_get_stopping_criteria"})
#: The class of what lru_cache returns.
_CACHED = type(lru_cache(len))
#: Ends of the names under which torch keeps hooks.
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


class _Pickler(pickle.Pickler):
    """Pickles a pipeline, with the tensors of its models replaced by tensors on ``meta``."""

    def __init__(self, stream: io.BytesIO, pipeline: TransformersPipeline) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        modules = [one for one in vars(pipeline._pipe).values() if isinstance(one, torch.nn.Module)]
        weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self._weights = {id(tensor) for tensor in weights}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and id(value) in self._weights:
            is_parameter = isinstance(value, torch.nn.Parameter)
            return _meta, (tuple(value.shape), value.dtype, is_parameter)
        if isinstance(value, torch.nn.Module) and is_parametrized(value):
            return torch.nn.Identity, ()  # torch makes a class for it that cannot be pickled; nobody calls it there
        if isinstance(value, torch.nn.Module) and isinstance(state := cast(Any, value).__getstate__(), dict):
            return copyreg.__newobj__, (type(value),), _without_hooks(state)  # type: ignore[attr-defined]
        if isinstance(value, _CACHED):
            return _cached, (value.__wrapped__, value.cache_parameters()["maxsize"])
        return NotImplemented


def _without_hooks(state: dict[str, Any]) -> dict[str, Any]:
    """A module's state, without what others have put around its call: hooks of transformers, accelerate and ours."""
    kept = {name: value for name, value in state.items() if name not in _AROUND}
    return {name: OrderedDict() if name.endswith(_HOOKS) else value for name, value in kept.items()}


def _cached(function: Callable[..., Any], most: int | None) -> Any:
    return lru_cache(most)(function)


def _meta(shape: tuple[int, ...], dtype: torch.dtype, is_parameter: bool) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    return torch.nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor
