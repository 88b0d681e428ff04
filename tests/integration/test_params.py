"""Every parameter that a task type offers runs through a real model, or is refused with a reason."""

from __future__ import annotations

import contextlib
import copy
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeq.contract.errors import PipeqError
from pipeq_worker.media.video import Video
from pipeq_worker.models import loading
from pipeq_worker.models.params.accepted import named_rules
from pipeq_worker.models.params.compound import Either, Fields, Json, ListOf, Numbers, Pair
from pipeq_worker.models.params.rules import Bounds, Choice, Flag, Number, Rule, Template, Text, Whole, display
from pipeq_worker.models.params.table import generation_rules
from pipeq_worker.models.signatures import pipeline_class
from pipeq_worker.models.task_type import Media
from pipeq_worker.models.task_types import TASK_TYPES
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import ParamLimits, PipelineSettings

from tests import samples, tiny_models
from tests.device import DEVICE

torch.set_num_threads(1)

Loaded = Callable[[str, str], TransformersPipeline]
LABELS = {"candidate_labels": ["fox", "lazy dog"]}
FEW = {"max_new_tokens": 3, "do_sample": False}
#: Task type -> the tiny models that it is walked with, and parameters that each call has.
WALKED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "text-classification": (("classifier",), {}),
    "token-classification": (("token_classifier",), {}),
    "fill-mask": (("masked_bert",), {}),
    "zero-shot-classification": (("nli",), LABELS),
    "feature-extraction": (("encoder",), {}),
    "text-embedding": (("encoder",), {}),
    "text-ranking": (("cross_encoder",), {}),
    "text-generation": (("llama",), FEW),
    "text2text-generation": (("t5",), FEW),
    "summarization": (("bart",), FEW),
    "translation": (("translator",), {**FEW, "src_lang": "en_XX", "tgt_lang": "de_DE"}),
    "question-answering": (("reader",), {}),
    "table-question-answering": (("tapas",), {}),
    "decision": (("decision_chat",), {}),
    "image-classification": (("vit",), {}),
    "image-feature-extraction": (("vit_encoder",), {}),
    "image-segmentation": (("detr_panoptic",), {}),
    "object-detection": (("yolos",), {}),
    "depth-estimation": (("dpt",), {}),
    "keypoint-matching": (("superglue",), {}),
    "zero-shot-image-classification": (("clip",), LABELS),
    "zero-shot-object-detection": (("owlvit",), LABELS),
    "video-classification": (("videomae",), {}),
    "image-to-image": (("upscaler",), {}),
    "automatic-speech-recognition": (("whisper_short", "ctc_layer_norm"), {}),
    "audio-classification": (("audio_group_norm",), {}),
    "zero-shot-audio-classification": (("clap",), LABELS),
    "text-to-audio": (("musicgen", "vits_quiet", "speecht5", "bark"), {}),
    "document-question-answering": (("layoutlm",), {}),
    "visual-question-answering": (("blip_vqa", "vilt"), {}),
    "image-to-text": (("captioner", "blip_caption"), {}),
    "image-text-to-text": (("llava",), {}),
    "any-to-any": (("qwen2_audio",), {}),
}
#: Parameter -> other parameters that it needs to have an effect.
BESIDE: dict[str, dict[str, Any]] = {
    "num_return_sequences": {"do_sample": True},
    "delimiter": {"is_split_into_words": True},
    "stride_length_s": {"chunk_length_s": 1.0},
    "logprob_threshold": {"temperature": 0.2},
    "no_speech_threshold": {"temperature": 0.2, "logprob_threshold": -1.0},
    **{name: {"speaker_embeddings": [[0.1] * 512]} for name in ("threshold", "minlenratio", "maxlenratio")},
}
#: Values for parameters whose rule alone gives no useful one.
VALUES: dict[str, Any] = {
    "aggregation_strategy": "simple",
    "candidate_labels": ["fox", "dog"],
    "chunk_length_s": 1.0,
    "crop_size": {"height": 32, "width": 32},
    "doc_stride": 8,
    "eos_token_id": 5,
    "function_to_apply": "softmax",
    "generation_mode": "text",
    "language": "en",
    "lang": "eng",
    "max_length": 240,
    "max_new_tokens": 3,
    "max_seq_len": 64,
    "num_frames": 4,
    "num_beams": 2,
    "num_return_sequences": 2,
    "padding": True,
    "prompt": "the fox",
    "prompt_name": "query",
    "guidance_scale": 1.5,
    "size": {"height": 32, "width": 32},
    "src_lang": "en_XX",
    "subtask": "panoptic",
    "tgt_lang": "de_DE",
    "task": "transcribe",
    "targets": ["fox"],
    "temperature": 0.7,
    "stop_strings": ["x"],
    "stop_sequence": "x",
    "stride_length_s": 0.2,
    "repetition_penalty": 2,
    "return_timestamps": "word",
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    "speaker_embeddings": [[0.1] * 512],
}


