"""Sentence embeddings: one vector for each text."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import FeatureExtractionPipeline

from pipeq_worker.models.own.checkpoint import Checkpoint
from pipeq_worker.models.own.sentence_modules import Normalize, Pooling, build
from pipeq_worker.models.own.sentence_tokenizer import set_up

#: Types of encoder-decoder models whose encoder alone embeds text -> the encoder's class (sentence-transformers 6.2,
#: base/modules/transformer.py).
_ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
    "switch_transformers": "SwitchTransformersEncoderModel",
}


class AutoModelForEmbedding(transformers.AutoModel):
    """Loads the base model, or only the encoder of an encoder-decoder model."""

    @classmethod
    def from_pretrained(cls, model: str, *args: Any, **kwargs: Any) -> Any:
        where = {name: kwargs[name] for name in ("revision", "trust_remote_code") if name in kwargs}
        config = transformers.AutoConfig.from_pretrained(model, **where)
        name = _ENCODERS.get(config.model_type)
        which = transformers.AutoModel if name is None else getattr(transformers, name)
        return which.from_pretrained(model, *args, **kwargs)


class TextEmbeddingPipeline(FeatureExtractionPipeline):
    """A text -> one vector, equal to the one that sentence-transformers computes with the same checkpoint.

    The checkpoint's files are followed (own/checkpoint.py). Without them the vector is the mean of the last hidden
    states of the text's tokens (for a causal language model, the last token's state), scaled to length 1: Reimers and
    Gurevych, "Sentence-BERT" (2019).

    Parameters of a call: ``prompt_name`` or ``prompt``, which is put before the text; ``normalize`` (whether to scale
    to length 1; the default is the checkpoint's); ``truncate_dim`` (how many numbers of the vector are kept);
    ``truncation`` (default true: a text longer than the model's positions is cut); ``tokenize_kwargs``. Returns a list
    of floats.
    """

    checkpoint = Checkpoint("")

    def follow(self, checkpoint: Checkpoint, *, allow_pickle: bool = False) -> None:
        """Applies the checkpoint's settings. Call it once, before the pipeline is used."""
        self.checkpoint = checkpoint
        set_up(self.tokenizer, checkpoint, self.model.config)
        if checkpoint.modules is None:
            config = self.model.config
            names = config.architectures or [""]
            goes_on = names[0].endswith("ForCausalLM") and getattr(config, "is_causal", True)
            modules = torch.nn.ModuleList([Pooling(("lasttoken" if goes_on else "mean",))])
        else:
            modules = build(checkpoint.modules, allow_pickle=allow_pickle)
        self.sentence_modules = modules.to(self.model.device, self.model.dtype)
        self._skips_prompt = any(isinstance(one, Pooling) and not one.include_prompt for one in modules)

    def _sanitize_parameters(
        self,
        truncation: bool | str | None = None,
        tokenize_kwargs: dict[str, Any] | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {"truncation": True, **self.checkpoint.call_args, **(tokenize_kwargs or {})}
        if truncation is not None:
            preprocess["truncation"] = truncation
        if before := self.checkpoint.prompt(prompt, prompt_name):
            preprocess["prompt"] = before
        if truncate_dim is not None and truncate_dim < 1:
            raise ValueError(f"truncate_dim is {truncate_dim}, not a number of numbers from 1 on")
        forward = {"normalize": normalize, "truncate_dim": truncate_dim}
        return preprocess, {name: value for name, value in forward.items() if value is not None}, {}

    def preprocess(self, inputs: str, prompt: str = "", **tokenize_kwargs: Any) -> Any:
        """A text -> the tokenizer's features, ``[1, tokens]`` each."""
        features = self.tokenizer(prompt + inputs, return_tensors="pt", **tokenize_kwargs)
        if prompt and self._skips_prompt:
            # transformers pads features of this name with ones, as it pads the tokens. Padding then counts as prompt,
            # and is not pooled.
            features["p_mask"] = torch.zeros_like(features["input_ids"])
            features["p_mask"][:, : self._tokens_of(prompt, tokenize_kwargs)] = 1
        return features

    def _tokens_of(self, prompt: str, tokenize_kwargs: dict[str, Any]) -> int:
        """Number of a prompt's tokens, including the special token before it, without the one after it."""
        tokens = self.tokenizer(prompt, **tokenize_kwargs)["input_ids"]
        return len(tokens) - (bool(tokens) and tokens[-1] in self.tokenizer.all_special_ids)

    def _forward(
        self, model_inputs: dict[str, torch.Tensor], normalize: bool | None = None, truncate_dim: int | None = None
    ) -> dict[str, torch.Tensor]:
        is_prompt = model_inputs.pop("p_mask", None)
        output = self.model(**model_inputs)
        hidden = output[0]
        mask = model_inputs.get("attention_mask")
        features = {
            "token_embeddings": hidden,
            "mask": torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device) if mask is None else mask,
        }
        if is_prompt is not None:
            features["is_prompt"] = is_prompt
        if self.model.config.output_hidden_states:
            features["layers"] = torch.stack(output.hidden_states)
        for at, module in enumerate(self.sentence_modules, 1):
            # A call that asks for no normalization skips only this last step.
            if not (normalize is False and at == len(self.sentence_modules) and isinstance(module, Normalize)):
                module(features)
        vector = features["sentence_embedding"][:, : truncate_dim or self.checkpoint.truncate_dim]
        if self.checkpoint.modules is None and normalize is None:
            normalize = True
        return {"embedding": torch.nn.functional.normalize(vector, dim=-1) if normalize else vector}

    def postprocess(self, model_outputs: dict[str, torch.Tensor], **_: Any) -> list[float]:
        """``{"embedding": [1, numbers]}`` -> a list of floats."""
        return model_outputs["embedding"][0].float().tolist()
