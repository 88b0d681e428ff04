"""Nonsense in any field of any task type is answered, or refused by a sentence that names the field."""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipeq.contract.errors import PipeqError
from pipeq_worker.media.video import Video
from pipeq_worker.models.task_type import Media
from pipeq_worker.models.task_types import find
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.stages.accept import read_inputs

from tests.integration.conftest import Loaded
from tests.zoo import SERVED, inputs_of

torch.set_num_threads(1)

#: Values of a field.
NONSENSE: dict[str, Any] = {
    "null": None,
    "empty": "",
    "blank": " ",
    "line breaks": "\n\t",
    "no characters": "\u202e\u200b",
    "nul": "\x00",
    "half a pair": "a\ud800b",
    "whole number": 5,
    "number": 1.5,
    "boolean": True,
    "empty list": [],
    "list in a list": [[]],
    "lists in a list": [["a", "b"], ["c"]],
    "list": ["a"],
    "list of null": [None],
    "list of a blank": [" "],
    "list of numbers": [5],
    "list of half a pair": ["\udfff"],
    "empty object": {},
    "object": {"a": 1},
    "object of null": {"text": None},
    "long": "hello world " * 2500,
}
CHATS: dict[str, Any] = {
    "chat": [{"role": "user", "content": "hello"}],
    "chat of null": [{"role": "user", "content": None}],
    "chat of blank": [{"role": "user", "content": " "}],
    "chat of numbers": [{"role": 1, "content": 2}],
    "chat of no parts": [{"role": "user", "content": []}],
    "chat of an empty part": [{"role": "user", "content": [{}]}],
    "chat of a part of null": [{"role": "user", "content": [{"type": "text", "text": None}]}],
    "chat of another part": [{"role": "user", "content": [{"type": "video", "video": "x"}]}],
    "chat of half a pair": [{"role": "user", "content": "\ud800"}],
    "turn without content": [{"role": "user"}],
    "turn among texts": ["hello", {"role": "user", "content": "hello"}],
}


def referred(value: Any, kept: list[Any]) -> Any:
    """A decoded input in the form of a message; the content of its references is appended to ``kept``."""
    if isinstance(value, Image.Image | np.ndarray | Path):
        kept.append(value)
        return {"base64": base64.b64encode(b"%d" % (len(kept) - 1)).decode()}
    if isinstance(value, dict):
        return {key: referred(one, kept) for key, one in value.items()}
    return [referred(one, kept) for one in value] if isinstance(value, list | tuple) else value


def answer(
    pipeline: TransformersPipeline, message: Any, kept: list[Any], params: dict[str, Any], *, runs: bool = True
) -> None:
    """Takes one input through the stages up to the device, and through the model if it is small."""
    (one,), _ = read_inputs(pipeline.task_type, [message])
    for slot in one.slots:
        found = kept[int(base64.b64decode(str(slot.ref.base64)))]
        slot.fill(Video(found.read_bytes(), found.name, 10**6, 1000) if isinstance(found, Path) else found)
    merged = pipeline.merge(params)
    for at, features in enumerate(pipeline.preprocess(one.call_value, merged)):
        if at > 2 or not runs:
            break
        (output,) = pipeline.forward([copy.copy(features)], merged)
        if isinstance(output, PipeqError):
            raise output


