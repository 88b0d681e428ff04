"""Parameters that exist but that no task may set, each with the reason that the producer reads.

They name code, files, a repository, a device or a Python object, or they cannot work through a queue.
"""

from __future__ import annotations

#: Parameters that decide where and how a model runs: name -> the settings key that holds them.
WORKERS_OWN = {
    "batch_size": "max_batch_size",
    "device": "device",
    "device_map": "device_map",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    "model": "model",
    "revision": "revision",
    "task": "task",
    "trust_remote_code": "trust_remote_code",
    "model_kwargs": "model_kwargs",
}
_PART = "it is a part of the model, which the worker loads"
_CODE = "it names code, and a task may not bring code"
_HUB = "it makes transformers load code from the Hub"
_OBJECT = "it is a Python object, which a message cannot hold"
_TENSOR = "the worker computes it from the input"
_SHAPE = "it changes the form of the model's output, which the worker relies on"
_DRAFT = "it is for assisted generation with a second model, and a worker loads none"
_MEMORY = "it controls how the model uses memory, which the worker decides"
_INSIDE = "it is internal to transformers"
_NETWORK = "the worker fetches inputs itself, within [inputs] of its settings"

#: Refused in every task type, at every depth.
EVERYWHERE = {
    "tokenizer": _PART,
    "feature_extractor": _PART,
    "image_processor": _PART,
    "processor": _PART,
    "video_processor": _PART,
    "vocoder": _PART,
    "noise_scheduler": _PART,
    "num_workers": _INSIDE,
    "framework": _INSIDE,
    "use_fast": _INSIDE,
    "token": "it is an access token for the Hub",
    "use_auth_token": "it is an access token for the Hub",
    "pipeline_class": _CODE,
    "code_revision": _CODE,
    "custom_generate": _CODE,
    "chat_template": "it is a program; the model's own template is used",
    "response_template": "it is a program; the model's own template is used",
    "args": _OBJECT,
    "kwargs": _OBJECT,
    "self": _OBJECT,
    "timeout": _NETWORK,
    "load_audio_backend": _NETWORK,
    "load_audio_from_video": _NETWORK,
    # of generate
    "generation_config": _OBJECT,
    "logits_processor": _CODE,
    "stopping_criteria": _CODE,
    "prefix_allowed_tokens_fn": _CODE,
    "streamer": _OBJECT,
    "assistant_model": _DRAFT,
    "assistant_tokenizer": _DRAFT,
    "synced_gpus": _INSIDE,
    "inputs": _TENSOR,
    "input_ids": _TENSOR,
    "input_features": _TENSOR,
    "input_features_mask": _TENSOR,
    "input_values": _TENSOR,
    "input_values_cutoffs": _TENSOR,
    "inputs_embeds": _TENSOR,
    "pixel_values": _TENSOR,
    "attention_mask": _TENSOR,
    "position_ids": _TENSOR,
    "qformer_input_ids": _TENSOR,
    "qformer_attention_mask": _TENSOR,
    "image_embeds": _TENSOR,
    "image_embeds_position_mask": _TENSOR,
    "past_key_values": _TENSOR,
    "decoder_input_ids": _TENSOR,
    "decoder_attention_mask": _TENSOR,
    "encoder_outputs": _TENSOR,
    "labels": _TENSOR,
    "negative_prompt_ids": _TENSOR,
    "negative_prompt_attention_mask": _TENSOR,
    "prompt_ids": _TENSOR,
    "history_prompt": _TENSOR,
    "use_audio_in_video": _TENSOR,
    "return_dict": _SHAPE,
    "return_dict_in_generate": _SHAPE,
    "output_attentions": _SHAPE,
    "output_cross_attentions": _SHAPE,
    "output_hidden_states": _SHAPE,
    "output_logits": _SHAPE,
    "output_scores": _SHAPE,
    "output_audio": _SHAPE,
    "return_audio": _SHAPE,
    "return_intermediate_token_ids": _SHAPE,
    "return_output_lengths": _SHAPE,
    "return_segments": _SHAPE,
    "return_token_timestamps": _SHAPE,
    "penalty_alpha": _HUB,
    "dola_layers": _HUB,
    "num_beam_groups": _HUB,
    "diversity_penalty": _HUB,
    "constraints": _HUB,
    "force_words_ids": _HUB,
    "is_assistant": _DRAFT,
    "num_assistant_tokens": _DRAFT,
    "num_assistant_tokens_schedule": _DRAFT,
    "assistant_confidence_threshold": _DRAFT,
    "assistant_lookbehind": _DRAFT,
    "assistant_ensemble_weight": _DRAFT,
    "target_lookbehind": _DRAFT,
    "speculation_type": _DRAFT,
    "use_mtp": _DRAFT,
    "prompt_lookup_num_tokens": "it speeds up a sequence that runs alone, and a worker runs batches",
    "max_matching_ngram_size": "it goes with prompt_lookup_num_tokens, which no task sets",
    "assistant_early_exit": "it changes the model itself while it runs",
    "cache_implementation": _MEMORY,
    "cache_config": _MEMORY,
    "max_cache_len": _MEMORY,
    "prefill_chunk_size": _MEMORY,
    "compile_config": _MEMORY,
    "disable_compile": _MEMORY,
    "continuous_batching_config": _MEMORY,
    "low_memory": "it has no effect in transformers 5",
    "token_healing": "it rewrites the prompt, and the worker relies on its length",
    "transformers_version": _INSIDE,
    "force_unique_generate_call": _INSIDE,
    "monitor_progress": _CODE,
    "is_multilingual": _INSIDE,
    "num_segment_frames": _INSIDE,
    "time_precision": _INSIDE,
    "time_precision_features": _INSIDE,
    "prompt_condition_type": "it goes with prompt_ids, which no task sets",
    "composer": _INSIDE,
    # of pipelines
    "tesseract_config": "it is a command line",
    "offset_mapping": "it belongs to one text and tokenizer: the worker makes it",
    "parameters": "it holds nothing but a timeout",
    "return_type": "it is a Python object: use return_full_text or return_tensors",
    "return_text": "it has no effect: there is text unless return_tensors is true",
}
#: Refused in one task type: (task type, name) -> reason.
BY_TASK = {
    ("text-generation", "generate_kwargs"): "give the parameters of generate directly, next to the others",
    ("table-question-answering", "generate_kwargs"): "the pipeline passes nothing on to generate",
    ("zero-shot-image-classification", "tokenizer_kwargs"): "the pipeline of transformers 5 does not read it",
    ("document-question-answering", "max_question_len"): "the pipeline of transformers 5 raises an error for it",
    ("question-answering", "max_question_len"): "it has no effect: only the context is cut into chunks",
    ("text-to-audio", "processor_kwargs"): "put the processor's parameters into preprocess_params",
}

