"""`pipeq` against a real Valkey and S3; the tests write records as a worker does."""

import base64
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from pipeq import Client, State
from pipeq.contract import keys as names
from pipeq.demo.embedded import S3Server

from tests.commands import run
from tests.integration.conftest import PIPELINE
from tests.waiting import within

OOM = {"code": "out_of_memory", "message": "the input\nis too long", "retryable": False}

pytestmark = pytest.mark.usefixtures("db")


def finish(db: redis.Redis, task_id: str, status: str = "SUCCESS", result: Any = None, **ours: Any) -> None:
    """Stores and publishes a record, as a worker does."""
    key = names.record_key(task_id)
    ours = {"pipeline": PIPELINE, **ours}
    record = json.dumps({"status": status, "result": result, "children": [], "task_id": task_id, "pipeq": ours})
    db.pipeline().set(key, record, ex=60).publish(key, record).execute()


class Worker:
    """Takes messages off the queue and ends each as its input says. Runs on a thread that ends with the block."""

    def __init__(self, db: redis.Redis, pipeline: str = PIPELINE) -> None:
        self._db, self._pipeline = db, pipeline
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            popped = self._db.brpop(names.list_keys(self._pipeline), timeout=0.1)
            if popped is None:
                continue
            task = self._read(popped[1])
            match task["kwargs"]["inputs"]:
                case "fail":
                    finish(self._db, task["id"], "FAILURE", error=OOM)
                case "slow":
                    time.sleep(0.3)
                    finish(self._db, task["id"], result="slow, done")
                case "elsewhere":
                    uri = task["kwargs"]["output"]["uri"]
                    finish(self._db, task["id"], result={"uri": uri}, result_uri=uri)
                case "never":
                    pass
                case inputs:
                    finish(self._db, task["id"], result={"got": inputs})

    @staticmethod
    def _read(raw: bytes) -> dict[str, Any]:
        message = json.loads(raw)
        _, kwargs, _ = json.loads(base64.b64decode(message["body"]))
        return {"id": message["headers"]["id"], "kwargs": kwargs}


# -- submit -----------------------------------------------------------------------------------------------------------


def test_submit_prints_an_id_for_each_input(client: Client) -> None:
    done = run("submit", PIPELINE, "A fine film.", "s3://b/k", "--priority", "6", "--expires", "60")
    assert (done.exit_code, done.stderr) == (0, "")
    statuses = client.status_many(done.stdout.split())
    assert [status.state for status in statuses] == [State.QUEUED] * 2
    assert all(status.expires_at for status in statuses)
    assert client.queues()[0].depth == 2


def test_submit_sends_deadline_and_tenant(client: Client, db: redis.Redis) -> None:
    done = run("submit", PIPELINE, "x", "--deadline", "1.5", "--fair-key", "acme")
    assert (done.exit_code, done.stderr) == (0, "")
    headers = json.loads(db.lindex(PIPELINE, 0))["headers"]
    assert (headers["deadline_s"], headers["fair_key"]) == (1.5, "acme")
    for wrong in ("nan", "-1"):
        done = run("submit", PIPELINE, "x", "--deadline", wrong)
        assert done.exit_code != 0
        assert "deadline" in done.stderr


def test_submit_as_json_prints_statuses(client: Client) -> None:
    done = run("submit", PIPELINE, "x", "y", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["state"], line["pipeline"]) for line in lines] == [("queued", PIPELINE)] * 2


def test_an_unknown_pipeline_is_refused(db: redis.Redis) -> None:
    done = run("submit", "text-clasification", "x")
    assert (done.exit_code, done.stdout) == (6, "")
    assert re.fullmatch(r"pipeq: unknown_pipeline: .*text-clasification.*\n", done.stderr)
    assert run("submit", "text-clasification", "x", "--no-check").exit_code == 0


def test_a_message_that_is_too_large_is_refused(db: redis.Redis) -> None:
    done = run("submit", PIPELINE, "-", stdin="x" * 300_000)
    assert done.exit_code == 6
    assert done.stderr.startswith("pipeq: input_too_large: ")


def test_many_results_need_a_prefix(db: redis.Redis) -> None:
    done = run("submit", PIPELINE, "a", "b", "--output", "s3://results/one.json")
    assert (done.exit_code, done.stdout) == (6, "")
    assert run("submit", PIPELINE, "a", "--output", "s3://results/one.json").exit_code == 0


def test_no_live_worker_is_one_plain_line(db: redis.Redis) -> None:
    db.delete(names.workers_key(PIPELINE))
    done = run("submit", PIPELINE, "-", stdin="x\n" * 1200)
    assert done.exit_code == 0
    assert len(done.stdout.split()) == 1200
    assert re.fullmatch(r"pipeq: warning: no worker serves .*\n", done.stderr), done.stderr


def test_wait_prints_results_in_the_order_of_the_inputs(db: redis.Redis) -> None:
    with Worker(db):
        done = run("submit", PIPELINE, "slow", "Zürich", '["a", "b"]', "--wait", "--timeout", "20")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == '"slow, done"\n{"got": "Zürich"}\n{"got": ["a", "b"]}\n'


