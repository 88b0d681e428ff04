"""Captions: a text about an image."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from pipeq_worker.models.own.generation import GenerationPipeline, assisted, put_image_before
from pipeq_worker.models.own.images import decoded


class ImageToTextPipeline(GenerationPipeline):
    """An image -> ``[{"generated_text": str}, ...]``, one entry for each of ``num_return_sequences``.

    Parameters of a call, as in transformers 4: ``max_new_tokens``, ``generate_kwargs``, and ``prompt``, the beginning
    of the text. Models of type ``vision-encoder-decoder`` take no prompt.
    """

    _load_image_processor = True
    _load_tokenizer = True

    def _sanitize_parameters(
        self,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        prompt: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = {**(generate_kwargs or {}), **assisted(self)}
        if max_new_tokens is not None:
            if "max_new_tokens" in forward:
                raise ValueError("max_new_tokens is given twice, once inside generate_kwargs")
            forward["max_new_tokens"] = max_new_tokens
        return {} if prompt is None else {"prompt": prompt}, forward, {}

    def preprocess(self, inputs: Image.Image, prompt: str | None = None) -> dict[str, Any]:
        """An image -> the processor's features, with a leading dimension of 1, and the prompt's tokens."""
        kind = self.model.config.model_type
        if prompt is not None and kind == "vision-encoder-decoder":
            raise ValueError("this model takes no prompt")
        header = {"header_text": prompt} if prompt is not None and kind == "pix2struct" else {}
        features = dict(self.image_processor(images=decoded(inputs), return_tensors="pt", **header).to(self.dtype))
        if prompt is not None and kind == "git":
            tokens = [self.tokenizer.cls_token_id, *self.tokenizer(prompt, add_special_tokens=False).input_ids]
            features["input_ids"] = torch.tensor([tokens])
        elif prompt is not None and kind != "pix2struct":
            text = dict(self.tokenizer(prompt, return_tensors="pt"))
            text.pop("token_type_ids", None)  # no model's generate takes them
            put_image_before(text, self.model.config)
            features.update(text)
        return features

    def _forward(self, model_inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Features of a batch -> ``output_ids`` ``[batch, sequences, tokens]``."""
        return {"output_ids": self.generate(dict(model_inputs), params)}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Sequences of token ids -> text."""
        sequences = model_outputs["output_ids"][0]
        return [{"generated_text": self.tokenizer.decode(one, skip_special_tokens=True)} for one in sequences]
