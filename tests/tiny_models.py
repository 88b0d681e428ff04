"""Tiny random checkpoints, one for each task type, built in seconds without the Hub. Seeded, so they never change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "this example is about sports politics .",
    "what is the total amount ? invoice 42 euros",
    "hello world user assistant",
] * 3
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BUILDERS: dict[str, Callable[[Path], None]] = {}


def builder(function: Callable[[Path], None]) -> Callable[[Path], None]:
    BUILDERS[function.__name__] = function
    return function


def build(name: str, folder: Path) -> Path:
    """Writes the checkpoint ``name`` below ``folder`` unless it is there."""
    path = folder / name
    if not path.exists():
        torch.manual_seed(0)
        path.mkdir(parents=True)
        BUILDERS[name](path)
    return path


def wordpiece(max_length: int = 512) -> hf.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def byte_bpe(*special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gpt_tokenizer() -> hf.PreTrainedTokenizerFast:
    """Without a pad token, as GPT-2's is."""
    end = "<|endoftext|>"
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe(end),
        eos_token=end,
        bos_token=end,
        unk_token=end,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def save(path: Path, *parts: object) -> None:
    for part in parts:
        part.save_pretrained(path)  # type: ignore[attr-defined]


def bert(**more: object) -> hf.BertConfig:
    return hf.BertConfig(vocab_size=400, max_position_embeddings=512, **SMALL, **more)


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
def vit(path: Path) -> None:
    config = hf.ViTConfig(num_labels=4, image_size=32, patch_size=8, **SMALL)
    save(path, hf.ViTForImageClassification(config), hf.ViTImageProcessor(size={"height": 32, "width": 32}))


def wav2vec2(path: Path, norm: str, *, mask: bool) -> None:
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    (path / "vocab.json").write_text(json.dumps({letter: at for at, letter in enumerate(letters)}))
    config = hf.Wav2Vec2Config(
        vocab_size=len(letters),
        conv_dim=(16,) * 7,
        num_feat_extract_layers=7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
        mask_time_length=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        **SMALL,
    )
    tokenizer = hf.Wav2Vec2CTCTokenizer(str(path / "vocab.json"))
    save(path, hf.Wav2Vec2ForCTC(config), tokenizer, hf.Wav2Vec2FeatureExtractor(return_attention_mask=mask))


@builder
def ctc_group_norm(path: Path) -> None:
    wav2vec2(path, "group", mask=False)


@builder
def ctc_layer_norm(path: Path) -> None:
    wav2vec2(path, "layer", mask=True)


@builder
def whisper(path: Path) -> None:
    byte_bpe("<|endoftext|>").model.save(str(path))
    languages = ["<|en|>", "<|de|>"]
    special = ["<|startoftranscript|>", *languages, "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
    special += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    tokenizer = hf.WhisperTokenizer(
        str(path / "vocab.json"), str(path / "merges.txt"), additional_special_tokens=special, pad_token="<|endoftext|>"
    )
    times = [hf.AddedToken(f"<|{at * 0.02:.2f}|>", special=False, normalized=False) for at in range(1501)]
    tokenizer.add_tokens(times)
    token = tokenizer.convert_tokens_to_ids
    config = hf.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=80,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=token("<|startoftranscript|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = hf.WhisperForConditionalGeneration(config)
    model.generation_config = hf.GenerationConfig(
        decoder_start_token_id=token("<|startoftranscript|>"),
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        is_multilingual=True,
        lang_to_id={language: token(language) for language in languages},
        task_to_id={"transcribe": token("<|transcribe|>"), "translate": token("<|translate|>")},
        no_timestamps_token_id=token("<|notimestamps|>"),
        prev_sot_token_id=token("<|startofprev|>"),
        max_initial_timestamp_index=50,
        return_timestamps=False,
        alignment_heads=[[1, 0], [1, 1]],
        max_length=448,
    )
    save(path, model, tokenizer, hf.WhisperFeatureExtractor(feature_size=80))


@builder
def layoutlm(path: Path) -> None:
    config = hf.LayoutLMConfig(vocab_size=400, max_position_embeddings=512, max_2d_position_embeddings=1024, **SMALL)
    save(path, hf.LayoutLMForQuestionAnswering(config), wordpiece())
