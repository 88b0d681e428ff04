"""CONTINUOUS: which parameters of ``generate`` continuous batching knows, and what they say for one row.

    the parameters in force (the call's, the settings', generation_config.json) -> refused by name | Choice

transformers' ContinuousBatchingManager has its own loop. It drops what it does not know with a line in the log, so the
parameters that would change the answer are refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers

#: Parameters that it has, for each row.
KNOWN = frozenset("max_new_tokens max_length eos_token_id do_sample temperature top_k top_p".split())
#: Parameters that change nothing in an answer of one row, or nothing without another that is refused.
WITHOUT_EFFECT = frozenset(
    "pad_token_id bos_token_id decoder_start_token_id transformers_version prefix_length tokenizer use_cache "
    "cache_implementation cache_config max_cache_len compile_config disable_compile continuous_batching_config "
    "early_stopping length_penalty low_memory return_dict_in_generate output_attentions output_hidden_states "
    "output_scores output_logits num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold "
    "max_matching_ngram_size assistant_lookbehind target_lookbehind assistant_ensemble_weight is_assistant".split()
)
#: Parameters with which generation in general has no effect at this value.
_IDLE: dict[str, Any] = {
    **transformers.GenerationConfig._get_default_generation_params(),
    "guidance_scale": 1,
    "min_new_tokens": 0,
    "min_p": 0,
}


@dataclass(frozen=True)
class Choice:
    """How one row chooses its tokens, and when it ends."""

    max_new_tokens: int
    #: The tokens that end it; none if nothing but its length does.
    ends: tuple[int, ...]
    #: Whether it takes the most probable token each time.
    greedy: bool
    temperature: float = 1.0
    #: The most probable tokens that it draws from; 0 for all.
    top_k: int = 0
    #: The share of probability that it draws from.
    top_p: float = 1.0


def refused(in_force: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The first parameter that continuous batching does not know, and its value; None if it knows all."""
    for name, value in in_force.items():
        if name in KNOWN or name in WITHOUT_EFFECT or name.startswith("_") or value is None:
            continue
        if value is False or (name in _IDLE and value == _IDLE[name]):
            continue
        return name, value
    return None


def choice(in_force: Mapping[str, Any], prompt: int) -> Choice:
    """What the parameters in force say for a row.

    Args:
        in_force: as :func:`refused` lets through.
        prompt: number of tokens of the row's prompt.
    """
    new = in_force.get("max_new_tokens")
    if new is None:
        longest = in_force.get("max_length") or _IDLE["max_length"]
        new = longest + (in_force.get("prefix_length") or 0) - prompt
    ends = in_force.get("eos_token_id")
    tokens = tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,)
    if not in_force.get("do_sample"):
        return Choice(new, tokens, greedy=True)

    def value(name: str) -> Any:
        found = in_force.get(name)
        return _IDLE[name] if found is None else found

    return Choice(
        new, tokens, greedy=False, temperature=float(value("temperature")), top_k=value("top_k"), top_p=value("top_p")
    )
