"""Sentence embeddings: one vector a text."""

from __future__ import annotations

from typing import Any

import torch
from transformers import FeatureExtractionPipeline


class TextEmbeddingPipeline(FeatureExtractionPipeline):
    """One vector a text: the mean of its tokens' last hidden states, scaled to length 1.

    The pooling of Reimers and Gurevych, "Sentence-BERT" (2019), as the sentence-transformers models are trained for.
    Parameters of a call: ``normalize`` (default true), ``truncation`` (default true: a text beyond the model's
    positions is cut, as sentence-transformers does), ``tokenize_kwargs``. Returns a list of floats.
    """

    def _sanitize_parameters(
        self,
        truncation: bool | str | None = None,
        tokenize_kwargs: dict[str, Any] | None = None,
        normalize: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {"truncation": True, **(tokenize_kwargs or {})}
        if truncation is not None:
            preprocess["truncation"] = truncation
        return preprocess, {} if normalize is None else {"normalize": normalize}, {}

    def _forward(self, model_inputs: dict[str, Any], normalize: bool = True) -> dict[str, torch.Tensor]:
        hidden = self.model(**model_inputs)[0]
        mask = model_inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return {"embedding": torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], **_: Any) -> list[float]:
        """``{"embedding": [1, hidden]}`` -> a list of ``hidden`` floats."""
        return model_outputs["embedding"][0].float().tolist()
