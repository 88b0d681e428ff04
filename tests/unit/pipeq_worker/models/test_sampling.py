"""The next tokens of the rows of a step: what one row asks for never ends the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeq_worker.models.continuous_params import Choice
from pipeq_worker.models.sampling import Sampling

VOCABULARY = 10


def request(sampling: Sampling, name: str, choice: Choice) -> Any:
    state = SimpleNamespace(request_id=name, logit_processor_kwargs=sampling.arguments(choice))
    return SimpleNamespace(state=state, has_new_token=True)


def test_a_row_of_which_nothing_can_be_drawn_is_named_and_the_others_get_their_tokens() -> None:
    bad: list[str] = []
    sampling = Sampling(VOCABULARY, bad.extend)
    cold, hot = (Choice(5, (), greedy=False, temperature=one) for one in (1e-30, 1.0))
    rows = [
        request(sampling, "greedy", Choice(5, (), greedy=True)),
        request(sampling, "cold", cold),
        request(sampling, "hot", hot),
        request(sampling, "large", cold),
    ]
    storage = torch.zeros(8, 4, dtype=torch.int32)
    sampling.prepare_tensor_args(rows, storage)
    logits = torch.zeros(4, VOCABULARY)
    logits[0, 3] = logits[2, 7] = 60.0
    logits[1] = torch.arange(10.0)
    logits[3] = 1e20 * torch.arange(10.0)
    tokens = sampling.tokens(logits, storage).tolist()
    assert bad == ["large"]
    assert tokens[:3] == [3, 9, 7]


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_a_row_whose_logits_are_not_finite_is_named(odd: float) -> None:
    bad: list[str] = []
    sampling = Sampling(VOCABULARY, bad.extend)
    choices = (Choice(5, (), greedy=True), Choice(5, (), greedy=False), Choice(5, (), greedy=False))
    rows = [request(sampling, str(at), choice) for at, choice in enumerate(choices)]
    storage = torch.zeros(8, 3, dtype=torch.int32)
    sampling.prepare_tensor_args(rows, storage)
    logits = torch.zeros(3, VOCABULARY)
    logits[0, 0] = logits[1, 0] = odd
    logits[2, 4] = 60.0
    assert sampling.tokens(logits, storage)[2] == 4
    assert bad == ["0", "1"]
