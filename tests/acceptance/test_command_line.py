"""What the command line says of a real worker."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pipeq import Client

from tests.acceptance.conftest import Service
from tests.commands import run

TEXT = "text-classification"


@pytest.fixture(autouse=True)
def here(service: Service, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("PIPEQ_REDIS_URL", service.client.redis_url)
    return service.client


def test_a_worker_registers_what_its_pipelines_take() -> None:
    found = {one["pipeline"]: one for one in map(json.loads, run("pipelines", "--json").stdout.splitlines())}
    assert found[TEXT]["takes"] == "text"
    assert {"top_k", "truncation"} <= set(found[TEXT]["params"])
    assert "batch_size" not in found[TEXT]["params"]
    assert found["image-classification"]["takes"] == "image"
    done = run("submit", TEXT, "x", "--params", '{"topk": 1}')
    assert done.exit_code == 6
    assert "takes no parameter 'topk'; did you mean 'top_k'?" in done.stderr
    done = run("submit", "image-classification", "no-such.png")
    assert done.exit_code == 2
    assert "'no-such.png' was taken for the file or URI of an image" in done.stderr


def test_top_shows_what_a_worker_does(here: Client) -> None:
    def looked() -> dict[str, Any]:
        queues = json.loads(run("top", "--once", "--json").stdout)["queues"]
        return next(one for one in queues if one["pipeline"] == TEXT)

    failed = looked()["failed"].get("invalid_params", 0)
    here.submit(TEXT, "x", params={"top_k": "no number"})
    ids = here.submit_many(TEXT, (f"text {n}" for n in range(50)))
    list(here.as_completed(ids, 60))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        (load,) = looked()["load"].values()
        if load.get("batch", 0) > 1 and looked()["failed"].get("invalid_params", 0) == failed + 1:
            break
        time.sleep(0.1)
    assert load["batch"] > 1
    assert 0 < load["busy"] <= 1
    assert looked()["failed"]["invalid_params"] == failed + 1