def test_a_task_that_failed_keeps_its_line(db: redis.Redis) -> None:
    with Worker(db):
        done = run("submit", PIPELINE, "a", "fail", "b", "--timeout", "20")
    assert done.exit_code == 1
    assert done.stdout == '{"got": "a"}\nnull\n{"got": "b"}\n'
    assert re.fullmatch(r"pipeq: out_of_memory: task \S+: the input is too long\n", done.stderr)


def test_wait_as_json_prints_full_statuses(db: redis.Redis) -> None:
    with Worker(db):
        done = run("submit", PIPELINE, "a", "fail", "--wait", "--json", "--timeout", "20")
    good, bad = (json.loads(line) for line in done.stdout.splitlines())
    assert (done.exit_code, done.stderr) == (1, "")
    assert (good["state"], good["result"], good["error"]) == ("succeeded", {"got": "a"}, None)
    assert (bad["state"], bad["error"]["code"]) == ("failed", "out_of_memory")


def test_a_wait_that_times_out_loses_nothing(client: Client, db: redis.Redis) -> None:
    with Worker(db):
        done = run("submit", PIPELINE, "a", "never", "b", "--timeout", "0.7")
    assert done.exit_code == 3
    assert done.stdout == '{"got": "a"}\nnull\n{"got": "b"}\n'
    assert "pipeq: timeout: 1 of 3 tasks" in done.stderr
    (task_id,) = re.findall(r"pipeq: queued: task (\S+) is queued", done.stderr)
    assert client.status(task_id).state is State.QUEUED


def test_a_result_sent_elsewhere_is_only_named(db: redis.Redis) -> None:
    with Worker(db):
        done = run("submit", PIPELINE, "elsewhere", "--output", "s3://nowhere/x.json", "--timeout", "20")
    assert (done.exit_code, done.stdout) == (0, '{"uri": "s3://nowhere/x.json"}\n')


# -- result -----------------------------------------------------------------------------------------------------------


def test_result_prints_the_output(db: redis.Redis) -> None:
    finish(db, "t", result=[{"label": "POSITIVE", "score": 0.5}])
    done = run("result", "t")
    assert (done.exit_code, done.stdout) == (0, '[{"label": "POSITIVE", "score": 0.5}]\n')


def test_result_waits_when_told_to(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")
    assert run("result", task_id).exit_code == 3
    with within(3):
        assert run("result", task_id, "--timeout", "0.3").exit_code == 3
    later = threading.Timer(0.3, lambda: finish(db, task_id, result="done"))
    later.start()
    done = run("result", task_id, "--wait")
    later.join()
    assert (done.exit_code, done.stdout) == (0, '"done"\n')


def test_a_result_in_a_store_is_fetched(db: redis.Redis, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env().items():
        if value:
            monkeypatch.setenv(name, value)
    s3_server.client().put_object(Bucket="results", Key="a b/ü.json", Body=b'{"text": "hello"}')
    finish(db, "t", result={"uri": "s3://results/a b/ü.json"}, result_uri="s3://results/a b/ü.json")
    done = run("result", "t", "--allow", "s3://results/")
    assert (done.exit_code, done.stdout) == (0, '{"text": "hello"}\n'), done.output
    assert run("result", "t").exit_code == 1
    for allow in ("s3://others/, s3://results/a b/", '["s3://results/a b/"]'):
        monkeypatch.setenv("PIPEQ_CLIENT_ALLOW", allow)
        assert run("result", "t").stdout == done.stdout


def test_a_result_that_cannot_be_read_is_said(db: redis.Redis, tmp_path: Path) -> None:
    finish(db, "t", result_uri=(tmp_path / "gone.json").as_uri())
    done = run("result", "t", "--allow", tmp_path.as_uri())
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.fullmatch(r"pipeq: output_failed: .*gone\.json.*\n", done.stderr)


@pytest.mark.parametrize(
    ("status", "ours", "code", "says"),
    [
        ("FAILURE", {"error": OOM}, 1, r"out_of_memory: task t: the input is too long"),
        ("REVOKED", {}, 1, r"cancelled: task t is cancelled"),
        ("QUEUED", {"expires_at": 1.0}, 1, r"expired: task t is expired"),
        ("QUEUED", {}, 3, r"queued: task t is queued"),
        ("RETRY", {}, 3, r"retrying: task t is retrying"),
    ],
)
def test_no_result_is_said_and_coded(db: redis.Redis, status: str, ours: dict[str, Any], code: int, says: str) -> None:
    finish(db, "t", status, **ours)
    done = run("result", "t")
    assert (done.exit_code, done.stdout) == (code, "")
    assert re.fullmatch(f"pipeq: {says}\n", done.stderr)


@pytest.mark.parametrize("options", [[], ["--timeout", "0.2"]])
def test_the_result_of_an_unknown_id(db: redis.Redis, options: list[str]) -> None:
    done = run("result", "never-seen", *options)
    assert (done.exit_code, done.stdout) == (4, "")
    assert "never-seen was never seen" in done.stderr


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_shows_a_block_for_each_task(client: Client, db: redis.Redis) -> None:
    queued = client.submit(PIPELINE, "x")
    finish(db, "t", "FAILURE", error=OOM)
    done = run("status", queued, "t")
    assert re.search(rf"^{queued}  queued\n  pipeline   {PIPELINE}\n  submitted  20\d\d-", done.stdout)
    assert "t  failed\n" in done.stdout
    assert done.exit_code == 1


def test_status_as_json_is_one_line_each(db: redis.Redis) -> None:
    finish(db, "t", result=1)
    done = run("status", "t", "never-seen", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(task["id"], task["state"], task["result"]) for task in found] == [
        ("t", "succeeded", 1),
        ("never-seen", "unknown", None),
    ]


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["SUCCESS"], 0),
        (["SUCCESS", "SUCCESS"], 0),
        (["SUCCESS", "FAILURE"], 1),
        (["QUEUED"], 3),
        (["STARTED", "SUCCESS"], 3),
        (["QUEUED", "REVOKED"], 1),
        (["FAILURE", None, "QUEUED"], 4),
    ],
)
def test_the_exit_code_of_several_tasks(db: redis.Redis, states: list[str | None], code: int) -> None:
    for index, state in enumerate(states):
        if state:
            finish(db, f"t{index}", state)
    assert run("status", *(f"t{index}" for index in range(len(states)))).exit_code == code


