"""What the pipelines share that call ``generate``: whose settings win, and where each item's sequences end."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
import transformers

#: A length that transformers 4 took for not set in a model's generation_config.json: its own default, which many
#: checkpoints spell out.
_NO_LENGTH = (None, 20)
#: Prefix of the private names under which ``worker.tasks.load`` registers our classes with transformers.
PRIVATE = "pipeq-"


class GenerationPipeline(transformers.Pipeline):
    """A pipeline whose forward pass may be ``model.generate``.

    From weakest to strongest: the model's generation_config.json, :attr:`defaults`, the part of ``config.json`` for
    this task (T5's ``task_specific_params``), the parameters of the call. A ``max_length`` of generation_config.json
    takes the place of the default ``max_new_tokens``. All as in transformers 4.57.6, but for one thing: there the
    default ``max_new_tokens`` won over a ``max_length`` of the call, which was ignored with a warning.
    """

    _pipeline_calls_generate = True
    _load_processor = False
    _load_video_processor = False
    _load_feature_extractor = False

    #: Generation parameters where neither the task's part nor the call sets them.
    defaults: ClassVar[dict[str, Any]] = {"max_new_tokens": 256}
    #: Put before each text.
    prefix: str | None = None

    def __init__(self, *args: Any, task: str = "", **kwargs: Any) -> None:
        super().__init__(*args, task=task.removeprefix(PRIVATE), **kwargs)
        self.task_params = dict((getattr(self.model.config, "task_specific_params", None) or {}).get(self.task) or {})
        self.prefix = self.task_params.pop("prefix", self.prefix)
        self._settings = self._settle()

    def generate(self, model_inputs: dict[str, Any], params: dict[str, Any]) -> torch.Tensor:
        """One ``generate`` over a batch.

        Args:
            model_inputs: keyword arguments of ``generate``: tensors with a leading dimension of the batch's size.
            params: generation parameters of the call, and whatever else the model's ``generate`` takes.

        Returns:
            ``[batch, sequences, tokens]``: ``num_return_sequences`` for each item.
        """
        batch = next(len(value) for value in model_inputs.values() if isinstance(value, torch.Tensor))
        config, others = self.generation_config(params)
        if config.stop_strings:
            others.setdefault("tokenizer", self.tokenizer)
        # A configuration rather than loose parameters: BLIP names some of them itself, and twice is an error.
        sequences = self.model.generate(**model_inputs, generation_config=config, **others)
        return sequences.reshape(batch, -1, sequences.shape[-1])

    def generation_config(self, params: dict[str, Any]) -> tuple[transformers.GenerationConfig, dict[str, Any]]:
        """The parameters of a call -> the whole configuration of ``generate``, and what does not belong in one."""
        config = copy.deepcopy(self._settings)
        params = {name: value for name, value in {**self._generate_kwargs, **params}.items() if value is not None}
        if "max_length" in params and "max_new_tokens" not in params:
            config.max_new_tokens = None  # generate would let it win, and a length that a call asks for is to count
        return config, config.update(**params)

    def _settle(self) -> transformers.GenerationConfig:
        """What holds for every call that does not say otherwise."""
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
        # Where a call's configuration says None, generate asks the model's: what is decided here must not come back.
        model.generation_config.max_new_tokens = model.generation_config.max_length = None
        return config


def lengths(sequences: torch.Tensor, eos: int | list[int] | torch.Tensor | None, pad: int | None) -> torch.Tensor:
    """How long each item's longest sequence is, so that what others in the batch needed can be cut off.

    Args:
        sequences: ``[batch, sequences, tokens]``, each filled up with ``pad``.
        eos: what ends a sequence; not looked for at the first token, where BART's decoder starts with it.
        pad: the padding token.

    Returns:
        ``[batch]``.
    """
    total = sequences.shape[-1]
    at = torch.arange(1, total + 1, device=sequences.device)
    if eos is None:
        ends = torch.where(sequences.ne(-1 if pad is None else pad), at, 1)
        return ends.amax(-1).amax(-1)
    is_eos = torch.isin(sequences, torch.as_tensor(eos, device=sequences.device))
    is_eos[..., 0] = False
    return torch.where(is_eos, at, total).amin(-1).amax(-1)


def assisted(pipe: GenerationPipeline) -> dict[str, Any]:
    """The assistant model of ``pipe``, as parameters of ``generate``."""
    found: dict[str, Any] = {}
    if getattr(pipe, "assistant_model", None) is not None:
        found["assistant_model"] = pipe.assistant_model
    if getattr(pipe, "assistant_tokenizer", None) is not None:
        found |= {"tokenizer": pipe.tokenizer, "assistant_tokenizer": pipe.assistant_tokenizer}
    return found


def put_image_before(features: dict[str, Any], config: Any) -> None:
    """Makes room for the image before BLIP-2's text, ``input_ids`` and ``attention_mask`` of ``[1, tokens]``.

    Without it the model writes and does not look: what the pipelines of transformers 4.57.6 did.
    """
    if config.model_type != "blip-2" or config.image_token_id is None:
        return
    room = torch.full((1, config.num_query_tokens), config.image_token_id)
    features["input_ids"] = torch.cat([room, features["input_ids"]], dim=1)
    features["attention_mask"] = torch.cat([torch.ones_like(room), features["attention_mask"]], dim=1)
