"""GENERATION: which generated items may share a batch, by what their parameters make ``generate`` read of a prompt.

    the call's parameters + the model's generation_config.json -> RULES -> any length | one length | alone

A batch pads prompts on the left to the longest one, and also the input of an encoder. The model ignores padding because
of its mask. The code around the model in ``generate`` (processors of logits, lengths, candidates) often does not: it
counts from the beginning of the padded row, or treats the padding as a part of the prompt. Each parameter of
transformers 5.23 has its line here, found by reading its code and by running it in a batch and alone
(tests/integration/test_generation_parity.py). A parameter without a line runs alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import torch
import transformers
from pipeq.contract.errors import ErrorCode, PipeqError

from pipeq_worker.models import footprint
from pipeq_worker.models.call import SOLO, Call
from pipeq_worker.models.own.generation import GenerationPipeline, lengths, stop_at
from pipeq_worker.models.quirks.base import Quirks


class Company(IntEnum):
    """The items with which an item may share a batch, from the widest choice to the narrowest."""

    #: Prompts of any length.
    ANY = 0
    #: Prompts of its own length, which need no padding.
    EQUAL = 1
    #: None: the item runs alone.
    ALONE = 2


@dataclass(frozen=True)
class Rule:
    """The company that one parameter of ``generate`` requires."""

    company: Company
    #: Whether it also holds for encoder-decoder models, because it reads the encoder's input. The decoder's rows always
    #: have equal lengths at the start.
    encoder: bool = False
    #: Parameter that replaces it if both are given.
    unless: str = ""
    #: Values with which it has no effect.
    idle: tuple[Any, ...] = ()
    #: Tests for values with which padding makes no difference: ``(value, padding token, text of the token)``.
    harmless: Callable[[Any, int | None, str], bool] | None = None


def _never_filler(entries: Any, filler: int | None, _: str) -> bool:
    """Whether no sequence of tokens has the padding token before its last token, where it would match padding."""
    if isinstance(entries, Mapping) or not isinstance(entries, list):
        return False
    # Biases come with their sequence: [[tokens, bias], ...].
    sequences = [one[0] if isinstance(one, list) and one and isinstance(one[0], list) else one for one in entries]
    return all(isinstance(tokens, list) and filler not in tokens[:-1] for tokens in sequences)


def _begins_elsewhere(strings: Any, _: int | None, filler: str) -> bool:
    """Whether no stop string begins inside the padding token's text and continues after it."""
    strings = [strings] if isinstance(strings, str) else strings
    ends = tuple(filler[at:] for at in range(len(filler)))
    return not any(one.startswith(ends) and one not in ends for one in strings)