def example(name: str, rule: Rule) -> Any:
    """A value that a rule allows."""
    if name in VALUES:
        return copy.deepcopy(VALUES[name])
    if isinstance(rule, Either):
        return example("", rule.rules[0])
    if isinstance(rule, Whole):
        return max(rule.low, 1)
    if isinstance(rule, Number):
        return (max(rule.low, 0) + min(rule.high, 1)) / 2
    if isinstance(rule, ListOf):
        return [example("", rule.item)] * max(rule.least, 1)
    if isinstance(rule, Pair):
        return [example("", rule.first), example("", rule.second)]
    known = {Flag: True, Template: "it is {}.", Json: {"title": "one", "text": "two"}, Numbers: [0.1]}
    return rule.values[0] if isinstance(rule, Choice) else known.get(type(rule), "fox")


def calls(rules: dict[str, Rule], task: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each parameter by itself, at every depth: its place, and the call's parameters."""
    for name, rule in rules.items():
        if not isinstance(rule, Fields):
            beside = BESIDE.get(name, {}) if name != "threshold" or task == "text-to-audio" else {}
            yield name, {name: example(name, rule), **beside}
            continue
        for place, inner in calls(dict(rule.fields), task):
            yield f"{name}.{place}", {name: inner}


def value_of(task: str, place: str, folder: Path, pipeline: TransformersPipeline) -> Any:
    texts, image = samples.texts(3), samples.images()[0]
    if place == "delimiter" or place.startswith("is_split"):
        return texts[1].split()
    if place in ("tools", "documents", "continue_final_message"):
        content = "the fox" if task == "text-generation" else [{"type": "text", "text": "the fox"}]
        return [{"role": "user", "content": content}]
    if task in ("image-text-to-text", "any-to-any"):
        return samples.audio_chats()[0] if task == "any-to-any" else samples.image_chats()[0]
    if task == "video-classification":
        path = samples.video(folder / "walk.mp4", 12, 64, 48)
        return Video(path.read_bytes(), "walk.mp4", 10**6, 1000)
    return {
        "fill-mask": f"the {getattr(pipeline.pipe().tokenizer, 'mask_token', '')} fox",
        "text-ranking": {"text": texts[0], "text_pair": texts[1]},
        "question-answering": {"question": "what is it ?", "context": " ".join(samples.texts(4))},
        "table-question-answering": samples.tables()[0],
        "decision": samples.decisions()[0],
        "keypoint-matching": {"images": list(samples.image_pairs()[0])},
        "zero-shot-object-detection": {"image": image},
        "automatic-speech-recognition": samples.audio(1.5),
        "audio-classification": samples.audio(1.0),
        "zero-shot-audio-classification": samples.audio(1.0),
        "document-question-answering": samples.documents()[0],
        "visual-question-answering": {"image": image, "question": "what is it ?"},
    }.get(task, image if "image" in task or task in ("object-detection", "depth-estimation") else texts[1])


def answer(pipeline: TransformersPipeline, value: Any, params: dict[str, Any]) -> Any:
    merged = pipeline.merge(params)
    outputs = [pipeline.forward([row.features], merged)[0] for row in pipeline.prepare(value, merged)]
    return pipeline.result(pipeline.postprocess(outputs, merged), value, merged)


#: Task types for which more parameters of generate are walked than every sixth, one for each place of parameters: each
#: of them, or every second.
WALKED_EVERY = {"text-generation": 1, "text2text-generation": 2, "automatic-speech-recognition": 2}
#: ``make long`` walks every parameter of generate for every model, and each number at both of its ends.
EVERYTHING = bool(os.environ.get("TASKS"))
PAIRS = [(task, model) for task, (models, _) in WALKED.items() for model in models]


def rules_of(task: str) -> dict[str, Rule]:
    """The parameters in the schema of a task type."""
    row = TASK_TYPES[task]
    named = named_rules(row, pipeline_class(row))
    return {**generation_rules(task), **named} if row.generation == "call" else named


def thinned(task: str) -> list[tuple[str, dict[str, Any]]]:
    """The calls to walk."""
    found, generate = list(calls(rules_of(task), task)), generation_rules(task)
    if EVERYTHING:
        return found
    # A parameter means the same inside generate_kwargs and beside it.
    beside = TASK_TYPES[task].generation == "call"
    every = WALKED_EVERY.get(task, 6)
    nested = ("generate_kwargs.", "forward_params.")
    plain = [one for one in found if not one[0].startswith(nested) and one[0].partition(".")[0] not in generate]
    outside = [one for one in found if one[0].partition(".")[0] in generate]
    inside = [one for one in found if one[0].startswith(nested)]
    return [*plain, *outside[::every], *inside[:: 20 if beside else every]]


def with_always(task: str, model: str, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters that every call of this model has, and those to try."""
    own, where = dict(WALKED[task][1]), TASK_TYPES[task].generation
    if where == "call" and model in ("whisper_short", "blip_vqa"):
        own |= FEW
    if model == "speecht5":
        own["forward_params"] = {"speaker_embeddings": [[0.1] * 512]}
    elif where == "generate_kwargs" and model != "vits_quiet" and "max_new_tokens" not in params:
        own["generate_kwargs"] = FEW
    nested = {name: {**own.get(name, {}), **one} for name, one in params.items() if isinstance(one, dict)}
    return {**own, **params, **nested}


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Loaded:
    found: dict[tuple[str, str], TransformersPipeline] = {}

    def get(task: str, model: str) -> TransformersPipeline:
        if (task, model) not in found:
            parts = {"vocoder": str(tiny_models.build("vocoder", tiny))} if model == "speecht5" else {}
            settings = PipelineSettings(task=task, model=str(tiny_models.build(model, tiny)), **parts)
            found[task, model] = loading.load_pipeline("it", settings, DEVICE)  # type: ignore[assignment]
        return found[task, model]

    return get


def test_every_task_type_is_walked() -> None:
    assert WALKED.keys() == {row.name for row in TASK_TYPES.values() if row.has_model and not row.untested}


@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_what_is_offered_works_or_is_refused_with_a_reason(
    loaded: Loaded, tmp_path: Path, task: str, model: str
) -> None:
    pipeline, failed = loaded(task, model), []
    for place, params in thinned(task):
        try:
            answer(pipeline, value_of(task, place, tmp_path, pipeline), with_always(task, model, params))
        except PipeqError as error:
            if not refused_well(error, place):
                failed.append((place, error.message))
        except Exception as error:
            failed.append((place, repr(error)))
    assert failed == []


def refused_well(error: PipeqError, place: str) -> bool:
    """Whether a parameter of the schema was refused for this model, by name and with a reason."""
    named = any(part in error.message for part in place.split("."))
    none = place.endswith(("voice_preset", "speaker_id")) and (
        "it has none" in error.message or "0 to 0" in error.message
    )
    return error.code == "invalid_params" and named and ("cannot be set by a task: " in error.message or none)


#: Parameters of models without a tiny version, or with packages that are not installed: task type -> names.
UNWALKED = {
    # CTC models with a language model
    "automatic-speech-recognition": {"decoder_kwargs"},
    # Seamless
    "text-to-audio": {"speaker_id", "spkr_id", "tgt_lang"},
    # Qwen-Omni
    "any-to-any": {
        "speaker",
        "thinker_max_new_tokens",
        "thinker_eos_token_id",
        "talker_max_new_tokens",
        "talker_do_sample",
        "talker_top_k",
        "talker_top_p",
        "talker_temperature",
        "talker_repetition_penalty",
    },
    # BLIP-2
    "image-text-to-text": {"interpolate_pos_encoding"},
}


def test_each_parameter_of_a_schema_is_taken_by_some_model(loaded: Loaded) -> None:
    nobody: dict[str, set[str]] = {}
    for task, (models, _) in WALKED.items():
        taken: set[str] = set()
        for model in models:
            taken |= set(places(loaded(task, model).accepted.rules))
        left = {place.rpartition(".")[2] for place in places(rules_of(task)) if place not in taken}
        nobody |= {task: left} if left else {}
    assert nobody == UNWALKED


def places(rules: dict[str, Rule], where: str = "") -> Iterator[str]:
    for name, rule in rules.items():
        yield f"{where}{name}"
        if isinstance(rule, Fields) and name != "decoder_kwargs":
            yield from places(dict(rule.fields), f"{where}{name}.")


@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_no_dictionary_of_any_depth_runs_code_or_reads_a_file(
    loaded: Loaded, tmp_path: Path, task: str, model: str
) -> None:
    """``custom_generate``, one dictionary deeper, once ran Python code of a folder inside the worker."""
    pipeline, ran = loaded(task, model), tmp_path / "ran"
    (tmp_path / "code" / "custom_generate").mkdir(parents=True)
    script = tmp_path / "code" / "custom_generate" / "generate.py"
    script.write_text(f"open({str(ran)!r}, 'w').close()\ndef generate(model, **more):\n    return None\n")
    evil = {"custom_generate": str(script.parents[1]), "trust_remote_code": True}
    tried = 0
    for name in (*objects(pipeline.accepted.rules), "model_kwargs", "tokenizer_kwargs", "x"):
        for inside in (
            evil,
            {"generation_config": evil},
            {"device": "cuda:0"},
            {"processor": "a/b"},
            {"x": {"y": evil}},
        ):
            for params in ({name: inside}, inside):
                with pytest.raises(PipeqError) as caught:
                    pipeline.merge(with_always(task, model, params))
                assert caught.value.code == "invalid_params"
                tried += 1
    assert tried >= 30
    assert not ran.exists()


#: Parameters for the amount of generated output, which takes its time.
LENGTHS = {"max_new_tokens", "max_length", "min_length", "min_new_tokens"}
#: Limit for a call at one end of a number's range, on a busy machine; an endless one would take hours.
LONGEST_S, MOST_KIB = 120, 2_000_000
#: The same for a text that is padded to the longest that `max_item_bytes` allows.
MOST_PADDED_KIB = 4 * 2**20


@pytest.mark.parametrize(("task", "model"), PAIRS)
def test_both_ends_of_every_number_end(loaded: Loaded, tmp_path: Path, task: str, model: str) -> None:
    """A call with the least or the largest allowed value answers or fails, in bounded time and memory."""
    pipeline, slow = loaded(task, model), []
    tried = list(ends_of(pipeline.accepted.rules, pipeline.accepted.bounds))
    for place, params in tried if EVERYTHING else tried[:: 1 if len(tried) < 12 else 12]:
        if TASK_TYPES[task].generation is not None and place.rpartition(".")[2] in LENGTHS:
            continue
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with contextlib.suppress(PipeqError, ValueError, RuntimeError, IndexError):
            answer(pipeline, value_of(task, place, tmp_path, pipeline), with_always(task, model, params))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        most = MOST_PADDED_KIB if place.endswith(".padding") else MOST_KIB
        if time.monotonic() - began > LONGEST_S or grown > most:
            slow.append((place, display(params), time.monotonic() - began, grown))
    assert slow == []


def ends_of(rules: dict[str, Rule], bounds: Bounds) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, rule in rules.items():
        if isinstance(rule, Fields):
            for place, inner in ends_of(dict(rule.fields), bounds):
                yield f"{name}.{place}", {name: inner}
        else:
            for value in ends(rule, bounds):
                yield name, {name: value}


def ends(rule: Rule, bounds: Bounds) -> list[Any]:
    """The least and the largest value that a rule allows."""
    if isinstance(rule, Whole):
        return [rule.low, bounds[rule.high].value if isinstance(rule.high, str) else rule.high]
    if isinstance(rule, Number):
        return [rule.low + 1e-6 if rule.above else rule.low, rule.high]
    if isinstance(rule, Either):
        return [value for one in rule.rules for value in ends(one, bounds)]
    if isinstance(rule, Pair):
        first, second = (ends(one, bounds) or [example("", one)] for one in (rule.first, rule.second))
        return [[first[0], second[0]], [first[-1], second[-1]], [first[0], second[-1]]]
    if isinstance(rule, ListOf):
        most = bounds[rule.most].value if isinstance(rule.most, str) else rule.most
        items = ends(rule.item, bounds) or [example("", rule.item)]
        # A thousand labels are a thousand items, which take long because they were asked for.
        longest = most if not isinstance(rule.item, Text | Json) else max(rule.least, 1)
        return [[items[0]] * max(rule.least, 1), [items[-1]] * longest]
    return list(rule.values) if isinstance(rule, Choice) else [True, False] if isinstance(rule, Flag) else []


def objects(rules: dict[str, Rule]) -> list[str]:
    return [name for name, rule in rules.items() if isinstance(rule, Fields)]


@pytest.mark.parametrize(
    ("task", "model", "params", "sentence"),
    [
        ("translation", "translator", {"src_lang": "en_XX", "tgt_lang": "de"}, "did you mean 'de_DE'? (it knows ar_AR"),
        ("translation", "translator", {"src_lang": "xx", "tgt_lang": "de_DE"}, "parameter 'src_lang' of 'it' is 'xx'"),
        ("translation", "t5", {"tgt_lang": "de"}, "knows no languages"),
        ("automatic-speech-recognition", "whisper_short", {"language": "klingon"}, "not one that this model knows"),
        ("automatic-speech-recognition", "whisper_short", {"return_timestamps": "words"}, "did you mean 'word'?"),
        ("automatic-speech-recognition", "ctc_layer_norm", {"return_language": True}, "only Whisper"),
        ("automatic-speech-recognition", "ctc_layer_norm", {"max_new_tokens": 5}, "this model does not generate"),
        (
            "automatic-speech-recognition",
            "whisper_short",
            {"no_speech_threshold": 0.6},
            "goes with a logprob_threshold",
        ),
        ("automatic-speech-recognition", "ctc_layer_norm", {"chunk_length_s": 0.01}, "less than 0.1"),
        (
            "automatic-speech-recognition",
            "ctc_layer_norm",
            {"chunk_length_s": 30, "stride_length_s": [14.99, 15]},
            "goes on by 0.01 s a chunk, less than 3",
        ),
        ("automatic-speech-recognition", "ctc_layer_norm", {"chunk_length_s": 5, "stride_length_s": [1]}, "list of 2"),
        ("zero-shot-image-classification", "clip", {"candidate_labels": "fox, dog"}, "'fox, dog', not a list"),
        ("zero-shot-audio-classification", "clap", {"candidate_labels": "fox, dog"}, "'fox, dog', not a list"),
        ("zero-shot-image-classification", "clip", {**LABELS, "hypothesis_template": "a photo"}, "one {} in it"),
        ("zero-shot-audio-classification", "clap", {**LABELS, "hypothesis_template": "{:>9}"}, "one {} in it"),
        ("zero-shot-classification", "nli", {**LABELS, "hypothesis_template": "{:>9000000000}"}, "one {} in it"),
        ("zero-shot-classification", "nli", {"candidate_labels": ["fox", " "]}, "there is nothing in it"),
        ("text-generation", "llama", {"num_beams": 2, "length_penalty": 10**12}, "not -100 to 100"),
        ("text-generation", "llama", {"do_sample": True, "temperature": 1e-300}, "not 1e-09 to 1000"),
        ("text-generation", "llama", {"do_sample": True, "repetition_penalty": 1e-300}, "not 1e-09 to 1000"),
        ("text-generation", "llama", {"encoder_no_repeat_ngram_size": 10**9}, "not 0 to 256"),
        ("text-generation", "llama", {"pad_token_id": 10**6}, "(the model's last token)"),
        ("text-generation", "llama", {"max_new_tokens": 10**9}, "`max_new_tokens` in [param_limits]"),
        ("text-generation", "llama", {"generate_kwargs": {"top_k": 1}}, "next to the others"),
        ("text-generation", "llama", {"assistant_early_exit": 1}, "changes the model itself"),
        ("image-text-to-text", "llava", {"generate_kwargs": {"stop_strings": "x"}}, "use stop_sequence"),
        ("image-text-to-text", "llava", {"top_k": 1}, "put it into generate_kwargs"),
        ("image-feature-extraction", "vit_encoder", {"image_processor_kwargs": {"size": 60000}}, "max_image_side"),
        ("video-classification", "videomae", {"num_frames": 10**9}, "`max_frames` in [param_limits]"),
        ("token-classification", "token_classifier", {"stride": 510}, "leaves no room"),
        ("document-question-answering", "layoutlm", {"doc_stride": 64, "max_seq_len": 64}, "chunks would not go on"),
        ("document-question-answering", "layoutlm", {"lang": "../../etc/x"}, "not text of the form"),
        ("fill-mask", "masked_bert", {"top_k": 999}, "the model's tokens"),
        ("text-classification", "classifier", {"x" * 10**6: 1}, "takes no parameter 'xxx"),
        ("text-classification", "classifier", {"top_k": 10**5000}, "a whole number of 16610 bits"),
    ],
)
def test_what_means_nothing_is_refused_by_name(
    loaded: Loaded, task: str, model: str, params: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PipeqError) as caught:
        loaded(task, model).merge({**WALKED[task][1], **params})
    assert caught.value.code == "invalid_params"
    assert sentence in caught.value.message
    assert len(caught.value.message) < 1500
    assert caught.value.message.isprintable()


def test_known_languages_pass(loaded: Loaded) -> None:
    for language in ("en", "english", "EN", "<|en|>"):
        loaded("automatic-speech-recognition", "whisper_short").merge({"language": language})
        loaded("automatic-speech-recognition", "whisper_short").merge({"generate_kwargs": {"language": language}})


def test_whole_numbers_become_floats_where_a_float_is_meant(loaded: Loaded) -> None:
    call = loaded("text-generation", "llama").merge({"repetition_penalty": 2, "length_penalty": 1, "num_beams": 3.0})
    types = [type(call.params[name]) for name in ("repetition_penalty", "length_penalty", "num_beams")]
    assert types == [float, float, int]


def test_null_means_what_transformers_does_by_itself(loaded: Loaded, tiny: Path) -> None:
    path = str(tiny_models.build("classifier", tiny))
    settings = PipelineSettings(task="text-classification", model=path, params={"max_length": 8, "truncation": True})
    pipeline = loading.load_pipeline("it", settings, DEVICE)
    assert pipeline.merge({"max_length": None}).params == {"truncation": True}
    assert pipeline.merge({"top_k": None}).params == {"max_length": 8, "truncation": True, "top_k": None}
    nli = loaded("zero-shot-classification", "nli")
    assert nli.merge({**LABELS, "hypothesis_template": None}).params == LABELS


def test_ceilings_are_settings_and_hold_for_the_settings_themselves(tiny: Path) -> None:
    path = str(tiny_models.build("llama", tiny))
    limits = ParamLimits(max_new_tokens=5)
    pipeline = loading.load_pipeline("chat", PipelineSettings(task="text-generation", model=path), DEVICE, None, limits)
    assert pipeline.merge({"max_new_tokens": 5}).params
    with pytest.raises(PipeqError, match="is 6, not 1 to 5"):
        pipeline.merge({"max_new_tokens": 6})
    wants_more = PipelineSettings(task="text-generation", model=path, params={"max_new_tokens": 6})
    with pytest.raises(PipeqError, match="is 6, not 1 to 5"):
        loading.load_pipeline("chat", wants_more, DEVICE, None, limits)


def test_a_tokenizer_that_gives_up_fails_one_input(loaded: Loaded) -> None:
    """Its panic is not an ``Exception``, and once ended the thread that prepares inputs."""
    pipeline = loaded("document-question-answering", "layoutlm")
    words = [[word, [0, 0, 10, 10]] for word in samples.WORDS * 9]
    value = {"question": " ".join(samples.WORDS), "word_boxes": words}
    merged = pipeline.merge({"max_seq_len": 64, "doc_stride": 56})
    with pytest.raises(PipeqError, match=r"invalid_input: .*stride"):
        list(pipeline.prepare(value, merged))


#: Models that scale the short side of an image to a given length, whatever that makes of the long side.
SCALE_THE_SHORT_SIDE = {"clip", "llava", "vilt", "dinov2", "llava_next"}


@pytest.mark.parametrize(
    ("task", "model"),
    [
        *(pair for pair in PAIRS if Media.IMAGE in TASK_TYPES[pair[0]].fields.values()),
        ("image-text-to-text", "llava"),
        ("image-text-to-text", "llava_next"),
        ("image-feature-extraction", "dinov2"),
    ],
)
def test_a_narrow_image_does_not_become_gigapixels(loaded: Loaded, task: str, model: str) -> None:
    """300 bytes of PNG, 60,000 x 1 pixels, once took 9 GB when their short side was scaled to 224 pixels."""
    pipeline, narrow = loaded(task, model), Image.new("RGB", (60_000, 1))
    if task == "image-text-to-text":
        value: Any = {"images": [narrow], "text": "<image> fox"}
    else:
        value = value_of(task, "", Path(), pipeline)
        value = {**value, "image": narrow} if isinstance(value, dict) else narrow
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        list(pipeline.prepare(value, pipeline.merge(with_always(task, model, {}))))
        refused = False
    except PipeqError as error:
        refused = error.code == "input_too_large"
    assert refused == (model in SCALE_THE_SHORT_SIDE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB


def test_frames_of_a_narrow_video_are_added_up(loaded: Loaded) -> None:
    pipeline = loaded("video-classification", "videomae")
    frames = np.zeros((16, 2, 20_000, 3), dtype=np.uint8)
    with pytest.raises(PipeqError, match="input_too_large"):
        list(pipeline.prepare(frames, pipeline.merge({})))


@pytest.mark.parametrize(("task", "model"), [("image-text-to-text", "llava"), ("any-to-any", "qwen2_audio")])
@pytest.mark.parametrize("last", [{"role": "assistant", "content": "the"}, {"role": "user", "content": "the"}])
def test_a_last_turn_of_plain_text_is_gone_on_from(loaded: Loaded, task: str, model: str, last: dict[str, Any]) -> None:
    """The pipeline expects a part of type text there, and once failed for every such chat with plain text."""
    chat = [{"role": "user", "content": "the fox"}, last]
    going_on = {"continue_final_message": True} if last["role"] == "user" else {}
    result = answer(loaded(task, model), chat, with_always(task, model, going_on))
    (part,) = result[0]["generated_text"][-1]["content"]
    assert part["text"].startswith("the")
    assert chat[-1] == last
