"""Audio too short for a CTC model is an empty text: alone, beside others, and at the end of a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeq.contract.errors import PipeqError
from pipeq_worker.doctor.doctor import Report, _batched, check
from pipeq_worker.models.loading import load_pipeline
from pipeq_worker.models.transformers_pipeline import TransformersPipeline
from pipeq_worker.settings.sections import PipelineSettings

from tests import samples, tiny_models
from tests.device import DEVICE
from tests.integration.test_parity import FULLEST

torch.set_num_threads(1)

#: The least number of samples for wav2vec2's seven convolutions.
LEAST = 400


@pytest.fixture(scope="module", params=["ctc_group_norm", "ctc_layer_norm"])
def pipeline(request: pytest.FixtureRequest, tiny: Path) -> TransformersPipeline:
    settings = PipelineSettings(task="automatic-speech-recognition", model=str(tiny_models.build(request.param, tiny)))
    loaded = load_pipeline("it", settings, DEVICE)
    assert isinstance(loaded, TransformersPipeline)
    return loaded


def answers(pipeline: TransformersPipeline, values: list[Any], params: dict[str, Any]) -> list[Any]:
    report = Report()
    found = _batched(pipeline, values, pipeline.merge(params), FULLEST, report, 0, lambda *_: None)
    assert report.failed == {}
    return [found[at] for at in range(len(values))]


def test_every_length_beside_two_seconds_and_alone(pipeline: TransformersPipeline) -> None:
    """Clips below the model's minimum are empty; the others equal transformers' answer for them alone."""
    lengths = [*range(1, 403), *range(410, 820, 101)]
    clips = [samples.audio(1.0, seed)[:length] for seed, length in enumerate(lengths)]
    for params in ({}, {"return_timestamps": "char"}):
        together = answers(pipeline, [samples.audio(2.0), *clips], params)[1:]
        for length, clip, found in zip(lengths, clips, together, strict=True):
            (alone,) = answers(pipeline, [clip], params)
            want = (
                pipeline.alone(clip, dict(params))
                if length >= LEAST
                else {"text": "", **({"chunks": []} if params else {})}
            )
            assert found == alone == want, length


def test_a_recording_may_end_in_a_chunk_too_short(pipeline: TransformersPipeline) -> None:
    """With stride 0 the last chunk is the remainder: here 1 to 399 samples."""
    for left_over in (1, 60, 399):
        for params in ({}, {"return_timestamps": "word"}):
            cut = {"chunk_length_s": 1.0, "stride_length_s": 0, **params}
            sound = samples.audio(2.5)[: 2 * 16000 + left_over]
            whole, without = answers(pipeline, [sound, sound[: 2 * 16000]], cut)
            assert whole == without
            assert whole["text"]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"chunk_length_s": 0.02, "stride_length_s": 0}, "hears nothing in less than 400: take chunks of some seconds"),
        ({"chunk_length_s": 0.01, "stride_length_s": 0}, "is no longer than its strides"),
        ({"chunk_length_s": 1.0, "stride_length_s": 0.5}, "is no longer than its strides"),
        ({"chunk_length_s": 1.0, "stride_length_s": [1.0, 0]}, "is no longer than its strides"),
    ],
)
def test_chunks_that_make_no_sense_are_refused(
    pipeline: TransformersPipeline, params: dict[str, Any], sentence: str
) -> None:
    """Bypasses the check of parameters, which does not know the model, because settings may come by another way."""
    with pytest.raises(PipeqError, match=sentence) as caught:
        next(iter(pipeline.preprocess(samples.audio(2.0), pipeline.call(params))))
    assert caught.value.code == "invalid_params"


@pytest.mark.parametrize(
    "params", [{"stride_length_s": [1]}, {"chunk_length_s": 0.01}, {"chunk_length_s": 1, "stride_length_s": 0.5}]
)
def test_a_task_may_not_ask_for_them(pipeline: TransformersPipeline, params: dict[str, Any]) -> None:
    with pytest.raises(PipeqError, match=r"stride_length_s|chunk_length_s") as caught:
        pipeline.merge(params)
    assert caught.value.code == "invalid_params"


def test_whisper_does_not_lose_what_it_cannot_hear(tiny: Path) -> None:
    """It hears 2 s at a time; transformers would silently cut off the rest of a longer chunk."""
    settings = PipelineSettings(
        task="automatic-speech-recognition", model=str(tiny_models.build("whisper_short", tiny))
    )
    pipeline = load_pipeline("it", settings, DEVICE)
    with pytest.raises(PipeqError, match="chunk_length_s=3 is longer than the 2 s that this model hears at a time"):
        next(iter(pipeline.prepare(samples.audio(5.0), pipeline.merge({"chunk_length_s": 3}))))
    assert isinstance(pipeline, TransformersPipeline)
    one_sample = np.zeros(1, dtype=np.float32)
    report = check(pipeline, [one_sample, samples.audio(1.0)], {"max_new_tokens": 4}, limits=FULLEST)
    assert (report.failed, report.wrong, report.largest_batch) == ({}, {}, 2)
