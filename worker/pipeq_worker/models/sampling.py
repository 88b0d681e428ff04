"""SAMPLING: how each row of a continuous batch chooses its next token: greedily, or drawn with its own parameters.

    logits [rows, vocabulary] -> Choose -> temperature, top_k, top_p of each row -> a token is drawn

transformers' manager either draws for all its rows or for none. Here it always draws, and a greedy row is left a single
token to draw: the first of the most probable, which is what ``generate`` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pipeq_worker.models.continuous_params import Choice


class Sampling(ContinuousBatchingLogitsProcessorList):
    """The steps from logits to what is drawn from.

    Args:
        vocabulary: number of tokens.
        on_bad: called with the ids of requests whose logits hold NaN or infinity.
    """

    def __init__(self, vocabulary: int, on_bad: Callable[[list[str]], None]) -> None:
        # These values are never used, because each request brings its own; the classes must merely not be left out.
        warpers = [TemperatureLogitsWarper(0.5), TopKLogitsWarper(1), TopPLogitsWarper(0.5)]
        super().__init__(LogitsProcessorList(warpers), per_request_processors=True)
        self._choose = Choose(on_bad)
        self._vocabulary = vocabulary
        self.logits_processor.insert(0, self._choose)
        self.tensors_required += 1
        self._retrieve_processors_kwargs()

    def arguments(self, choice: Choice) -> dict[str, Any]:
        """The arguments of a request."""
        # A sampled row may have less to choose from than it asks for, but at least one token.
        top_k = min(choice.top_k or self._vocabulary, self._vocabulary)
        return {
            "greedy": choice.greedy,
            "temperature": float(choice.temperature),
            "top_k": top_k,
            "top_p": float(choice.top_p),
        }

    def __call__(self, input_ids: Any, scores: torch.Tensor, logits_processor_args: torch.Tensor) -> torch.Tensor:
        """``[rows, vocabulary]`` -> the same, with what a row must not draw at minus infinity."""
        if self._choose.all_greedy:  # the other steps would sort the vocabulary for nothing
            return self._choose(scores, logits_processor_args[0])
        found: torch.Tensor = super().__call__(input_ids, scores, logits_processor_args)
        return found


class Choose(ContinuousBatchingLogitsProcessor):
    """Leaves greedy rows their first most probable token, and finds rows that hold NaN or infinity."""

    supported_kwargs: dict[str, type] = {"greedy": bool}  # noqa: RUF012 - as in the base class
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, on_bad: Callable[[list[str]], None]) -> None:
        self._on_bad = on_bad
        self._requests: list[str] = []
        self.all_greedy = False

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Fills the tensor of a batch without requests."""
        int32_tensor.fill_(1)

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """``[rows]``: 1 for a greedy request, 0 for one that draws."""
        states = [request.state for request in requests_with_new_token]
        self._requests = [state.request_id for state in states]
        greedy = [int(state.logit_processor_kwargs.get("greedy", True)) for state in states]
        self.all_greedy = all(greedy)
        return torch.tensor(greedy, dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """``[rows, vocabulary]`` -> the same; see the class."""
        highest = scores.amax(-1)  # a maximum propagates NaN
        bad = highest.isnan() | (highest == torch.inf) | (highest == -torch.inf)
        single = bad
        # Drawing from NaN raises, on CUDA it even kills the process.
        if bool(bad.any()):
            self._on_bad([one for one, is_bad in zip(self._requests, bad.tolist(), strict=False) if is_bad])
            scores = scores.nan_to_num(nan=0.0, posinf=0.0, neginf=-torch.inf)
        single = bad | tensor_arg[: scores.shape[0]].bool()
        best = torch.full_like(scores, -torch.inf).scatter_(-1, scores.argmax(-1, keepdim=True), 0.0)
        return torch.where(single.unsqueeze(-1), best, scores)
