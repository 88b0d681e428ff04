"""CATALOGUE: every metric that a worker serves: its name, labels and meaning. docs/metrics.md is made from it.

Names follow the conventions of Prometheus: base units (seconds, bytes, ratios from 0 to 1), ``_total`` for counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_LATENCIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_WAITS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0, 14400.0, 86400.0)


@dataclass(frozen=True)
class Metric:
    """One metric, as Prometheus sees it."""

    #: With its unit; a counter's ends in ``_total``.
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    #: One sentence or two.
    says: str
    #: Upper bounds of a histogram's buckets.
    buckets: tuple[float, ...] = ()


#: Group of the page -> its metrics.
GROUPS: dict[str, tuple[Metric, ...]] = {
    "Tasks": (
        Metric("pipeq_tasks_accepted_total", "counter", ("pipeline",), "Tasks that came in with a readable message."),
        Metric(
            "pipeq_tasks_total",
            "counter",
            ("pipeline", "state", "code"),
            "Tasks that left the worker: `succeeded`, `failed`, `retrying` or `dropped` (cancelled, expired, or taken "
            "over by another worker). `code` is the error's code, and empty without an error.",
        ),
        Metric(
            "pipeq_messages_refused_total",
            "counter",
            ("pipeline",),
            "Messages that cannot be used; they are among the dead letters.",
        ),
        Metric(
            "pipeq_queue_wait_seconds",
            "histogram",
            ("pipeline",),
            "From when a task could be taken (its submit, the end of its delay or of the wait for its next try) until "
            "the worker began to work on it. Stock Celery producers do not say when they submit.",
            _WAITS,
        ),
        Metric(
            "pipeq_stage_seconds",
            "histogram",
            ("pipeline", "stage"),
            "Time of a task in a stage: `fetch`, `decode`, `prepare`, `wait_device`, `infer`, `deliver`; each moment "
            "of its last try counts once, as in `timing_ms`.",
            _LATENCIES,
        ),
    ),
    "Batches and the device": (
        Metric(
            "pipeq_batch_items",
            "histogram",
            ("pipeline",),
            "Items in a forward pass.",
            (1, 2, 4, 8, 16, 32, 64, 128, 256),
        ),
        Metric(
            "pipeq_batch_padding_ratio",
            "histogram",
            ("pipeline",),
            "Share of a batch's padded cost that is padding.",
            (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
        ),
        Metric("pipeq_batch_seconds", "histogram", ("pipeline",), "Duration of a forward pass.", _LATENCIES),
        Metric(
            "pipeq_batch_padded_cost_total",
            "counter",
            ("pipeline",),
            "Padded cost of all batches, in the unit of the task type (tokens, frames, patches).",
        ),
        Metric(
            "pipeq_cost_unit_seconds",
            "gauge",
            ("pipeline",),
            "Seconds of forward pass for one unit of padded cost, over the last batches.",
        ),
        Metric("pipeq_batch_splits_total", "counter", ("pipeline", "code"), "Batches that failed and were halved."),
        Metric(
            "pipeq_device_busy_seconds_total",
            "counter",
            (),
            "Time in forward passes, the one that runs now included. Its rate is the share of time that the device "
            "was busy.",
        ),
    ),
    "Faults": (
        Metric("pipeq_child_deaths_total", "counter", (), "Processes of the worker that died or hung."),
        Metric("pipeq_task_deaths_total", "counter", (), "Tasks that such a process was working on."),
        Metric(
            "pipeq_leases_lapsed_total",
            "counter",
            (),
            "Messages of workers that are gone, which this worker put back on their queues.",
        ),
        Metric(
            "pipeq_leases_lost_total",
            "counter",
            (),
            "Messages of this worker whose leases lapsed although it lives; their work was dropped.",
        ),
        Metric(
            "pipeq_messages_given_back_total",
            "counter",
            (),
            "Messages that this worker held and put back on their queues.",
        ),
        Metric("pipeq_redis_up", "gauge", (), "1 if Redis answers."),
        Metric("pipeq_queue_deaf", "gauge", ("pipeline",), "1 if this worker takes no messages although it should."),
    ),
    "Queues": (
        Metric("pipeq_queue_waiting_messages", "gauge", ("pipeline",), "Messages on the lists of all priorities."),
        Metric(
            "pipeq_queue_delayed_messages", "gauge", ("pipeline",), "Messages that wait for their time or next try."
        ),
        Metric("pipeq_queue_leased_messages", "gauge", ("pipeline",), "Tasks inside all live workers."),
        Metric("pipeq_queue_dead_letters", "gauge", ("pipeline",), "Messages in the dead-letter list."),
        Metric("pipeq_queue_workers", "gauge", ("pipeline",), "Live workers that serve the pipeline."),
        Metric(
            "pipeq_queue_drain_seconds",
            "gauge",
            ("pipeline",),
            "Time to drain: waiting and leased messages over the measured rate of all live workers. Absent as long as "
            "no worker has a rate.",
        ),
    ),
    "The worker and its processes": (
        Metric("pipeq_worker_info", "gauge", ("worker", "version"), "1."),
        Metric("pipeq_worker_live", "gauge", (), "1 if `/livez` answers 200."),
        Metric("pipeq_worker_ready", "gauge", (), "1 if `/readyz` answers 200."),
        Metric("pipeq_pipeline_loaded", "gauge", ("pipeline",), "1 if the pipeline is loaded, 0 while it loads."),
        Metric("pipeq_in_flight_tasks", "gauge", ("pipeline",), "Tasks inside this worker."),
        Metric("pipeq_running_tasks", "gauge", ("pipeline",), "Those of them that have begun to run."),
        Metric(
            "pipeq_process_resident_memory_bytes",
            "gauge",
            ("role", "number"),
            "Resident memory (RSS) of a process, with all pages that it shares.",
        ),
        Metric(
            "pipeq_process_proportional_memory_bytes",
            "gauge",
            ("role", "number"),
            "Memory of a process with its part of shared pages (PSS); the sum counts no page twice. At most 10 s old.",
        ),
        Metric("pipeq_process_cpu_seconds_total", "counter", ("role", "number"), "CPU time of a process."),
        Metric("pipeq_process_pid", "gauge", ("role", "number"), "Id of the process."),
    ),
}

METRICS: dict[str, Metric] = {one.name: one for group in GROUPS.values() for one in group}