# -- cancel -----------------------------------------------------------------------------------------------------------


def test_cancel_takes_tasks_back(client: Client) -> None:
    ids = client.submit_many(PIPELINE, ["a", "b"])
    done = run("cancel", *ids)
    assert (done.exit_code, done.stdout) == (0, "".join(f"{task_id}  cancelled\n" for task_id in ids))
    assert [status.state for status in client.status_many(ids)] == [State.CANCELLED] * 2


def test_cancel_says_what_it_could_not(client: Client, db: redis.Redis) -> None:
    task_id = client.submit(PIPELINE, "x")
    finish(db, "t", result=1)
    done = run("cancel", "t", task_id)
    assert (done.exit_code, done.stdout) == (1, f"t  succeeded\n{task_id}  cancelled\n")
    assert json.loads(run("cancel", "t", "--json").stdout)["result"] == 1


# -- queues -----------------------------------------------------------------------------------------------------------


def test_queues_is_a_table(client: Client) -> None:
    client.submit_many(PIPELINE, ["a", "b"])
    done = run("queues")
    assert done.exit_code == 0
    header, row = done.stdout.strip().splitlines()
    assert header.split()[:3] == ["pipeline", "depth", "waiting"]
    assert row.split() == [PIPELINE, "2", "0", "0", "s", "0", "0", "-", "1", "0", "0", "-"]


def test_queues_as_json(client: Client) -> None:
    client.submit(PIPELINE, "a")
    queue = json.loads(run("queues", "--json").stdout)
    assert queue.pop("oldest_age_s") >= 0
    assert queue == {
        "pipeline": PIPELINE,
        "depth": 1,
        "waiting": 0,
        "in_flight": 0,
        "workers": 1,
        "dead": 0,
        "deaf": {},
        "unlike": {},
        "running": 0,
        "drain_s": None,
        "loading": 0,
        "costs": {},
        "load": {},
        "failed": {},
    }


def test_queues_shows_what_workers_have_measured(client: Client, db: redis.Redis) -> None:
    """Only numbers are believed: any client may have written the heartbeat."""
    costs = {"launch_s": 0.01, "cost_s": 1e-4, "task_s": 0.02, "max_batch_cost": 1024, "memory_limit": "much", "x": 1}
    db.set(names.worker_key("w1"), json.dumps({"costs": {PIPELINE: costs, "other": 5}}))
    queue = json.loads(run("queues", "--json").stdout)
    assert queue["costs"] == {"w1": {"launch_s": 0.01, "cost_s": 1e-4, "task_s": 0.02, "max_batch_cost": 1024}}
    assert run("queues").stdout.strip().splitlines()[1].split()[-2:] == ["20", "ms"]
    for wrong in (None, 5, [], {"task_s": "fast"}, {"task_s": -1}, {"task_s": True}):
        db.set(names.worker_key("w1"), json.dumps({"costs": {PIPELINE: wrong}}))
        assert json.loads(run("queues", "--json").stdout)["costs"] == {}


def test_no_queues_at_all(db: redis.Redis) -> None:
    db.flushdb()
    done = run("queues")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "No worker" in done.stderr


# -- as a process -----------------------------------------------------------------------------------------------------


def test_a_pipe_of_commands(db: redis.Redis) -> None:
    with Worker(db):
        done = subprocess.run(
            [sys.executable, "-m", "pipeq", "submit", PIPELINE, "-", "--timeout", "30"],
            input="a\nb\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == '{"got": "a"}\n{"got": "b"}\n'


def test_the_console_script_is_installed() -> None:
    script = Path(sys.executable).with_name("pipeq")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.partition(",")[0]) == (0, "pipeq")
