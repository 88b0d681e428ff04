"""A batch gives each input the answer that transformers' pipeline gives it alone: every task type, mixed sizes.

The reference is transformers' own pipeline, called as its users call it. If the row of a task type says that its
items run alone, or only with items of their shape, the test checks the size of the largest batch.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pipeq.contract.errors import PipeqError
from pipeq_worker.children import slab
from pipeq_worker.doctor.compare import differences
from pipeq_worker.doctor.doctor import check
from pipeq_worker.media.video import Video
from pipeq_worker.models import ends
from pipeq_worker.models.call import Call
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.models.quirks.vision import MaskGeneration
from pipeq_worker.models.task_types import TASK_TYPES, find
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests import samples, tiny_models
from tests.device import DEVICE
from tests.samples import WORDS, audio, chats, clips, documents, images, texts
from tools import docs

torch.set_num_threads(1)

GREEDY = {"max_new_tokens": 12, "do_sample": False}
#: Whether this is `make long`.
EVERY = bool(os.environ.get("TASKS"))
#: Without timestamps a random Whisper goes through a clip in twenty passes. With transformers' five beams, as in
#: `make long`, the cases of these parameters take a minute of a core; beams with timestamps have cases below.
LANGUAGE = {"max_new_tokens": 12, "language": "en", **({} if EVERY else {"num_beams": 1})}
NESTED = {"generate_kwargs": {"max_new_tokens": 8, "do_sample": False}}
LABELS = {"candidate_labels": ["fox", "lazy dog", "politics and sports"]}
PAIRS = [{"text": a, "text_pair": b} for a, b in zip(texts(), texts()[::-1], strict=True)]
LONG = [{"question": "what is the total ?", "context": " ".join(texts(n))} for n in (1, 9, 4, 12)]


def asked() -> list[dict[str, Any]]:
    return [{"image": image, "question": text} for image, text in zip(images(), texts(4), strict=True)]


def pairs_of_images() -> list[dict[str, Any]]:
    return [{"images": list(pair)} for pair in samples.image_pairs()]


def words() -> list[list[str]]:
    return [text.split() for text in texts(5)]


#: Task type, tiny model, inputs, parameters, least number of items in the largest batch.
Case = tuple[str, str, Callable[[], list[Any]] | list[Any], dict[str, Any], int]
CASES: list[Case] = [
    ("text-classification", "classifier", texts, {}, 12),
    ("text-classification", "classifier", texts, {"top_k": 2}, 12),
    ("text-classification", "classifier", PAIRS, {}, 12),
    ("text-classification", "classifier", texts, {"truncation": True, "max_length": 8}, 12),
    ("text-classification", "fnet", lambda: texts() * 2, {"top_k": 3}, 2),
    ("text-classification", "gpt2_classifier", texts, {}, 12),
    ("token-classification", "token_classifier", texts, {}, 12),
    ("token-classification", "token_classifier", texts, {"aggregation_strategy": "simple"}, 12),
    ("token-classification", "token_classifier", texts, {"aggregation_strategy": "max", "ignore_labels": []}, 12),
    ("token-classification", "token_classifier", words, {"is_split_into_words": True, "delimiter": " "}, 5),
    ("fill-mask", "masked_bert", lambda: samples.masked_texts("[MASK]"), {}, 5),
    ("fill-mask", "masked_roberta", lambda: samples.masked_texts("<mask>"), {"top_k": 2}, 5),
    ("fill-mask", "masked_bert", lambda: samples.masked_texts("[MASK]"), {"targets": ["fox", "dog"]}, 5),
    ("zero-shot-classification", "nli", texts(5), LABELS, 15),
    ("zero-shot-classification", "nli", texts(5), {"candidate_labels": "sports, fox", "multi_label": True}, 10),
    ("feature-extraction", "encoder", texts, {}, 12),
    ("feature-extraction", "encoder", texts, {"return_tensors": True}, 12),
    ("text-embedding", "encoder", texts, {}, 12),
    ("text-embedding", "encoder", texts, {"normalize": False}, 12),
    ("text-ranking", "cross_encoder", PAIRS, {}, 12),
    ("text-ranking", "cross_encoder", PAIRS, {"function_to_apply": "none", "max_length": 20}, 12),
    ("text-generation", "gpt2", texts, GREEDY, 12),
    ("text-generation", "gpt2", texts, {**GREEDY, "return_full_text": False}, 12),
    ("text-generation", "gpt2", texts, {**GREEDY, "return_tensors": True}, 12),
    ("text-generation", "gpt2", texts, {**GREEDY, "num_beams": 2, "num_return_sequences": 2}, 12),
    ("text-generation", "gpt2", texts, {"max_length": 40, "do_sample": False}, 2),
    ("text-generation", "gpt2", texts, {**GREEDY, "stop_sequence": "fox"}, 12),
    ("text-generation", "gpt2", texts, {**GREEDY, "stop_strings": ["e", "q"]}, 12),
    ("text-generation", "gpt2", lambda: texts() * 2, {**GREEDY, "no_repeat_ngram_size": 1}, 2),
    ("text-generation", "gpt2", texts, {**GREEDY, "eos_token_id": list(range(100, 300)), "return_tensors": True}, 12),
    ("text-generation", "gpt2", [*texts(3), ""], {**GREEDY, "return_full_text": False}, 3),
    ("text-generation", "llama", chats, GREEDY, 5),
    ("text2text-generation", "t5", texts, {"max_new_tokens": 8}, 12),
    ("text2text-generation", "bart", texts, {"max_new_tokens": 8, "num_beams": 1, "return_tensors": True}, 12),
    ("text2text-generation", "t5", texts, {**GREEDY, "eos_token_id": list(range(20, 60)), "return_tensors": True}, 12),
    ("summarization", "t5", texts, {"max_new_tokens": 8, "num_beams": 1, "min_length": 2}, 12),
    ("translation", "t5", texts, {"max_new_tokens": 8, "num_beams": 1}, 12),
    ("translation_en_to_de", "t5", texts, {"max_new_tokens": 8, "num_beams": 2}, 12),
    ("question-answering", "reader", LONG, {}, 4),
    ("question-answering", "reader", LONG, {"top_k": 3, "handle_impossible_answer": True, "doc_stride": 16}, 4),
    ("table-question-answering", "tapas", samples.tables, {}, 1),
    ("table-question-answering", "tapas_cells", samples.tables, {"sequential": True}, 1),
    ("decision", "decision_chat", samples.decisions, {}, 1),
    ("decision", "decision_head", samples.decisions, {}, 1),
    ("image-classification", "vit", images, {"top_k": 2}, 4),
    ("image-feature-extraction", "vit_encoder", images, {"pool": True}, 4),
    ("image-feature-extraction", "dinov2", images, {}, 2),
    ("image-feature-extraction", "resnet", images, {"return_tensors": True}, 4),
    ("image-segmentation", "segformer", images, {}, 4),
    ("image-segmentation", "detr_panoptic", images, {"threshold": 0.0}, 2),
    ("object-detection", "detr", images, {"threshold": 0.0}, 2),
    ("object-detection", "yolos", images, {"threshold": 0.0}, 2),
    ("depth-estimation", "dpt", images, {}, 4),
    ("depth-estimation", "glpn", samples.large_images, {}, 2),
    ("keypoint-matching", "superglue", pairs_of_images, {}, 1),
    ("keypoint-matching", "lightglue", pairs_of_images, {"threshold": 0.1}, 1),
    ("zero-shot-image-classification", "clip", images, LABELS, 4),
    ("zero-shot-image-classification", "siglip", images, LABELS, 4),
    ("zero-shot-object-detection", "owlvit", samples.queries, {"threshold": 0.0, "top_k": 3}, 7),
    ("zero-shot-object-detection", "owlvit", images, {**LABELS, "threshold": 0.0}, 12),
    ("image-to-image", "upscaler", images, {}, 2),
    ("automatic-speech-recognition", "ctc_group_norm", clips, {}, 2),
    ("automatic-speech-recognition", "ctc_layer_norm", clips, {}, 5),
    ("automatic-speech-recognition", "ctc_layer_norm", clips, {"return_timestamps": "word"}, 5),
    ("automatic-speech-recognition", "ctc_layer_norm", clips, {"chunk_length_s": 1.0, "stride_length_s": 0.2}, 5),
    ("automatic-speech-recognition", "ctc_group_norm", clips, {"chunk_length_s": 1.0, "return_timestamps": "char"}, 5),
    ("automatic-speech-recognition", "whisper", clips, LANGUAGE, 5),
    (
        "automatic-speech-recognition",
        "whisper",
        lambda: [*clips(), audio(42), audio(35, 1)],
        {"max_new_tokens": 12, "return_timestamps": "word", "chunk_length_s": 30},
        1,
    ),
    (
        "automatic-speech-recognition",
        "whisper",
        lambda: [*clips(), audio(42)],
        {"max_new_tokens": 12, "return_timestamps": True},
        5,
    ),
    ("automatic-speech-recognition", "whisper", clips, {"max_new_tokens": 12, "return_language": True}, 1),
    ("automatic-speech-recognition", "whisper_short", samples.short_clips, {**NESTED, "return_timestamps": True}, 4),
    ("automatic-speech-recognition", "speech2text", samples.sounds, NESTED, 2),
    ("automatic-speech-recognition", "speech_encoder_decoder", samples.sounds, NESTED, 2),
    ("audio-classification", "audio_group_norm", samples.sounds, {}, 2),
    ("audio-classification", "audio_layer_norm", samples.sounds, {"top_k": 1}, 2),
    ("audio-classification", "spectrogram_transformer", samples.sounds, {"function_to_apply": "sigmoid"}, 5),
    ("zero-shot-audio-classification", "clap", samples.sounds, LABELS, 5),
    ("text-to-audio", "vits_quiet", texts(4), {}, 1),
    ("text-to-audio", "musicgen", texts(4), NESTED, 1),
    ("text-to-audio", "bark", ["hello world", "the quick brown fox", "dog"], NESTED, 1),
    ("text-to-audio", "bark", ["hello world", "dog"], {}, 1),
    ("document-question-answering", "layoutlm", documents, {}, 2),
    ("document-question-answering", "layoutlm", documents, {"top_k": 3, "max_seq_len": 64, "doc_stride": 16}, 2),
    ("visual-question-answering", "vilt", asked, {"top_k": 2}, 2),
    ("visual-question-answering", "blip_vqa", lambda: [*asked(), *asked()], {"max_new_tokens": 8}, 2),
    ("image-to-text", "captioner", images, {"max_new_tokens": 8}, 4),
    ("image-to-text", "blip_caption", images, {"max_new_tokens": 8, "prompt": "the fox"}, 4),
    ("image-text-to-text", "llava", samples.image_chats, NESTED, 3),
    ("image-text-to-text", "llava", samples.image_chats, {**NESTED, "return_full_text": False}, 3),
    ("image-text-to-text", "llava_next", samples.image_chats, {"max_new_tokens": 8, "return_tensors": True}, 2),
    ("any-to-any", "qwen2_audio", samples.audio_chats, NESTED, 1),
]
#: `make long` takes every case through ends without weights; `make test` the first of each model.
ENDS = CASES if EVERY else list({(case[0], case[1]): case for case in reversed(CASES)}.values())[::-1]
#: Limits for the fullest possible batches, with any amount of padding.
FULLEST = BatchLimits(max_size=64, max_cost=10**9, launch_cost=10**9, max_wait_s=0)


def name_of(case: Case) -> str:
    task, model, _, params, _ = case
    return "-".join([task, model, *map(str, params)])


def compare(pipeline: TransformersPipeline, values: list[Any], params: dict[str, Any], batch: int) -> None:
    report = check(pipeline, values, params, limits=FULLEST)
    assert report.failed == {}
    assert report.wrong == {}
    assert report.largest_batch >= batch, f"nothing was batched, so nothing was tested: {report.batches}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_batched_is_the_same_as_alone(loaded: Callable[[str, str], TransformersPipeline], case: Case) -> None:
    task, model, inputs, params, batch = case
    compare(loaded(task, model), inputs() if callable(inputs) else inputs, params, batch)


@pytest.mark.parametrize("model", ["videomae", "timesformer"])
def test_videos(loaded: Callable[[str, str], TransformersPipeline], tmp_path: Path, model: str) -> None:
    pipeline = loaded("video-classification", model)
    videos = [Video(path.read_bytes(), path.name, 10**6, 1000) for path in samples.videos(tmp_path)]
    compare(pipeline, videos, {"top_k": 2}, 4)
    if model == "videomae":
        with pytest.raises(PipeqError, match=r"0.mp4 has 2 of the 4 frames .* \(num_frames=4, frame_sampling_rate=5\)"):
            next(pipeline.prepare(videos[0], pipeline.merge({"frame_sampling_rate": 5})))


def test_mask_generation_as_far_as_it_goes(tiny: Path) -> None:
    """Its last step needs torchvision: a start without it is refused, and the steps before it are tested."""
    model = str(tiny_models.build("sam", tiny))
    if not TASK_TYPES["mask-generation"].missing():
        pipeline = load_pipeline("it", PipelineSettings(task="mask-generation", model=model), DEVICE)
        assert isinstance(pipeline, TransformersPipeline)
        few = {"points_per_batch": 8, "points_per_crop": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
        compare(pipeline, images(), few, 1)
        pytest.fail("torchvision is here, and mask-generation works: give it a case, and its row no reason")
    with pytest.raises(PipeqError, match="mask-generation needs torchvision, which is not installed") as caught:
        load_pipeline("it", PipelineSettings(task="mask-generation", model=model), DEVICE)
    assert caught.value.code == "invalid_settings"
    pipe = transformers.pipeline("mask-generation", model=model, device=DEVICE)
    quirks = MaskGeneration(pipe)
    params = {"points_per_batch": 8, "points_per_crop": 4, "pred_iou_thresh": -100.0, "stability_score_thresh": -1.0}
    call = Call(params, *pipe._sanitize_parameters(**params))
    (features,) = quirks.preprocess(pipe, images()[0], call)
    (outputs,) = quirks.forward(pipe, [features], call)
    assert [len(output["masks"]) for output in outputs] == [24, 24]
    assert all("is_last" not in output for output in outputs)
    with pytest.raises(ImportError, match="Torchvision"):
        quirks.postprocess(pipe, [outputs], call)


def test_bark_says_no_more_than_it_is_told(loaded: Callable[[str, str], TransformersPipeline]) -> None:
    """Its second model computes its own number of tokens, so ``max_new_tokens`` goes to the first."""
    pipeline = loaded("text-to-audio", "bark")
    lengths = []
    for params in ({}, {"generate_kwargs": {"max_new_tokens": 3}}):
        merged = pipeline.merge(params)
        (row,) = pipeline.prepare("hello world", merged)
        lengths.append(pipeline.postprocess(pipeline.forward([row.features], merged), merged)["audio"].shape[-1])
    assert lengths[0] > lengths[1] > 0


def test_every_task_type_has_a_case_or_a_reason() -> None:
    tested = {find(case[0]).name for case in CASES} | {"video-classification"}
    assert tested == {row.name for row in TASK_TYPES.values() if not row.untested}


def test_the_docs_say_what_the_table_says() -> None:
    for name, content in docs.files().items():
        assert (docs.ROOT / name).read_text(encoding="utf-8") == content, f"{name}: run `make docs`"


@pytest.mark.parametrize(
    ("task", "model", "inputs"),
    [
        ("zero-shot-image-classification", "clip", images),
        ("zero-shot-audio-classification", "clap", samples.sounds),
    ],
)
def test_labels_of_other_tasks_are_not_taken(
    loaded: Callable[[str, str], TransformersPipeline], task: str, model: str, inputs: Callable[[], list[Any]]
) -> None:
    """The pipeline reads only the labels of a batch's first item."""
    pipeline, groups = loaded(task, model), set()
    for labels in (["fox", "dog"], ["dog", "fox"], ["fox", "dog"]):
        for template in ("a {}", "no {}"):
            params = pipeline.merge({"candidate_labels": labels, "hypothesis_template": template})
            groups |= {row.group for row in pipeline.prepare(inputs()[0], params)}
    assert len(groups) == 4


