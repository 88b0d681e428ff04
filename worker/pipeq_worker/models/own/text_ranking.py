"""Text ranking: scores how well a document answers a query, with a cross-encoder that reads both together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

from pipeq_worker.models.own.checkpoint import Checkpoint, refused
from pipeq_worker.models.own.sentence_modules import activation
from pipeq_worker.models.own.sentence_tokenizer import set_up

#: ``function_to_apply`` -> the function from logits ``[labels]`` to scores ``[labels]``.
_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(-1),
    "none": lambda logits: logits,
}


class TextRankingPipeline(transformers.Pipeline):
    """``{"text": query, "text_pair": document}`` -> ``{"score": float}``.

    Parameters of a call: ``function_to_apply`` (``"sigmoid"``, ``"softmax"`` or ``"none"``), ``prompt_name`` or
    ``prompt``, which is put before the query, ``truncation`` (default true), ``max_length``, ``padding`` and anything
    else that the tokenizer's call takes. As in sentence-transformers' ``CrossEncoder``, the checkpoint's files may set
    the function, the longest text and prompts (own/checkpoint.py). If they set no function, a model with one label gets
    a sigmoid. A model with several labels, ordered from least to most relevant, gets a softmax, and the score is the
    last label's.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True
    checkpoint = Checkpoint("")

    def follow(self, checkpoint: Checkpoint, *, allow_pickle: bool = False) -> None:
        """Applies the checkpoint's settings. Call it once, before the pipeline is used."""
        if checkpoint.modules:
            raise refused(f"its module {checkpoint.modules[0].kind} is none that text-ranking has")
        self.checkpoint = checkpoint
        set_up(self.tokenizer, checkpoint, self.model.config)
        config = self.model.config
        self._function: Callable[[torch.Tensor], torch.Tensor] = _FUNCTIONS[
            "sigmoid" if config.num_labels == 1 else "softmax"
        ]
        named = (
            checkpoint.activation
            or (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
            or getattr(config, "sbert_ce_default_activation_function", None)
        )
        if named is not None:
            module = activation(str(named))
            # torch's Softmax needs a dimension, which a checkpoint does not give; the labels' is meant.
            self._function = _FUNCTIONS["softmax"] if isinstance(module, torch.nn.Softmax) else module

    def _sanitize_parameters(
        self,
        function_to_apply: str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding: bool | str | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        **tokenizer_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if function_to_apply is not None and function_to_apply not in _FUNCTIONS:
            raise ValueError(f"function_to_apply is {function_to_apply!r}, not one of {', '.join(_FUNCTIONS)}")
        given = {"truncation": truncation, "max_length": max_length, "padding": padding}
        preprocess = self.checkpoint.call_args | {name: value for name, value in given.items() if value is not None}
        preprocess |= tokenizer_kwargs
        if before := self.checkpoint.prompt(prompt, prompt_name):
            preprocess["prompt"] = before
        return preprocess, {}, {} if function_to_apply is None else {"function_to_apply": function_to_apply}

    def preprocess(
        self, inputs: dict[str, str], truncation: bool | str = True, prompt: str = "", **tokenizer_kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """A pair -> the tokenizer's features, ``[1, tokens]`` each."""
        if not isinstance(inputs, dict) or not {"text", "text_pair"} <= inputs.keys():
            raise ValueError('text-ranking takes {"text": query, "text_pair": document}')
        return self.tokenizer(
            prompt + inputs["text"], inputs["text_pair"], truncation=truncation, return_tensors="pt", **tokenizer_kwargs
        )

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], function_to_apply: str | None = None
    ) -> dict[str, float]:
        """``{"logits": [1, labels]}`` -> ``{"score"}``."""
        logits = model_outputs["logits"][0].float()
        function = self._function if function_to_apply is None else _FUNCTIONS[function_to_apply]
        return {"score": function(logits)[-1].item()}
