"""Text to text with an encoder and a decoder: text2text-generation, summarization, translation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from pipeq_worker.models.own.generation import GenerationPipeline, assisted


class Text2TextPipeline(GenerationPipeline):
    """A text -> ``[{"generated_text": str}, ...]``, one entry for each of ``num_return_sequences``.

    Parameters of a call, as in transformers 4: those of ``generate``, ``truncation``, ``return_tensors`` (returns token
    ids instead of text), ``return_text``, ``clean_up_tokenization_spaces``, ``stop_sequence`` (only its first token
    counts).
    """

    _load_image_processor = False
    _load_tokenizer = True

    defaults: ClassVar[dict[str, Any]] = {"max_new_tokens": 256, "num_beams": 4}
    #: The prefix of the result's keys.
    key = "generated"

    def _sanitize_parameters(
        self,
        truncation: bool | str | None = None,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        stop_sequence: str | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **more: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = {**more, **(generate_kwargs or {}), **assisted(self)}
        if stop_sequence is not None:
            tokens = self.tokenizer.encode(stop_sequence, add_special_tokens=False)
            if not tokens:
                raise ValueError(f"stop_sequence is {stop_sequence!r}, which makes no token")
            forward["eos_token_id"] = tokens[0]
        postprocess = {"return_tensors": return_tensors, "clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        return (
            {} if truncation is None else {"truncation": truncation},
            forward,
            {name: value for name, value in postprocess.items() if value is not None},
        )

    def preprocess(self, inputs: str, truncation: bool | str = False) -> dict[str, torch.Tensor]:
        """A text -> the encoder's features, ``[1, tokens]`` each."""
        features = self.tokenizer((self.prefix or "") + inputs, truncation=truncation, return_tensors="pt")
        # Some tokenizers return them, but no model's generate takes them.
        features.pop("token_type_ids", None)
        return features

    def _forward(self, model_inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Features ``[batch, tokens]`` -> ``output_ids`` ``[batch, sequences, tokens]`` and their ``lengths``.

        A translation's ``forced_bos_token_id`` is the same for all items of a batch: see ``models/quirks/text.py``.
        """
        if isinstance(language := model_inputs.get("forced_bos_token_id"), list):
            model_inputs["forced_bos_token_id"] = language[0]
        sequences = self.generate(model_inputs, params)
        return {"output_ids": sequences, "lengths": self.lengths(sequences, params)}

    def postprocess(
        self,
        model_outputs: dict[str, Any],
        return_tensors: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[dict[str, Any]]:
        """Decodes sequences of token ids to text, or returns the ids without the batch's padding."""
        sequences = model_outputs["output_ids"][0][:, : int(model_outputs["lengths"][0])]
        if return_tensors:
            return [{f"{self.key}_token_ids": sequence} for sequence in sequences]
        return [
            {
                f"{self.key}_text": self.tokenizer.decode(
                    sequence,
                    skip_special_tokens=True,
                    clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                )
            }
            for sequence in sequences
        ]


class SummarizationPipeline(Text2TextPipeline):
    """A text -> ``[{"summary_text": str}]``; parameters as in :class:`Text2TextPipeline`."""

    key = "summary"


class TranslationPipeline(Text2TextPipeline):
    """A text -> ``[{"translation_text": str}]``; parameters as in :class:`Text2TextPipeline`, and the languages.

    ``src_lang`` and ``tgt_lang`` are for models of many languages; the task name ``translation_en_to_de`` sets them,
    too. If a model's configuration lists several pairs (T5), the first one is used, unless the task name says which.
    """

    key = "translation"

    def __init__(self, *args: Any, task: str = "", model: Any = None, **kwargs: Any) -> None:
        if task.rpartition("-")[2] == "translation":
            pairs = getattr(model.config, "task_specific_params", None) or {}
            task = next((name for name in pairs if name.startswith("translation")), task)
        super().__init__(*args, task=task, model=model, **kwargs)

    def _sanitize_parameters(  # type: ignore[override]
        self, src_lang: str | None = None, tgt_lang: str | None = None, **params: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward, postprocess = super()._sanitize_parameters(**params)
        if src_lang is None and tgt_lang is None and len(parts := (self.task or "").split("_")) == 4:
            src_lang, tgt_lang = parts[1], parts[3]
        preprocess |= {name: value for name, value in (("src_lang", src_lang), ("tgt_lang", tgt_lang)) if value}
        return preprocess, forward, postprocess

    def preprocess(
        self, inputs: str, truncation: bool | str = False, src_lang: str | None = None, tgt_lang: str | None = None
    ) -> dict[str, torch.Tensor]:
        build = getattr(self.tokenizer, "_build_translation_inputs", None)
        if build is None:
            return super().preprocess(inputs, truncation)
        return build(inputs, return_tensors="pt", truncation=truncation, src_lang=src_lang, tgt_lang=tgt_lang)
