"""Our pipelines for task types that transformers 5 dropped answer as transformers 4.57.6 did.

``transformers_4_57_6.json`` holds its answers. It was recorded from the checkpoints of ``tests/transformers_4.py`` on
disk, loaded under transformers 4.57.6 with ``pipeline(task, model=folder, tokenizer=..., image_processor=...)``, the
tokenizer as ``PreTrainedTokenizerFast`` (``MBartTokenizerFast`` of tokenizer.json for the translator), the image
processor as the class and with the arguments of ``tests/tiny_models/own.py``, and ``tie_word_embeddings=False`` in T5's
configuration, which version 5 writes under another name; each input was a call of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeq.contract.errors import PipeqError
from pipeq_worker.doctor.compare import differences
from pipeq_worker.doctor.doctor import check
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests.device import DEVICE
from tests.parity import assert_same, plain
from tests.transformers_4 import build, decoded, gradient

torch.set_num_threads(1)

#: ``{"task", "model", "params", "inputs", "results"}`` each.
CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "transformers_4_57_6.json").read_text())
#: Limits for the fullest possible batches, with any amount of padding.
FULLEST = BatchLimits(max_size=64, max_cost=10**9, launch_cost=10**9, max_wait_s=0)
LANGUAGES = {"src_lang": "en_XX", "tgt_lang": "de_DE", "max_new_tokens": 8}
TEXTS = ["the quick brown fox", "hello", "is this invoice about sports ?"]

Loaded = Callable[[str, str], TransformersPipeline]


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Loaded:
    found: dict[tuple[str, str], TransformersPipeline] = {}

    def get(task: str, model: str) -> TransformersPipeline:
        if (task, model) not in found:
            pipeline = load_pipeline("it", PipelineSettings(task=task, model=str(build(model, tiny))), DEVICE)
            assert isinstance(pipeline, TransformersPipeline)
            found[task, model] = pipeline
        return found[task, model]

    return get


def name_of(case: dict[str, Any]) -> str:
    return "-".join([case["task"], case["model"], *map(str, case["params"])])


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_answers_of_transformers_4(loaded: Loaded, case: dict[str, Any]) -> None:
    pipeline, inputs = loaded(case["task"], case["model"]), [decoded(value) for value in case["inputs"]]
    for value, want in zip(inputs, case["results"], strict=True):
        got = pipeline.alone(value, dict(case["params"]))
        if isinstance(got, Image.Image):
            assert not list(differences(got, Image.fromarray(np.array(want, np.uint8))))
        else:
            assert_same(plain(got), want)


@pytest.mark.parametrize("case", [case for case in CASES if len(case["inputs"]) > 1], ids=name_of)
def test_a_batch_answers_the_same(loaded: Loaded, case: dict[str, Any]) -> None:
    pipeline = loaded(case["task"], case["model"])
    report = check(pipeline, [decoded(value) for value in case["inputs"]], case["params"], limits=FULLEST)
    assert report.failed == {}
    assert report.wrong == {}


def test_a_length_that_the_call_asks_for_counts(loaded: Loaded) -> None:
    """In transformers 4.57.6 the default of 256 new tokens won. This difference is intended."""
    for task, model in (("text2text-generation", "bart"), ("text2text-generation", "bart_beams")):
        params = {"max_length": 6, "min_length": 6, "return_tensors": True}
        tokens = loaded(task, model).alone("hello", params)[0]["generated_token_ids"]
        assert len(tokens) == 6


def test_a_batch_is_translated_into_one_language(loaded: Loaded) -> None:
    pipeline = loaded("translation", "translator")
    german, french = (LANGUAGES | {"tgt_lang": language} for language in ("de_DE", "fr_XX"))
    report = check(pipeline, TEXTS, german, limits=FULLEST)
    assert (report.failed, report.wrong, report.largest_batch) == ({}, {}, 3)
    assert pipeline.alone(TEXTS[0], {**german, "return_tensors": True})[0]["translation_token_ids"][1] == 6
    groups = [next(pipeline.prepare(TEXTS[0], pipeline.call(params))).group for params in (german, french, german)]
    assert groups[0] == groups[2] != groups[1]


def test_a_translator_without_languages_is_refused(loaded: Loaded) -> None:
    pipeline = loaded("translation", "translator")
    with pytest.raises(PipeqError, match=r"invalid_input: .*`src_lang` and a `tgt_lang`"):
        next(pipeline.prepare("hello", pipeline.call({})))


def test_a_question_that_leaves_no_room_is_refused(loaded: Loaded) -> None:
    """The tokenizer would panic, and write a backtrace to the log."""
    pipeline = loaded("question-answering", "reader")
    question = {"question": "what is the total amount of this ? " * 3, "context": "the fox . " * 40}
    with pytest.raises(PipeqError, match=r"invalid_input: .*leaves 28 of max_seq_len=64 tokens to the context"):
        list(pipeline.prepare(question, pipeline.merge({"max_seq_len": 64})))
    assert len(list(pipeline.prepare(question, pipeline.merge({"doc_stride": 2})))) > 1
    assert len(list(pipeline.prepare({**question, "context": "the fox ."}, pipeline.call({})))) == 1


def test_a_reader_that_pads_on_the_left_answers_from_the_context(loaded: Loaded) -> None:
    """transformers 4.57.6 could answer with a part of the question, at its position in the context."""
    pipeline = loaded("question-answering", "left_reader")
    question = {"question": "who jumps ?", "context": "hello world . the fox"}
    features = next(iter(pipeline.preprocess(question, pipeline.call({}))))
    readable = features["input_ids"][features["p_mask"] == 0].tolist()
    assert pipeline.pipe().tokenizer.decode(readable) == "[CLS] hello world. the fox"
    for answer in pipeline.alone(question, {"top_k": 5}):
        assert answer["answer"] == question["context"][answer["start"] : answer["end"]] != ""


PICTURES = [gradient(48, 40, 0), Image.new("RGB", (30, 50), "red"), Image.new("RGB", (60, 20), "white")]


@pytest.mark.parametrize(
    ("task", "params"),
    [("visual-question-answering", {}), ("image-to-text", {"prompt": "what is it ?"})],
)
def test_blip2_looks_at_the_image(loaded: Loaded, task: str, params: dict[str, Any]) -> None:
    """In transformers 4.57.6 the text had no room for the image. This difference is intended."""
    pipeline, visual = loaded(task, "blip2"), task.startswith("visual")
    inputs = [{"image": image, "question": "what is it ?"} if visual else image for image in PICTURES]
    params = params | ({"max_new_tokens": 8} if visual else {"generate_kwargs": {"max_new_tokens": 8}})
    assert len({str(pipeline.alone(value, params)) for value in inputs}) > 1
    report = check(pipeline, inputs, params, limits=FULLEST)
    assert (report.failed, report.wrong, report.largest_batch) == ({}, {}, 3)


def test_strings_that_stop(loaded: Loaded) -> None:
    pipeline, params = loaded("translation", "translator"), {**LANGUAGES, "num_beams": 1, "min_length": 8}
    free = pipeline.alone(TEXTS[0], params)[0]["translation_text"]
    params |= {"stop_strings": [free[:2]], "return_tensors": True}
    tokens = pipeline.alone(TEXTS[0], params)[0]["translation_token_ids"].tolist()
    assert len(free) > 2
    assert pipeline.pipe().tokenizer.decode(tokens, skip_special_tokens=True) == free[:2]
    report = check(pipeline, TEXTS, params, limits=FULLEST)
    assert (report.failed, report.wrong, report.largest_batch) == ({}, {}, 3)


@pytest.mark.parametrize(("name", "value"), [("encoder_no_repeat_ngram_size", 2), ("encoder_repetition_penalty", 2.0)])
def test_what_reads_the_padding_of_a_text_batches_equal_lengths(loaded: Loaded, name: str, value: float) -> None:
    pipeline, params = loaded("text2text-generation", "t5"), {"max_new_tokens": 12, name: value, "return_tensors": True}
    report = check(pipeline, [*TEXTS, *TEXTS], params, limits=FULLEST)
    assert (report.failed, report.wrong, report.largest_batch) == ({}, {}, 2)


@pytest.mark.parametrize(
    ("task", "model", "params", "sentence"),
    [
        ("visual-question-answering", "vilt", {"max_new_tokens": 3}, "this model does not generate"),
        ("visual-question-answering", "vilt", {"top_k": 0}, "is 0, not 1 or more"),
        ("summarization", "bart", {"stop_sequence": ""}, "makes no token"),
    ],
)
def test_parameters_without_a_meaning_are_refused(
    loaded: Loaded, task: str, model: str, params: dict[str, Any], sentence: str
) -> None:
    pipeline = loaded(task, model)
    with pytest.raises(PipeqError, match=f"invalid_params: .*{sentence}"):
        pipeline.merge(params)


@pytest.mark.parametrize(
    ("task", "model", "text"),
    [
        ("visual-question-answering", "vilt", {"image": __file__, "question": "what ?"}),
        ("image-to-text", "git_caption", "http://example.com/a.png"),
        ("image-to-image", "upscaler", __file__),
    ],
)
def test_text_is_never_opened_as_an_image(loaded: Loaded, task: str, model: str, text: Any) -> None:
    with pytest.raises(TypeError, match="the image is str, not a decoded image"):
        loaded(task, model).pipe()(text)
