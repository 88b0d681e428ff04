"""Parts that the builders share: their registry, tokenizers trained in memory, and larger differences of scores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
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
    """Writes the checkpoint ``name`` below ``folder`` unless it is there. Other processes may build there, too."""
    path = folder / name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        # Under another name first, so that nobody sees half a checkpoint.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as made:
            half = Path(made) / name
            half.mkdir()
            BUILDERS[name](half)
            with suppress(OSError):  # another process was faster, with the same checkpoint
                half.rename(path)
    return path


def wordpiece(max_length: int = 512, **more: object) -> hf.PreTrainedTokenizerFast:
    """Words of more than four letters are two tokens. Not trained, because trainers number tokens anew each time."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for text in CORPUS for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = [*letters, *(f"##{letter}" for letter in letters), *(word for word in words if len(word) <= 4)]
    pieces += [piece for word in words if len(word) > 4 for piece in (word[:3], f"##{word[3:]}")]
    vocabulary = {piece: at for at, piece in enumerate(dict.fromkeys([*special, *pieces]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
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
        **{"model_input_names": ["input_ids", "token_type_ids", "attention_mask"], **more},
    )


def byte_bpe(*special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def gpt_tokenizer(*special: str, **more: object) -> hf.PreTrainedTokenizerFast:
    """A tokenizer without a pad token, as GPT-2's. The end of text is token 0, ``special`` are the tokens from 1 on."""
    end = "<|endoftext|>"
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe(end, *special),
        eos_token=end,
        bos_token=end,
        unk_token=end,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        **more,
    )


def spread(factor: float, *modules: torch.nn.Module) -> None:
    """Multiplies the weights of heads, so that rounding does not decide what a random model says."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.mul_(factor)


def save(path: Path, *parts: object) -> None:
    for part in parts:
        part.save_pretrained(path)  # type: ignore[attr-defined]


def bert(**more: object) -> hf.BertConfig:
    return hf.BertConfig(**{"vocab_size": 400, "max_position_embeddings": 512, **SMALL, **more})
