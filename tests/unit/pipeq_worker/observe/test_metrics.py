"""The metrics: every event counts, every metric of the catalogue can have a value, and no message adds a series."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from typing import Any

import pytest
from pipeq.contract.errors import ErrorCode
from pipeq_worker.observe import metrics as module
from pipeq_worker.observe.catalogue import METRICS
from pipeq_worker.observe.memory import Usage
from pipeq_worker.observe.metrics import Metrics, Processes, Values
from pipeq_worker.observe.observer import EVENTS, Observer
from prometheus_client.parser import text_string_to_metric_families

#: Event -> arguments, and the series that it changes, with their new values.
TOLD: dict[str, tuple[tuple[Any, ...], dict[str, float]]] = {
    "task_accepted": (("id", "a"), {'pipeq_tasks_accepted_total{pipeline="a"}': 1}),
    "stage_ended": (
        ("id", "a", "fetch", 0.5),
        {'pipeq_stage_seconds_sum{pipeline="a",stage="fetch"}': 0.5},
    ),
    "batch_began": (("a", 8), {"pipeq_device_busy_seconds_total": 0}),
    "batch_ran": (
        ("a", 8, 0.25, 2.0, 400),
        {
            'pipeq_batch_items_sum{pipeline="a"}': 8,
            'pipeq_batch_padding_ratio_sum{pipeline="a"}': 0.25,
            'pipeq_batch_seconds_sum{pipeline="a"}': 2,
            'pipeq_batch_padded_cost_total{pipeline="a"}': 400,
            'pipeq_cost_unit_seconds{pipeline="a"}': 0.005,
            "pipeq_device_busy_seconds_total": 2,
        },
    ),
    "batch_split": (
        ("a", 8, "out_of_memory"),
        {'pipeq_batch_splits_total{code="out_of_memory",pipeline="a"}': 1},
    ),
    "child_died": (("it hangs", ["x", "y"]), {"pipeq_child_deaths_total": 1, "pipeq_task_deaths_total": 2}),
    "task_ended": (
        ("id", "a", "failed", "timeout", {"queued": 1500.0, "infer": 3.0}),
        {
            'pipeq_tasks_total{code="timeout",pipeline="a",state="failed"}': 1,
            'pipeq_queue_wait_seconds_sum{pipeline="a"}': 1.5,
        },
    ),
    "message_refused": (("a", "it is no message"), {'pipeq_messages_refused_total{pipeline="a"}': 1}),
    "leases_lapsed": ((3,), {"pipeq_leases_lapsed_total": 3}),
    "leases_lost": ((4,), {"pipeq_leases_lost_total": 4}),
    "given_back": ((5,), {"pipeq_messages_given_back_total": 5}),
    "worker_could_not": (("take from a", "no"), {'pipeq_queue_deaf{pipeline="a"}': 1}),
    "worker_can_again": (("redis",), {}),
}


def series(metrics: Metrics) -> dict[str, float]:
    """Series, written as Prometheus does -> its value."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for one in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(one.labels.items()))
            found[one.name + (f"{{{labels}}}" if labels else "")] = one.value
    return found


@pytest.fixture
def metrics() -> Metrics:
    one = Metrics(["a", "b"])
    one.serve(dict)
    return one


def test_all_events_are_tried() -> None:
    assert TOLD.keys() == set(EVENTS)
    assert {name for name in EVENTS if getattr(Metrics, name) is not getattr(Observer, name)} == set(EVENTS)


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_counts_where_it_should(metrics: Metrics, name: str) -> None:
    args, changed = TOLD[name]
    before = series(metrics)
    getattr(metrics, name)(*args)
    after = series(metrics)
    for one, value in changed.items():
        assert after[one] == pytest.approx(value, abs=0.2 if "busy" in one else 1e-9), one
    touched = {one.partition("{")[0].removesuffix("_sum") for one in changed}
    for one in {one for one in after if before.get(one, 0) != after[one]} - changed.keys():
        assert one.partition("{")[0].removesuffix("_bucket").removesuffix("_count") in touched, one


def test_every_metric_of_the_catalogue_has_a_place() -> None:
    metrics = Metrics(["a"])
    rest: Values = {
        name: {tuple("x" for _ in one.labels): 1.0}
        for name, one in METRICS.items()
        if name not in metrics._made and name not in metrics.own()
    }
    metrics.serve(lambda: rest)
    for args_of in EVENTS:
        getattr(metrics, args_of)(*TOLD[args_of][0])
    kinds = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in text_string_to_metric_families(metrics.text().decode())
    }
    assert kinds == {one.name: one.kind for one in METRICS.values()}


