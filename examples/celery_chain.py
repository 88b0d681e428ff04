"""From a stock Celery app, without pipeq: a chain of a pipeline's task and an ordinary one.

    pipeq worker text-classification --include examples.celery_chain
    python examples/celery_chain.py [TEXT]...

The worker imports this module for its tasks (from the folder it was started in) and runs them in threads beside the
model, so that post-processing needs no worker of its own.
"""

import os
import sys
from collections import Counter
from typing import Any

from celery import Celery, shared_task


@shared_task(name="examples.summary")  # a fixed name, because the module is __main__ when this file is started
def summary(results: list[list[dict[str, Any]]]) -> str:
    """Turns the pipeline's result for a list of texts into a sentence."""
    labels = Counter(best["label"] for best, *_ in results)
    return f"{len(results)} texts: " + ", ".join(f"{count} {label}" for label, count in labels.most_common())


if __name__ == "__main__":
    url = os.environ.get("PIPEQ_REDIS_URL", "redis://localhost:6379/0")
    app = Celery(broker=url, backend=url)
    texts = sys.argv[1:] or ["I love this queue", "I do not", "It has never let me down"]
    message = {"pipeline": "text-classification", "inputs": texts, "params": {"top_k": 1}}
    infer = app.signature("pipeq.infer", kwargs=message, queue="text-classification")
    result = (infer | summary.s()).apply_async()
    print(result.get(timeout=120))
    # The pipeline's own task has a result like any other task.
    for text, [best] in zip(texts, result.parent.get(timeout=1), strict=True):
        print(f"{best['label']}: {text}")
