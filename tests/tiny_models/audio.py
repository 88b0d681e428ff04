"""Models that hear or speak."""

from __future__ import annotations

import json
from pathlib import Path

import transformers as hf

from tests.tiny_models.base import SMALL, bert, builder, byte_bpe, save, spread, wordpiece

LETTERS = "abcdefghijklmnopqrstuvwxyz'"


def _wav2vec2_config(norm: str, **more: object) -> hf.Wav2Vec2Config:
    return hf.Wav2Vec2Config(
        conv_dim=(16,) * 7,
        num_feat_extract_layers=7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
        mask_time_length=2,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        **SMALL,
        **more,
    )


def _ctc(path: Path, norm: str, *, mask: bool) -> None:
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    (path / "vocab.json").write_text(json.dumps({letter: at for at, letter in enumerate(letters)}))
    config = _wav2vec2_config(norm, vocab_size=len(letters))
    tokenizer = hf.Wav2Vec2CTCTokenizer(str(path / "vocab.json"))
    save(path, hf.Wav2Vec2ForCTC(config), tokenizer, hf.Wav2Vec2FeatureExtractor(return_attention_mask=mask))


@builder
def ctc_group_norm(path: Path) -> None:
    _ctc(path, "group", mask=False)


@builder
def ctc_layer_norm(path: Path) -> None:
    _ctc(path, "layer", mask=True)


def _whisper(path: Path, seconds: int, **more: object) -> None:
    """The encoder has a position for every 20 ms of the ``seconds`` to which all clips are padded."""
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
        max_source_positions=50 * seconds,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=token("<|startoftranscript|>"),
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **more,
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
    save(path, model, tokenizer, hf.WhisperFeatureExtractor(feature_size=80, chunk_length=seconds))


@builder
def whisper(path: Path) -> None:
    _whisper(path, 30)


@builder
def whisper_short(path: Path) -> None:
    """Hears 2 s at a time, so that it is quick; longer audio goes through long-form decoding."""
    _whisper(path, 2, init_std=0.5)


