"""The daemon: takes tasks off their queues, batches them through pipelines, lands the results.

What a Celery app of one's own names in its settings has a short path that stays, wherever the code moves:

    import pipeq_worker  # so that Celery knows the scheme

    broker_url = "pipeq+redis://..."
    result_backend = "pipeq_worker:Backend+redis://..."
    worker_pool = "pipeq_worker:TaskPool"
    worker_consumer = "pipeq_worker:Consumer"
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kombu.transport import TRANSPORT_ALIASES

#: Of a URL's scheme kombu looks up what stands before the plus.
TRANSPORT_ALIASES["pipeq"] = "pipeq_worker:Transport"

#: Where each name lives; imported when it is first used: most who import this package want one district of it.
_HOMES = {
    "Backend": "delivery.backend",
    "Consumer": "broker.consumer",
    "TaskPool": "broker.pool",
    "Transport": "broker.transport",
}

__all__ = ["Backend", "Consumer", "TaskPool", "Transport"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
