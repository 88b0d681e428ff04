"""FINITE: finds NaN and infinity in a model's outputs, because a result that is made of them is wrong.

    forward pass -> hooks on the model check each call's outputs, row by row -> Watch names the wrong items of the batch
    output of an item -> what the pipeline computed after the model's calls is checked, too: not_finite

Most results hide NaN: the largest of several NaN logits is token 0, an answer becomes empty, a list of entities has
none. The check is a reduction on the model's device; one small transfer for each batch fetches the verdict.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.generation import GenerationMixin
from transformers.utils import ModelOutput

#: Outputs in which infinity is wrong, too. In others it may be right: for a place that is no proposal, for instance.
_FINITE = frozenset(
    "last_hidden_state pooler_output waveform spectrogram audio predicted_depth pred_boxes reconstruction embedding "
    "pred_masks heatmaps".split()
)
#: Outputs in which minus infinity rules something out (a token, a cell), while plus infinity is an overflow.
_NOT_ABOVE = frozenset(
    "logits start_logits end_logits logits_per_image logits_per_audio class_queries_logits masks_queries_logits "
    "scores".split()
)
#: Outputs whose rows are not the batch's, for instance one for each label. The other outputs show their faults, too.
_OTHER_ROWS = frozenset({"logits_per_text", "text_embeds", "loss"})
_JOINED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
#: Most numbers of a tensor that is worth being copied for one look at a whole batch.
SMALL = 1024
SENTENCE = "the model's output holds NaN or infinity: is its dtype too narrow, or its checkpoint damaged?"
_current = threading.local()


class Watch:
    """What the hooks found during one forward pass of the pipeline."""

    def __init__(self, items: int) -> None:
        self._items = items
        #: ``[items]``, on the model's device; None until a call of the model returns numbers.
        self._bad: torch.Tensor | None = None
        #: Whether something was wrong in rows that cannot be assigned to items, and inside an encoder.
        self._unclear: torch.Tensor | None = None
        self._inside: torch.Tensor | None = None
        self._has_numbers = False

    def see_finite(self) -> None:
        """Notes a call with numbers, none of which was wrong."""
        self._has_numbers = True

    def see(self, rows: torch.Tensor) -> None:
        """Notes which rows of a call are wrong. Several rows of one item, beams for instance, are adjacent."""
        if rows.shape[0] % self._items:
            self._unclear = _or(self._unclear, rows.any())
        else:
            self._bad = _or(self._bad, rows.view(self._items, -1).any(1))

    def see_inside(self, rows: torch.Tensor) -> None:
        """Notes a fault inside an encoder. It may lie in padding, so it counts only if there is no better evidence."""
        self._inside = _or(self._inside, rows.any())

    def bad(self, *, raised: bool = False) -> list[bool]:
        """Returns for each item whether its outputs were wrong; True for all if the fault cannot be assigned.

        Args:
            raised: whether the model raised before it returned an output.
        """
        # An output may hold no numbers at all: a keypoint whose score is NaN, for instance, is dropped.
        has_none = self._bad is None and not self._has_numbers
        asks = [self._unclear] + ([self._inside] if raised or has_none else [])
        if any(one is not None and bool(one) for one in asks):
            return [True] * self._items
        return [False] * self._items if self._bad is None else self._bad.tolist()


@contextmanager
def watched(items: int) -> Iterator[Watch]:
    """Collects what hooked models return on this thread inside the block."""
    before, watch = getattr(_current, "watch", None), Watch(items)
    _current.watch = watch
    try:
        yield watch
    finally:
        _current.watch = before


def hook(model: Any) -> None:
    """Puts hooks on a model, on each of its parts that can generate by itself, and on its encoders."""
    for module in model.modules():
        if module is model or isinstance(module, GenerationMixin):
            module.register_forward_hook(_look, with_kwargs=True)
        elif type(module).__name__.endswith("Encoder"):
            module.register_forward_hook(_look_inside)


def are_finite(outputs: Sequence[Any]) -> bool:
    """Whether all numbers of a batch's outputs are finite, by one look at all that are small.

    Returns:
        False also if that is not known: :func:`not_finite` then looks at each.
    """
    parts = []
    for output in outputs:
        if not isinstance(output, Mapping):
            return False
        for value in output.values():
            if not isinstance(value, torch.Tensor) or value.numel() > SMALL or value.device.type != "cpu":
                return False
            if value.dtype in _JOINED:
                parts.append(value.reshape(-1))
            elif value.is_floating_point():
                return False
    # A sum is finite only if all of its parts are.
    return not parts or math.isfinite(float(torch.cat(parts).sum()))


def not_finite(output: Any, own: int, padded: int, *, left: bool) -> bool:
    """Whether one item's output holds NaN, or infinity where that is wrong.

    Args:
        output: an item's output of the pipeline's forward pass, with a leading dimension of 1; tensors in any nesting.
        own: number of the item's tokens.
        padded: number of tokens in the batch; those beyond ``own`` are padding, which is not checked.
        left: whether the padding is on the left.
    """
    if isinstance(output, Mapping):
        return any(_is_wrong(str(name), one, own, padded, left) for name, one in output.items())
    if isinstance(output, list | tuple):
        return any(not_finite(one, own, padded, left=left) for one in output)
    return _is_wrong("last_hidden_state", output, own, padded, left)


def _is_wrong(name: str, value: Any, own: int, padded: int, left: bool) -> bool:
    if not isinstance(value, torch.Tensor):
        # Of nested outputs, only lists that the pipeline made itself are checked: one entry for each part of an image.
        return isinstance(value, list) and not_finite(value, own, padded, left=left)
    if own < padded and value.ndim > 1 and value.shape[1] == padded:
        value = value[:, -own:] if left else value[:, :own]
    found = _wrong(name, value)
    return found is not None and bool(found.any())


def _look(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    watch = getattr(_current, "watch", None)
    if watch is None or not isinstance(output, Mapping):
        return
    mask = kwargs.get("attention_mask")
    mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 and not mask.is_floating_point() else None
    for name, value in output.items():
        if not isinstance(value, torch.Tensor) or name in _OTHER_ROWS or name.startswith("encoder_"):
            continue
        generates = False
        if (
            name == "logits"
            and value.ndim == 3
            and kwargs.get("use_cache")
            and output.get("past_key_values") is not None
        ):
            value = value[:, -1:]  # generation reads only the last token's logits
            generates = True
        if value.ndim and value.numel() and _is_finite(value):
            watch.see_finite()
            continue
        found = _wrong(name, value)
        if generates and value.is_cuda:
            # On CUDA, sampling from NaN fails an assertion in a kernel, after which the whole process is unusable.
            value.nan_to_num_(nan=0.0, posinf=torch.finfo(value.dtype).max, neginf=-torch.inf)
        if found is None or not value.ndim:
            continue
        if mask is not None and found.shape[:2] == mask.shape:
            found = found & mask.bool().view(*mask.shape, *[1] * (found.ndim - 2)).to(found.device)
        watch.see(found.flatten(1).any(1) if found.ndim > 1 else found)


def _look_inside(module: Any, args: Any, output: Any) -> None:
    watch: Watch | None = getattr(_current, "watch", None)
    first = output[0] if watch is not None and isinstance(output, ModelOutput | tuple) and len(output) else None
    if not isinstance(first, torch.Tensor) or _is_finite(first):
        return
    found = _wrong("last_hidden_state", first)
    if watch is not None and found is not None:
        watch.see_inside(found)


def _is_finite(value: torch.Tensor) -> bool:
    """Whether all numbers are finite, by one reduction; False also if that is not known."""
    # A sum is finite only if all of its parts are. Elsewhere, to fetch it would wait for the device.
    return value.device.type == "cpu" and value.is_floating_point() and math.isfinite(value.sum().item())


def _wrong(name: str, value: torch.Tensor) -> torch.Tensor | None:
    """Where a tensor's numbers are wrong, reduced over its last dimension; None if it holds no floats."""
    if not value.is_floating_point() or not value.numel():
        return None
    if value.ndim < 2:
        value = value.reshape(-1, 1)
    # A maximum propagates NaN, so one reduction is enough.
    highest = value.amax(-1)
    wrong = highest.isnan()
    if name in _FINITE or name in _NOT_ABOVE:
        wrong = wrong | (highest == torch.inf)
    return wrong | (value.amin(-1) == -torch.inf) if name in _FINITE else wrong


def _or(one: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if one is None else one.to(other.device) | other
