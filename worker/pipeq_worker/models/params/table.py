"""The table of parameters: name -> what its value may be. A name without a rule here is not accepted.

The signatures of the pipeline and of its model's ``generate`` say which of these names it takes (``accepted.py``). A
name of a bound is a field of ``[param_limits]`` in the settings (``"max_new_tokens"``), or a value of the model
(``"vocabulary"``: its largest token id).
"""

from __future__ import annotations

from pipeq_worker.models.params.compound import Either, Fields, Json, ListOf, Numbers, Pair
from pipeq_worker.models.params.refused import FIXED_BY_US, GENERATION_REFUSED, IMAGE_REFUSED, TOKENIZER_REFUSED
from pipeq_worker.models.params.rules import Choice, Flag, Number, Rule, Template, Text, Whole

_SHARE = Number(0, 1)
_TOKEN = Whole(0, "vocabulary")
_TOKENS = ListOf(_TOKEN, "max_list_items")
_LENGTH = Whole(1, "max_tokens")
_TOP_K = Whole(1, "max_results")
#: Length of an n-gram in tokens. The text is cut into as many pieces each time it is searched.
_NGRAM = Whole(0, 256)
_PADDING = Either((Flag(), Choice(("longest", "max_length", "do_not_pad"))))
_TRUNCATION = Either((Flag(), Choice(("longest_first", "only_first", "only_second", "do_not_truncate"))))
_FUNCTION = Choice(("sigmoid", "softmax", "none"), folds=True)
_LABEL = Text(1000, filled=True)
_LABELS = ListOf(_LABEL, "max_labels", least=1)
_STOP_TEXT = Text("max_stop_characters", least=1)
_STOP = Either((_STOP_TEXT, ListOf(_STOP_TEXT, 64, least=1, characters="max_stop_characters")))
_LANGUAGE = Text(100, pattern=r"[\w <|>-]+")

#: Parameters of a tokenizer's call.
TOKENIZER: dict[str, Rule] = {
    "truncation": _TRUNCATION,
    "padding": _PADDING,
    "max_length": _LENGTH,
    "add_special_tokens": Flag(),
    "pad_to_multiple_of": Whole(1, 4096),
    "padding_side": Choice(("left", "right")),
}
_TOKENIZER_FIELDS = Fields(TOKENIZER, TOKENIZER_REFUSED)

_SIDE = Whole(1, "max_image_side")
#: What logits are divided by. Still less makes infinity of them, and nothing can be drawn from that: the forward pass
#: raises, and on CUDA the process is unusable afterwards.
_DIVISOR = Number(1e-9, 1000)
_SIZE = Either(
    (
        _SIDE,
        Fields({"height": _SIDE, "width": _SIDE, "shortest_edge": _SIDE, "longest_edge": _SIDE}, FIXED_BY_US),
    )
)
_CHANNELS = Either((Number(-1000, 1000), ListOf(Number(-1000, 1000), 4, least=1)))
#: Parameters of an image processor's call. ``do_resize`` is left out: without resizing, the model would see an image of
#: any size.
IMAGE: dict[str, Rule] = {
    "size": _SIZE,
    "crop_size": _SIZE,
    "resample": Whole(0, 5),
    "do_rescale": Flag(),
    "rescale_factor": Number(0, 1000, above=True),
    "do_normalize": Flag(),
    "image_mean": _CHANNELS,
    "image_std": Either((Number(0, 1000, above=True), ListOf(Number(0, 1000, above=True), 4, least=1))),
    "do_convert_rgb": Flag(),
}
_IMAGE_FIELDS = Fields(IMAGE, IMAGE_REFUSED)

