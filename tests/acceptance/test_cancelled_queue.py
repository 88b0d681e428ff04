"""What was cancelled while no worker was up is not run by one that starts later."""

from __future__ import annotations

import time
from pathlib import Path

import redis
from pipeq import Client, State
from pipeq.contract import keys
from pipeq.demo import embedded

from tests.worker_process import worker


def test_a_worker_that_starts_later_runs_none_of_a_thousand(tmp_path: Path) -> None:
    with embedded.valkey() as url, Client(url) as client, redis.Redis.from_url(url) as db:
        ids = client.submit_many("constant", range(1000), check=False, priority=0)
        ids += client.submit_many("constant", range(10), delay_s=0.01, check=False, priority=0)
        assert [one.state for one in client.cancel_many(ids[:300])] == [State.CANCELLED] * 300
        assert len(client.cancel_pipeline("constant")) == len(ids)
        last = client.submit("constant", 1, priority=9, check=False)
        with worker(tmp_path, url, "constant") as process:
            process.wait_ready(client, "constant")
            assert client.result(last, timeout_s=60) == "constant"
            deadline = time.monotonic() + 60
            while (left := client.queues()[0]).depth + left.waiting + db.hlen(keys.UNACKED):
                assert time.monotonic() < deadline, left
                time.sleep(0.1)
        found = client.status_many(ids)
        assert {(one.state, one.worker, one.started_at, one.attempts) for one in found} == {
            (State.CANCELLED, None, None, 0)
        }
        assert (left.dead, db.hlen(keys.RUNNING)) == (0, 0)
        assert "Traceback" not in process.text()
