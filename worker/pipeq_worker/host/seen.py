"""SEEN: joins metrics, health, queues and processes, and serves them by HTTP: ``/metrics``, ``/livez``, ``/readyz``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version

from pipeq.contract.redis_url import connect

from pipeq_worker.host.backlog import Backlog
from pipeq_worker.host.health import Health
from pipeq_worker.observe.endpoint import Answer, Endpoint
from pipeq_worker.observe.metrics import Metrics, Processes, Values
from pipeq_worker.observe.observer import Observer
from pipeq_worker.observe.outage import outage
from pipeq_worker.observe.rates import Rates
from pipeq_worker.settings.read import Settings

#: A reply of Redis about the queues may take so long, in seconds.
REPLY_S = 2.0
_TEXT = "text/plain; charset=utf-8"
#: Prometheus' text format.
_METRICS = "text/plain; version=0.0.4; charset=utf-8"


class Seen:
    """What others may see of this worker. It starts before the pipelines are loaded.

    Args:
        settings: the worker's settings; without ``metrics.port`` there is no HTTP server, and nothing is counted.
        worker: the worker's name.

    Raises:
        SettingsError: it cannot listen on ``metrics.port``.
    """

    def __init__(self, settings: Settings, worker: str) -> None:
        self.health = Health(settings.pipelines, settings.metrics.hung_s, outage.quiet_s)
        self.rates = Rates(settings.pipelines)
        #: Told of events, besides the log and the users' own.
        self.observers: list[Observer] = [self.rates]
        #: Returns pipeline -> tasks inside, and tasks that run.
        self._counts: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]] = lambda: ({}, {})
        self._listed: Callable[[], Iterable[tuple[str, int]]] = lambda: [("host", os.getpid())]
        self._worker = worker
        self._endpoint: Endpoint | None = None
        if settings.metrics.port is None:
            return
        self._metrics = Metrics(settings.pipelines)
        self.observers.append(self._metrics)
        self._redis = connect(settings.redis_url, timeout_s=REPLY_S)
        self._backlog = Backlog(self._redis, settings.pipelines)
        self._processes = Processes(lambda: self._listed())
        self._metrics.serve(self._asked)
        pages = {"/metrics": self._page, "/livez": self._livez, "/readyz": self._readyz}
        self._endpoint = Endpoint(settings.metrics.host, settings.metrics.port, pages)
        self._endpoint.start()

    def counts(self, counts: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]]) -> None:
        """Sets the function that returns pipeline -> tasks inside the worker, and pipeline -> those that run."""
        self._counts = counts

    def processes(self, listed: Callable[[], Iterable[tuple[str, int]]]) -> None:
        """Sets the function that returns a role (``host``, ``device``, ``prepare``) and a process id for each."""
        self._listed = listed

    def close(self) -> None:
        """Stops listening."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._redis.close()

    def _page(self) -> Answer:
        return 200, _METRICS, self._metrics.text()

    def _livez(self) -> Answer:
        return _health(self.health.dead())

    def _readyz(self) -> Answer:
        return _health(self.health.not_ready())

    def _asked(self) -> Values:
        loading, pipelines = set(self.health.loading()), self._metrics.pipelines
        in_flight, running = self._counts()
        found: Values = {
            "pipeq_worker_info": {(self._worker, version("pipeq")): 1.0},
            "pipeq_worker_live": {(): float(not self.health.dead())},
            "pipeq_worker_ready": {(): float(not self.health.not_ready())},
            "pipeq_pipeline_loaded": {(name,): float(name not in loading) for name in pipelines},
            "pipeq_in_flight_tasks": {(name,): in_flight.get(name, 0) for name in pipelines},
            "pipeq_running_tasks": {(name,): running.get(name, 0) for name in pipelines},
            **self._processes.values(),
        }
        for name, queue in self._backlog.read().items() if outage.quiet_s() else ():
            for metric, value in (
                ("pipeq_queue_waiting_messages", queue.waiting),
                ("pipeq_queue_delayed_messages", queue.delayed),
                ("pipeq_queue_leased_messages", queue.leased),
                ("pipeq_queue_dead_letters", queue.dead_letters),
                ("pipeq_queue_workers", queue.workers),
                ("pipeq_queue_drain_seconds", queue.drain_s),
            ):
                if value is not None:
                    found.setdefault(metric, {})[name,] = value
        return found


def _health(reasons: list[str]) -> Answer:
    text = "".join(f"{one}\n" for one in reasons) or "ok\n"
    return 503 if reasons else 200, _TEXT, text.encode("utf-8", "replace")
