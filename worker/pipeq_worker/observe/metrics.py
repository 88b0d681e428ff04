"""METRICS: an observer that counts, and what ``/metrics`` answers. The names are in catalogue.py.

Counters and histograms are kept here, from events. Everything else (queues, processes, health) is asked for when
somebody reads. Labels can only be names that the worker knows: a pipeline that is served, or the empty text for a
message that names no such pipeline, so that no message can add a series.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import prometheus_client
from pipeq.contract.errors import ErrorCode
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeq_worker.observe.catalogue import METRICS
from pipeq_worker.observe.memory import Usage, usage
from pipeq_worker.observe.observer import Ended, Observer

#: The memory of a process is read again after this time, in seconds: the kernel walks all of its pages for it.
MEMORY_KEPT_S = 10.0
#: Weight that the seconds per cost of a batch keep at each further one.
COST_KEPT = 0.9
#: How the events name what does not work.
_REDIS, _TAKE = "redis", "take from "

#: Metric -> value for each set of labels, in the order of the catalogue's labels.
Values = dict[str, dict[tuple[str, ...], float]]


class Metrics(Observer):
    """Counts the events of one worker.

    Args:
        pipelines: the pipelines that are served.
    """

    def __init__(self, pipelines: Iterable[str]) -> None:
        # Without a second series that says when each counter began.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.pipelines = frozenset(pipelines)
        self._registry = CollectorRegistry(auto_describe=False)
        self._made: dict[str, Any] = {}
        for one in METRICS.values():
            if one.kind == "counter" and one.name not in _ASKED:
                self._made[one.name] = Counter(one.name, one.says, one.labels, registry=self._registry)
            elif one.kind == "histogram":
                self._made[one.name] = Histogram(
                    one.name, one.says, one.labels, buckets=one.buckets, registry=self._registry
                )
        #: Finding a series by its labels takes longer than counting.
        self._series: dict[tuple[str, ...], Any] = {}
        # A counter that appears with its first event hides that event from a rate.
        for one in METRICS.values():
            if one.name in self._made and one.labels == ("pipeline",):
                for name in self.pipelines:
                    self._of(one.name, name)
        self._lock = threading.Lock()
        self._busy_s = 0.0
        #: Number of batches that the device has, and since when it has been working on the first of them.
        self._open = 0
        self._began: float | None = None
        #: Pipeline -> weighted sums of seconds and of padded cost.
        self._costs: dict[str, tuple[float, float]] = {}
        self._redis_up = True
        self._deaf: set[str] = set()

    def serve(self, ask: Callable[[], Values]) -> None:
        """Adds what is asked for at each reading: metric -> values by labels. Metrics of the catalogue alone."""
        self._registry.register(_Asked(self, ask))

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)

    # -- events -------------------------------------------------------------------------------------------------------

    def task_accepted(self, task_id: str, pipeline: str) -> None:
        """Counts the task."""
        self._of("pipeq_tasks_accepted_total", self._known(pipeline)).inc()

    def stage_ended(self, task_id: str, pipeline: str, stage: str, seconds: float) -> None:
        """Counts the time."""
        self._of("pipeq_stage_seconds", self._known(pipeline), stage).observe(seconds)

    def task_ended(
        self, task_id: str, pipeline: str | None, ended: Ended, code: str | None, timing_ms: Mapping[str, float]
    ) -> None:
        """Counts the task, and its wait in the queue."""
        name = self._known(pipeline)
        code = "" if code is None else code if code in _CODES else ErrorCode.INTERNAL.value
        self._of("pipeq_tasks_total", name, ended, code).inc()
        if "queued" in timing_ms:
            self._of("pipeq_queue_wait_seconds", name).observe(timing_ms["queued"] / 1000)

    def message_refused(self, queue: str, reason: str) -> None:
        """Counts the message."""
        self._of("pipeq_messages_refused_total", self._known(queue)).inc()

    def batch_began(self, pipeline: str, size: int) -> None:
        """Notes that the device is busy. The next batch may be given to it before the last one has ended."""
        with self._lock:
            self._open += 1
            if self._began is None:
                self._began = time.monotonic()

    def batch_ran(self, pipeline: str, size: int, padding: float, seconds: float, cost: int) -> None:
        """Counts the batch, its time and its cost."""
        name = self._known(pipeline)
        with self._lock:
            self._busy_s, self._open = self._busy_s + seconds, max(0, self._open - 1)
            self._began = time.monotonic() if self._open else None
            if not size:
                return
            old_s, old_cost = self._costs.get(name, (0.0, 0.0))
            self._costs[name] = old_s * COST_KEPT + seconds, old_cost * COST_KEPT + cost
        self._of("pipeq_batch_items", name).observe(size)
        self._of("pipeq_batch_padding_ratio", name).observe(padding)
        self._of("pipeq_batch_seconds", name).observe(seconds)
        self._of("pipeq_batch_padded_cost_total", name).inc(cost)

    def batch_split(self, pipeline: str, size: int, code: str) -> None:
        """Counts the batch."""
        self._of("pipeq_batch_splits_total", self._known(pipeline), code).inc()

    def child_died(self, reason: str, task_ids: list[str]) -> None:
        """Counts the process, and the tasks that it had."""
        with self._lock:
            if self._began is not None:
                self._busy_s, self._began = self._busy_s + time.monotonic() - self._began, None
            self._open = 0
        self._of("pipeq_child_deaths_total").inc()
        self._of("pipeq_task_deaths_total").inc(len(task_ids))

    def leases_lapsed(self, messages: int) -> None:
        """Counts the messages."""
        self._of("pipeq_leases_lapsed_total").inc(messages)

    def leases_lost(self, messages: int) -> None:
        """Counts the messages."""
        self._of("pipeq_leases_lost_total").inc(messages)

    def given_back(self, messages: int) -> None:
        """Counts the messages."""
        self._of("pipeq_messages_given_back_total").inc(messages)

    def worker_could_not(self, what: str, reason: str) -> None:
        """Notes what does not work."""
        with self._lock:
            if what == _REDIS:
                self._redis_up = False
            elif what.startswith(_TAKE):
                self._deaf.add(what.removeprefix(_TAKE))

    def worker_can_again(self, what: str) -> None:
        """Notes that it works again."""
        with self._lock:
            if what == _REDIS:
                self._redis_up = True
            self._deaf.discard(what.removeprefix(_TAKE))

    # -- reading ------------------------------------------------------------------------------------------------------

    def own(self) -> Values:
        """What is known here and is neither a counter nor a histogram of events."""
        with self._lock:
            running_s = 0.0 if self._began is None else time.monotonic() - self._began
            return {
                "pipeq_device_busy_seconds_total": {(): self._busy_s + running_s},
                "pipeq_cost_unit_seconds": {
                    (name,): seconds / cost for name, (seconds, cost) in self._costs.items() if cost
                },
                "pipeq_redis_up": {(): float(self._redis_up)},
                "pipeq_queue_deaf": {(name,): float(name in self._deaf) for name in self.pipelines},
            }

    def _known(self, pipeline: str | None) -> str:
        return pipeline if pipeline in self.pipelines and pipeline is not None else ""

    def _of(self, *key: str) -> Any:
        """The series of a metric's name and labels."""
        if (found := self._series.get(key)) is None:
            name, *labels = key
            found = self._made[name].labels(*labels) if labels else self._made[name]
            self._series[key] = found
        return found