_NEEDS_TOKENIZER = "generate searches the text for them, and the pipeline passes it no tokenizer"
_USE_STOP_SEQUENCE = "the pipeline passes generate no tokenizer for it: use stop_sequence"
_NO_TEXT = "the encoder reads no text"
_DECODERS_ONLY = "it guides decoders only, and these models have an encoder, too"
_SOUND = "models that generate audio do not support it"
#: Parameters of generate that are refused in one task type: task type -> name -> reason.
GENERATION_REFUSED: dict[str, dict[str, str]] = {
    "automatic-speech-recognition": {
        "stop_strings": _NEEDS_TOKENIZER,
        "guidance_scale": _DECODERS_ONLY,
        "encoder_repetition_penalty": _NO_TEXT,
        "encoder_no_repeat_ngram_size": _NO_TEXT,
    },
    **{task: {"guidance_scale": _DECODERS_ONLY} for task in ("text2text-generation", "summarization", "translation")},
    "image-to-text": {"encoder_repetition_penalty": _NO_TEXT, "encoder_no_repeat_ngram_size": _NO_TEXT},
    "text-to-audio": dict.fromkeys(
        "stop_strings num_beams early_stopping length_penalty num_return_sequences encoder_repetition_penalty "
        "encoder_no_repeat_ngram_size bad_words_ids forced_bos_token_id forced_eos_token_id suppress_tokens "
        "begin_suppress_tokens exponential_decay_length_penalty sequence_bias watermarking_config pad_token_id "
        "bos_token_id eos_token_id decoder_start_token_id".split(),
        _SOUND,
    ),
    "image-text-to-text": {"stop_strings": _USE_STOP_SEQUENCE},
    "any-to-any": {"stop_strings": _USE_STOP_SEQUENCE},
}

_TEXT_ALONE = "the worker gives a tokenizer one text"
TOKENIZER_REFUSED = {
    "return_tensors": _SHAPE,
    "return_offsets_mapping": _SHAPE,
    "return_overflowing_tokens": _SHAPE,
    "return_special_tokens_mask": _SHAPE,
    "return_token_type_ids": _SHAPE,
    "return_attention_mask": _SHAPE,
    "return_length": _SHAPE,
    "return_mm_token_type_ids": _SHAPE,
    "stride": "it has no effect where a text is not cut into chunks",
    "is_split_into_words": _TEXT_ALONE,
    "text": _TENSOR,
    "text_pair": _TENSOR,
    "text_target": _TENSOR,
    "text_pair_target": _TENSOR,
    "split_special_tokens": _INSIDE,
    "verbose": _INSIDE,
}
IMAGE_REFUSED = {
    "return_tensors": _SHAPE,
    "do_resize": "without resizing, the model would see an image of any size",
    "do_center_crop": "the model sees images of its own size",
    "do_pad": "the model sees images of its own size",
    "pad_size": "the model sees images of its own size",
    "default_to_square": "give `size` as an object",
    "data_format": _SHAPE,
    "input_data_format": _TENSOR,
    "disable_grouping": _INSIDE,
    "image_seq_length": _INSIDE,
    "images": _TENSOR,
    "image": _TENSOR,
}
#: For objects whose fields are all known: nothing is refused by name.
FIXED_BY_US: dict[str, str] = {}


def reason(name: str, task: str, refused_here: dict[str, str]) -> str | None:
    """Why no task may set a parameter; None for an unknown name."""
    return refused_here.get(name) or BY_TASK.get((task, name)) or EVERYWHERE.get(name)
