"""Models that read text, or text laid out on a page or in a table."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as hf
from tokenizers import processors

from tests.tiny_models.base import SMALL, bert, builder, byte_bpe, gpt_tokenizer, save, spread, wordpiece

CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


@builder
def classifier(path: Path) -> None:
    save(path, hf.BertForSequenceClassification(bert(num_labels=3)), wordpiece())


@builder
def nli(path: Path) -> None:
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    config = bert(id2label=names, label2id={name: at for at, name in names.items()})
    save(path, hf.BertForSequenceClassification(config), wordpiece())


@builder
def encoder(path: Path) -> None:
    save(path, hf.BertModel(bert()), wordpiece())


@builder
def gpt2(path: Path) -> None:
    tokenizer = gpt_tokenizer()
    size = {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = hf.GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **size)
    save(path, hf.GPT2LMHeadModel(config), tokenizer)


@builder
def writer(path: Path) -> None:
    """Generates text that depends on its prompt, and does not repeat one word for ever. Without a pad token."""
    tokenizer = gpt_tokenizer()
    size = {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.4}
    config = hf.GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **size)
    save(path, hf.GPT2LMHeadModel(config), tokenizer)


@builder
def writer_padded(path: Path) -> None:
    """The same model with a pad token, 1."""
    tokenizer = gpt_tokenizer("<|pad|>", pad_token="<|pad|>")
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.4,
        **SMALL,
    )
    save(path, hf.LlamaForCausalLM(config), tokenizer)


def _stretched(path: Path, **rope: object) -> None:
    """Trained on about 32 tokens; beyond that it reads positions differently."""
    tokenizer = gpt_tokenizer("<|pad|>", pad_token="<|pad|>")
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=32 if rope["rope_type"] == "dynamic" else 256,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.4,
        rope_parameters={"rope_theta": 10000.0, **rope},
        **SMALL,
    )
    save(path, hf.LlamaForCausalLM(config), tokenizer)


@builder
def stretched_dynamic(path: Path) -> None:
    _stretched(path, rope_type="dynamic", factor=4.0)


@builder
def stretched_longrope(path: Path) -> None:
    half = SMALL["hidden_size"] // SMALL["num_attention_heads"] // 2
    factors = {"short_factor": [1.0] * half, "long_factor": [64.0] * half}
    _stretched(path, rope_type="longrope", factor=8.0, original_max_position_embeddings=32, **factors)


@builder
def llama(path: Path) -> None:
    tokenizer = gpt_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        **SMALL,
    )
    save(path, hf.LlamaForCausalLM(config), tokenizer)


@builder
def layoutlm(path: Path) -> None:
    config = hf.LayoutLMConfig(vocab_size=400, max_position_embeddings=512, max_2d_position_embeddings=1024, **SMALL)
    save(path, hf.LayoutLMForQuestionAnswering(config), wordpiece())


@builder
def token_classifier(path: Path) -> None:
    names = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))
    config = bert(id2label=names, label2id={name: at for at, name in names.items()})
    model = hf.BertForTokenClassification(config)
    spread(50, model.classifier)
    save(path, model, wordpiece())


@builder
def masked_bert(path: Path) -> None:
    tokenizer = wordpiece()
    save(path, hf.BertForMaskedLM(bert(vocab_size=len(tokenizer), initializer_range=0.5)), tokenizer)


@builder
def masked_roberta(path: Path) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = byte_bpe(*special)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token=hf.AddedToken("<mask>", lstrip=True),
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )
    # Positions are counted after the padding token's.
    config = hf.RobertaConfig(
        vocab_size=len(fast), max_position_embeddings=514, type_vocab_size=1, initializer_range=0.5, **SMALL
    )
    save(path, hf.RobertaForMaskedLM(config), fast)


def _tapas(path: Path, **more: object) -> None:
    """Needs pandas."""
    vocabulary = wordpiece().get_vocab()
    words = [*sorted(vocabulary, key=vocabulary.__getitem__), "[EMPTY]"]
    (path / "vocab.txt").write_text("\n".join(words))
    tokenizer = hf.TapasTokenizer(str(path / "vocab.txt"), model_max_length=128)
    config = hf.TapasConfig(vocab_size=len(words), max_position_embeddings=128, initializer_range=0.5, **SMALL, **more)
    save(path, hf.TapasForQuestionAnswering(config), tokenizer)


@builder
def tapas(path: Path) -> None:
    """Picks cells and what to do with them, like the models fine-tuned on WTQ."""
    labels = {0: "NONE", 1: "SUM", 2: "AVERAGE", 3: "COUNT"}
    _tapas(path, num_aggregation_labels=4, aggregation_labels=labels, no_aggregation_label_index=0)


@builder
def tapas_cells(path: Path) -> None:
    """Picks cells of one column, like the models fine-tuned on SQA; for the parameter ``sequential``."""
    torch.manual_seed(3)  # with others it picks nothing, or the same column always
    _tapas(path, select_one_column=True)


def _decision_tokenizer() -> hf.PreTrainedTokenizerFast:
    tokenizer = gpt_tokenizer()
    tokenizer.add_tokens(["Yes", "No"])  # the labels of an answer are one token each
    tokenizer.chat_template = CHAT
    return tokenizer


def _qwen2(tokenizer: hf.PreTrainedTokenizerFast) -> hf.Qwen2Config:
    return hf.Qwen2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.5,
        **SMALL,
    )


@builder
def decision_chat(path: Path) -> None:
    """Any chat model can answer by the logits of its labels."""
    tokenizer = _decision_tokenizer()
    save(path, hf.Qwen2ForCausalLM(_qwen2(tokenizer)), tokenizer)


@builder
def decision_head(path: Path) -> None:
    """A model with its own decision head, which reads at ``<|mark|>``: one prompt for all questions."""
    tokenizer = _decision_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mark|>", "<|split|>"]})
    config = hf.JevConfig(hidden_size=SMALL["hidden_size"], text_config=_qwen2(tokenizer).to_dict())
    model = hf.JevForDecision(config)
    spread(20, model.proj)
    model.decision_config.chat_template = (
        "{{ state }}\n{% for question in questions %}{{ question.instructions }} "
        "{{ question.options | join(' ') }}<|mark|>\n{% endfor %}"
    )
    save(path, model, tokenizer)


@builder
def fnet(path: Path) -> None:
    """Mixes tokens by Fourier transforms, without a mask: padding changes its answers."""
    config = hf.FNetConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_labels=3, initializer_range=0.3
    )
    save(path, hf.FNetForSequenceClassification(config), wordpiece())


@builder
def gpt2_classifier(path: Path) -> None:
    """Without a pad token, in its tokenizer and in its configuration."""
    tokenizer = gpt_tokenizer()
    size = {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 2, "num_labels": 3, "initializer_range": 0.3}
    config = hf.GPT2Config(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, **size)
    save(path, hf.GPT2ForSequenceClassification(config), tokenizer)
