"""SAMPLING: how each row of a continuous batch chooses its next token: greedily, or drawn with its own parameters.

    logits [rows, vocabulary] -> the first of the most probable tokens of each row -> instead of it, in rows that draw:
                                 temperature, top_k, top_p of each -> a token is drawn

transformers' manager either draws for all its rows or for none. Here only the rows that draw take part in it, so that
a greedy row costs one search for its maximum, which is what ``generate`` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pipeq_worker.models.continuous_params import Choice


class Sampling(ContinuousBatchingLogitsProcessorList):
    """The steps from logits to tokens.

    Args:
        vocabulary: number of tokens.
        on_bad: called with the ids of requests whose logits hold NaN or infinity.
    """

    def __init__(self, vocabulary: int, on_bad: Callable[[list[str]], None]) -> None:
        # These values are never used, because each request brings its own; the classes must merely not be left out.
        warpers = [TemperatureLogitsWarper(0.5), TopKLogitsWarper(1), TopPLogitsWarper(0.5)]
        super().__init__(LogitsProcessorList(warpers), per_request_processors=True)
        self.supported_keys["greedy"] = bool
        self._vocabulary, self._on_bad = vocabulary, on_bad
        #: The requests of the rows of a step, and the numbers of the rows that draw.
        self._requests: list[str] = []
        self._drawing: list[int] = []

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

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Takes note of the rows of the next step, and stores the parameters of those that draw, side by side."""
        rows = [request for request in requests_in_batch if request.has_new_token]
        self._requests = [row.state.request_id for row in rows]
        self._drawing = [at for at, row in enumerate(rows) if not row.state.logit_processor_kwargs.get("greedy", True)]
        if self._drawing:
            super().prepare_tensor_args([rows[at] for at in self._drawing], arg_storage)
        return arg_storage

    def tokens(self, logits: torch.Tensor, arguments: torch.Tensor) -> torch.Tensor:
        """The next token of each row.

        Args:
            logits: ``[rows, vocabulary]``; the rows of the step, maybe followed by some that nobody looks at.
            arguments: as :meth:`prepare_tensor_args` stored them.

        Returns:
            ``[rows]``; any token for a row that holds NaN or infinity.
        """
        highest, tokens = logits.max(-1)  # a maximum propagates NaN
        drawing, bad = self._drawing, highest.isfinite().logical_not_()
        if bool(bad.any()):
            flags = bad.tolist()
            self._on_bad([one for one, is_bad in zip(self._requests, flags, strict=False) if is_bad])
            # Drawing from NaN raises, on CUDA it even kills the process.
            kept = [at for at, row in enumerate(drawing) if not flags[row]]
            drawing, arguments = [drawing[at] for at in kept], arguments[:, kept]
        if drawing:
            rows = torch.tensor(drawing, device=logits.device)
            shares = super().__call__(rows, logits[rows], arguments).softmax(-1)
            # What is divided by a tiny temperature may become infinite, and its whole row is NaN then.
            if bool((lost := shares[:, 0].isnan()).any()):
                self._on_bad([self._requests[drawing[at]] for at in lost.nonzero().flatten().tolist()])
                shares.nan_to_num_(1.0)
            tokens[rows] = torch.multinomial(shares, num_samples=1).squeeze(-1)
        return tokens