@builder
def speech2text(path: Path) -> None:
    """Reads mel frames of any length."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe(*special), bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    config = hf.Speech2TextConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        conv_channels=32,
        input_feat_per_channel=16,
        max_source_positions=500,
        max_target_positions=128,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        init_std=0.5,
    )
    extractor = hf.Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)
    save(path, hf.Speech2TextForConditionalGeneration(config), tokenizer, extractor)


@builder
def speech_encoder_decoder(path: Path) -> None:
    """A wav2vec2 that masks padding, read out by a BERT."""
    tokenizer = wordpiece()
    config = hf.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        _wav2vec2_config("layer"), bert(is_decoder=True, add_cross_attention=True, initializer_range=0.5)
    )
    config.decoder_start_token_id, config.eos_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    config.pad_token_id = tokenizer.pad_token_id
    model = hf.SpeechEncoderDecoderModel(config)
    model.generation_config = hf.GenerationConfig(
        decoder_start_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save(path, model, tokenizer, hf.Wav2Vec2FeatureExtractor(return_attention_mask=True))


def _audio_classifier(path: Path, norm: str, *, mask: bool) -> None:
    model = hf.Wav2Vec2ForSequenceClassification(_wav2vec2_config(norm, num_labels=4))
    spread(50, model.classifier)
    save(path, model, hf.Wav2Vec2FeatureExtractor(return_attention_mask=mask))


@builder
def audio_group_norm(path: Path) -> None:
    _audio_classifier(path, "group", mask=False)


@builder
def audio_layer_norm(path: Path) -> None:
    _audio_classifier(path, "layer", mask=True)


@builder
def spectrogram_transformer(path: Path) -> None:
    """Pads or cuts every clip to the same number of mel frames."""
    config = hf.ASTConfig(num_mel_bins=16, max_length=64, patch_size=8, num_labels=4, initializer_range=0.1, **SMALL)
    model = hf.ASTForAudioClassification(config)
    spread(3, model.classifier.dense)
    save(path, model, hf.ASTFeatureExtractor(num_mel_bins=16, max_length=64))


@builder
def clap(path: Path) -> None:
    text = {"vocab_size": 400, "max_position_embeddings": 80, "projection_dim": 16, "pad_token_id": 0, **SMALL}
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "window_size": 4,
        "projection_dim": 16,
        "num_hidden_layers": 2,
        "enable_fusion": False,
    }
    # Longer clips would be cut at random places.
    extractor = hf.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=16000,
        hop_length=320,
        max_length_s=4,
        fft_window_size=512,
        frequency_max=8000,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    tokenizer = wordpiece(64)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    save(
        path, hf.ClapModel(hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)), tokenizer, extractor
    )


def _vits(path: Path, **more: object) -> None:
    letters = ["<unk>", " ", *LETTERS, "-"]
    (path / "vocab.json").write_text(json.dumps({letter: at for at, letter in enumerate(letters)}))
    tokenizer = hf.VitsTokenizer(
        str(path / "vocab.json"), pad_token=" ", phonemize=False, normalize=True, is_uroman=False
    )
    config = hf.VitsConfig(
        vocab_size=len(letters) + 2,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        flow_size=16,
        spectrogram_bins=9,
        duration_predictor_filter_channels=16,
        upsample_initial_channel=16,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        wavenet_dilation_rate=1,
        num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1,
        depth_separable_num_layers=1,
        duration_predictor_flow_bins=4,
        duration_predictor_num_flows=2,
        **more,
    )
    save(path, hf.VitsModel(config), tokenizer)


@builder
def vits(path: Path) -> None:
    """Draws durations and noise at random, as the real ones do."""
    _vits(path)


@builder
def vits_quiet(path: Path) -> None:
    """Without any noise: the same text gives the same audio."""
    _vits(path, noise_scale=0.0, noise_scale_duration=0.0, use_stochastic_duration_prediction=False)


@builder
def musicgen(path: Path) -> None:
    """Generates audio codes, which a codec turns into a waveform."""
    tokenizer = wordpiece()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    text = hf.T5Config(
        vocab_size=400, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0, initializer_factor=5.0
    )
    codec = hf.EncodecConfig(
        sampling_rate=16000,
        target_bandwidths=[32.0],
        codebook_size=64,
        codebook_dim=16,
        hidden_size=16,
        num_filters=4,
        num_lstm_layers=1,
        upsampling_ratios=[5, 4],
    )
    decoder = hf.MusicgenDecoderConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=64,
        max_position_embeddings=256,
        num_codebooks=4,
        pad_token_id=64,
        bos_token_id=64,
        initializer_factor=0.5,
    )
    model = hf.MusicgenForConditionalGeneration(
        hf.MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    )
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_()  # zero at first: every code would sound the same
    model.generation_config = hf.GenerationConfig(
        decoder_start_token_id=64, pad_token_id=64, bos_token_id=64, do_sample=False, guidance_scale=3.0, max_length=40
    )
    extractor = hf.EncodecFeatureExtractor(sampling_rate=16000)
    save(path, model, hf.MusicgenProcessor(feature_extractor=extractor, tokenizer=tokenizer))


@builder
def bark(path: Path) -> None:
    """Three models in a row, text to meaning to coarse to fine codes; generate's parameters go to each of them."""
    tokenizer = wordpiece(64)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    meanings, codes, words = 20, 16, len(tokenizer)
    size = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "initializer_range": 0.5}
    first_word = meanings + 4
    semantic = {"input_vocab_size": first_word + words + 2, "output_vocab_size": meanings + 1, "block_size": 64, **size}
    coarse = {"input_vocab_size": meanings + 2 * codes + 2, "block_size": 96, **size}
    coarse["output_vocab_size"] = coarse["input_vocab_size"]
    fine = {"input_vocab_size": codes + 2, "output_vocab_size": codes + 2, "block_size": 64, **size}
    codec = hf.EncodecConfig(
        sampling_rate=16000,
        target_bandwidths=[32.0],
        codebook_size=codes,
        codebook_dim=16,
        hidden_size=16,
        num_filters=4,
        num_lstm_layers=1,
        upsampling_ratios=[5, 4],
    )
    model = hf.BarkModel(
        hf.BarkConfig(
            semantic_config=semantic,
            coarse_acoustics_config=coarse,
            fine_acoustics_config={**fine, "n_codes_total": 4, "n_codes_given": 1},
            codec_config=codec.to_dict(),
            initializer_range=0.5,
        )
    )
    for layer in model.codec_model.quantizer.layers:
        layer.codebook.embed.normal_()
    save(path, model, hf.BarkProcessor(tokenizer))
    generation = {
        "model_type": "bark",
        "semantic_config": {
            "eos_token_id": meanings,
            "text_encoding_offset": first_word,
            "text_pad_token": first_word + words,
            "semantic_infer_token": first_word + words + 1,
            "semantic_vocab_size": meanings,
            "max_input_semantic_length": 24,
            "max_new_tokens": 16,
        },
        "coarse_acoustics_config": {
            "coarse_semantic_pad_token": meanings + 2 * codes,
            "coarse_infer_token": meanings + 2 * codes + 1,
            "max_coarse_input_length": 24,
            "max_coarse_history": 32,
            "sliding_window_len": 8,
        },
        "fine_acoustics_config": {"max_fine_history_length": 16, "max_fine_input_length": 32, "n_fine_codebooks": 4},
        "sample_rate": 16000,
        "codebook_size": codes,
    }
    (path / "generation_config.json").write_text(json.dumps(generation))


@builder
def speecht5(path: Path) -> None:
    """Makes spectrograms, which :func:`vocoder` turns into audio."""
    config = hf.SpeechT5Config(
        vocab_size=400,
        hidden_size=24,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        speech_decoder_prenet_units=16,
        speech_decoder_postnet_units=16,
        speech_decoder_postnet_layers=2,
        speaker_embedding_dim=512,
        max_text_positions=64,
        max_speech_positions=200,
    )
    save(path, hf.SpeechT5ForTextToSpeech(config), wordpiece(64))


@builder
def vocoder(path: Path) -> None:
    config = hf.SpeechT5HifiGanConfig(
        model_in_dim=8,
        upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8],
        upsample_initial_channel=16,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
    )
    save(path, hf.SpeechT5HifiGan(config))
