"""Whisper's own parameters: its fallback against hallucination, and the thresholds for it, alone and in a batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeq_worker.doctor.compare import differences
from pipeq_worker.doctor.doctor import check
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests import samples, tiny_models
from tests.device import DEVICE
from tests.integration.test_generation_parity import WHISPER
from tests.integration.test_parity import FULLEST

torch.set_num_threads(1)

#: Beam search first, then almost deterministic sampling: at 0.2 a batch would draw other tokens.
TWICE = {"temperature": [0.0, 1e-5], "max_new_tokens": 8}
LONG = {"return_timestamps": True, "max_new_tokens": 8}
#: An average log probability that some clips reach.
SOME = -1.4
SECONDS = (1.0, 0.6, 1.9, 1.2, 0.3, 1.5, 1.7, 0.9)
#: Parameters, seconds of each clip (the model hears 2), items in the largest batch.
Case = tuple[dict[str, Any], tuple[float, ...], int]
CASES: list[Case] = [
    # No clip falls back, some do (each for its own text), or all do.
    ({**TWICE, "temperature": [0.0, 0.2, 0.4], "compression_ratio_threshold": 100.0}, (1.0, 0.6, 1.9), 3),
    ({**TWICE, "temperature": [0.0, 0.2, 0.4], "logprob_threshold": -1000.0}, (1.0, 0.6, 1.9), 3),
    ({**TWICE, "logprob_threshold": SOME}, SECONDS, 8),
    ({**TWICE, "logprob_threshold": SOME, "num_beams": 2}, (1.0, 0.6, 1.9), 3),
    ({**TWICE, "compression_ratio_threshold": 1.35}, SECONDS, 8),
    ({**TWICE, "compression_ratio_threshold": 0.0, "logprob_threshold": 0.0}, (1.0, 0.6, 1.9), 3),
    # In a batch, one item's second try would skip another item's window.
    ({**TWICE, "logprob_threshold": SOME, "no_speech_threshold": 0.0}, (1.0, 0.6), 1),
    ({**TWICE, "logprob_threshold": SOME, "no_speech_threshold": 0.5}, (1.0, 0.6), 1),
    # With one temperature there is one try, so a batch can be checked for silence together.
    ({**TWICE, "temperature": 0.0, "logprob_threshold": SOME, "no_speech_threshold": 0.0}, (1.0, 0.6, 1.9), 3),
    # Window by window.
    ({**LONG, "temperature": [0.0, 1e-5], "logprob_threshold": SOME, "num_beams": 1}, (1.0, 1.9, 0.6), 3),
    ({**LONG, "temperature": [0.0, 1e-5], "logprob_threshold": SOME, "num_beams": 2}, (1.0, 1.9, 0.6), 1),
    ({**LONG, "condition_on_prev_tokens": True, "temperature": 0.0}, (1.0, 5.0, 0.6), 1),
    ({**LONG, "condition_on_prev_tokens": True, **TWICE, "compression_ratio_threshold": 1.35}, (5.0, 3.0), 1),
    ({**LONG, "task": "translate", "language": "de"}, (1.0, 1.9), 2),
]


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> TransformersPipeline:
    settings = PipelineSettings(
        task="automatic-speech-recognition", model=str(tiny_models.build("whisper_short", tiny))
    )
    loaded = load_pipeline("it", settings, DEVICE)
    assert isinstance(loaded, TransformersPipeline)
    return loaded


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[0])))
def test_as_transformers_alone(
    pipeline: TransformersPipeline, case: tuple[dict[str, Any], tuple[float, ...], int]
) -> None:
    params, seconds, batch = case
    clips = [samples.audio(length, seed) for seed, length in enumerate(seconds)]
    report = check(pipeline, clips, params, limits=FULLEST)
    assert (report.failed, report.wrong) == ({}, {})
    assert report.largest_batch == batch


def test_a_second_try_is_another_answer(pipeline: TransformersPipeline) -> None:
    """Checks that the cases above mean something: some of these clips fall back, and some do not."""
    clips, texts = [samples.audio(length, seed) for seed, length in enumerate(SECONDS)], []
    for threshold in (-1000.0, SOME, 0.0):
        params = pipeline.merge({**TWICE, "logprob_threshold": threshold})
        rows = [next(pipeline.prepare(clip, params)).features for clip in clips]
        texts.append([pipeline.postprocess([one], params)["text"] for one in pipeline.forward(rows, params)])
    never, some, always = texts
    assert never != always
    assert some not in (never, always)


def test_what_is_drawn_at_random_is_what_transformers_draws(pipeline: TransformersPipeline) -> None:
    """The usual temperatures, with every try but the last refused."""
    params = pipeline.merge(
        {"temperature": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], "compression_ratio_threshold": 0.0, "max_new_tokens": 8}
    )
    clip, answers = samples.audio(1.0), []
    for seed in (1, 2):
        (row,) = pipeline.prepare(clip, params)
        torch.manual_seed(seed)
        torch.empty((), dtype=torch.int64).random_()  # torch's loader draws a seed, in the pipeline called as a whole
        found = pipeline.postprocess(pipeline.forward([row.features], params), params)
        torch.manual_seed(seed)
        assert list(differences(found, pipeline.alone(clip, copy.deepcopy(dict(params.params))))) == []
        answers.append(found["text"])
    assert answers[0] != answers[1], "nothing was drawn"


def test_each_of_its_parameters_is_here() -> None:
    given = {name for params, _, _ in CASES for name in params}
    assert given >= WHISPER
