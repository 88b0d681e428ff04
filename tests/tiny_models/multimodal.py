"""Models that read text beside an image or a sound."""

from __future__ import annotations

from pathlib import Path

import transformers as hf

from tests.tiny_models.base import SMALL, builder, gpt_tokenizer, save, spread, wordpiece
from tests.tiny_models.vision import SQUARE, VIT

#: A template for messages whose content is text, or a list of parts.
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}MARK{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def _short_wordpiece(length: int) -> hf.PreTrainedTokenizerFast:
    tokenizer = wordpiece(length)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def _contrastive(length: int) -> tuple[dict[str, object], dict[str, object]]:
    text = {"vocab_size": 400, "max_position_embeddings": length, "eos_token_id": 3, "pad_token_id": 0, **SMALL}
    return text, dict(VIT)


@builder
def clip(path: Path) -> None:
    text, vision = _contrastive(64)
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    processor = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    save(path, model, _short_wordpiece(64), processor)


@builder
def siglip(path: Path) -> None:
    """Scores each label by itself, and pads every text to 64 tokens."""
    text, vision = _contrastive(64)
    model = hf.SiglipModel(hf.SiglipConfig(text_config={**text, "projection_size": 32}, vision_config=vision))
    model.logit_scale.data.fill_(2.0)
    save(path, model, _short_wordpiece(64), hf.SiglipImageProcessor(size=SQUARE))


@builder
def owlvit(path: Path) -> None:
    text, vision = _contrastive(16)
    model = hf.OwlViTForObjectDetection(hf.OwlViTConfig(text_config=text, vision_config=vision, projection_dim=32))
    # Random boxes and scores would be at the ends of their ranges, where rounding decides.
    spread(0.1, model.box_head, model.class_head.logit_shift, model.class_head.logit_scale)
    save(path, model, _short_wordpiece(16), hf.OwlViTImageProcessor(size=SQUARE))


def _vlm_tokenizer(*special: str) -> hf.PreTrainedTokenizerFast:
    """With a pad token, because its processor pads before one could be set."""
    return gpt_tokenizer("<|pad|>", *special, pad_token="<|pad|>", padding_side="left")


def _llama(tokenizer: hf.PreTrainedTokenizerFast) -> hf.LlamaConfig:
    return hf.LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.5,
        **SMALL,
    )


@builder
def llava(path: Path) -> None:
    """Every image becomes 16 tokens."""
    tokenizer = _vlm_tokenizer("<image>")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VIT),
        text_config=_llama(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    model = hf.LlavaForConditionalGeneration(config)
    model.generation_config.update(pad_token_id=1, eos_token_id=0)
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("MARK", "<image>"),
    )
    save(path, model, processor)


@builder
def llava_next(path: Path) -> None:
    """Cuts an image into tiles by its shape, so images have different numbers of tiles and tokens."""
    tokenizer = _vlm_tokenizer("<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VIT),
        text_config=_llama(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    model = hf.LlavaNextForConditionalGeneration(config)
    model.generation_config.update(pad_token_id=1, eos_token_id=0)
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=grid
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("MARK", "<image>"),
    )
    save(path, model, processor)


@builder
def qwen2_audio(path: Path) -> None:
    """Takes sounds and text: the only kind of any-to-any model that runs without torchvision."""
    tokenizer = _vlm_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    audio = hf.Qwen2AudioEncoderConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        num_mel_bins=16,
        max_source_positions=200,
    )
    config = hf.Qwen2AudioConfig(
        audio_config=audio,
        text_config=hf.Qwen2Config(**{**_llama(tokenizer).to_dict(), "model_type": "qwen2", "rope_parameters": None}),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = hf.Qwen2AudioForConditionalGeneration(config)
    model.generation_config.update(pad_token_id=1, eos_token_id=0)
    processor = hf.Qwen2AudioProcessor(
        feature_extractor=hf.WhisperFeatureExtractor(feature_size=16, chunk_length=4),
        tokenizer=tokenizer,
        chat_template=CHAT.replace("MARK", "<|audio_bos|><|AUDIO|><|audio_eos|>"),
    )
    save(path, model, processor)