@pytest.mark.parametrize("one", METRICS.values(), ids=lambda one: one.name)
def test_names_follow_the_conventions(one: Any) -> None:
    assert one.name.startswith("pipeq_")
    assert one.name.endswith("_total") == (one.kind == "counter")
    assert bool(one.buckets) == (one.kind == "histogram")
    assert list(one.buckets) == sorted(one.buckets)
    assert not any(word in one.name.split("_") for word in ("ms", "milliseconds", "mib", "percent"))
    assert one.says.endswith(".")


def test_no_message_can_add_a_series(metrics: Metrics) -> None:
    def tell(name: str, pipeline: str) -> None:
        signature = list(inspect.signature(getattr(Observer, name)).parameters)[1:]
        args = list(TOLD[name][0])
        for at, parameter in enumerate(signature):
            if parameter in ("pipeline", "queue"):
                args[at] = pipeline
            if parameter == "code" and name == "task_ended":
                args[at] = f"code-{pipeline}"
        getattr(metrics, name)(*args)

    for name in EVENTS:
        tell(name, "stranger")
    before = series(metrics).keys()
    for number in range(100):
        for name in EVENTS:
            tell(name, f'stranger {number}\n"}}')
    assert series(metrics).keys() == before
    assert 'pipeq_tasks_total{code="internal",pipeline="",state="failed"}' in before


def test_every_code_is_a_label(metrics: Metrics) -> None:
    for code in ErrorCode:
        metrics.task_ended("id", "a", "failed", code, {})
        assert series(metrics)[f'pipeq_tasks_total{{code="{code.value}",pipeline="a",state="failed"}}'] == 1


def test_a_pass_that_lasts_makes_the_device_busy(metrics: Metrics) -> None:
    metrics.batch_began("a", 1)
    time.sleep(0.05)
    assert series(metrics)["pipeq_device_busy_seconds_total"] >= 0.05
    metrics.batch_ran("a", 1, 0.0, 0.06, 1)
    time.sleep(0.05)
    assert series(metrics)["pipeq_device_busy_seconds_total"] == pytest.approx(0.06)
    metrics.batch_began("a", 1)
    metrics.child_died("it hangs", [])
    busy_s = series(metrics)["pipeq_device_busy_seconds_total"]
    time.sleep(0.02)
    assert series(metrics)["pipeq_device_busy_seconds_total"] == busy_s


def test_a_batch_that_is_given_early_is_busy_after_the_one_before_it(metrics: Metrics) -> None:
    metrics.batch_began("a", 1)
    metrics.batch_began("a", 1)
    metrics.batch_ran("a", 1, 0.0, 3.0, 1)
    time.sleep(0.03)
    assert 3.03 <= series(metrics)["pipeq_device_busy_seconds_total"] < 4
    # All of its tasks were cancelled before it ran.
    metrics.batch_ran("a", 0, 0.0, 0.0, 0)
    time.sleep(0.03)
    found = series(metrics)
    assert found["pipeq_device_busy_seconds_total"] == 3
    assert found['pipeq_batch_items_count{pipeline="a"}'] == 1


def test_redis_and_queues_come_back(metrics: Metrics) -> None:
    assert series(metrics)["pipeq_redis_up"] == 1
    metrics.worker_could_not("redis", "ConnectionError")
    metrics.worker_could_not("take from b", "no consumer")
    assert (series(metrics)["pipeq_redis_up"], series(metrics)['pipeq_queue_deaf{pipeline="b"}']) == (0, 1)
    metrics.worker_can_again("redis")
    metrics.worker_can_again("take from b")
    assert (series(metrics)["pipeq_redis_up"], series(metrics)['pipeq_queue_deaf{pipeline="b"}']) == (1, 0)


def test_processes_are_numbered_by_role() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        listed = [("host", os.getpid()), ("prepare", child.pid), ("prepare", os.getpid()), ("device", 2**22 + 1)]
        found = Processes(lambda: listed).values()
        child.communicate(b"\n")
    assert found["pipeq_process_pid"] == {
        ("host", "0"): os.getpid(),
        ("prepare", "0"): child.pid,
        ("prepare", "1"): os.getpid(),
        ("device", "0"): 2**22 + 1,
    }
    for name in ("resident_memory_bytes", "proportional_memory_bytes", "cpu_seconds_total"):
        # The last one does not live.
        assert found[f"pipeq_process_{name}"].keys() == {("host", "0"), ("prepare", "0"), ("prepare", "1")}
    assert found["pipeq_process_resident_memory_bytes"]["host", "0"] > 2**20


def test_the_kernel_is_not_asked_at_each_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(pid: int) -> Usage:
        asked.append(pid)
        return Usage(1, 1, 1.0)

    monkeypatch.setattr(module, "usage", counted)
    pids = [7]
    processes = Processes(lambda: [("host", pid) for pid in pids])
    for _ in range(10):
        processes.values()
    assert asked == [7]
    pids[:] = [8]
    processes.values()
    pids[:] = [7]
    processes.values()
    assert asked == [7, 8, 7]
