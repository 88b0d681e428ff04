"""Tiny checkpoints of sentence-transformers with different files, the same on every machine.

For vectors and scores that sentence-transformers 6.2.0 gave once, in
``tests/integration/sentence_transformers_6_2_0.json``. To record them again, in an environment that has it (and the
versions of constraints.txt): ``python -m tests.sentence_transformers_6``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from safetensors.torch import save_file

from tests.tiny_models.base import SMALL, gpt_tokenizer, save, wordpiece

FIXTURE = Path(__file__).parent / "integration" / "sentence_transformers_6_2_0.json"
#: Texts of 1, 4, 17 and 70 words, with blanks and capitals.
TEXTS = ["hello", "The quick BROWN fox ", " what is the total amount ? invoice 42 euros" * 2, "a lazy dog jumps. " * 17]
PAIRS = [("who jumps ?", "the quick brown fox"), ("What", "hello world " * 30), ("is this about sports ?", "politics")]
PROMPTS = {"prompts": {"query": "about the invoice : ", "passage": "hello "}}
HIDDEN = SMALL["hidden_size"]
#: Names of a module's class in checkpoints of different ages.
OLD, NEW = "sentence_transformers.models", "sentence_transformers.sentence_transformer.modules.pooling"
POOLING = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")

Files = dict[str, Any]
Change = Callable[[Path], None]


@dataclass(frozen=True)
class Variant:
    """One checkpoint."""

    #: The function below that builds the model.
    model: str
    #: Path -> JSON.
    files: Files = field(default_factory=dict)
    #: Path -> name -> shape, of weights.
    weights: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    #: Parameters of the calls; ours and theirs have the same names, except for ``normalize``.
    calls: tuple[dict[str, Any], ...] = ({},)


def modules(*named: str, at: str = "") -> Files:
    """``modules.json`` for a transformer and the following modules, each as ``Class`` or ``Class:folder``."""
    listed = [("Transformer", at), *((one.split(":")[0], f"{n}_{one}") for n, one in enumerate(named, 1))]
    types = [one if "." in one else f"{OLD}.{one}" for one, _ in listed]
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": kind}
        for n, (kind, (_, path)) in enumerate(zip(types, listed, strict=True))
    ]
    return {"modules.json": entries}


def pooling(*modes: str, **more: Any) -> dict[str, Any]:
    return {"word_embedding_dimension": HIDDEN} | {f"pooling_mode_{one}": one in modes for one in POOLING} | more


def dense(out: int, activation: str, **more: Any) -> dict[str, Any]:
    name = f"torch.nn.modules.{activation}"
    return {"in_features": HIDDEN, "out_features": out, "bias": True, "activation_function": name, **more}


def _linear(out: int, **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"linear.weight": (out, HIDDEN), "linear.bias": (out,), **more}


ALL_CALLS = ({}, {"prompt_name": "query"}, {"prompt": "the dog "}, {"normalize": True})
MEAN_FILE = {"1_Pooling/config.json": pooling("mean_tokens")}
QUERY = ({}, {"prompt_name": "query"})


def _variants() -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for mode in POOLING:
        for include in (True, False):
            files = modules("Pooling") | {
                "1_Pooling/config.json": pooling(mode, include_prompt=include),
                "config_sentence_transformers.json": PROMPTS,
            }
            name = mode if include else f"{mode}-without_prompt"
            found[name] = Variant("encoder", files, calls=QUERY)
            if not include:
                found[f"left-{name}"] = Variant("left_encoder", files, calls=QUERY[1:])
    found["two_modes"] = Variant(
        "encoder",
        modules("Pooling") | {"1_Pooling/config.json": pooling("cls_token", "mean_tokens")},
        calls=ALL_CALLS[::3],
    )
    new = {"embedding_dimension": HIDDEN, "pooling_mode": ["lasttoken", "max", "mean"], "include_prompt": True}
    found["three_modes"] = Variant(
        "encoder", modules(f"{NEW}.Pooling") | {"modules.json": _renamed(), "1_Pooling/config.json": new}
    )
    found["normalized"] = Variant("encoder", modules("Pooling", "Normalize") | MEAN_FILE, calls=ALL_CALLS[::3])
    for name, one, weights in (
        ("tanh", dense(24, "activation.Tanh"), _linear(24)),
        ("gelu", dense(8, "activation.GELU"), _linear(8)),
        ("no_bias", dense(24, "linear.Identity", bias=False), {"linear.weight": (24, HIDDEN)}),
        ("residual", dense(24, "activation.ReLU", use_residual=True), _linear(24, **{"residual.weight": (24, HIDDEN)})),
        ("residual_same", dense(HIDDEN, "activation.Sigmoid", use_residual=True), _linear(HIDDEN)),
    ):
        files = modules("Pooling", "Dense", "Normalize") | MEAN_FILE | {"2_Dense/config.json": one}
        found[f"dense_{name}"] = Variant("encoder", files, {"2_Dense/model.safetensors": weights})
    tokens = dense(HIDDEN, "activation.Tanh", module_input_name="token_embeddings")
    files = modules("Dense", "Pooling") | {
        "1_Dense/config.json": tokens,
        "2_Pooling/config.json": pooling("mean_tokens"),
    }
    found["dense_tokens"] = Variant("encoder", files, {"1_Dense/model.safetensors": _linear(HIDDEN)})
    files = modules("Pooling", "LayerNorm", "Dropout") | MEAN_FILE
    files |= {"2_LayerNorm/config.json": {"dimension": HIDDEN}, "3_Dropout/config.json": {"dropout": 0.5}}
    norm: dict[str, tuple[int, ...]] = {"norm.weight": (HIDDEN,), "norm.bias": (HIDDEN,)}
    found["layer_norm"] = Variant("encoder", files, {"2_LayerNorm/model.safetensors": norm})
    files = modules("WeightedLayerPooling", "Pooling") | {"2_Pooling/config.json": pooling("mean_tokens")}
    files |= {
        "1_WeightedLayerPooling/config.json": {
            "word_embedding_dimension": HIDDEN,
            "layer_start": 1,
            "num_hidden_layers": 2,
        }
    }
    weights = {"1_WeightedLayerPooling/model.safetensors": {"layer_weights": (2,)}}
    found["layers"] = Variant("all_layers", files, weights)
    for name, one in (
        ("short", {"max_seq_length": 12, "do_lower_case": False}),
        ("lower_case", {"max_seq_length": 40, "do_lower_case": True}),
        ("no_length", {"do_lower_case": False}),
        ("tokenizer_args", {"max_seq_length": 9, "tokenizer_args": {"model_max_length": 20, "padding_side": "left"}}),
        ("processing", {"max_seq_length": 30, "processing_kwargs": {"text": {"max_length": 15}}}),
    ):
        files = modules("Pooling") | MEAN_FILE | {"sentence_bert_config.json": one}
        found[name] = Variant("cased_encoder" if name == "lower_case" else "encoder", files)
    files = modules("Pooling") | MEAN_FILE | {"sentence_roberta_config.json": {"max_seq_length": 7}}
    found["older_name"] = Variant("encoder", files)
    files = (
        modules("Pooling")
        | MEAN_FILE
        | {"config_sentence_transformers.json": PROMPTS | {"default_prompt_name": "passage"}}
    )
    calls = ({}, {"prompt_name": "query"}, {"prompt_name": "document"}, {"prompt": ""})
    found["default_prompt"] = Variant("encoder", files, calls=calls)
    files = modules("Pooling", "Normalize") | MEAN_FILE | {"config_sentence_transformers.json": {"truncate_dim": 5}}
    found["truncated"] = Variant("encoder", files, calls=({}, {"normalize": True}, {"truncate_dim": 9}))
    found["folder"] = Variant("folder_encoder", modules("Pooling", at="0_Transformer") | MEAN_FILE)
    found["plain"] = Variant(
        "encoder", calls=({"normalize": False}, {"normalize": True}, {"prompt_name": "query", "normalize": True})
    )
    found["plain_causal"] = Variant("gpt", calls=({"normalize": False},))
    found["causal"] = Variant("gpt", modules("Pooling") | {"1_Pooling/config.json": pooling("lasttoken")})
    files = modules("Pooling", "Dense", "Normalize") | MEAN_FILE
    files |= {"2_Dense/config.json": dense(24, "linear.Identity", bias=False)}
    found["t5"] = Variant("t5", files, {"2_Dense/model.safetensors": {"linear.weight": (24, HIDDEN)}})
    return found


def _renamed() -> list[dict[str, Any]]:
    classes = ("sentence_transformers.base.modules.transformer.Transformer", f"{NEW}.Pooling")
    return [
        {"idx": at, "name": str(at), "path": path, "type": kind}
        for at, (kind, path) in enumerate(zip(classes, ("", "1_Pooling"), strict=True))
    ]


def _rerankers() -> dict[str, Variant]:
    ce = {"model_type": "CrossEncoder", **PROMPTS}
    alone = modules()
    classes = {
        "sentence_bert_config.json": {
            "transformer_task": "sequence-classification",
            "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
            "module_output_name": "scores",
        }
    }
    tanh = {"activation_fn": "torch.nn.modules.activation.Tanh"}
    return {
        "bare": Variant("reranker"),
        "config_identity": Variant("identity_reranker"),
        "config_tanh": Variant("tanh_reranker"),
        "module": Variant("reranker", alone | classes | {"config_sentence_transformers.json": ce | tanh}, calls=QUERY),
        "default_prompt": Variant(
            "identity_reranker",
            alone | classes | {"config_sentence_transformers.json": ce | {"default_prompt_name": "passage"}},
            calls=({}, {"prompt_name": "query"}, {"prompt": "the "}),
        ),
        "short": Variant(
            "reranker",
            alone
            | {
                "config_sentence_transformers.json": ce,
                "sentence_bert_config.json": {**classes["sentence_bert_config.json"], "max_seq_length": 16},
            },
        ),
    }


def _weights(path: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: _random(path + name, shape, 2.0) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], gain: float) -> torch.Tensor:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(random.standard_normal(shape) * gain / shape[-1] ** 0.5).float()


def _computed(model: Any, gain: float = 1.5) -> Any:
    """A model whose weights are the same on every machine and with every version of torch."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # the others, biases and norms, begin as zeros and ones
            parameter.data = _random(name, tuple(parameter.shape), gain)
    model.tie_weights()
    return model