#: Parameters of ``generate``: the fields of a generation configuration.
GENERATION: dict[str, Rule] = {
    "max_length": Whole(1, "max_new_tokens"),
    "max_new_tokens": Whole(1, "max_new_tokens"),
    "min_length": Whole(0, "max_new_tokens"),
    "min_new_tokens": Whole(0, "max_new_tokens"),
    "early_stopping": Either((Flag(), Choice(("never",)))),
    "max_time": Number(0, 3600, above=True),
    "stop_strings": _STOP,
    "do_sample": Flag(),
    "num_beams": Whole(1, "max_beams"),
    "use_cache": Flag(),
    "temperature": _DIVISOR,
    "top_k": Whole(0, 2**20),
    "top_p": _SHARE,
    "min_p": _SHARE,
    "top_h": Number(0, 1, above=True),
    "typical_p": Number(0, 1, above=True),
    "epsilon_cutoff": _SHARE,
    "eta_cutoff": _SHARE,
    "repetition_penalty": _DIVISOR,
    "encoder_repetition_penalty": _DIVISOR,
    "length_penalty": Number(-100, 100),
    "no_repeat_ngram_size": _NGRAM,
    "encoder_no_repeat_ngram_size": _NGRAM,
    "bad_words_ids": ListOf(ListOf(_TOKEN, 64, least=1), "max_list_items", least=1),
    "renormalize_logits": Flag(),
    "forced_bos_token_id": _TOKEN,
    "forced_eos_token_id": Either((_TOKEN, _TOKENS)),
    "remove_invalid_values": Flag(),
    "exponential_decay_length_penalty": Pair(Whole(0, "max_new_tokens"), Number(0, 10, above=True)),
    "suppress_tokens": _TOKENS,
    "begin_suppress_tokens": _TOKENS,
    "sequence_bias": ListOf(Pair(ListOf(_TOKEN, 64, least=1), Number(-1e4, 1e4)), "max_list_items", least=1),
    "guidance_scale": Number(0, 1000),
    "watermarking_config": Fields(
        {
            "greenlist_ratio": Number(0.01, 0.99),
            "bias": Number(-1000, 1000),
            "hashing_key": Whole(1, 2**31 - 1),
            "seeding_scheme": Choice(("lefthash", "selfhash")),
            "context_width": Whole(1, 64),
        },
        FIXED_BY_US,
    ),
    "num_return_sequences": Whole(1, "max_sequences"),
    "pad_token_id": _TOKEN,
    "bos_token_id": _TOKEN,
    "eos_token_id": Either((_TOKEN, ListOf(_TOKEN, "max_list_items", least=1))),
    "decoder_start_token_id": _TOKEN,
}
#: Whisper takes the most probable tokens at 0.
_HEAT = (Number(0, 0), _DIVISOR)
_WHISPER: dict[str, Rule] = {
    "language": _LANGUAGE,
    "task": Choice(("transcribe", "translate")),
    "condition_on_prev_tokens": Flag(),
    # The temperatures to fall back to, one after the other, if a segment looks hallucinated.
    "temperature": Either((*_HEAT, ListOf(Either(_HEAT), 16, least=1))),
    "compression_ratio_threshold": Number(0, 1000),
    "logprob_threshold": Number(-1000, 0),
    "no_speech_threshold": _SHARE,
}
_OMNI: dict[str, Rule] = {
    "speaker": Text(100, pattern=r"[\w -]+"),
    "thinker_max_new_tokens": Whole(1, "max_new_tokens"),
    "thinker_eos_token_id": _TOKEN,
    "talker_max_new_tokens": Whole(1, "max_new_tokens"),
    "talker_do_sample": Flag(),
    "talker_top_k": Whole(1, 2**20),
    "talker_top_p": _SHARE,
    "talker_temperature": _DIVISOR,
    "talker_repetition_penalty": _DIVISOR,
}
#: In text-to-audio: parameters of the model's own ``generate``, or of its forward pass if it has none.
SPEECH: dict[str, Rule] = {
    # For models that are trained with guidance; 1 turns it off.
    "guidance_scale": Number(1, 100),
    "speaker_embeddings": Numbers(8192),
    "speaker_id": Whole(0, "speakers"),
    "spkr_id": Whole(0, "speakers"),
    "tgt_lang": _LANGUAGE,
    "threshold": _SHARE,
    "minlenratio": Number(0, 50),
    "maxlenratio": Number(0, 50, above=True),
}
#: Task type -> parameters that the ``generate`` of some of its models takes beside the fields of a generation
#: configuration.
GENERATION_OF_TASK: dict[str, dict[str, Rule]] = {
    "automatic-speech-recognition": _WHISPER,
    "text-to-audio": SPEECH,
    "any-to-any": _OMNI,
    "image-to-text": {"interpolate_pos_encoding": Flag()},
    "image-text-to-text": {"interpolate_pos_encoding": Flag()},
    "visual-question-answering": {"interpolate_pos_encoding": Flag()},
}

