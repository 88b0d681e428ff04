"""Worker and producer under `deploy/redis-users.acl`: users that may do what they must and no more."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import redis
from celery import Celery, chord

from producers import Client, State
from tests.worker_process import worker

RULES = Path(__file__).parents[2] / "deploy" / "redis-users.acl"
#: The queue that stands in the file for one's own.
QUEUE = "text-classification"


@pytest.fixture
def urls(redis_url: str) -> dict[str, str]:
    """A URL for each user."""
    found = {}
    with redis.Redis.from_url(redis_url, decode_responses=True) as db:
        for line in RULES.read_text().splitlines():
            _, name, *rules = line.split()
            assert db.execute_command("ACL", "SETUSER", name, *rules) == "OK"
            (password,) = (rule[1:] for rule in rules if rule.startswith(">"))
            found[name] = redis_url.replace("redis://", f"redis://{name}:{password}@")
    return found


def test_the_users_of_the_file_can_do_their_work_and_no_more(
    redis_url: str, urls: dict[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "pipelines.toml"
    config.write_text(f'[pipelines.{QUEUE}]\ntask = "constant"\n')
    with (
        worker(tmp_path, urls["pipeq-worker"], "--config", config, lease_s=2, sweep_s=0.5) as process,
        Client(urls["pipeq-producer"]) as client,
        redis.Redis.from_url(redis_url, decode_responses=True) as db,
    ):
        process.wait_ready(client, QUEUE)
        ids = client.submit_many(QUEUE, range(20))
        assert [client.result(task, timeout_s=30) for task in ids] == ["constant"] * 20
        assert client.result(client.submit(QUEUE, 1, delay_s=0.5), timeout_s=30) == "constant"
        assert client.status(ids[0]).state is State.SUCCEEDED
        task = client.submit(QUEUE, 1, delay_s=60)
        assert client.cancel(task).state is State.CANCELLED
        broken = client.submit(QUEUE, 1, params={"nonsense": 2})
        assert client.wait(broken, timeout_s=30).state is State.FAILED
        # What stock Celery needs beside a producer: its own rights, to see that the worker's do for a chord.
        app = Celery(broker=redis_url, backend=redis_url)
        one = app.signature("pipeq.infer", kwargs={"pipeline": QUEUE, "inputs": 1}, queue=QUEUE, immutable=True)
        joined = chord([one, one])(one)
        assert joined.get(timeout=30) == "constant"
        assert app.control.inspect(timeout=2).ping()
        assert [entry["object"] for entry in db.acl_log()] == []
        del joined
        gc.collect()
    assert process.process.returncode == 0
    assert "NOPERM" not in process.text()
    with redis.Redis.from_url(urls["pipeq-worker"]) as own, pytest.raises(redis.exceptions.NoPermissionError):
        own.flushall()
    with redis.Redis.from_url(urls["pipeq-worker"]) as own, pytest.raises(redis.exceptions.NoPermissionError):
        own.get("somebody-else")
    with redis.Redis.from_url(urls["pipeq-producer"]) as own, pytest.raises(redis.exceptions.NoPermissionError):
        own.delete("pipeq:unacked")