_ANY, _ALONE = Rule(Company.ANY), Rule(Company.ALONE)
#: Parameters of ``generate`` and of a generation configuration -> the company that they require.
RULES: dict[str, Rule] = {
    # These count from the beginning of the row. A number of new tokens is counted from the prompt's end.
    "max_length": Rule(Company.EQUAL, unless="max_new_tokens"),
    "min_length": Rule(Company.EQUAL, unless="min_new_tokens", idle=(0,)),
    # This applies only to a row of one token, at the beginning.
    "forced_bos_token_id": Rule(Company.EQUAL),
    # These read all tokens of the row.
    "no_repeat_ngram_size": Rule(Company.EQUAL, idle=(0,)),
    "encoder_repetition_penalty": Rule(Company.EQUAL, encoder=True, idle=(1,)),
    "encoder_no_repeat_ngram_size": Rule(Company.EQUAL, encoder=True, idle=(0,)),
    # These read the last tokens, and a short prompt has padding among them.
    "bad_words_ids": Rule(Company.EQUAL, harmless=_never_filler),
    "sequence_bias": Rule(Company.EQUAL, harmless=_never_filler),
    "stop_strings": Rule(Company.EQUAL, harmless=_begins_elsewhere),
    "watermarking_config": Rule(Company.EQUAL),
    # This reads a row in pieces, and padding shifts them; of an encoder's mask it takes the beginning.
    "prefill_chunk_size": Rule(Company.EQUAL, encoder=True),
    # A time limit ends an item earlier in a batch.
    "max_time": _ALONE,
    # Candidates for several tokens at once are supported for one row only.
    **dict.fromkeys(
        "prompt_lookup_num_tokens assistant_early_exit use_mtp speculation_type assistant_model".split(), _ALONE
    ),
    # This changes the tokens of the prompt.
    "token_healing": Rule(Company.ALONE, idle=(False,)),
    # transformers 5 would load code for these, which is not allowed. They fail, and must fail alone.
    **dict.fromkeys("penalty_alpha dola_layers constraints force_words_ids".split(), _ALONE),
    "num_beam_groups": Rule(Company.ALONE, idle=(1,)),
    "diversity_penalty": Rule(Company.ALONE, idle=(0,)),
    # Whisper's: whether there is an earlier segment is decided by the first item of the batch.
    "condition_on_prev_tokens": Rule(Company.ALONE, idle=(False,)),
    **dict.fromkeys(
        # These count from the prompt's end, or read the logits of one step.
        "max_new_tokens min_new_tokens forced_eos_token_id exponential_decay_length_penalty begin_suppress_tokens "
        "suppress_tokens renormalize_logits remove_invalid_values guidance_scale temperature top_k top_p min_p top_h "
        "typical_p epsilon_cutoff eta_cutoff do_sample "
        # This leaves out padding, by the mask.
        "repetition_penalty "
        # Beams, counted from the prompt's end.
        "num_beams num_return_sequences early_stopping length_penalty low_memory "
        # The tokens with which sequences begin, end and are padded.
        "pad_token_id bos_token_id eos_token_id decoder_start_token_id "
        # These have an effect only with candidates, above.
        "num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold max_matching_ngram_size "
        "assistant_lookbehind target_lookbehind assistant_ensemble_weight is_assistant assistant_tokenizer "
        # These change how the output is computed and returned, not the output.
        "use_cache cache_implementation cache_config max_cache_len compile_config disable_compile "
        "continuous_batching_config output_attentions output_hidden_states output_scores output_logits "
        "return_dict_in_generate transformers_version tokenizer "
        # The pipelines' own: the length of a text before the prompt, which ``max_length`` counts, too.
        "prefix_length return_timestamps return_language "
        # For images, which have equal shapes in a batch.
        "interpolate_pos_encoding "
        # Whisper's: each item of a batch is one window, so these mean the same for each.
        "task language is_multilingual prompt_condition_type compression_ratio_threshold logprob_threshold "
        "no_speech_threshold num_segment_frames time_precision time_precision_features".split(),
        _ANY,
    ),
}


#: Number of calls with different parameters whose rules are cached.
_REMEMBERED = 256


