"""Weights that a checkpoint lacks, or has in another shape, stop the start and are named."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pipeq.contract.errors import PipeqError
from pipeq_worker.models import weights
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.task_types import TASK_TYPES, find
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings
from safetensors.torch import load_file, save_file

from tests import tiny_models
from tests.device import DEVICE
from tests.integration.test_models import answer
from tests.zoo import SERVED

torch.set_num_threads(1)

#: Models without a part named head -> the part that computes their output.
HEADS = {
    "encoder": "encoder.layer.1.",
    "dinov2": "layernorm.",
    "clip": "visual_projection.",
    "clap": "audio_projection.",
    "vits_quiet": "decoder.",
    "captioner": "decoder.transformer.ln_f.",
    "gpt2": "transformer.ln_f.",
    "masked_bert": "cls.predictions.transform.",
    "owlvit": "class_head.",
    "decision_chat": "lm_head.",
    "llava": "language_model.lm_head.",
    "qwen2_audio": "language_model.lm_head.",
    "superglue": "final_projection.",
    "upscaler": "upsample.",
    "yolos": "class_labels_classifier.",
    "dpt": "head.",
    "vilt": "classifier.",
    "segformer": "decode_head.",
    "ctc_layer_norm": "lm_head.",
    "layoutlm": "qa_outputs.",
    "reader": "qa_outputs.",
    "tapas": "output_weights",
    "t5": "decoder.final_layer_norm.",
}


def cut(tiny: Path, model: str, to: Path, drop: Callable[[str], bool]) -> tuple[Path, list[str]]:
    """Copies a tiny model without some of its weights; returns their names in the file."""
    folder = to / model
    shutil.copytree(tiny_models.build(model, tiny), folder)
    kept = load_file(folder / "model.safetensors")
    dropped = sorted(name for name in kept if drop(name))
    save_file(
        {name: one for name, one in kept.items() if name not in dropped}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder, dropped


@pytest.mark.parametrize("task", SERVED)
def test_every_task_type_refuses_a_model_without_its_head(tiny: Path, tmp_path: Path, task: str) -> None:
    model, _ = SERVED[task]
    head = HEADS.get(model, "classifier.")
    folder, dropped = cut(tiny, model, tmp_path, lambda name: name.startswith(head))
    assert dropped, sorted(load_file(folder / "model.safetensors"))
    with pytest.raises(PipeqError, match=r"lacks weights that .* needs, so its answers would be random: ") as caught:
        load_pipeline("it", PipelineSettings(task=task, model=str(folder)), DEVICE)
    assert caught.value.code == "invalid_settings"
    assert "allow_missing_weights = true" in caught.value.message
    assert dropped[0].rpartition(".")[0].rpartition(".")[2] in caught.value.message


def test_mask_generation_refuses_a_model_without_its_head(tiny: Path, tmp_path: Path) -> None:
    """It needs torchvision to start, so only its model is loaded here."""
    assert {find(task).name for task in SERVED} == {row.name for row in TASK_TYPES.values() if not row.untested}
    for drop, lacks in (("nothing", False), ("mask_decoder.", True)):
        folder, dropped = cut(tiny, "sam", tmp_path / drop, lambda name, drop=drop: name.startswith(drop))
        with weights.watched() as reports:
            model = transformers.AutoModelForMaskGeneration.from_pretrained(folder)
        assert weights.lacking(reports, [model], "mask-generation") == dropped
        assert bool(dropped) == lacks


def load_cut(tiny: Path, to: Path, task: str, model: str, *endings: str, **more: Any) -> None:
    folder, dropped = cut(tiny, model, to, lambda name: name.endswith(endings))
    assert dropped
    load_pipeline("it", PipelineSettings(task=task, model=str(folder), **more), DEVICE)


@pytest.mark.parametrize(
    ("task", "model", "ending"),
    [
        ("automatic-speech-recognition", "ctc_layer_norm", "masked_spec_embed"),  # as facebook/wav2vec2-base-960h
        ("audio-classification", "audio_group_norm", "masked_spec_embed"),
        ("image-feature-extraction", "dinov2", "mask_token"),
        ("image-feature-extraction", "resnet", "num_batches_tracked"),
        ("feature-extraction", "encoder", "pooler.dense.weight"),  # as roberta-base
        ("text-embedding", "encoder", "pooler.dense.bias"),
    ],
)
def test_weights_that_no_answer_reads_may_be_absent(
    tiny: Path, tmp_path: Path, task: str, model: str, ending: str
) -> None:
    load_cut(tiny, tmp_path, task, model, ending)


@pytest.mark.parametrize(
    ("task", "model", "ending"),
    [
        ("text-classification", "classifier", "bert.pooler.dense.weight"),
        ("image-feature-extraction", "vit_encoder", "pooler.dense.weight"),  # the parameter pool reads it
        ("image-feature-extraction", "resnet", "running_mean"),
        ("text-embedding", "encoder", "encoder.layer.1.output.LayerNorm.bias"),
        ("text-generation", "gpt2", "wte.weight"),  # the other end of a tied pair
    ],
)
def test_any_other_weight_is_needed(tiny: Path, tmp_path: Path, task: str, model: str, ending: str) -> None:
    with pytest.raises(PipeqError, match=f"invalid_settings: pipeline 'it': .* lacks weights .*{ending}"):
        load_cut(tiny, tmp_path, task, model, ending)


def test_a_formula_is_no_weight_that_lacks(tmp_path: Path) -> None:
    """Pegasus computes its positions, so its checkpoints lack them."""
    size = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 99, "max_position_embeddings": 16}
    size |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    size |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
    transformers.PegasusForConditionalGeneration(transformers.PegasusConfig(**size)).save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    kept = {name: one for name, one in kept.items() if "embed_positions" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with weights.watched() as reports:
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert len(reports[0].missing) == 2
    assert weights.lacking(reports, [model], "summarization") == []


def test_missing_weights_can_be_allowed(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_cut(tiny, tmp_path, "text-classification", "classifier", "classifier.bias", allow_missing_weights=True)
    assert "lacks weights, random numbers take their place: classifier.bias" in caplog.text


def test_a_base_model_is_no_classifier(tiny: Path) -> None:
    """The case that occurred: random labels, other ones at each start, without a message."""
    one = PipelineSettings(task="text-classification", model=str(tiny_models.build("encoder", tiny)))
    with pytest.raises(PipeqError, match=r"encoder lacks weights that text-classification needs.*classifier\.bias"):
        load_pipeline("it", one, DEVICE)


@pytest.mark.parametrize("ignored", [False, True])
def test_weights_of_another_shape_are_named(tiny: Path, ignored: bool) -> None:
    more = {"num_labels": 5, "ignore_mismatched_sizes": ignored}
    one = PipelineSettings(
        task="text-classification", model=str(tiny_models.build("classifier", tiny)), model_kwargs=more
    )
    sentence = "classifier.bias, classifier.weight" if ignored else r"classifier.bias is \[3\], not \[5\], classifier"
    with pytest.raises(PipeqError, match=f"invalid_settings: .*{sentence}"):
        load_pipeline("it", one, DEVICE)


def test_a_vocoder_without_all_of_its_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    vocoder, _ = cut(tiny, "vocoder", tmp_path, lambda name: name.startswith("conv_post"))
    one = PipelineSettings(model=str(tiny_models.build("speecht5", tiny)), vocoder=str(vocoder))
    with pytest.raises(PipeqError, match=r"lacks weights that text-to-audio needs.*conv_post"):
        load_pipeline("text-to-audio", one, DEVICE)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own call
@pytest.mark.parametrize("alone", [False, True])
def test_a_head_that_an_adapter_brings_is_not_missing(tiny: Path, tmp_path: Path, alone: bool) -> None:
    """Adapters of classifiers are trained on base models and bring the head; an adapter alone names its model."""
    import peft

    base = tiny_models.build("encoder", tiny)
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    lora = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False)
    adapted = peft.get_peft_model(model, lora)
    adapted.save_pretrained(tmp_path / "adapter")
    which = {"model": str(tmp_path / "adapter"), "tokenizer": str(base)} if alone else {"model": str(base)}
    which |= {} if alone else {"adapter": str(tmp_path / "adapter")}
    adapted_settings = PipelineSettings(**which, model_kwargs={"num_labels": 3})
    pipeline = load_pipeline("text-classification", adapted_settings, DEVICE)
    assert isinstance(pipeline, TransformersPipeline)
    inputs = pipeline.pipe().tokenizer("the quick fox", return_tensors="pt")
    want = adapted.eval()(**inputs).logits.softmax(-1)[0].max().item()
    assert answer(pipeline)["score"] == pytest.approx(want, abs=1e-5)
    cut_adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    cut_adapter = {name: one for name, one in cut_adapter.items() if "layer.1" not in name}
    save_file(cut_adapter, tmp_path / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(PipeqError, match=r"lacks weights .*lora_A"):
        load_pipeline("text-classification", adapted_settings, DEVICE)
