"""Packs: whatever goes wrong with a row is that row's outcome, and costs no other row anything.

One worker for all; its inputs say what happens in which stage (tests/slow_worker.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pipeq import Client
from pipeq.contract.message import TaskMessage
from pipeq.contract.pack import PackRow
from pipeq.demo import embedded

from tests.packs import PacksOf
from tests.slow_worker import PIPELINE, serving
from tests.worker_process import WorkerProcess


@dataclass
class Served:
    client: Client
    url: str
    folder: Path
    process: WorkerProcess

    def job(self, job_id: str) -> PacksOf:
        return PacksOf(self.url, job_id)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("packs")
    with embedded.valkey() as url, Client(url) as client, serving(folder, url, prepare_threads=2) as process:
        process.wait_ready(client, PIPELINE)
        yield Served(client, url, folder, process)


def test_each_kind_of_failure_costs_only_its_row(served: Served) -> None:
    (served.folder / "text.txt").write_text("from a file")
    (served.folder / "broken.txt").write_bytes(b"\xff\xfe\xfa")
    here = f"file://{served.folder}"
    bad: list[tuple[Any, str]] = [
        (5, "invalid_input"),
        (None, "invalid_input"),
        (["a", "b"], "invalid_input"),
        ({"no_such_field": 1}, "invalid_input"),
        ("a\ud800", "invalid_input"),
        ({"uri": f"{here}/missing.txt"}, "input_not_found"),
        ({"uri": "file:///etc/passwd"}, "input_forbidden"),
        ({"uri": f"{here}/text.txt", "sha256": "0" * 64}, "input_undecodable"),
        ({"uri": f"{here}/broken.txt"}, "input_undecodable"),
        (PackRow("x", {"no_such_param": 1}), "invalid_params"),
        (PackRow("x", {"seconds": -1}), "invalid_params"),
        ("fails=prepare", "invalid_input"),
        ("fails=prepare items=3", "invalid_input"),
        ("fails=forward", "inference_failed"),
        ("fails=deliver", "invalid_input"),
    ]
    job = served.job("kinds")
    mixed: list[Any] = []
    for at, (row, _) in enumerate(bad):
        mixed += [f"good {at}", row, {"uri": f"{here}/text.txt"}]
    job.put(PIPELINE, mixed, [row for row, _ in bad], ["good alone"])
    job.seal()
    status = job.wait()
    expected: list[Any] = []
    for at, (_, code) in enumerate(bad):
        expected += [f"good {at}", code, "from a file"]
    assert job.brief() == [*expected, *(code for _, code in bad), "good alone"]
    assert (status.succeeded, status.failed) == (2 * len(bad) + 1, 2 * len(bad))
    assert sum(status.codes.values()) == status.failed
    found = job.outcomes()
    assert [one["line"] for one in found] == list(range(1, 4 * len(bad) + 2))
    assert found[0]["custom_id"] == "row-1"


def test_rows_have_parameters_of_their_own(served: Served) -> None:
    job = served.job("params")
    job.put(PIPELINE, ["a", PackRow("b", {"seconds": 0}), PackRow("c", {"nonsense": 1})], seconds=0)
    job.put(PIPELINE, ["d", "e"], nonsense=1)  # of the pack: then all of its rows have it
    job.seal()
    job.wait()
    assert job.brief() == ["a", "b", "invalid_params", "invalid_params", "invalid_params"]


def test_a_row_that_kills_processes_fails_alone(served: Served) -> None:
    job, other = served.job("deaths"), served.job("beside")
    other.put(PIPELINE, [f"beside {at}" for at in range(12)])
    job.put(
        PIPELINE,
        [*(f"a{at}" for at in range(6)), "dies_in_forward=/always", *(f"b{at}" for at in range(6))],
        ["c", "dies_in_prepare=/always", "d"],
    )
    job.seal()
    other.seal()
    job.wait()
    other.wait()
    lost = "worker_lost"
    assert job.brief() == [*(f"a{at}" for at in range(6)), lost, *(f"b{at}" for at in range(6)), "c", lost, "d"]
    assert other.brief() == [f"beside {at}" for at in range(12)]


def test_a_row_that_kills_while_others_could_be_prepared_fails_alone(served: Served) -> None:
    """Rows go on alone from their first step on, not from their batch on."""
    job, slow = served.job("deaths-while-preparing"), [f"prepare=0.3 {at}" for at in range(4)]
    job.put(PIPELINE, [*slow[:2], "dies_in_prepare=/always", *slow[2:]])
    job.seal()
    job.wait()
    assert job.brief() == [*slow[:2], "worker_lost", *slow[2:]]


def test_a_store_that_is_away_delays_only_its_row(served: Served) -> None:
    job = served.job("away")
    once = served.folder / "once"
    job.put(PIPELINE, ["a", f"away_in_prepare={once}", "b", "away_in_prepare=/no/such/folder/x"])
    job.seal()
    status = job.wait()
    # The last one cannot note that it was tried, which is its own fault: a missing folder is no fault of the worker.
    assert job.brief()[:3] == ["a", f"away_in_prepare={once}"[:20], "b"]
    assert (status.succeeded, status.failed) == (3, 1)


def test_a_row_that_takes_too_long_ends_alone(served: Served) -> None:
    job = served.job("late")
    job.timeout_s = 1.0
    job.put(PIPELINE, ["a", "prepare=4", "b"])
    job.seal()
    job.wait()
    assert job.brief() == ["a", "timeout", "b"]


def test_results_too_large_for_redis_go_to_the_output(served: Served, tmp_path: Path) -> None:
    job = served.job("large")
    job.put(PIPELINE, ["x" * 20] * 900, output=f"file://{tmp_path}/")
    job.seal()
    job.wait()
    # This worker may not write there, so that each row says so, once.
    assert set(job.brief()) == {"input_forbidden"}


def test_a_pack_needs_a_worker_that_knows_packs(served: Served) -> None:
    """An older worker reads a task there, and says what it does not know."""
    job = served.job("older")
    job.put(PIPELINE, ["a"])
    message = json.loads(served.client.status(f"{job.id}-0").model_dump_json())
    assert message["id"] == "older-0"
    with pytest.raises(Exception, match="rows: Extra inputs are not permitted"):
        TaskMessage.parse({"pipeline": PIPELINE, "rows": [{"inputs": "a"}], "job": {"id": "x", "pack": 0}})