@pytest.mark.parametrize(
    ("task", "model", "value", "params"),
    [
        ("feature-extraction", "encoder", "the fox", {"tokenize_kwargs": {"max_length": 4, "truncation": True}}),
        ("image-text-to-text", "llava", "the fox", {**NESTED, "generate_kwargs": {"do_sample": False}}),
        ("automatic-speech-recognition", "whisper", clips()[0], {"generate_kwargs": {"max_new_tokens": 4}}),
        ("zero-shot-classification", "nli", "the fox", {**LABELS, "hypothesis_template": "This is {}."}),
        ("table-question-answering", "tapas", samples.tables()[0], {}),
    ],
)
def test_neither_parameters_nor_inputs_are_changed(
    loaded: Callable[[str, str], TransformersPipeline], task: str, model: str, value: Any, params: dict[str, Any]
) -> None:
    """transformers changes its arguments, but a retry or another chunk needs them unchanged."""
    pipeline = loaded(task, model)
    merged = pipeline.merge({**params, **({"max_new_tokens": 4} if task == "image-text-to-text" else {})})
    before = copy.deepcopy((value, vars(merged)))
    for _ in range(2):
        rows = list(pipeline.prepare(value, merged))
        pipeline.postprocess([pipeline.forward([row.features], merged)[0] for row in rows], merged)
    assert list(differences((value, vars(merged)), before)) == []