class Processes:
    """The memory and CPU time of the worker's processes.

    Args:
        listed: returns a role (``host``, ``device``, ``prepare``) and a process id for each.
    """

    def __init__(self, listed: Callable[[], Iterable[tuple[str, int]]]) -> None:
        self._listed = listed
        self._lock = threading.Lock()
        self._read: dict[int, tuple[float, Usage]] = {}

    def values(self) -> Values:
        """The metrics of all processes. Those of one role are numbered in the order of the list."""
        found: Values = {name: {} for name in METRICS if name.startswith("pipeq_process_")}
        numbers: dict[str, int] = {}
        with self._lock:
            listed = list(self._listed())
            self._read = {pid: one for pid, one in self._read.items() if pid in {pid for _, pid in listed}}
            for role, pid in listed:
                labels = role, str(numbers.setdefault(role, 0))
                numbers[role] += 1
                used = self._usage(pid)
                found["pipeq_process_pid"][labels] = pid
                for name, value in (
                    ("pipeq_process_resident_memory_bytes", used.rss_bytes),
                    ("pipeq_process_proportional_memory_bytes", used.pss_bytes),
                    ("pipeq_process_cpu_seconds_total", used.cpu_s),
                ):
                    if value is not None:
                        found[name][labels] = value
        return found

    def _usage(self, pid: int) -> Usage:
        now = time.monotonic()
        read_at, used = self._read.get(pid, (0.0, None))
        if used is None or now - read_at > MEMORY_KEPT_S:
            used = usage(pid)
            self._read[pid] = now, used
        return used


class _Asked(Collector):
    """Makes Prometheus' metrics of what is asked for at each reading."""

    def __init__(self, metrics: Metrics, ask: Callable[[], Values]) -> None:
        self._metrics = metrics
        self._ask = ask

    def collect(self) -> Iterable[Any]:
        """One family for each metric that has a value now."""
        for name, values in {**self._metrics.own(), **self._ask()}.items():
            about = METRICS[name]
            kind = CounterMetricFamily if about.kind == "counter" else GaugeMetricFamily
            family = kind(name, about.says, labels=about.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


_CODES = frozenset(code.value for code in ErrorCode)
#: Counters that are not counted here, but asked for.
_ASKED = frozenset({"pipeq_device_busy_seconds_total", "pipeq_process_cpu_seconds_total"})