#: Parameters of a pipeline's call.
PIPELINE: dict[str, Rule] = {
    **TOKENIZER,
    "add_special_tokens": Flag(),
    "aggregation_strategy": Choice(("none", "simple", "first", "average", "max"), folds=True),
    "align_to_words": Flag(),
    "candidate_labels": Either((_LABEL, _LABELS)),
    "chunk_length_s": Either((Choice((False,)), Number(0, 3600))),
    "clean_up_tokenization_spaces": Flag(),
    "continue_final_message": Flag(),
    "decoder_kwargs": Fields(
        {
            "beam_width": Whole(1, 1000),
            "beam_prune_logp": Number(-1000, 0),
            "token_min_logp": Number(-1000, 0),
            "prune_history": Flag(),
            "hotwords": ListOf(Text(1000), "max_list_items"),
            "hotword_weight": Number(0, 1000),
        },
        FIXED_BY_US,
    ),
    "delimiter": Text(100),
    "doc_stride": Whole(0, "max_tokens"),
    "documents": ListOf(Json(), 1000),
    "frame_sampling_rate": Whole(1, 10_000),
    "function_to_apply": _FUNCTION,
    "generation_mode": Choice(("text", "audio", "image")),
    "handle_impossible_answer": Flag(),
    "handle_long_generation": Choice(("hole",)),
    "hypothesis_template": Template(),
    "ignore_labels": ListOf(Text(1000), "max_labels"),
    "ignore_warning": Flag(),
    "image_processor_kwargs": _IMAGE_FIELDS,
    "is_split_into_words": Flag(),
    # It goes to a program's command line, where it names a language file.
    "lang": Text(100, pattern=r"[A-Za-z_]+(\+[A-Za-z_]+)*"),
    "mask_threshold": Number(-1000, 1000),
    "max_answer_len": Whole(1, "max_tokens"),
    "max_new_tokens": GENERATION["max_new_tokens"],
    "max_seq_len": _LENGTH,
    "multi_label": Flag(),
    "normalize": Flag(),
    "num_frames": Whole(1, "max_frames"),
    "overlap_mask_area_threshold": _SHARE,
    "pool": Flag(),
    "prefix": Text(),
    "processor_kwargs": Fields(
        {**TOKENIZER, **IMAGE, "text_kwargs": _TOKENIZER_FIELDS, "images_kwargs": _IMAGE_FIELDS},
        {**TOKENIZER_REFUSED, **IMAGE_REFUSED},
    ),
    "prompt": Text(),
    "prompt_name": Text(100),
    "return_full_text": Flag(),
    "return_language": Flag(),
    "return_tensors": Flag(),
    "return_timestamps": Choice((True, False, "word", "char")),
    "sequential": Flag(),
    "skip_special_tokens": Flag(),
    "src_lang": _LANGUAGE,
    "stop_sequence": _STOP,
    "stride_length_s": Either((Number(0, 3600), ListOf(Number(0, 3600), 2, least=2))),
    "subtask": Choice(("panoptic", "instance", "semantic")),
    "targets": Either((Text(1000), ListOf(Text(1000), "max_labels", least=1))),
    "tgt_lang": _LANGUAGE,
    "threshold": _SHARE,
    "tokenize_kwargs": _TOKENIZER_FIELDS,
    "tokenizer_encode_kwargs": _TOKENIZER_FIELDS,
    "tokenizer_kwargs": _TOKENIZER_FIELDS,
    "tools": ListOf(Json(), 1000),
    "top_k": _TOP_K,
    "truncate_dim": Whole(1, 65_536),
    # Parameters of mask-generation: the number of points is the square of the value, and each layer quadruples the
    # crops.
    "crop_n_points_downscale_factor": Whole(1, 16),
    "crop_overlap_ratio": Number(0, 0.9),
    "crops_n_layers": Whole(0, 2),
    "crops_nms_thresh": _SHARE,
    "points_per_batch": Whole(1, 1024),
    "points_per_crop": Whole(1, 64),
    "pred_iou_thresh": Number(-1000, 1000),
    "stability_score_offset": Number(-1000, 1000),
    "stability_score_thresh": Number(-1000, 1000),
}
#: Names that mean something else in one task type: (task type, name) -> rule.
OF_TASK: dict[tuple[str, str], Rule] = {
    ("table-question-answering", "truncation"): Either((Flag(), Choice(("drop_rows_to_fit", "do_not_truncate")))),
    ("token-classification", "stride"): Whole(0, "max_tokens"),
    ("text2text-generation", "stop_sequence"): Text(1000),
    ("summarization", "stop_sequence"): Text(1000),
    ("translation", "stop_sequence"): Text(1000),
    # Texts and sounds in one input have different lengths, so each kind has its own object of arguments.
    ("any-to-any", "processor_kwargs"): Fields(
        {"text_kwargs": _TOKENIZER_FIELDS, "images_kwargs": _IMAGE_FIELDS},
        dict.fromkeys((*TOKENIZER, *IMAGE), "put it into text_kwargs or images_kwargs"),
    ),
    ("zero-shot-image-classification", "candidate_labels"): _LABELS,
    ("zero-shot-audio-classification", "candidate_labels"): _LABELS,
    ("text-to-audio", "preprocess_params"): Fields(
        {**TOKENIZER, "voice_preset": Text(200)}, {**TOKENIZER_REFUSED, **FIXED_BY_US}
    ),
}
#: Parameters that hold parameters of ``generate``.
GENERATION_FIELDS = ("generate_kwargs", "forward_params")


def generation_rules(task: str) -> dict[str, Rule]:
    """The parameters that ``generate`` takes in a task type, with any model."""
    rules = {**GENERATION, **GENERATION_OF_TASK.get(task, {})}
    return {name: rule for name, rule in rules.items() if name not in GENERATION_REFUSED.get(task, {})}