def test_a_model_is_asked_whether_padding_changes_its_answers(
    loaded: Callable[[str, str], TransformersPipeline],
) -> None:
    assert not loaded("text-classification", "fnet").quirks.pads
    assert loaded("text-classification", "classifier").quirks.pads
    assert loaded("text-generation", "gpt2").quirks.pads


def test_words_without_the_parameter_are_refused(loaded: Callable[[str, str], TransformersPipeline]) -> None:
    pipeline = loaded("token-classification", "token_classifier")
    with pytest.raises(PipeqError, match="is_split_into_words=true"):
        next(pipeline.prepare(WORDS, pipeline.merge({})))


@pytest.fixture(scope="module")
def slabs() -> list[slab.Slabs]:
    descriptors = [slab.make(), slab.make()]
    return [slab.Slabs(descriptors, own) for own in range(2)]


@pytest.fixture(scope="module")
def ends_of(loaded: Callable[[str, str], TransformersPipeline]) -> Callable[[str, str], TransformersPipeline]:
    made: dict[tuple[str, str], TransformersPipeline] = {}

    def get(task: str, model: str) -> TransformersPipeline:
        if (task, model) not in made:
            device = loaded(task, model)
            data = ends.dump(device)
            assert data is not None
            made[task, model] = ends.load(data, device.name, device.settings)
        return made[task, model]

    return get


