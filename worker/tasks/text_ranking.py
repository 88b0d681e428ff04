"""Text ranking: how well a document answers a query, by a cross-encoder that reads both at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

#: ``function_to_apply`` -> logits ``[labels]`` to scores ``[labels]``.
_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(-1),
    "none": lambda logits: logits,
}
#: torch's activation modules, as sentence-transformers names them in a model's config.json.
_ACTIVATIONS = {"Sigmoid": "sigmoid", "Softmax": "softmax", "Identity": "none"}


class TextRankingPipeline(transformers.Pipeline):
    """``{"text": query, "text_pair": document}`` -> ``{"score": float}``.

    Parameters of a call: ``function_to_apply`` (``"sigmoid"``, ``"softmax"`` or ``"none"``), ``truncation`` (default
    true), ``max_length``, ``padding`` and whatever else the tokenizer's call takes. As in sentence-transformers'
    ``CrossEncoder``, the model's config.json may name the function; where it does not, a model with one label gets a
    sigmoid. One with several labels, from least to most relevant, gets a softmax, and the score is the last label's.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def _sanitize_parameters(
        self,
        function_to_apply: str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding: bool | str | None = None,
        **tokenizer_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if function_to_apply is not None and function_to_apply not in _FUNCTIONS:
            raise ValueError(f"function_to_apply is {function_to_apply!r}, not one of {', '.join(_FUNCTIONS)}")
        given = {"truncation": truncation, "max_length": max_length, "padding": padding}
        preprocess = {name: value for name, value in given.items() if value is not None} | tokenizer_kwargs
        return preprocess, {}, {} if function_to_apply is None else {"function_to_apply": function_to_apply}

    def preprocess(
        self, inputs: dict[str, str], truncation: bool | str = True, **tokenizer_kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """A pair -> the tokenizer's features, ``[1, tokens]`` each."""
        if not isinstance(inputs, dict) or not {"text", "text_pair"} <= inputs.keys():
            raise ValueError('text-ranking takes {"text": query, "text_pair": document}')
        return self.tokenizer(
            inputs["text"], inputs["text_pair"], truncation=truncation, return_tensors="pt", **tokenizer_kwargs
        )

    def _forward(self, model_inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**model_inputs).logits}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], function_to_apply: str | None = None
    ) -> dict[str, float]:
        """``{"logits": [1, labels]}`` -> ``{"score"}``."""
        logits = model_outputs["logits"][0].float()
        scores = _FUNCTIONS[function_to_apply or self._default_function()](logits)
        return {"score": scores[-1].item()}

    def _default_function(self) -> str:
        config = self.model.config
        named = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn") or getattr(
            config, "sbert_ce_default_activation_function", None
        )
        fallback = "sigmoid" if config.num_labels == 1 else "softmax"
        return _ACTIVATIONS.get(str(named).rpartition(".")[2], fallback)
