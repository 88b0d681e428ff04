"""CONTINUOUS: makes the stream of a pipeline that was loaded with ``continuous``, and compares it with ``generate``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from queue import SimpleQueue

import torch
from pipeq.contract.errors import PipeqError, SettingsError

from pipeq_worker.models.continuous import ContinuousStream
from pipeq_worker.models.quirks.generation import Generates
from pipeq_worker.models.running import Row
from pipeq_worker.models.stream import Outcome
from pipeq_worker.models.transformers_pipeline import TransformersPipeline

logger = logging.getLogger(__name__)

#: Length of the trial, and the longest that it may take, in seconds.
TRIAL_TOKENS = 8
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
    """Compares the stream's answer to a tiny text with that of ``generate``."""
    params = {"max_new_tokens": TRIAL_TOKENS, "do_sample": False}
    call = pipeline.call({**pipeline.settings.params, **params})
    (features,) = pipeline.preprocess("warm up", call)
    (known,) = pipeline.forward([features], call)
    outcomes: SimpleQueue[Outcome] = SimpleQueue()
    try:
        stream.start()
        stream.submit(features, call, Row(), outcomes.put)
        outcome = outcomes.get(timeout=TRIAL_S)
        cause = outcome if isinstance(outcome, PipeqError) else getattr(outcome, "__cause__", None)
    except Exception as error:
        cause, outcome = error, None
    finally:
        stream.stop()
    if cause is not None or not isinstance(outcome, Mapping):
        reason = f"{type(cause).__name__}: {cause}".partition("\n")[0]
        raise SettingsError(f"pipeline {pipeline.name!r}: its model cannot generate continuously: {reason}") from cause
    if isinstance(known, PipeqError) or torch.equal(outcome["generated_sequence"], known["generated_sequence"].cpu()):
        return
    sentence = "its model answers otherwise with `continuous` than without"
    if pipeline.model.dtype == "float32":
        raise SettingsError(f"pipeline {pipeline.name!r}: {sentence}: remove `continuous`")
    # In half precision, two tokens are often equally probable.
    logger.warning("%s: %s", pipeline.name, sentence, extra={"action": "load", "pipeline": pipeline.name})
