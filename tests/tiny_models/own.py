"""Models of the task types that transformers 5 dropped or never had."""

from __future__ import annotations

from pathlib import Path

import transformers as hf
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

from tests.tiny_models.base import CORPUS, SMALL, bert, builder, gpt_tokenizer, save, spread, wordpiece
from tests.tiny_models.vision import SQUARE, VIT


def _plain_wordpiece() -> hf.PreTrainedTokenizerFast:
    tokenizer = wordpiece(64)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


@builder
def cross_encoder(path: Path) -> None:
    model = hf.BertForSequenceClassification(bert(num_labels=1, initializer_range=0.2))
    save(path, model, wordpiece())


@builder
def reader(path: Path) -> None:
    """Extractive question answering."""
    model = hf.BertForQuestionAnswering(bert(initializer_range=0.2))
    spread(8, model.qa_outputs)
    save(path, model, wordpiece(64))


@builder
def left_reader(path: Path) -> None:
    """Reads the context first, and pads on the left, as XLNet does."""
    save(path, hf.BertForQuestionAnswering(bert(initializer_range=0.2)), wordpiece(64, padding_side="left"))


@builder
def byte_reader(path: Path) -> None:
    """Without a class token, and with spaces in its tokens."""
    tokenizer = gpt_tokenizer("<pad>", pad_token="<pad>")
    save(path, hf.BertForQuestionAnswering(bert(initializer_range=0.2)), tokenizer)


@builder
def t5(path: Path) -> None:
    """Its configuration has parts for several tasks, as in T5's own checkpoints."""
    config = hf.T5Config(
        vocab_size=len(wordpiece()),
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
        tie_word_embeddings=False,
        task_specific_params={
            "summarization": {"max_length": 40, "min_length": 4, "num_beams": 2, "prefix": "about : "},
            "translation_en_to_de": {"max_length": 30, "num_beams": 1, "prefix": "hello "},
        },
    )
    model = hf.T5ForConditionalGeneration(config)
    spread(30, model.lm_head)
    model.lm_head.weight.data[:5] = 0  # else it ends at once
    save(path, model, _plain_wordpiece())


@builder
def bart(path: Path) -> None:
    """Without a prefix; its generation configuration sets beams."""
    config = hf.BartConfig(
        vocab_size=len(wordpiece()),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=3,
        init_std=0.3,
    )
    save(path, hf.BartForConditionalGeneration(config), _plain_wordpiece())


@builder
def translator(path: Path) -> None:
    """Translates between many languages: its tokenizer needs two of them in every call."""
    words = sorted({word for text in CORPUS for word in text.split()})
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(piece, 0.0) for piece in [*special, *FAIRSEQ_LANGUAGE_CODES, "<mask>"]]
    pieces += [(f"\u2581{word}", -3.0) for word in words]
    pieces += [(letter, -8.0) for letter in ["\u2581", *sorted(set("".join(words)))]]
    tokenizer = hf.MBartTokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="de_DE")
    config = hf.MBartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=512,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        init_std=0.3,
    )
    save(path, hf.MBartForConditionalGeneration(config), tokenizer)


@builder
def vilt(path: Path) -> None:
    """Visual question answering with a list of possible answers."""
    names = dict(enumerate(["fox", "dog", "42", "yes", "no"]))
    size = {"image_size": 32, "patch_size": 8, "max_image_length": -1, "max_position_embeddings": 64}
    config = hf.ViltConfig(vocab_size=400, initializer_range=0.3, **size, **SMALL)
    config.id2label, config.label2id = names, {name: at for at, name in names.items()}
    processor = hf.ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=8)
    save(path, hf.ViltForQuestionAnswering(config), wordpiece(64), processor)


@builder
def blip_vqa(path: Path) -> None:
    """Visual question answering with generated text."""
    text = {
        "vocab_size": len(wordpiece()),
        "max_position_embeddings": 512,
        "encoder_hidden_size": 32,
        "bos_token_id": 2,
    }
    text |= {"sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0, "initializer_range": 0.4, **SMALL}
    config = hf.BlipConfig(text_config=text, vision_config=dict(VIT), projection_dim=16)
    model = hf.BlipForQuestionAnswering(config)
    save(path, model, _plain_wordpiece(), hf.BlipImageProcessor(size=SQUARE))


@builder
def captioner(path: Path) -> None:
    """An encoder of images and a decoder of text."""
    tokenizer = gpt_tokenizer("<|pad|>", pad_token="<|pad|>")
    encoder = hf.ViTConfig(image_size=32, patch_size=8, initializer_range=0.3, **SMALL)
    size = {"n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 2}
    decoder = hf.GPT2Config(
        vocab_size=len(tokenizer),
        add_cross_attention=True,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
        **size,
    )
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 0, 1, 0
    model = hf.VisionEncoderDecoderModel(config)
    model.generation_config = hf.GenerationConfig(
        decoder_start_token_id=0, bos_token_id=0, pad_token_id=1, eos_token_id=0
    )
    save(path, model, tokenizer, hf.ViTImageProcessor(size=SQUARE))


@builder
def blip_caption(path: Path) -> None:
    """Captions whose beginning can be given."""
    text = {
        "vocab_size": len(wordpiece()),
        "max_position_embeddings": 512,
        "encoder_hidden_size": 32,
        "bos_token_id": 2,
    }
    text |= {"sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0, "initializer_range": 0.4, **SMALL}
    config = hf.BlipConfig(text_config=text, vision_config=dict(VIT), projection_dim=16)
    model = hf.BlipForConditionalGeneration(config)
    spread(6, model.vision_model.post_layernorm, model.vision_model.embeddings.patch_embedding)
    save(path, model, _plain_wordpiece(), hf.BlipImageProcessor(size=SQUARE))


@builder
def git_caption(path: Path) -> None:
    """Captions by a decoder that reads the image before its text."""
    names = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    vision = {"image_size": 32, "patch_size": 8, **SMALL}
    config = hf.GitConfig(vision_config=vision, vocab_size=len(wordpiece()), initializer_range=0.3, **names, **SMALL)
    tokenizer = wordpiece(model_input_names=["input_ids", "attention_mask"])
    save(path, hf.GitForCausalLM(config), tokenizer, hf.CLIPImageProcessor(size=SQUARE, crop_size=SQUARE))


@builder
def upscaler(path: Path) -> None:
    """Doubles width and height."""
    config = hf.Swin2SRConfig(
        image_size=16, patch_size=1, embed_dim=16, depths=[2], num_heads=[2], window_size=8, upscale=2, num_channels=3
    )
    save(path, hf.Swin2SRForImageSuperResolution(config), hf.Swin2SRImageProcessor(size_divisor=8))


@builder
def blip2(path: Path) -> None:
    """Answers and captions by a text decoder that reads the image at the placeholder tokens of its text."""
    tokenizer = gpt_tokenizer("<|pad|>", "<image>", pad_token="<|pad|>")
    names = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    size = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    text = {"model_type": "opt", "vocab_size": len(tokenizer), "max_position_embeddings": 512, "init_std": 0.4}
    config = hf.Blip2Config(
        vision_config={**VIT, "initializer_range": 0.4},
        qformer_config={"vocab_size": 400, "encoder_hidden_size": 32, "initializer_range": 0.4, **SMALL},
        text_config={**text, **size, **names, "num_attention_heads": 2},
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    save(path, hf.Blip2ForConditionalGeneration(config), tokenizer, hf.BlipImageProcessor(size=SQUARE))
