"""MANAGER: transformers' ContinuousBatchingManager, with parts of ours where its own cost too much. Before: continuous.

    its loop:  requests -> scheduler -> its inputs, or ours (continuous_rows.py) -> the model -> our sampling -> a token

Its loop, its scheduler and its cache stay. What is replaced is private to transformers: ``OWN_PARTS`` in
tests/integration/test_continuous_rows.py lists it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)
from transformers.generation.continuous_batching.model_runner import ModelRunner

from pipeq_worker.models.continuous_rows import RowInputs, attend
from pipeq_worker.models.sampling import Sampling

#: The name under which models find our attention.
ATTENTION = "pipeq_rows"

AttentionInterface.register(ATTENTION, attend)


def can_run_by_rows(model: Any) -> bool:
    """Whether each row can attend to its own tokens: on a CPU, for a model whose layers all see all tokens.

    On a GPU, transformers' own attention is one call of a kernel for all rows.
    """
    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return False
    return model._can_set_attn_implementation() and set(group_layers_by_attn_type(model.config.get_text_config())) == {
        FULL_ATTENTION
    }


class Manager(ContinuousBatchingManager):
    """Runs rows of one model.

    Args:
        model: as loaded.
        config: the sizes of its steps and of its cache.
        sampling: how tokens are chosen.
        by_rows: each row attends to its own tokens; see :func:`can_run_by_rows`.
    """

    def __init__(self, model: Any, config: ContinuousBatchingConfig, sampling: Sampling, *, by_rows: bool) -> None:
        self._by_rows = by_rows
        # It sets an end token in its generation_config.
        generation = GenerationConfig(do_sample=True, eos_token_id=-1)
        super().__init__(model=model, generation_config=generation, continuous_batching_config=config)
        self.logit_processor = sampling

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """Gives the model the attention with which rows run beside each other; ``stop`` gives back its own."""
        if not self._by_rows:
            super().switch_to_cb_friendly_attn(model, auto_switch_to_flash)
            return
        self._original_attn_impl = model.config._attn_implementation
        model.set_attn_implementation(ATTENTION)

    def _create_batch_processor(self) -> ContinuousBatchProcessor:
        processor = super()._create_batch_processor()
        if self._by_rows:
            processor.inputs_and_outputs = RowInputs(
                cache=processor.cache,
                config=processor.config,
                continuous_batching_config=processor.cb_config,
                device=processor.model_device,
                model_dtype=processor.model_dtype,
                logit_processor=processor.logit_processor,
            )
        processor.model_runner = _Runner(
            logit_processor=processor.logit_processor,
            cb_config=processor.cb_config,
            inputs_and_outputs=processor.inputs_and_outputs,
            cache=processor.cache,
            do_sample=processor.do_sample,
            return_logprobs=processor.return_logprobs,
        )
        return processor


class _Runner(ModelRunner):
    """One forward pass, and the tokens that follow from it."""

    def _forward_process_and_sample(
        self,
        model: Any,
        batch_data: dict[str, Any],
        carry_over_ids: torch.Tensor,
        prev_output_ids: torch.Tensor,
        output_ids: torch.Tensor,
    ) -> None:
        with torch.inference_mode():
            logits = model(**batch_data).logits[0]
            if "logits_to_keep" not in batch_data:
                logits = logits[batch_data["logits_indices"]]
            tokens = self.logit_processor.tokens(logits.float(), batch_data["logits_processor_args"])
            output_ids[0, : len(tokens)].copy_(tokens)
