"""Visual question answering: an answer to a question about an image."""

from __future__ import annotations

from typing import Any

from pipeq_worker.models.own.generation import GenerationPipeline, assisted, put_image_before
from pipeq_worker.models.own.images import decoded


class VisualQuestionAnsweringPipeline(GenerationPipeline):
    """``{"image", "question"}`` -> ``[{"score", "answer"}, ...]``, or ``[{"answer"}]`` for a model that generates.

    Parameters of a call, as in transformers 4: ``top_k`` (5), ``padding``, ``truncation``, and those of ``generate`` if
    the model generates its answer (BLIP, for instance). The image must be decoded.
    """

    _load_image_processor = True
    _load_tokenizer = True

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **more: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        generation = {**more, **(generate_kwargs or {})}
        if generation and not self.model.can_generate():
            raise ValueError(f"this model chooses an answer, it takes no {', '.join(generation)}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k is {top_k}, not 1 or more")
        preprocess = {"padding": padding, "truncation": truncation}
        return (
            {name: value for name, value in preprocess.items() if value is not None},
            {**generation, **assisted(self)},
            {} if top_k is None else {"top_k": top_k},
        )

    def preprocess(
        self, inputs: dict[str, Any], padding: bool | str = False, truncation: bool | str = False
    ) -> dict[str, Any]:
        """A question and an image -> the tokenizer's features, ``[1, tokens]``, and those of the image."""
        features = self.tokenizer(inputs["question"], return_tensors="pt", padding=padding, truncation=truncation)
        put_image_before(features, self.model.config)
        if self.model.can_generate():
            features.pop("token_type_ids", None)  # no model's generate takes them
        features.update(self.image_processor(images=decoded(inputs["image"]), return_tensors="pt").to(self.dtype))
        return features

    def _forward(self, model_inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Features of a batch -> ``logits`` ``[batch, answers]``, or ``output_ids`` ``[batch, sequences, tokens]``."""
        if not self.model.can_generate():
            return {"logits": self.model(**model_inputs).logits}
        return {"output_ids": self.generate(model_inputs, params)}

    def postprocess(self, model_outputs: dict[str, Any], top_k: int = 5) -> list[dict[str, Any]]:
        """The most probable answers, or the generated ones."""
        if "output_ids" in model_outputs:
            sequences = model_outputs["output_ids"][0]
            return [{"answer": self.tokenizer.decode(one, skip_special_tokens=True).strip()} for one in sequences]
        scores = model_outputs["logits"][0].float().sigmoid()
        best = scores.topk(min(top_k, self.model.config.num_labels))
        names = self.model.config.id2label
        return [
            {"score": score, "answer": names[at]}
            for score, at in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
