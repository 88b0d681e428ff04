"""SEEDING: what the first forward passes of a loaded pipeline take, so that scheduling does not begin with a guess.

The tiny input of the warm-up, once more alone and once as a batch. The host learns from it as from any other pass
(:mod:`pipeq_worker.schedule.costs`); real passes soon outweigh it.
"""

from __future__ import annotations

import logging
import time

from pipeq.contract.errors import PipeqError

from pipeq_worker.models.transformers_pipeline import TransformersPipeline

logger = logging.getLogger(__name__)

#: Items of the batch.
ITEMS = 8
#: Most seconds that it may take, as far as the warm-up tells.
MOST_S = 1.0


def measured(pipeline: TransformersPipeline, warm_up_s: float) -> list[tuple[int, int, float]]:
    """Runs the passes. Returns items, padded cost and seconds of each; fewer where the warm-up was slow or one fails.

    Args:
        pipeline: it has run its warm-up.
        warm_up_s: what that took, in seconds.
    """
    found: list[tuple[int, int, float]] = []
    value, params = pipeline.sample()
    for items in sorted({1, min(ITEMS, pipeline.limits.max_size)}):
        if items * warm_up_s > MOST_S:
            break
        try:
            call = pipeline.calls.over_own(params)
            rows = [next(iter(pipeline.prepare(value, call))) for _ in range(items)]
            if len({row.group for row in rows}) > 1:
                break  # an item of this pipeline shares no pass
            began = time.monotonic()
            outputs = pipeline.forward([row.features for row in rows], call)
            seconds = time.monotonic() - began
        except Exception as error:
            # Nothing depends on it. A pipeline that cannot answer its sample has said so in the warm-up.
            logger.info("%s: no seconds of its first passes: %s", pipeline.name, error, extra={"action": "load"})
            break
        if any(isinstance(one, PipeqError) for one in outputs):
            break
        found.append((items, max(row.cost for row in rows) * items, seconds))
    return found
