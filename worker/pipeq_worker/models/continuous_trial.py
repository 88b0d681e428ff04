"""CONTINUOUS: makes the stream of a pipeline that was loaded with ``continuous``, and compares it with ``generate``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

import torch
from pipeq.contract.errors import PipeqError, SettingsError

from pipeq_worker.models.continuous import LOGGER, ContinuousStream
from pipeq_worker.models.quirks.generation import Generates
from pipeq_worker.models.running import Row
from pipeq_worker.models.stream import Outcome
from pipeq_worker.models.transformers_pipeline import TransformersPipeline

logger = logging.getLogger(__name__)

#: Length of the trial, and the longest that it may take, in seconds.
TRIAL_TOKENS = 8
#: Texts of it, of two lengths, which run beside each other: some models can do this only with one.
TRIAL_TEXTS = ("warm up", "warm up again")
TRIAL_S = 300.0


def make_stream(pipeline: TransformersPipeline) -> ContinuousStream:
    """The stream of a loaded pipeline whose settings say ``continuous``, after a trial.

    Raises:
        SettingsError: it has no such stream, its parameters ask for what continuous batching has not, or the stream
            answers otherwise than ``generate``.
    """
    name, quirks, settings = pipeline.name, pipeline.quirks, pipeline.settings
    if not isinstance(quirks, Generates) or pipeline.task_type.name != "text-generation":
        sentence = f"{pipeline.task_type.name} cannot generate continuously: remove `continuous`"
        raise SettingsError(f"pipeline {name!r}: {sentence}, which is for text-generation")
    stream = ContinuousStream(name, pipeline.pipe(), quirks, settings.max_batch_size, settings.max_cache_bytes)
    try:
        stream.check(pipeline.call(settings.params).forward)
    except PipeqError as error:
        sentence = f"`params` or the model's generation_config.json set it: {error.message}"
        raise SettingsError(f"pipeline {name!r}: {sentence}") from error
    _try(pipeline, stream)
    return stream


def _try(pipeline: TransformersPipeline, stream: ContinuousStream) -> None:
    """Compares the stream's answers to tiny texts with those of ``generate``."""
    cause = _fault(pipeline, stream)
    if cause is not None and stream.by_rows:
        # A model may ask of attention what ours has not (continuous_rows.py); then transformers' own runs it, slower.
        logger.info("%s: runs with transformers' attention: %s", pipeline.name, cause, extra={"action": "load"})
        stream.by_rows = False
        cause = _fault(pipeline, stream)
    if cause is None:
        return
    if not isinstance(cause, _OtherAnswerError):
        reason = f"{type(cause).__name__}: {cause}".partition("\n")[0]
        raise SettingsError(f"pipeline {pipeline.name!r}: its model cannot generate continuously: {reason}") from cause
    if pipeline.model.dtype == "float32":
        raise SettingsError(f"pipeline {pipeline.name!r}: {cause}: remove `continuous`")
    # In half precision, two tokens are often equally probable.
    logger.warning("%s: %s", pipeline.name, cause, extra={"action": "load", "pipeline": pipeline.name})


class _OtherAnswerError(Exception):
    """The stream answers otherwise than ``generate``."""

    def __str__(self) -> str:
        return "its model answers otherwise with `continuous` than without"


def _fault(pipeline: TransformersPipeline, stream: ContinuousStream) -> BaseException | None:
    """Why the stream does not give the answer of ``generate``; None if it does."""
    params = {"max_new_tokens": TRIAL_TOKENS, "do_sample": False}
    call = pipeline.call({**pipeline.settings.params, **params})
    texts = [features for text in TRIAL_TEXTS for features in pipeline.preprocess(text, call)]
    known = [one for features in texts for one in pipeline.forward([features], call)]
    queues: list[SimpleQueue[Outcome]] = [SimpleQueue() for _ in texts]
    try:
        stream.start()
        # What breaks here is told below, in a sentence.
        logging.getLogger(LOGGER).setLevel(logging.CRITICAL)
        for features, queue in zip(texts, queues, strict=True):
            stream.submit(features, call, Row(), queue.put)
        outcomes = [queue.get(timeout=TRIAL_S) for queue in queues]
    except Exception as error:
        return error
    finally:
        stream.stop()
    return next(filter(None, map(_difference, outcomes, known)), None)


def _difference(outcome: Outcome, known: Any) -> BaseException | None:
    if isinstance(outcome, BaseException):
        return outcome.__cause__ or outcome
    assert isinstance(outcome, Mapping)  # nobody has stopped it
    if isinstance(known, PipeqError) or torch.equal(outcome["generated_sequence"], known["generated_sequence"].cpu()):
        return None
    return _OtherAnswerError()
