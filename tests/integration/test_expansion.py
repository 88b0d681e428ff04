"""What one message may become is bounded before it is made: a walk over all task types and all that multiplies.

Each message here is small, and each of its parameters is within its ceiling. Together they ask for too much, and are
refused by a sentence that names the setting, before the items, or the memory, are there.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeq_worker.models.call import Call
from pipeq_worker.models.foreseen import HARMLESS_BYTES, NOTHING, chunks
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.params.compound import Either, Fields, ListOf, Numbers, Pair
from pipeq_worker.models.params.rules import Number, Rule, Template, Text, Whole
from pipeq_worker.models.quirks.vision import MaskGeneration
from pipeq_worker.models.task_types import find
from pipeq_worker.settings.sections import ParamLimits, PipelineSettings
from pipeq_worker.stages.closing import close
from pipeq_worker.stages.device import Ran
from pipeq_worker.stages.files import wav

from tests import tiny_models
from tests.device import DEVICE
from tests.integration.conftest import Loaded
from tests.media import encode_image
from tests.stages import Files, Front
from tests.zoo import SERVED

#: More memory than a refusal takes, and less than what is refused would, in MiB.
REFUSAL_MIB = 400
WORDS = "the quick brown fox jumps over the lazy dog "
PICTURE = {"uri": "file:///picture"}
SOUND = {"uri": "file:///sound"}


def files() -> Files:
    picture = encode_image(Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)), "png")
    sound = wav(np.zeros(16_000 * 60, dtype=np.float32), 16_000)
    return Files({"file:///picture": picture, "file:///sound": sound, "file:///large": bytes(2**20)})


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one_input(task: str) -> Any:
    """A small input of a task type."""
    fields: dict[str, Any] = {
        "text": "fox",
        "text_pair": "fox",
        "question": "what?",
        "context": "fox",
        "query": "what?",
        "table": {"a": ["1"]},
        "state": "fox",
        "questions": {"it": {"type": "noul", "instructions": "fox?"}},
        "image": PICTURE,
        "images": [PICTURE, PICTURE],
        "audio": SOUND,
        "video": {"uri": "file:///video"},
        "candidate_labels": ["a"],
        "word_boxes": [["a", [0, 0, 1, 1]]],
    }
    kind = find(task)
    if kind.main is not None and task not in ("text-ranking", "keypoint-matching", "zero-shot-object-detection"):
        return fields[kind.main]
    return {name: fields[name] for name in kind.fields}


@pytest.mark.parametrize("task", SERVED)
def test_more_inputs_than_items_are_refused_before_one_is_read(loaded: Loaded, task: str) -> None:
    model, params = SERVED[task]
    one = Front(loaded(task, model), files(), max_items=20)
    error = one.error([one_input(task)] * 21, params)
    assert error is not None
    assert error.code == "input_too_large", error.message
    assert "(`max_items`)" in error.message
    assert not one.items
    assert not one.files.read
    one.close()


#: Name, task type, inputs, parameters, settings, and the setting that is named.
Case = tuple[str, str, Any, dict[str, Any], dict[str, Any], str]
SMALL = {"inputs": {"max_decoded_bytes": "100MiB", "allow": ("file:///",)}}
CASES: list[Case] = [
    ("labels", "zero-shot-classification", ["fox"] * 60, {"candidate_labels": ["a"] * 1000}, {}, "max_items"),
    (
        "labels in a text",
        "zero-shot-classification",
        ["fox"] * 60,
        {"candidate_labels": "a," * 499 + "a"},
        {},
        "max_items",
    ),
    (
        "labels in the input",
        "zero-shot-object-detection",
        {"image": PICTURE, "candidate_labels": ["a"] * 1001},
        {},
        {},
        "max_labels",
    ),
    (
        "labels of a text in the input",
        "zero-shot-object-detection",
        {"image": PICTURE, "candidate_labels": "a," * 1001 + "a"},
        {},
        {},
        "max_labels",
    ),
    ("targets", "fill-mask", ["a [MASK]"] * 60, {"targets": ["fox"] * 1000}, {}, "max_items"),
    (
        "overlap",
        "question-answering",
        {"question": "what?", "context": WORDS * 4000},
        {"max_seq_len": 384, "doc_stride": 376},
        {"max_items": 2000},
        "max_items",
    ),
    (
        "overlap of short chunks",
        "question-answering",
        {"question": "what?", "context": WORDS * 4000},
        {"max_seq_len": 12, "doc_stride": 4},
        {"max_items": 2000},
        "max_items",
    ),
    (
        "overlap in bytes",
        "question-answering",
        {"question": "what?", "context": WORDS * 1000},
        {"max_seq_len": 384, "doc_stride": 376},
        SMALL,
        "max_decoded_bytes",
    ),
    (
        "best of each chunk",
        "question-answering",
        {"question": "what?", "context": WORDS * 2000},
        {"max_seq_len": 64, "doc_stride": 40, "top_k": 1000},
        SMALL,
        "max_decoded_bytes",
    ),
    (
        "overlap of entities",
        "token-classification",
        WORDS * 4000,
        {"stride": 505, "aggregation_strategy": "simple"},
        {"max_items": 2000},
        "max_items",
    ),
    (
        "overlap of words",
        "document-question-answering",
        {"image": PICTURE, "question": "what?", "word_boxes": [["fox", [0, 0, 9, 9]]] * 8000},
        {"max_seq_len": 64, "doc_stride": 50},
        {"max_items": 500},
        "max_items",
    ),
    ("best of each mask", "fill-mask", "[MASK] " * 500, {"top_k": 100}, SMALL, "max_decoded_bytes"),
    (
        "questions of a table",
        "table-question-answering",
        {"table": {"a": ["1"] * 100}, "query": ["what?"] * 1000},
        {},
        {},
        "max_table_cells",
    ),
    (
        "rows of questions",
        "table-question-answering",
        {"table": {"a": ["1"] * 4}, "query": ["what?"] * 60},
        {},
        {"max_item_bytes": 2**20},
        "max_item_bytes",
    ),
    (
        "questions",
        "table-question-answering",
        {"table": {"a": ["1"]}, "query": ["what?"] * 21},
        {},
        {"max_items": 20},
        "max_items",
    ),
    (
        "decisions",
        "decision",
        {"state": "x", "questions": {f"q{at}": {"type": "noul", "instructions": "?"} for at in range(21)}},
        {},
        {"max_items": 20},
        "max_items",
    ),
    (
        "chunks of sound",
        "automatic-speech-recognition",
        SOUND,
        {"chunk_length_s": 0.2, "stride_length_s": 0.05},
        {"max_items": 50},
        "max_items",
    ),
    (
        "references of one input",
        "keypoint-matching",
        {"images": [{"uri": "file:///large"}] * 200},
        {},
        SMALL,
        "max_decoded_bytes",
    ),
    (
        "pictures",
        "image-classification",
        [PICTURE] * 2000,
        {},
        {"inputs": {"max_decoded_bytes": "10MiB", "allow": ("file:///",)}},
        "max_decoded_bytes",
    ),
    (
        "pictures of a chat",
        "image-text-to-text",
        [{"role": "user", "content": [{"type": "image", "image": PICTURE}] * 600}],
        {},
        {"param_limits": {"max_scaled_pixels": 100_000}},
        "max_scaled_pixels",
    ),
    (
        "beams",
        "text-generation",
        "fox",
        {"num_beams": 32, "max_new_tokens": 32_768},
        {"max_item_bytes": 2**20},
        "max_item_bytes",
    ),
    (
        "sequences",
        "text2text-generation",
        "fox",
        {"num_return_sequences": 32, "do_sample": True, "max_new_tokens": 32_768},
        {"max_item_bytes": 2**20},
        "max_item_bytes",
    ),
    ("prompt", "text2text-generation", WORDS * 4000, {}, {"max_input_tokens": 100}, "max_input_tokens"),
    ("document", "summarization", WORDS * 4000, {}, {"max_input_tokens": 100}, "max_input_tokens"),
    ("speech", "text-to-audio", WORDS * 4000, {}, {"max_input_tokens": 100}, "max_input_tokens"),
]
#: Settings of a pipeline; the others are the worker's.
OF_PIPELINE = ("max_item_bytes", "max_input_tokens")


@pytest.mark.parametrize("case", CASES, ids=[f"{one[1]}: {one[0]}" for one in CASES])
def test_what_multiplies_is_refused_before_it_is_made(loaded: Loaded, tiny: Path, case: Case) -> None:
    _, task, inputs, params, settings, named = case
    model, usual = SERVED[task]
    own = {name: value for name, value in settings.items() if name in OF_PIPELINE}
    limits = settings.get("param_limits")
    if own or limits:
        section = PipelineSettings(task=task, model=str(tiny_models.build(model, tiny)), **own)
        pipeline = load_pipeline("it", section, DEVICE, limits=ParamLimits(**limits) if limits else None)
    else:
        pipeline = loaded(task, model)
    before = peak_mib()
    one = Front(pipeline, files(), **{name: value for name, value in settings.items() if name not in OF_PIPELINE})
    error = one.error(inputs, {**{name: value for name, value in usual.items() if name in _REQUIRED}, **params})
    assert error is not None
    assert error.code in ("input_too_large", "invalid_input", "invalid_params"), error.message
    assert named in error.message
    assert error.retryable is False
    assert len(one.items) <= settings.get("max_items", 20_000)
    assert peak_mib() - before < REFUSAL_MIB
    one.close()


_REQUIRED = ("candidate_labels", "hypothesis_template")

#: Parameters that hold numbers or lists: by which setting, or how else, what they multiply is bounded.
COUNTS: dict[str, str] = {
    "max_length": "max_new_tokens, max_tokens",
    "max_new_tokens": "max_new_tokens",
    "thinker_max_new_tokens": "max_new_tokens",
    "talker_max_new_tokens": "max_new_tokens",
    "min_length": "max_new_tokens",
    "min_new_tokens": "max_new_tokens",
    "num_beams": "max_beams",
    "num_return_sequences": "max_sequences",
    "pad_to_multiple_of": "the table",
    "size": "max_image_side, max_scaled_pixels",
    "crop_size": "max_image_side",
    "height": "max_image_side",
    "width": "max_image_side",
    "shortest_edge": "max_image_side",
    "longest_edge": "max_image_side",
    "bad_words_ids": "max_list_items",
    "suppress_tokens": "max_list_items",
    "begin_suppress_tokens": "max_list_items",
    "sequence_bias": "max_list_items",
    "eos_token_id": "max_list_items",
    "forced_eos_token_id": "max_list_items",
    "hotwords": "max_list_items",
    "stop_strings": "max_stop_characters",
    "stop_sequence": "max_stop_characters",
    "candidate_labels": "max_labels, max_items",
    "targets": "max_labels, max_items",
    "ignore_labels": "max_labels",
    "chunk_length_s": "max_items",
    "stride_length_s": "max_items",
    "doc_stride": "max_tokens, max_items, max_decoded_bytes",
    "stride": "max_tokens, max_items, max_decoded_bytes",
    "max_seq_len": "max_tokens",
    "max_answer_len": "max_tokens",
    "num_frames": "max_frames, max_scaled_pixels",
    "frame_sampling_rate": "max_video_frames",
    "top_k": "max_results, max_decoded_bytes",
    "truncate_dim": "the table",
    "crops_n_layers": "the table, max_items, max_scaled_pixels",
    "points_per_crop": "the table, max_items",
    "points_per_batch": "the table",
    "crop_n_points_downscale_factor": "the table",
    "beam_width": "the table",
    "no_repeat_ngram_size": "the table",
    "encoder_no_repeat_ngram_size": "the table",
    "context_width": "the table",
    "speaker_embeddings": "the table",
    "documents": "the table, max_message_bytes",
    "tools": "the table, max_message_bytes",
    "temperature": "the table",
    "exponential_decay_length_penalty": "max_new_tokens",
    "prompt": "max_input_tokens",
    "prefix": "max_input_tokens",
    "hypothesis_template": "the table, max_input_tokens",
}
#: These change numbers, not how many there are.
CHANGE_NOTHING = frozenset(
    """
    resample rescale_factor image_mean image_std max_time top_p min_p top_h typical_p epsilon_cutoff eta_cutoff
    repetition_penalty encoder_repetition_penalty length_penalty forced_bos_token_id guidance_scale greenlist_ratio bias
    hashing_key pad_token_id bos_token_id decoder_start_token_id compression_ratio_threshold logprob_threshold
    no_speech_threshold thinker_eos_token_id talker_top_k talker_top_p talker_temperature talker_repetition_penalty
    speaker_id spkr_id threshold minlenratio maxlenratio beam_prune_logp token_min_logp hotword_weight mask_threshold
    overlap_mask_area_threshold crop_overlap_ratio crops_nms_thresh pred_iou_thresh stability_score_offset
    stability_score_thresh delimiter lang language prompt_name speaker src_lang tgt_lang voice_preset
    """.split()
)


def numbers(rules: dict[str, Rule]) -> set[str]:
    """Names of parameters, at any depth, whose values are numbers, texts of free length, or lists."""
    found = set()
    for name, rule in rules.items():
        left: list[Rule] = [rule]
        while left:
            one = left.pop()
            if isinstance(one, Fields):
                found |= numbers(dict(one.fields))
            elif isinstance(one, Either):
                left += one.rules
            elif isinstance(one, Whole | Number | ListOf | Pair | Numbers | Text | Template):
                found.add(name)
    return found


@pytest.mark.parametrize("task", SERVED)
def test_every_parameter_that_counts_has_a_bound_that_is_written_down(loaded: Loaded, task: str) -> None:
    """A new one needs an answer to the question what one message may become with it."""
    names = numbers(loaded(task, SERVED[task][0]).accepted.rules)
    assert names <= COUNTS.keys() | CHANGE_NOTHING, sorted(names - COUNTS.keys() - CHANGE_NOTHING)
    settings = {name.strip() for how in COUNTS.values() for name in how.split(",")} - {"the table"}
    known = ParamLimits.model_fields.keys() | PipelineSettings.model_fields.keys() | _WORKERS
    assert settings <= known, settings - known


_WORKERS = {"max_items", "max_decoded_bytes", "max_video_frames", "max_message_bytes"}


@pytest.mark.parametrize(
    ("params", "rows"),
    [
        ({}, 16),
        ({"points_per_batch": 1}, 1024),
        ({"points_per_crop": 64, "points_per_batch": 1, "crops_n_layers": 2}, 21 * 4096),
        (
            {"points_per_crop": 64, "points_per_batch": 1, "crops_n_layers": 2, "crop_n_points_downscale_factor": 2},
            12288,
        ),
        ({"points_per_crop": 1, "crops_n_layers": 2, "crop_n_points_downscale_factor": 16}, 21),
    ],
)
def test_passes_of_mask_generation(params: dict[str, Any], rows: int) -> None:
    """It needs torchvision to start, so it is asked without a model."""
    foresee: Callable[..., Any] = MaskGeneration.foresee
    assert foresee(SimpleNamespace(), None, None, Call(params)).rows == rows


@pytest.mark.parametrize("tokens", [0, 1, 10, 11, 12, 19, 1000])
@pytest.mark.parametrize("stride", [0, 1, 9])
def test_chunks_are_counted_as_they_are_cut(monkeypatch: pytest.MonkeyPatch, tokens: int, stride: int) -> None:
    cut, at = 1, 0
    while at + 10 < tokens:
        at, cut = at + 10 - stride, cut + 1
    length = HARMLESS_BYTES  # so that every text is looked at
    assert chunks(tokens, lambda: tokens, lambda: 10, stride, length, 1).rows == cut


def test_harmless_texts_are_not_looked_at() -> None:
    def never() -> int:
        raise AssertionError("it was tokenized")

    assert chunks(500, never, never, 1, 384, 1) is NOTHING
    assert chunks(10**6, lambda: 10**6, lambda: 10, 10, 384, 1) is NOTHING  # the tokenizer refuses it


def test_results_are_bounded_while_they_come(loaded: Loaded) -> None:
    """A text that is padded to the most has a row for each token, which JSON makes 14 times as large."""
    pipeline = loaded("feature-extraction", "encoder")
    params = {"tokenize_kwargs": {"padding": "max_length", "max_length": 512}}
    one = Front(pipeline)
    task = one.submit(["fox"] * 3, params)
    one.wait([task])
    call = pipeline.merge(params)
    rows = list(pipeline.prepare("fox", call))
    output = pipeline.forward([row.features for row in rows], call)[0]
    each = pipeline.output_bytes(output, call)
    assert 1 <= each / (14 * 4 * 512 * pipeline.pipe().model.config.hidden_size) < 1.01  # beside its pooled vector
    assert pipeline.output_bytes(output, pipeline.merge({"return_tensors": True})) == each // 14
    shelf = one.preparation._shelf
    ran = Ran(1, size=1)
    for count, item in enumerate(one.items, start=1):
        item.output = output
        close(shelf, [item], ran, 2 * each)
        assert (task.error is not None) == (count > 2)
    assert task.error is not None
    assert task.error.code == "input_too_large"
    assert "[inputs] max_decoded_bytes" in task.error.message
    one.close()


def test_a_masked_text_keeps_the_scores_of_its_masks_alone(loaded: Loaded) -> None:
    pipeline = loaded("fill-mask", "masked_bert")
    call = pipeline.merge({})
    for text in ("fox [MASK] dog", "[MASK] fox [MASK]"):
        rows = list(pipeline.prepare(text, call))
        output = pipeline.forward([row.features for row in rows], call)[0]
        assert output["logits"].shape[1] == text.count("[MASK]")
        assert pipeline.postprocess([output], call) == pipeline.alone(text, {})
