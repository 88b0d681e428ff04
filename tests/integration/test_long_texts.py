"""A text of 250,000 characters (a whole message) in any field of any task type is cut, or refused with a sentence."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeq import Client
from pipeq.contract.errors import PipeqError
from pipeq.demo import embedded
from pipeq_worker.models import footprint, word_lengths
from pipeq_worker.models.call import Call
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.task_type import Media
from pipeq_worker.models.task_types import find
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests import tiny_models
from tests.device import DEVICE
from tests.integration.conftest import Loaded
from tests.samples import WORDS
from tests.worker_process import worker
from tests.zoo import SERVED, inputs_of

torch.set_num_threads(1)

LETTERS = 250_000
SPACED = " ".join(random.Random(0).choices(WORDS, k=LETTERS // 4))[:LETTERS]
#: Kinds of models in addition to those that the zoo serves.
MORE = {
    "text-generation": "llama",
    "text-to-audio": "bark",
    "decision": "decision_head",
    "token-classification": "token_classifier",
    "visual-question-answering": "blip_vqa",
}
KINDS = {Media.TEXT, Media.TEXTS, Media.CHAT, Media.JSON, Media.TABLE}
FIELDS = [
    (task, model, field)
    for task, model in [*((task, model) for task, (model, _) in SERVED.items()), *MORE.items()]
    for field, media in find(task).fields.items()
    if media in KINDS
]


def _with(value: Any, field: str, main: str | None, text: str) -> Any:
    """An input whose ``field`` is, or holds, the text."""
    value = copy.deepcopy(value) if isinstance(value, dict) else {main: value}
    old = value.get(field)
    return {**value, field: _inside(old, text)}


def _inside(old: Any, text: str) -> Any:
    """A value whose innermost last text is replaced by the long text."""
    if isinstance(old, dict) and old:
        last = "text" if "text" in old else "content" if "content" in old else list(old)[-1]
        return {**old, last: _inside(old[last], text)}
    if isinstance(old, list) and old:
        return [*old[:-1], _inside(old[-1], text)]
    return text


def _most(pipeline: TransformersPipeline) -> int:
    most, limit = pipeline.quirks.most_tokens, pipeline.quirks.limit
    return most if limit is None else min(most, limit)


def _prepared(pipeline: TransformersPipeline, value: Any, call: Call) -> int:
    """Tokens of the longest item; 0 if the input is refused as expected."""
    try:
        return max(footprint.longest(one) for one in pipeline.preprocess(value, call))
    except PipeqError as error:
        if error.code != "invalid_input":
            raise
        return 0


@pytest.mark.parametrize(("task", "model", "field"), FIELDS)
def test_every_field_of_text_is_bounded(loaded: Loaded, tmp_path: Path, task: str, model: str, field: str) -> None:
    pipeline, row = loaded(task, model), find(task)
    usual = inputs_of(task, tmp_path)[0]
    params = pipeline.merge(SERVED[task][1] if model == SERVED[task][0] else {})
    text = SPACED[: LETTERS // 10] if model == "tapas" else SPACED  # its tokenizer, in Python, takes seconds for more
    value = _with(usual, field, row.main, f"{text} [MASK]" if task == "fill-mask" else text)
    assert _prepared(pipeline, value[field] if list(value) == [row.main] else value, params) <= _most(pipeline)


@pytest.mark.parametrize("text", [SPACED.replace(" ", ""), "a" * LETTERS], ids=["one word", "one letter"])
@pytest.mark.parametrize(
    ("task", "model"),
    [("text-classification", "classifier"), ("text-generation", "llama"), ("text2text-generation", "t5")],
)
def test_a_text_of_one_word_is_bounded_too(loaded: Loaded, task: str, model: str, text: str) -> None:
    pipeline = loaded(task, model)
    assert _prepared(pipeline, text, pipeline.merge({})) <= _most(pipeline)


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ("text2text-generation", "t5"),
        ("text-generation", "llama"),
        ("text-to-audio", "vits_quiet"),
        ("image-text-to-text", "llava"),
    ],
)
def test_the_sentence_names_tokens_the_ceiling_and_the_setting(loaded: Loaded, task: str, model: str) -> None:
    pipeline = loaded(task, model)
    sentence = rf"the text is \d+ tokens, beyond the {pipeline.quirks.most_tokens} .*`max_input_tokens`"
    with pytest.raises(PipeqError, match=sentence):
        list(pipeline.preprocess(SPACED, pipeline.merge({})))


def test_the_setting_is_the_ceiling_and_truncation_cuts_there(tiny: Path) -> None:
    settings = PipelineSettings(
        task="text2text-generation", model=str(tiny_models.build("t5", tiny)), max_input_tokens=50
    )
    pipeline = load_pipeline("it", settings, DEVICE)
    with pytest.raises(PipeqError, match="beyond the 50 that this pipeline takes"):
        list(pipeline.preprocess("fox " * 200, pipeline.merge({})))
    (features,) = pipeline.preprocess("fox " * 200, pipeline.merge({"truncation": True}))
    assert features["input_ids"].shape[-1] == 50


def test_beams_and_sequences_count_for_what_they_read_and_write(loaded: Loaded) -> None:
    pipeline = loaded("text-generation", "llama")
    kept, pipeline.quirks.most_bytes = pipeline.quirks.most_bytes, 2.0**25
    try:
        many = pipeline.merge({"max_new_tokens": 32_000, "num_beams": 32, "num_return_sequences": 32})
        with pytest.raises(PipeqError, match=r"32000 new ones and 32 beams or sequences .*`max_item_bytes`"):
            list(pipeline.preprocess("fox", many))
        assert list(pipeline.preprocess("fox", pipeline.merge({"max_new_tokens": 32})))
    finally:
        pipeline.quirks.most_bytes = kept


def test_most_tokens_are_those_that_the_bytes_are_enough_for() -> None:
    for one in (
        footprint.Footprint(192, 5000, 0),
        footprint.Footprint(4, 150_000, 131_072),
        footprint.Footprint(0, 9000, 70),
    ):
        most = one.most(2**32)
        assert one.of(most) <= 2**32 < one.of(most + 1)


def test_a_tokenizer_in_python_is_not_given_words_without_an_end() -> None:
    class Slow:
        is_fast = False

        def bpe(self) -> None: ...

    word_lengths.check(Slow(), {"text": "a" * 500 + " b"})
    with pytest.raises(PipeqError, match="a word of more than 500 characters"):
        word_lengths.check(Slow(), {"text": ["a", "b" * 501]})


def test_a_worker_with_t5_refuses_a_message_of_one_text_and_goes_on(tiny: Path, tmp_path: Path) -> None:
    task = "text2text-generation"
    with (
        embedded.valkey() as url,
        worker(tmp_path, url, f"{task}={tiny_models.build('t5', tiny)}") as process,
        Client(url) as client,
    ):
        process.wait_ready(client, task)
        long = client.submit(task, SPACED)
        error = client.wait(long, timeout_s=60).error
        assert error is not None
        assert error.code == "invalid_input"
        assert "max_input_tokens" in error.message
        assert client.result(client.submit(task, "fox", params={"max_new_tokens": 2}), timeout_s=60)
