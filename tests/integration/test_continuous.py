"""Continuous batching: the answers of ``generate``, for each row its own parameters, and nobody waits for another."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeq.contract.errors import PipeqError
from pipeq_worker.models import continuous, continuous_trial
from pipeq_worker.models.continuous import ContinuousStream
from pipeq_worker.models.continuous_params import KNOWN, WITHOUT_EFFECT, Choice, choice, refused
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.quirks.generation import RULES
from pipeq_worker.models.running import Row
from pipeq_worker.models.sampling import Sampling
from pipeq_worker.models.stream import StreamLostError
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests import samples, tiny_models
from tests.device import DEVICE
from tests.integration.test_generation_parity import VALUES
from tests.waiting import until

torch.set_num_threads(1)

GREEDY = {"max_new_tokens": 20, "do_sample": False}
MODELS = ("gpt2", "llama", "writer", "writer_padded")


def load(tiny: Path, model: str, **more: Any) -> TransformersPipeline:
    settings = PipelineSettings(
        task="text-generation", model=str(tiny_models.build(model, tiny)), continuous=True, max_batch_size=8, **more
    )
    found = load_pipeline("it", settings, DEVICE)
    assert isinstance(found, TransformersPipeline)
    return found


@pytest.fixture(scope="module")
def pipelines(tiny: Path) -> dict[str, TransformersPipeline]:
    return {model: load(tiny, model) for model in MODELS}


@pytest.fixture
def llama(pipelines: dict[str, TransformersPipeline]) -> Iterator[TransformersPipeline]:
    """One whose stream runs."""
    pipeline = pipelines["llama"]
    stream_of(pipeline).start()
    yield pipeline
    stream_of(pipeline).stop()


def stream_of(pipeline: TransformersPipeline) -> ContinuousStream:
    assert pipeline.stream is not None
    return pipeline.stream


class Answers:
    """The outcomes of rows, in the order in which they came."""

    def __init__(self) -> None:
        self.found: dict[Any, Any] = {}
        self._changed = threading.Condition()

    def ask(self, pipeline: TransformersPipeline, name: Any, text: Any, row: Row | None = None, **params: Any) -> Row:
        call, row = pipeline.merge(params), row or Row()
        (prepared,) = pipeline.prepare(text, call)

        def done(outcome: Any) -> None:
            found = pipeline.postprocess([outcome], call) if isinstance(outcome, dict) else outcome
            with self._changed:
                assert name not in self.found
                self.found[name] = found
                self._changed.notify_all()

        stream_of(pipeline).submit(prepared.features, call, row, done)
        return row

    def wait(self, count: int) -> dict[Any, Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.found) >= count, 60)
            return self.found


#: Inputs, and the parameters of each.
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "greedy": (samples.texts(), GREEDY),
    "chats": (samples.chats(), GREEDY),
    "without the prompt": (samples.texts(5), {**GREEDY, "return_full_text": False}),
    "tokens": (samples.texts(5), {**GREEDY, "return_tensors": True}),
    "ends": (samples.texts(), {**GREEDY, "eos_token_id": list(range(100, 300)), "return_tensors": True}),
    "one end": (samples.texts(), {**GREEDY, "eos_token_id": 9}),
    "no end": (samples.texts(3), {**GREEDY, "eos_token_id": None}),
    "a length": (samples.texts(5), {"max_length": 60, "do_sample": False}),
    "nothing": (["", *samples.texts(2)], GREEDY),
    "sampled": (samples.texts(), {"max_new_tokens": 12, "do_sample": True, "top_k": 1, "temperature": 0.3}),
    "hot": (samples.texts(5), {"max_new_tokens": 12, "do_sample": True, "top_p": 1e-6, "temperature": 2.0}),
    "one beam": (samples.texts(3), {**GREEDY, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1.0}),
}


#: `make long` takes every case through every model; `make test` each through one, in turn.
EVERY = bool(os.environ.get("TASKS"))
WALKED = [
    (case, model)
    for at, case in enumerate(CASES)
    for number, model in enumerate(MODELS)
    if EVERY or at % len(MODELS) == number
]


def test_each_model_and_each_case_is_walked() -> None:
    assert {model for _, model in WALKED} == set(MODELS)
    assert {case for case, _ in WALKED} == CASES.keys()
    # The only one with a chat template.
    assert ("chats", "llama") in WALKED


@pytest.mark.parametrize(("case", "model"), WALKED)
def test_the_answers_are_those_of_generate(pipelines: dict[str, TransformersPipeline], case: str, model: str) -> None:
    pipeline, (texts, params) = pipelines[model], CASES[case]
    if case == "chats" and model != "llama":
        texts = [text for text in texts if isinstance(text, str)]
    call = pipeline.merge(params)
    alone = []
    for text in texts:
        (row,) = pipeline.prepare(text, call)
        alone.append(pipeline.postprocess(pipeline.forward([row.features], call), call))
    stream_of(pipeline).start()
    try:
        answers = Answers()
        rows = [answers.ask(pipeline, at, text, **params) for at, text in enumerate(texts)]
        found = answers.wait(len(texts))
    finally:
        stream_of(pipeline).stop()
    assert [found[at] for at in range(len(texts))] == alone
    assert all(row.done for row in rows)


def test_each_row_has_its_own_parameters(llama: TransformersPipeline) -> None:
    """Greedy rows beside rows that draw: the greedy ones are the same, the others differ from each other."""
    answers = Answers()
    for at in range(12):
        sampling = {"do_sample": True, "temperature": 50.0, "top_k": 0} if at % 2 else {"do_sample": False}
        answers.ask(llama, at, "hello world", max_new_tokens=8, **sampling)
    found = answers.wait(12)
    assert len({str(found[at]) for at in range(0, 12, 2)}) == 1
    assert len({str(found[at]) for at in range(1, 12, 2)}) == 6


def test_rows_that_draw_keep_their_own_parameters_among_others(llama: TransformersPipeline) -> None:
    """Of one token there is nothing to draw. A prompt that takes several steps has no token in the first of them."""
    answers, params = Answers(), {"max_new_tokens": 8, "temperature": 50.0}
    kinds = [{"do_sample": False}, {"do_sample": True, "top_k": 0}, {"do_sample": True, "top_k": 1}]
    answers.ask(llama, "first", "fox " * 150, **params, **kinds[2])
    for at in range(12):
        answers.ask(llama, at, "hello world", **params, **kinds[at % 3])
    answers.ask(llama, "last", "fox " * 150, **params, **kinds[0])
    found = answers.wait(14)
    assert len({str(found[at]) for at in range(12) if at % 3 != 1}) == 1
    assert len({str(found[at]) for at in range(1, 12, 3)}) == 4
    assert found["first"] == found["last"]


def test_a_short_answer_does_not_wait_for_a_long_one(llama: TransformersPipeline) -> None:
    answers = Answers()
    for at in range(7):
        answers.ask(llama, f"long {at}", "the fox", max_new_tokens=400, do_sample=False, eos_token_id=None)
    for at in range(9):
        answers.ask(llama, f"short {at}", "the dog", max_new_tokens=3, do_sample=False, eos_token_id=None)
    assert [name[:5] for name in answers.wait(16)] == ["short"] * 9 + ["long "] * 7


def test_a_stopped_row_leaves_and_its_neighbours_do_not_notice(llama: TransformersPipeline) -> None:
    answers, params = Answers(), {"do_sample": False, "eos_token_id": None}
    answers.ask(llama, "before", "the fox", max_new_tokens=60, **params)
    before = answers.wait(1)["before"]
    stopped = answers.ask(llama, "stopped", "the dog", max_new_tokens=3000, **params)
    late = answers.ask(llama, "late", "user", Row(deadline=time.monotonic() + 0.3), max_new_tokens=3000, **params)
    until(lambda: stopped.done)
    answers.ask(llama, "beside", "the fox", max_new_tokens=60, **params)
    stopped.stop = True
    found = answers.wait(4)
    assert (found["stopped"], found["late"], found["beside"]) == (None, None, before)
    assert stopped.done < 3000
    assert late.is_late
    assert stopped.total == 3000


def test_a_row_that_cannot_fit_is_refused_and_the_others_are_not(tiny: Path) -> None:
    # A page of the cache, and the tokens of a step, are larger on a GPU.
    pipeline = load(tiny, "llama", max_cache_bytes=2**21 if DEVICE == "cpu" else 2**24)
    stream_of(pipeline).start()
    answers = Answers()
    try:
        answers.ask(pipeline, "too long", "fox", max_new_tokens=30_000, do_sample=False)
        answers.ask(pipeline, "no room", "fox " * 20, max_length=5, do_sample=False)
        # Together they need more than there is room for.
        for at in range(8):
            answers.ask(pipeline, at, f"{at} fox", max_new_tokens=300, do_sample=False, eos_token_id=None)
        found = answers.wait(10)
    finally:
        stream_of(pipeline).stop()
    assert (found["too long"].code, found["no room"].code) == ("invalid_input", "invalid_input")
    assert "`max_cache_bytes`" in found["too long"].message
    assert all(isinstance(found[at], list) for at in range(8))


@contextmanager
def spoilt(pipeline: TransformersPipeline) -> Iterator[None]:
    """The model makes NaN of the token of "z"."""
    bad = pipeline.pipe().tokenizer("z")["input_ids"][-1]

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((args[0] == bad).unsqueeze(-1), float("nan"))

    handle = pipeline._pipe.model.get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def test_nan_fails_a_row_that_is_alone_and_breaks_the_stream_of_several(llama: TransformersPipeline) -> None:
    """Attention takes all rows at once, so that the values of one can spoil the others."""
    stream, answers = stream_of(llama), Answers()
    by_rows = stream.by_rows
    stream.stop()
    stream.by_rows = False
    stream.start()
    try:
        with spoilt(llama):
            answers.ask(llama, "good", "hello world", max_new_tokens=400, do_sample=False, eos_token_id=None)
            answers.ask(llama, "bad", "z", max_new_tokens=10, do_sample=True)
            found = answers.wait(2)
            assert all(isinstance(one, StreamLostError) for one in found.values())
            for name, text in (("good alone", "hello world"), ("bad alone", "z")):
                stream.stop()
                stream.start()
                answers.ask(llama, name, text, max_new_tokens=10, do_sample=False)
                answers.wait(len(found) + 1)
    finally:
        stream.stop()
        stream.by_rows = by_rows
    assert isinstance(found["good alone"], list)
    assert_is_nan(found["bad alone"])


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU, attention takes all rows at once")
def test_nan_fails_only_its_row_where_each_attends_alone(llama: TransformersPipeline) -> None:
    answers, params = Answers(), {"max_new_tokens": 400, "do_sample": False, "eos_token_id": None}
    answers.ask(llama, "alone", "hello world", **params)
    expected = answers.wait(1)["alone"]
    with spoilt(llama):
        for at in range(3):
            answers.ask(llama, f"good {at}", "hello world", **params)
        answers.ask(llama, "bad", "z", **{**params, "do_sample": True})
        found = answers.wait(5)
    assert [found[f"good {at}"] for at in range(3)] == [expected] * 3
    assert_is_nan(found["bad"])


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU, attention takes all rows at once")
def test_nan_in_several_rows_breaks_the_stream_because_one_may_be_the_reason(llama: TransformersPipeline) -> None:
    answers, params = Answers(), {"max_new_tokens": 400, "do_sample": False, "eos_token_id": None}
    handle = llama._pipe.model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: torch.full_like(output, torch.nan) if output.shape[1] > 1 else None
    )
    try:
        for at in range(2):
            answers.ask(llama, at, "hello world", **params)
        found = answers.wait(2)
    finally:
        handle.remove()
    assert all(isinstance(found[at], StreamLostError) for at in range(2))


def assert_is_nan(error: Any) -> None:
    assert isinstance(error, PipeqError)
    assert error.code == "inference_failed"
    assert "NaN" in error.message


def test_a_stream_that_breaks_gives_its_rows_back_and_starts_again(llama: TransformersPipeline) -> None:
    def breaks(module: Any, args: Any) -> None:
        raise MemoryError("no memory left")

    handle = llama._pipe.model.register_forward_pre_hook(breaks)
    answers = Answers()
    for at in range(3):
        answers.ask(llama, at, "the fox", **GREEDY)
    found = answers.wait(3)
    handle.remove()
    assert all(isinstance(one, StreamLostError) for one in found.values())
    assert isinstance(found[0].__cause__, MemoryError)
    answers.ask(llama, "while it is broken", "the fox", **GREEDY)
    assert isinstance(answers.wait(4)["while it is broken"], StreamLostError)
    stream_of(llama).start()
    answers.ask(llama, "again", "the fox", **GREEDY)
    assert isinstance(answers.wait(5)["again"], list)


def test_stopping_gives_back_what_is_inside(pipelines: dict[str, TransformersPipeline]) -> None:
    pipeline, answers = pipelines["llama"], Answers()
    stream_of(pipeline).start()
    answers.ask(pipeline, "a", "the fox", max_new_tokens=3000, do_sample=False, eos_token_id=None)
    stream_of(pipeline).stop()
    assert isinstance(answers.wait(1)["a"], StreamLostError)


def test_a_stream_without_steps_is_seen(llama: TransformersPipeline) -> None:
    hangs = threading.Event()
    handle = llama._pipe.model.register_forward_pre_hook(lambda module, args: (hangs.wait(20), None)[1])
    stream, answers = stream_of(llama), Answers()
    assert stream.still_s() < 0.5
    answers.ask(llama, "a", "the fox", **GREEDY)
    until(lambda: stream.still_s() > 0.5)
    handle.remove()
    hangs.set()
    answers.wait(1)
    assert stream.still_s() < 0.5


#: Values with which each parameter would change an answer.
REFUSED = {name: value for name, (value, _) in VALUES.items() if name not in KNOWN | WITHOUT_EFFECT}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_it_does_not_know_is_refused_by_name(pipelines: dict[str, TransformersPipeline], name: str) -> None:
    with pytest.raises(PipeqError, match=name) as caught:
        pipelines["gpt2"].merge({"do_sample": False, name: REFUSED[name]})
    assert caught.value.code == "invalid_params"


@pytest.mark.parametrize("name", ["num_beams", "stop_strings", "stop_sequence", "num_return_sequences", "min_p"])
def test_the_refusal_says_what_to_do(pipelines: dict[str, TransformersPipeline], name: str) -> None:
    values = {"num_beams": 2, "stop_strings": ["a"], "stop_sequence": "a", "num_return_sequences": 2, "min_p": 0.1}
    more = {"num_beams": 2} if name == "num_return_sequences" else {"do_sample": True}
    with pytest.raises(PipeqError) as caught:
        pipelines["gpt2"].merge({**more, name: values[name]})
    assert "`continuous = true`" in caught.value.message
    assert "temperature, top_k and top_p" in caught.value.message


def test_each_parameter_of_generate_is_known_refused_or_without_effect() -> None:
    assert set(RULES) >= KNOWN
    for name in RULES.keys() - KNOWN - WITHOUT_EFFECT:
        assert refused({name: object()}) is not None, name


def test_settings_that_cannot_be_followed_stop_the_start(tiny: Path) -> None:
    for settings, sentence in (
        ({"task": "text2text-generation", "model": "t5"}, "text2text-generation cannot generate continuously"),
        ({"task": "text-generation", "model": "gpt2", "params": {"num_beams": 2}}, "`params` .* 'num_beams' is 2"),
        ({"task": "text-generation", "model": "gpt2", "params": {"repetition_penalty": 1.3}}, "repetition_penalty"),
    ):
        settings["model"] = str(tiny_models.build(str(settings["model"]), tiny))
        with pytest.raises(PipeqError, match=sentence) as caught:
            load_pipeline("it", PipelineSettings(continuous=True, **settings), DEVICE)
        assert caught.value.code == "invalid_settings"


def test_a_model_that_can_run_only_one_text_at_a_time_is_refused_at_the_start(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Sampling.tokens

    def one_at_a_time(self: Any, logits: torch.Tensor, arguments: torch.Tensor) -> torch.Tensor:
        if len(self._requests) > 1:
            raise RuntimeError("one at a time")
        return real(self, logits, arguments)

    monkeypatch.setattr(Sampling, "tokens", one_at_a_time)
    monkeypatch.setattr(continuous_trial, "TRIAL_TOKENS", 60)  # long enough for them to meet on any machine
    with pytest.raises(PipeqError, match="cannot generate continuously: RuntimeError: one at a time"):
        load(tiny, "writer")


def test_a_model_that_answers_otherwise_stops_the_start(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = continuous.choice
    monkeypatch.setattr(continuous, "choice", lambda params, prompt: real({**params, "max_new_tokens": 3}, prompt))
    with pytest.raises(PipeqError, match="answers otherwise with `continuous` than without"):
        load(tiny, "llama")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"max_new_tokens": 5}, Choice(5, (), greedy=True)),
        ({"max_length": 30}, Choice(20, (), greedy=True)),
        ({"max_length": 30, "prefix_length": 4}, Choice(24, (), greedy=True)),
        ({}, Choice(10, (), greedy=True)),
        ({"max_new_tokens": 5, "eos_token_id": 7}, Choice(5, (7,), greedy=True)),
        ({"max_new_tokens": 5, "eos_token_id": [7, 8], "temperature": 0.5}, Choice(5, (7, 8), greedy=True)),
        ({"max_new_tokens": 5, "do_sample": True}, Choice(5, (), greedy=False, top_k=50)),
        (
            {"max_new_tokens": 5, "do_sample": True, "temperature": 0.5, "top_k": 0, "top_p": 0.9},
            Choice(5, (), greedy=False, temperature=0.5, top_k=0, top_p=0.9),
        ),
    ],
)
def test_what_the_parameters_say_for_a_row(params: dict[str, Any], expected: Choice) -> None:
    assert choice(params, 10) == expected