@pytest.mark.parametrize("task", SERVED)
def test_every_field(loaded: Loaded, tmp_path: Path, task: str) -> None:
    row, (model, params) = find(task), SERVED[task]
    pipeline, kept = loaded(task, model), list[Any]()
    message = referred(inputs_of(task, tmp_path)[0], kept)
    if not isinstance(message, dict):
        message = {row.main: message}
    wrong, answered = [], set()
    for field, media in row.fields.items():
        values = NONSENSE | (CHATS if media is Media.CHAT else {})
        for name, value in values.items():
            plain = [value] if row.main == field else []
            for sent in [{**message, field: value}, *plain]:
                named = {field, "inputs[0]"} | ({"tokens"} if name == "long" else {"turn", "chat"} & set(name.split()))
                try:
                    answer(pipeline, copy.deepcopy(sent), kept, params, runs=name != "long")
                    answered.add(name)
                except PipeqError as error:
                    is_ours = (
                        error.code in ("invalid_input", "invalid_params") and "cannot prepare" not in error.message
                    )
                    if not is_ours or not any(one in error.message for one in named):
                        wrong.append(f"{field} = {name}: {error}")
                except Exception as error:
                    wrong.append(f"{field} = {name}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    assert "null" not in answered or row.optional
    assert not answered & {"half a pair", "list of half a pair", "chat of half a pair"}


SENTENCES: list[tuple[str, Any, dict[str, Any], str]] = [
    ("fill-mask", "the quick fox", {}, r"text has no mask: put \[MASK\] where a word is missing"),
    ("zero-shot-classification", "", {"candidate_labels": ["a"]}, "text is empty"),
    ("text-to-audio", "\u200b", {}, "the text is empty, or holds nothing that the model's tokenizer knows"),
    ("text-generation", CHATS["chat"], {}, "text is a chat, and this model has no chat template: send plain text"),
    ("text-to-audio", CHATS["chat"], {}, "text is a chat, and this model has no chat template"),
    ("text-embedding", {"text": None}, {}, "text is null; text-embedding takes text$"),
    ("question-answering", {"question": "", "context": "x"}, {}, "question is empty"),
    ("question-answering", {"question": "x", "context": None}, {}, "context is null; question-answering takes"),
    (
        "zero-shot-object-detection",
        {"candidate_labels": ["fox", "the dog " * 20]},
        {},
        r"the label 'the dog the.*' is 42 tokens",
    ),
    ("zero-shot-object-detection", {"candidate_labels": ["fox", " "]}, {}, "none of them blank"),
    ("zero-shot-object-detection", {"candidate_labels": "fox,,dog"}, {}, "none of them blank"),
    (
        "zero-shot-image-classification",
        {},
        {"candidate_labels": ["dog " * 99]},
        r"candidate_labels: a label in .* takes 64",
    ),
    (
        "document-question-answering",
        {"question": "what ? " * 300},
        {},
        "the question leaves too little room in max_seq_len",
    ),
    (
        "document-question-answering",
        {"question": "what ? " * 20, "word_boxes": [["fox", [0, 0, 9, 9]]] * 99},
        {"max_seq_len": 64, "doc_stride": 60},
        "the question leaves too little room in max_seq_len",
    ),
    ("table-question-answering", {"query": ""}, {}, "query is empty"),
    (
        "decision",
        {"questions": {"a": {"type": "yes"}}},
        {},
        "the questions cannot be asked: Question 'a': `type` must be",
    ),
]


@pytest.mark.parametrize(("task", "sent", "params", "sentence"), SENTENCES)
def test_what_is_wrong(
    loaded: Loaded, tmp_path: Path, task: str, sent: Any, params: dict[str, Any], sentence: str
) -> None:
    pipeline, kept = loaded(task, SERVED[task][0]), list[Any]()
    message = referred(inputs_of(task, tmp_path)[0], kept)
    row = pipeline.task_type
    if isinstance(sent, dict) and not isinstance(message, dict):
        message = {row.main: message}
    with pytest.raises(PipeqError, match=sentence) as caught:
        answer(pipeline, {**message, **sent} if isinstance(sent, dict) else sent, kept, {**SERVED[task][1], **params})
    assert caught.value.code == "invalid_input"


def test_a_chat_that_a_template_refuses(loaded: Loaded) -> None:
    pipeline = loaded("text-generation", "llama")
    template = pipeline.pipe().tokenizer.chat_template
    pipeline.pipe().tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    try:
        with pytest.raises(
            PipeqError, match="invalid_input: text is a chat that the model's template refuses: roles must"
        ):
            answer(pipeline, CHATS["chat"], [], {"max_new_tokens": 2})
    finally:
        pipeline.pipe().tokenizer.chat_template = template


@pytest.mark.parametrize("labels", ["fox, lazy dog", "fox,lazy dog", ["fox", "lazy dog"]])
def test_labels_in_one_text(loaded: Loaded, tmp_path: Path, labels: Any) -> None:
    """As transformers documents them for this task type; other zero-shot types take them as parameters."""
    pipeline = loaded("zero-shot-object-detection", "owlvit")
    image = inputs_of("zero-shot-object-detection", tmp_path)[0]["image"]
    value = {"image": image, "candidate_labels": labels}
    found = [features["candidate_label"] for features in pipeline.preprocess(value, pipeline.call({}))]
    assert found == ["fox", "lazy dog"]


@pytest.mark.parametrize(
    ("task", "model", "value", "sentence"),
    [
        ("object-detection", "yolos", Image.new("RGB", (500, 1)), r"the input \(500 x 1 pixels\): "),
        ("audio-classification", "audio_group_norm", np.zeros(300, np.float32), "the audio is 300 samples: this model"),
        ("audio-classification", "spectrogram_transformer", np.zeros(100, np.float32), r"the input \(100 samples\): "),
    ],
)
def test_media_that_a_processor_cannot_use(loaded: Loaded, task: str, model: str, value: Any, sentence: str) -> None:
    with pytest.raises(PipeqError, match=f"invalid_input: .*{sentence}"):
        list(loaded(task, model).preprocess(value, loaded(task, model).call({})))
