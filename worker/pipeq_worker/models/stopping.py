"""STOPPING: ends a forward pass between two of its steps, and counts its tokens. Before: running.py. Needs torch.

    hook(model): each call of a part of the model   -> all rows are over? -> AllStoppedError
                 each ``generate`` of a part        -> a criterion: which rows are over? how many tokens are there?
                                                       is there a position for the next one?

A row that is over ends as if it had said its last token: ``generate`` keeps it as padding, and the other rows go on
unchanged. Once no row is left, the pass ends before the model's next call, whatever drives it: ``generate``, Bark's
three models, Whisper's windows, or a loop that a model brings itself (SpeechT5).

The hooks are on the model, not in the arguments of the call, because every pipeline passes its arguments in another
way, and several models call ``generate`` of their parts without them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import transformers
from transformers.generation import GenerationMixin, StoppingCriteria, StoppingCriteriaList

from pipeq_worker.models.running import Running
from pipeq_worker.models.tables import position_limit

_current = threading.local()


@contextmanager
def watched(running: Running | None) -> Iterator[None]:
    """Lets the hooked models that are called on this thread inside the block obey ``running``."""
    before = getattr(_current, "running", None)
    # Whether a criterion counts depends on the model that began to generate.
    _current.running, _current.counting = running, None
    try:
        yield
    finally:
        _current.running, _current.counting = before, None


def hook(model: Any) -> None:
    """Puts hooks on a model, and on each of its parts that is a model or generates by itself."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, transformers.PreTrainedModel)}
    for name, part in parts.items():
        part.register_forward_pre_hook(_before_call)
        if isinstance(part, GenerationMixin):
            around = frozenset(id(one) for other, one in parts.items() if other != name and _is_in(name, other))
            part._get_stopping_criteria = partial(_criteria, weakref.ref(part), around, positions_of(part))


def positions_of(part: Any) -> int | None:
    """Most tokens of what a part generates, with what it goes on from; None if positions are computed."""
    encodes = bool(getattr(part.config, "is_encoder_decoder", False))
    try:
        return position_limit(part.get_decoder() if encodes else part)
    except (AttributeError, NotImplementedError):
        return None


def _is_in(name: str, other: str) -> bool:
    return not other or name.startswith(f"{other}.")


def _before_call(module: Any, args: Any) -> None:
    running: Running | None = getattr(_current, "running", None)
    if running is not None:
        running.check()


def _criteria(
    part: weakref.ref[Any], around: frozenset[int], positions: int | None, *args: Any, **kwargs: Any
) -> StoppingCriteriaList:
    """``GenerationMixin._get_stopping_criteria`` of a part, and ours in addition."""
    module: Any = part()
    kind: Any = type(module)
    found: StoppingCriteriaList = kind._get_stopping_criteria(module, *args, **kwargs)
    running: Running | None = getattr(_current, "running", None)
    if running is None:
        return found
    # A part that generates for each token of the model around it (CSM's depth decoder) does not count.
    counts = _current.counting not in around
    if counts:
        _current.counting = id(module)
    config = args[0] if args else kwargs.get("generation_config")
    found.append(Stopping(running, config, counts=counts, positions=positions))
    return found


class Stopping(StoppingCriteria):
    """Ends the rows that are over.

    Args:
        running: the rows of the pass. Each may be several rows of ``generate``: its beams, or its sequences.
        config: the settings of this ``generate``, with their lengths filled in.
        counts: whether its tokens are the pass's progress.
        positions: most tokens that the model has positions for; None if it computes them.
    """

    def __init__(self, running: Running, config: Any, *, counts: bool, positions: int | None = None) -> None:
        self._running = running
        self._counts = counts
        self._positions = positions
        longest, new = getattr(config, "max_length", None), getattr(config, "max_new_tokens", None)
        self._start = longest - new if longest is not None and new is not None else None
        self._longest = longest
        # An earlier ``generate`` of the same pass, of Whisper's last window for instance; how many follow is not known.
        self._before = [row.done for row in running.rows]
        self._flags: tuple[list[bool], torch.Tensor] | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Returns for each row of ``generate``, ``[rows]``, whether it is over.

        Raises:
            IndexError: the model has no position for the next token of the longest row.
        """
        rows, length = input_ids.shape[:2]
        if self._positions is not None and length > self._positions:
            # A CPU raises this by itself. On a GPU the kernel that looks the position up breaks the whole context.
            raise IndexError(
                f"the text and its new tokens are beyond the {self._positions} positions of the model: ask for fewer "
                "(max_new_tokens), or shorten the text"
            )
        if self._start is None or self._start >= length:
            self._start = length - 1
        if self._counts:
            made = length - self._start
            is_first = not any(self._before)
            total = self._longest - self._start if self._longest is not None and is_first else None
            self._running.advance([before + made for before in self._before], total)
        over = self._running.over()
        if self._flags is None or self._flags[0] != over or len(self._flags[1]) != rows:
            self._flags = over, _spread(over, rows, input_ids.device)
        return self._flags[1]  # type: ignore[return-value]


def _spread(over: list[bool], rows: int, device: torch.device) -> torch.Tensor:
    """``[rows]``: the flags of items, each of which is as many adjacent rows. If that does not fit, all or none."""
    if rows % len(over):
        return torch.full((rows,), all(over), device=device)
    return torch.tensor(over, device=device).repeat_interleave(rows // len(over))
