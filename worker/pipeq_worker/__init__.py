"""The worker daemon: takes tasks off their queues, runs them in batches through pipelines, and delivers the results.

A Celery app of your own can name the worker's parts in its settings by these short paths. They stay the same when code
moves between modules:

    import pipeq_worker  # so that Celery knows the scheme

    broker_url = "pipeq+redis://..."
    result_backend = "pipeq_worker:Backend+redis://..."
    worker_pool = "pipeq_worker:TaskPool"
    worker_consumer = "pipeq_worker:Consumer"
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

# A child process speaks to no broker, and to import kombu takes a fifth of the time in which it starts.
if "pipeq_worker.children.main" not in sys.orig_argv:
    from kombu.transport import TRANSPORT_ALIASES

    #: kombu looks a transport up by the part of the URL's scheme that stands before the plus.
    TRANSPORT_ALIASES["pipeq"] = "pipeq_worker:Transport"

#: Where each public name is defined. It is imported at first use, because most importers need only one district.
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
