"""GENERATION: what the pipelines that call ``generate`` share: merging of settings, and the end of each sequence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import transformers
from transformers.generation.stopping_criteria import StopStringCriteria

#: Values of ``max_length`` in generation_config.json that transformers 4 treated as not set. 20 was its default, which
#: many checkpoints spell out.
_NO_LENGTH = (None, 20)
#: Prefix of the private names under which :func:`pipeq_worker.models.own.register` registers our classes.
PRIVATE = "pipeq-"


class GenerationPipeline(transformers.Pipeline):
    """A pipeline whose forward pass may be ``model.generate``.

    Generation parameters come from these sources, weakest first: the model's generation_config.json, :attr:`defaults`,
    the part of ``config.json`` for this task (T5's ``task_specific_params``), and the parameters of the call. A
    ``max_length`` in generation_config.json replaces the default ``max_new_tokens``. All of this is as in transformers
    4.57.6, with one exception: there the default ``max_new_tokens`` overrode a ``max_length`` of the call, which was
    ignored with a warning.
    """

    _pipeline_calls_generate = True
    _load_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    #: Generation parameters that hold unless the task's part or the call sets them.
    defaults: ClassVar[dict[str, Any]] = {"max_new_tokens": 256}
    #: Text that is put before each input.
    prefix: str | None = None

    def __init__(self, *args: Any, task: str = "", **kwargs: Any) -> None:
        super().__init__(*args, task=task.removeprefix(PRIVATE), **kwargs)
        self.task_params = dict((getattr(self.model.config, "task_specific_params", None) or {}).get(self.task) or {})
        self.prefix = self.task_params.pop("prefix", self.prefix)
        self._settings = self._settle()

    def generate(self, model_inputs: dict[str, Any], params: dict[str, Any]) -> torch.Tensor:
        """Calls ``generate`` for a batch.

        Args:
            model_inputs: keyword arguments of ``generate``: tensors whose first dimension is the batch's size.
            params: generation parameters of the call, and anything else that the model's ``generate`` takes.

        Returns:
            ``[batch, sequences, tokens]``, with ``num_return_sequences`` sequences for each item.
        """
        batch = next(len(value) for value in model_inputs.values() if isinstance(value, torch.Tensor))
        config, others = self.generation_config(params)
        if config.stop_strings:
            others.setdefault("tokenizer", self.tokenizer)
        # Passed as one configuration, because BLIP passes some parameters itself, and passing one twice is an error.
        sequences = self.model.generate(**model_inputs, generation_config=config, **others)
        return sequences.reshape(batch, -1, sequences.shape[-1])

    def generation_config(self, params: dict[str, Any]) -> tuple[transformers.GenerationConfig, dict[str, Any]]:
        """Splits a call's parameters into the complete configuration for ``generate`` and the other arguments."""
        config = copy.deepcopy(self._settings)
        params = {name: value for name, value in {**self._generate_kwargs, **params}.items() if value is not None}
        if "max_length" in params and "max_new_tokens" not in params:
            config.max_new_tokens = None  # generate would let it win, and a length that a call asks for is to count
        return config, config.update(**params)

    def lengths(self, sequences: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Length that each item's longest sequence would have alone: :func:`lengths` with this call's parameters."""
        config, _ = self.generation_config(params)
        stop = stop_at(config.stop_strings, self.tokenizer)
        beams = (config.num_beams or 1) > 1
        return lengths(sequences, config.eos_token_id, config.pad_token_id, stop=stop, beams=beams)

    def _settle(self) -> transformers.GenerationConfig:
        """The configuration of calls that set no parameters."""
        model = self.model
        if not model.can_generate():
            return transformers.GenerationConfig()
        config = copy.deepcopy(model.generation_config)
        defaults = dict(self.defaults)
        if config.max_length not in _NO_LENGTH:
            defaults["max_new_tokens"] = config.max_new_tokens
        if self.tokenizer is not None and config.pad_token_id is None:
            defaults["pad_token_id"] = self.tokenizer.pad_token_id
        config.update(**defaults)
        config.update(**{name: value for name, value in self.task_params.items() if hasattr(config, name)})
        if config.max_new_tokens is not None:
            config.max_length = None  # max_new_tokens wins, and generate would warn at every call
        # If a call's configuration says None, generate takes the model's value, so the values settled here are removed
        # there.
        model.generation_config.max_new_tokens = model.generation_config.max_length = None
        return config


def stop_at(strings: str | list[str] | None, tokenizer: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Returns a function that maps ``[rows, tokens]`` to ``[rows]``: whether a row ends with one of the strings.

    Returns None if there are no strings.
    """
    if not strings:
        return None
    criterion = StopStringCriteria(tokenizer, strings)
    return lambda rows: criterion(rows, None).to(rows.device)


def lengths(
    sequences: torch.Tensor,
    eos: int | list[int] | torch.Tensor | None,
    pad: int | None,
    *,
    start: int = 1,
    stop: Callable[[torch.Tensor], torch.Tensor] | None = None,
    beams: bool = False,
) -> torch.Tensor:
    """Length that each item's longest sequence would have alone, without the padding that the batch adds.

    Args:
        sequences: ``[batch, sequences, tokens]``, each padded after its end.
        eos: the token or tokens that end a sequence; None if there are none.
        pad: the padding token.
        start: number of tokens before the generated ones; a decoder starts with one.
        stop: tells whether a row ends with a stop string. It is used only if there is an end token, because without one
            nothing is padded.
        beams: whether beam search ran: it pads with the end token if ``pad`` is 0 or absent.

    Returns:
        ``[batch]``.
    """
    rows = sequences.flatten(0, 1)
    device, total = rows.device, rows.shape[-1]
    ends = torch.full((len(rows),), total, device=device)
    tokens = None if eos is None else torch.as_tensor(eos, device=device).flatten()
    if tokens is not None and total > start:
        is_end = torch.isin(rows[:, start:], tokens)
        ends = torch.where(is_end.any(-1), start + is_end.int().argmax(-1) + 1, ends)
    if stop is not None and tokens is not None:
        filler = int(tokens[0]) if pad is None or (beams and not pad) else pad
        for at, row in enumerate(rows):
            # If a stop string ended the row, padding follows it directly.
            others = (row[start:] != filler).nonzero()
            last = start + int(others[-1]) + 1 if len(others) else start
            if start < last < ends[at] and bool(stop(row[None, :last])[0]):
                ends[at] = last
    return ends.reshape(sequences.shape[:2]).amax(-1)


def assisted(pipe: GenerationPipeline) -> dict[str, Any]:
    """The assistant model of ``pipe``, as parameters of ``generate``."""
    found: dict[str, Any] = {}
    if getattr(pipe, "assistant_model", None) is not None:
        found["assistant_model"] = pipe.assistant_model
    if getattr(pipe, "assistant_tokenizer", None) is not None:
        found |= {"tokenizer": pipe.tokenizer, "assistant_tokenizer": pipe.assistant_tokenizer}
    return found


def put_image_before(features: dict[str, Any], config: Any) -> None:
    """Inserts placeholder tokens for the image before BLIP-2's text.

    ``features`` has ``input_ids`` and ``attention_mask``, ``[1, tokens]`` each. Without placeholders the model
    ignores the image, as it did in the pipelines of transformers 4.57.6.
    """
    if config.model_type != "blip-2" or config.image_token_id is None:
        return
    room = torch.full((1, config.num_query_tokens), config.image_token_id)
    features["input_ids"] = torch.cat([room, features["input_ids"]], dim=1)
    features["attention_mask"] = torch.cat([torch.ones_like(room), features["attention_mask"]], dim=1)