def _bert(**more: Any) -> hf.BertConfig:
    return hf.BertConfig(vocab_size=400, max_position_embeddings=64, **SMALL, **more)


def _cased() -> hf.PreTrainedTokenizerFast:
    tokenizer = wordpiece()
    tokenizer.backend_tokenizer.normalizer = None
    return tokenizer


def _build(model: str, path: Path) -> None:
    if model.endswith("reranker"):
        config = _bert(num_labels=1)
        if model == "identity_reranker":
            config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}
        if model == "tanh_reranker":
            config.sbert_ce_default_activation_function = "torch.nn.modules.activation.Tanh"
        save(path, _computed(hf.BertForSequenceClassification(config)), wordpiece(64))
    elif model == "gpt":
        tokenizer = gpt_tokenizer("<|pad|>", pad_token="<|pad|>", padding_side="left")
        size = {"n_positions": 256, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2}
        config = hf.GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **size)
        save(path, _computed(hf.GPT2LMHeadModel(config)), tokenizer)
    elif model == "t5":
        size = {"d_model": HIDDEN, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        config = hf.T5Config(
            vocab_size=len(wordpiece()), **size, pad_token_id=0, eos_token_id=3, decoder_start_token_id=0
        )
        tokenizer = wordpiece(64)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        save(path, _computed(hf.T5EncoderModel(config)), tokenizer)
    else:
        path = path / "0_Transformer" if model == "folder_encoder" else path
        more = {"output_hidden_states": True} if model == "all_layers" else {}
        tokenizer = _cased() if model == "cased_encoder" else wordpiece()
        tokenizer.padding_side = "left" if model == "left_encoder" else "right"
        save(path, _computed(hf.BertModel(_bert(**more))), tokenizer)


VARIANTS = _variants()
RERANKERS = _rerankers()


def build(kind: str, name: str, folder: Path) -> Path:
    """Writes the checkpoint ``name`` below ``folder`` unless it is there; ``kind`` is VARIANTS' or RERANKERS'."""
    variant = (VARIANTS if kind == "embedding" else RERANKERS)[name]
    made, path = folder / "sentence_models" / variant.model, folder / "sentence" / kind / name
    if not made.exists():
        _build(variant.model, made)
    if not path.exists():
        shutil.copytree(made, path)
        for file, content in variant.files.items():
            (path / file).parent.mkdir(exist_ok=True)
            (path / file).write_text(json.dumps(content))
        for file, shapes in variant.weights.items():
            save_file(_weights(file, shapes), path / file)
    return path


def record() -> None:
    """Writes the fixture. Run it where sentence-transformers is installed."""
    import sentence_transformers

    answers: dict[str, Any] = {"version": sentence_transformers.__version__, "embedding": {}, "ranking": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, variant in VARIANTS.items():
            model = sentence_transformers.SentenceTransformer(str(build("embedding", name, Path(folder))), device="cpu")
            for call in variant.calls:
                theirs = {"normalize_embeddings" if key == "normalize" else key: one for key, one in call.items()}
                # One text at a time, because their batches pad, and padding rounds.
                vectors = [model.encode(text, **theirs).round(5).tolist() for text in TEXTS]
                answers["embedding"][f"{name} {json.dumps(call)}"] = vectors
        for name, variant in RERANKERS.items():
            ranker = sentence_transformers.CrossEncoder(str(build("ranking", name, Path(folder))), device="cpu")
            for call in variant.calls:
                scores = [float(ranker.predict([pair], **call)[0]) for pair in PAIRS]
                answers["ranking"][f"{name} {json.dumps(call)}"] = [round(score, 5) for score in scores]
    FIXTURE.write_text(json.dumps(answers, separators=(",", ":")).replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    record()