@pytest.mark.parametrize("case", ENDS, ids=name_of)
def test_ends_without_weights_give_the_same_answer(
    loaded: Callable[[str, str], TransformersPipeline],
    ends_of: Callable[[str, str], TransformersPipeline],
    slabs: list[slab.Slabs],
    case: Case,
) -> None:
    """Its two ends are made from bytes, as in another process; rows and outputs pass through shared memory."""
    task, model, inputs, params, _ = case
    device, two_ends = loaded(task, model), ends_of(task, model)
    weights = [*two_ends._pipe.model.parameters(), *two_ends._pipe.model.buffers()]
    assert all(one.device.type == "meta" for one in weights)
    at_device, at_ends = slabs
    for value in list(inputs() if callable(inputs) else inputs)[:2]:
        call = two_ends.merge(copy.deepcopy(params))
        torch.manual_seed(1)
        rows = list(two_ends.prepare(copy.deepcopy(value), call))
        there = [at_ends.put(row.features, row.nbytes) for row in rows]
        # The device process makes its own call of the parameters.
        device_call = device.call(call.params)
        outputs: list[Any] = []
        for where in there:
            (output,) = device.forward([at_device.get(where)], device_call)
            back = at_device.put(output)
            outputs.append(copy.deepcopy(at_ends.get(back)))
            at_device.free(back)
            at_ends.free(where)
        got = two_ends.result(two_ends.postprocess(outputs, call), value, call)
        torch.manual_seed(1)
        want = device.alone(copy.deepcopy(value), copy.deepcopy(dict(device.merge(copy.deepcopy(params)).params)))
        assert not list(differences(got, want))[:3]
    assert [one._rooms.free_bytes for one in slabs] == [slab.SIZE] * 2