class Generates(Quirks):
    """Base class for task types whose forward pass is ``generate``."""

    #: Whether its parameters are inside ``generate_kwargs`` of the forward pass's parameters, or directly among them.
    nested = False

    def __init__(self, pipe: transformers.Pipeline) -> None:
        super().__init__(pipe)
        self._pipe = pipe
        #: Whether the forward pass is ``generate``. Some task types have models of both kinds.
        self.generates = bool(pipe.model.can_generate())
        self._encoder = bool(getattr(pipe.model.config, "is_encoder_decoder", False))
        self._companies: dict[str, Company] = {}
        self._in_force: dict[str, dict[str, Any]] = {}
        #: The stop criterion of the last batch, cached because making one reads the whole vocabulary.
        self._stop: tuple[Any, Callable[[torch.Tensor], torch.Tensor] | None] = (None, None)

    def check_features(
        self, pipe: transformers.Pipeline, features: Mapping[str, Any], forward: Mapping[str, Any]
    ) -> None:
        super().check_features(pipe, features, forward)
        if self.generates:
            self._check_rows(footprint.longest(features), forward)

    def rows(self, forward: Mapping[str, Any]) -> int:
        asked = _asked(forward)
        return max(1, _number(asked, "num_beams"), _number(asked, "num_return_sequences")) if self.generates else 1

    def _check_rows(self, prompt: int, forward: Mapping[str, Any]) -> None:
        """Refuses beams and sequences that together read and generate too much.

        Only lengths that the call asks for count. Lengths in the model's own configuration do not, because generation
        usually ends sooner.
        """
        asked = _asked(forward)
        lengths_asked = (_number(asked, name) for name in ("max_new_tokens", "min_new_tokens"))
        before = 0 if self._encoder else prompt  # the decoder of such a model starts at 0
        totals = (_number(asked, name) - before for name in ("max_length", "min_length"))
        new = max(0, *lengths_asked, *totals)
        rows = self.rows(forward)
        needed = self.footprint.of(prompt, new, rows)
        if (rows > 1 or new) and needed > self.most_bytes:
            gib, most_gib = needed / 2**30, self.most_bytes / 2**30
            raise PipeqError(
                ErrorCode.INVALID_INPUT,
                f"a text of {prompt} tokens, {new} new ones and {rows} beams or sequences take about {gib:.1f} GiB, "
                f"beyond {most_gib:.1f} GiB (`max_item_bytes` of the pipeline in the worker's settings): take fewer, "
                "or shorten the text",
            )

    def group(self, features: Mapping[str, Any], forward: Mapping[str, Any]) -> Hashable:
        base, company = super().group(features, forward), self.company(forward)
        if base == SOLO or company is Company.ALONE:
            return SOLO
        tokens = features.get("input_ids")
        return (base, tokens.shape[1]) if company is Company.EQUAL and isinstance(tokens, torch.Tensor) else base

    def reach(self, tokens: int, forward: Mapping[str, Any]) -> int:
        if not self.generates or self._encoder:
            return tokens
        settings = self.in_force(forward)
        new, total = settings.get("max_new_tokens"), settings.get("max_length")
        return tokens + new if new is not None else max(tokens, total or 0) if total else sys.maxsize

    def company(self, forward: Mapping[str, Any]) -> Company:
        """The company that the parameters of an item's forward pass require."""
        key = _key(forward)
        found = self._companies.get(key)
        if found is None:
            if len(self._companies) > _REMEMBERED:
                self.forget()
            found = self._companies[key] = self._company(forward)
        return found

    def forget(self) -> None:
        """Clears the caches. Call it after a change of the model's configuration."""
        self._companies.clear()
        self._in_force.clear()

    def _company(self, forward: Mapping[str, Any]) -> Company:
        if not self.generates:
            return Company.ANY
        try:
            return self._company_of(self._asked(forward), self.in_force(forward))
        except Exception:  # the values make no sense, and the forward pass will say so
            return Company.ALONE

    def _company_of(self, asked: Mapping[str, Any], settings: Mapping[str, Any]) -> Company:
        tokenizer = self._pipe.tokenizer
        # The token with which a batch's rows are padded.
        filler = None if tokenizer is None else tokenizer.pad_token_id
        text = "" if filler is None else str(tokenizer.convert_ids_to_tokens(filler) or "")
        known = {name: value for name, value in settings.items() if name in RULES}
        # A generation_config.json may hold anything; ``generate`` ignores fields that it does not know.
        fields = vars(transformers.GenerationConfig()).keys()
        if any(name in asked or name in fields for name in settings.keys() - known.keys() if not name.startswith("_")):
            return Company.ALONE
        if "stop_strings" in settings and "eos_token_id" not in settings:
            return Company.ALONE  # a row that ended with such a string would go on until the longest row ends
        found = Company.ANY
        for name, value in known.items():
            rule = RULES[name]
            applies = not self._encoder or rule.encoder or rule.company is Company.ALONE
            if applies and rule.unless not in settings and value not in rule.idle:
                harmless = rule.harmless is not None and rule.harmless(value, filler, text)
                found = found if harmless else max(found, rule.company)
        return found

    def _asked(self, forward: Mapping[str, Any]) -> dict[str, Any]:
        return dict((forward.get("generate_kwargs") or {}) if self.nested else forward)

    def in_force(self, forward: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of ``generate`` that hold for a call, including those of the model's configuration.

        The result is cached and shared by many items, so it must not be changed.
        """
        key = _key(forward)
        found = self._in_force.get(key)
        if found is None:
            if len(self._in_force) > _REMEMBERED:
                self.forget()
            found = self._in_force[key] = self._find_out(forward)
        return found

    def _find_out(self, forward: Mapping[str, Any]) -> dict[str, Any]:
        pipe, asked = self._pipe, self._asked(forward)
        if isinstance(pipe, GenerationPipeline):
            config, others = pipe.generation_config(asked)
            found = {**pipe.model.generation_config.to_diff_dict(), **config.to_diff_dict(), **others}
        else:
            found = pipe._get_set_generation_params(pipe._prepare_generate_kwargs(asked))
        return {name: value for name, value in found.items() if value is not None}

    def forward(self, pipe: transformers.Pipeline, features: list[Mapping[str, Any]], call: Call) -> list[Any]:
        return super().forward(pipe, features, replace(call, forward=self._with_tokenizer(call.forward)))

    def alone(self, pipe: transformers.Pipeline, value: Any, params: Mapping[str, Any]) -> Any:
        return self.call(pipe, value, self._with_tokenizer(self.call_params(dict(params))))

    def call(self, pipe: transformers.Pipeline, value: Any, params: dict[str, Any]) -> Any:
        """Calls the pipeline as a user of transformers would, with the parameters from :meth:`call_params`."""
        return pipe(value, **params)

    def _with_tokenizer(self, params: dict[str, Any]) -> dict[str, Any]:
        """Adds the tokenizer for stop strings: ``generate`` needs it, and neither a task nor a config brings it."""
        own = isinstance(self._pipe, GenerationPipeline)  # it adds the tokenizer itself
        if not self.generates or own or "stop_strings" not in self.in_force(params):
            return params
        more = {"tokenizer": self._pipe.tokenizer}
        return {**params, **({"generate_kwargs": {**self._asked(params), **more}} if self.nested else more)}

    def generated(self, rows: torch.Tensor, own: int, forward: Mapping[str, Any]) -> torch.Tensor:
        """Cuts an item's sequences where the longest of them would have ended alone.

        Args:
            rows: ``[sequences, tokens]``: the item's own prompt or a decoder's start, and the generated tokens.
            own: number of tokens before the generated ones.
            forward: the parameters of the forward pass.
        """
        settings = self.in_force(forward)
        strings = settings.get("stop_strings")
        if self._stop[0] != strings:
            self._stop = (strings, stop_at(strings, self._pipe.tokenizer))
        eos, pad, beams = settings.get("eos_token_id"), settings.get("pad_token_id"), settings.get("num_beams", 1) > 1
        return rows[:, : int(lengths(rows[None], eos, pad, start=own, stop=self._stop[1], beams=beams))]


def _key(forward: Mapping[str, Any]) -> str:
    return json.dumps(forward, sort_keys=True, default=lambda value: type(value).__name__)


def _asked(forward: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of generate, at whatever place of the call they are."""
    asked = dict(forward)
    for name in ("generate_kwargs", "forward_params"):
        asked |= forward.get(name) or {}
    return asked


def _number(params: Mapping[str, Any], name: str) -> int:
    value = params.get(name)
    return int(value) if isinstance(value, int | float) else 0
