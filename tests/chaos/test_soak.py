"""A soak: mixed traffic, while every process is killed at random, Redis restarts, and the store is slow or away.

At the end there is an exact account: each task that was accepted has one end, the one that it should have, and its
result is right; nothing is left in Redis. And what lived all the time has not grown. `SOAK_MINUTES` in the environment
says how long (`make soak SOAK_MINUTES=60`), `SOAK_FOLDER` where to leave the logs, the ledgers, and `soak.svg`. In a
short soak, other pipelines stand in for the models (stand_ins.py).
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image
from pipeq import Client, PipeqError, State
from pipeq.contract import keys
from pipeq.contract.status import TaskStatus
from pipeq.demo import embedded

from tests import samples as made
from tests import tiny_models
from tests.chaos import stand_ins
from tests.chaos.books import STORY, Ledgers, Log
from tests.chaos.producer import BROKEN, INPUTS, RESULTS, SHARES, STORED, task_of
from tests.chaos.redis_server import Server, server
from tests.chaos.samples import Samples
from tests.parity import assert_same
from tests.proxy import Proxy, proxy
from tests.worker_process import WorkerProcess, worker

MINUTES = float(os.environ.get("SOAK_MINUTES", "0.25"))
#: From this on, what lasts must be flat; a process that has just started grows.
FLAT_MINUTES = 4.0
#: Part of the time in which the processes of the second worker are killed, too. After it they last.
UNREST = 0.3
#: Redis' file is written anew when it has grown to this; otherwise it would take ever longer to start.
REWRITE_BYTES = 64 * 2**20
#: How long all that is left may take to end, in seconds.
SETTLE_S = 300
#: What was seen for so long must be flat, in seconds.
LASTING_S = MINUTES * 60 * (1 - UNREST) * 0.8
PRODUCERS = 3
LEASE_S = 3.0
#: Threads that read results when the account is drawn.
READERS = 8
SETTINGS = {
    "lease_s": LEASE_S,
    "sweep_s": 1,
    "prepare_processes": 1,
    # By chance, a task may meet many kills and many faults of the store.
    "max_deaths": 1_000_000,
    "max_attempts": 1_000_000,
    "retry_backoff_s": 0.3,
    "retry_backoff_max_s": 3,
    "inputs__timeout_s": 5,
    "inputs__max_fetch_s": 15,
}


class Soak:
    """The processes, and what is done to them."""

    def __init__(
        self, folder: Path, config: Path, valkey: Server, store: Proxy, env: dict[str, str], workers_env: dict[str, str]
    ) -> None:
        self.folder, self.valkey, self._store = folder, valkey, store
        self._config, self._env, self._workers_env = config, env, workers_env
        self._stack = ExitStack()
        self.rng = random.Random(int(os.environ.get("SEED") or 1))
        self.log, self.samples = Log(folder / "redis"), Samples()
        self.done: Counter[str] = Counter()
        #: Ids of dead letters that were to be dropped.
        self.dropped: set[str] = set()
        self.client = Client(valkey.url, allow=RESULTS)
        self.workers = [self._worker(), self._worker()]
        self.producers: list[subprocess.Popen[bytes]] = []
        self.ledgers: list[Path] = []
        self.began = time.monotonic()
        #: When things go on as usual, and what is to be done then.
        self._pending: list[tuple[float, Callable[[], object]]] = []
        self.is_away = False

    def __enter__(self) -> Soak:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        for one in self.producers:
            one.kill()
            one.wait()
        self._stack.close()
        self.client.close()
        self.log.close()

    def _worker(self) -> WorkerProcess:
        arguments = ("--config", self._config)
        env = {**SETTINGS, **self._env, **self._workers_env}
        return self._stack.enter_context(worker(self.folder, self.valkey.url, *arguments, **env))

    def produce(self) -> subprocess.Popen[bytes]:
        seed = len(self.ledgers)
        ledger = self.folder / f"ledger-{seed}.jsonl"
        ledger.touch()
        self.ledgers.append(ledger)
        command = [sys.executable, "-m", "tests.chaos.producer", self.valkey.url, str(seed), str(ledger)]
        with (self.folder / f"producer-{seed}.log").open("wb") as out:
            return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **self._env})

    # -- trouble ------------------------------------------------------------------------------------------------------

    def trouble(self, may_hurt_second: bool) -> None:
        """Does one thing to somebody."""
        at = self.rng.randrange(2) if may_hurt_second else 0
        kinds: dict[str, tuple[int, Callable[[], bool]]] = {
            "kill host": (2, self._kill_host),
            "kill device": (4, lambda: self._signal_child(at, "device", signal.SIGKILL)),
            "kill prepare": (4, lambda: self._signal_child(at, "prepare", signal.SIGKILL)),
            "stop host": (2, self._stop_host),
            "stop device": (2, lambda: self._signal_child(at, "device", signal.SIGSTOP)),
            "stop prepare": (1, lambda: self._signal_child(at, "prepare", signal.SIGSTOP)),
            "kill producer": (3, self._kill_producer),
            "restart Redis": (2, self._restart_redis),
            "slow store": (2, self._slow_store),
            "silent store": (2, self._silent_store),
            "lost answer": (2, self._cut_store),
            "letters": (4, self._letters),
        }
        kind = self.rng.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
        if kinds[kind][1]():
            self.done[kind] += 1

    def _kill_host(self) -> bool:
        victim = self.workers[0]
        victim.process.kill()
        victim.process.wait()
        self.workers[0] = self._worker()
        return True

    def _signal_child(self, at: int, role: str, what: signal.Signals) -> bool:
        pids = self.workers[at].roles()[role]
        for pid in pids[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, what)
            if what == signal.SIGSTOP:
                self.later(self.rng.random() * 4, partial(_continue, pid))
        return bool(pids)

    def _stop_host(self) -> bool:
        process = self.workers[0].process
        process.send_signal(signal.SIGSTOP)
        self.later(self.rng.random() * 2 * LEASE_S, partial(_continue, process.pid))
        return True

    def _kill_producer(self) -> bool:
        at = self.rng.randrange(1, len(self.producers))  # the first one lasts
        self.producers[at].kill()
        self.producers[at].wait()
        self.producers[at] = self.produce()
        return True

    def _restart_redis(self) -> bool:
        if self.is_away:
            return False
        self.valkey.kill()
        self.is_away = True

        def start() -> None:
            self.valkey.start()
            self.is_away = False
            self.log.read()
            if self.log.size > REWRITE_BYTES:
                self.valkey.rewrite()

        self.later(self.rng.random() * 2, start)
        return True

    def _slow_store(self) -> bool:
        self._store.delay_s = 0.3
        self.later(5, lambda: setattr(self._store, "delay_s", 0.0))
        return True

    def _silent_store(self) -> bool:
        self._store.is_silent = True
        self.later(self.rng.choice([1.0, 4.0, 8.0]), lambda: setattr(self._store, "is_silent", False))
        return True

    def _cut_store(self) -> bool:
        self._store.answers_left = 0
        self._store.cut() if self.rng.random() < 0.5 else None
        return True

    def _letters(self) -> bool:
        """An operator sends dead letters again, or drops them."""
        if self.is_away:
            return False
        with suppress(PipeqError):
            chosen = self.client.dead(newer_than_s=self.rng.choice([5, 60]))
            if self.rng.random() < 0.7:
                chosen.retry()
            else:
                ids = [one.task_id for one in chosen if one.task_id is not None][:20]
                self.dropped.update(ids)
                self.client.dead(ids=ids).drop()
            return True
        return False

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        self._pending.append((time.monotonic() + seconds, what))

    def heal_what_is_due(self, until: float | None = None) -> None:
        now = time.monotonic() if until is None else until
        due = [what for at, what in self._pending if at <= now]
        self._pending = [one for one in self._pending if one[0] > now]
        for what in due:
            what()

    def heal(self) -> None:
        """From now on nothing is wrong."""
        self.heal_what_is_due(float("inf"))
        self._store.answers_left = None

    # -- looking ------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        found = [("redis", self.valkey.pid), ("producer 0", self.producers[0].pid)]
        for name, one in zip("AB", self.workers, strict=True):
            found.append((f"worker {name} host", one.process.pid))
            found += [(f"worker {name} {role}", pid) for role, pids in one.roles().items() for pid in pids]
        self.samples.take(found)

    def progress(self) -> None:
        self.log.read()
        ends = Counter(story[-1:] for story in self.log.stories.values())
        names = {"S": "succeeded", "F": "failed", "C": "cancelled"}
        said = ", ".join(f"{ends.pop(letter, 0)} {name}" for letter, name in names.items())
        seconds = time.monotonic() - self.began
        print(f"{seconds:5.0f} s: {len(self.log.stories)} tasks: {said}, {sum(ends.values())} open", end="; ")
        print(", ".join(f"{count} {kind}" for kind, count in sorted(self.done.items())), flush=True)


def _continue(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = Path(os.environ.get("SOAK_FOLDER") or tmp_path).resolve() / time.strftime("%Y%m%d-%H%M%S")
    (found / "redis").mkdir(parents=True)
    return found


@pytest.fixture
def soak(folder: Path, tiny: Path, s3_server: embedded.S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Soak]:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)  # the account reads results from the store
    _store_inputs(s3_server)
    models = {"text-classification": "classifier", "image-classification": "vit", "text-generation": "gpt2"}
    workers_env = {}
    if MINUTES < FLAT_MINUTES:
        sections = [f'[pipelines.{name}]\ntask = "constant"\n' for name in models]
        workers_env["PYTHONPATH"] = stand_ins.path(folder)
    else:
        sections = [f'[pipelines.{one}]\nmodel = "{tiny_models.build(model, tiny)}"\n' for one, model in models.items()]
    config = folder / "pipelines.toml"
    config.write_text(
        f'[inputs]\nallow = ["{STORED}"]\n[results]\nallow = ["{RESULTS}"]\n[pipelines.constant]\n' + "".join(sections)
    )
    with (
        _between(s3_server) as (store, env),
        server(folder / "redis", "--auto-aof-rewrite-percentage", "0") as valkey,
        Soak(folder, config, valkey, store, env, workers_env) as soak,
    ):
        yield soak


@contextmanager
def _between(s3: embedded.S3Server) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """A proxy in front of the store, and the variables that lead workers through it."""
    with proxy(s3.endpoint_url + "/") as (between, url):
        env = {name: value.replace(s3.endpoint_url, url.rstrip("/")) for name, value in s3.env().items()}
        yield between, env


def _store_inputs(s3: embedded.S3Server) -> None:
    client = s3.client()
    bucket, _, prefix = STORED.removeprefix("s3://").partition("/")
    images = made.images()
    for number in range(INPUTS):
        data = io.BytesIO()
        image: Image.Image = images[number % len(images)]
        image.resize((40 + number, 40)).save(data, "PNG")
        client.put_object(Bucket=bucket, Key=f"{prefix}{number}.png", Body=data.getvalue())
    client.put_object(Bucket=bucket, Key=f"{prefix}broken.png", Body=b"no image")
    client.close()


#: The account of an hour, of 570,000 tasks on two cores, takes 35 minutes, and more beside other things.
@pytest.mark.timeout(int(MINUTES * 60 * 2.5 + SETTLE_S + 600))
@pytest.mark.filterwarnings("ignore::pipeq.client.NoLiveWorkerWarning")
def test_the_account_is_exact_and_what_lasts_is_flat(soak: Soak) -> None:
    for one in soak.workers:
        one.wait_ready(soak.client, *SHARES)
    want = _right_results(soak.client)
    soak.producers = [soak.produce() for _ in range(PRODUCERS)]
    soak.began = time.monotonic()
    try:
        _trouble(soak)
        soak.heal()
        _settle(soak)
    finally:
        print(soak.samples.table(LASTING_S))
        soak.samples.draw(soak.folder / "soak.svg", LASTING_S)
        print(f"{soak.folder / 'soak.svg'}")
    _check_account(soak, want)
    if MINUTES >= FLAT_MINUTES:
        assert soak.samples.faults(LASTING_S) == []


def _trouble(soak: Soak) -> None:
    end = soak.began + MINUTES * 60
    trouble_at = said_at = looked_at = soak.began
    while (now := time.monotonic()) < end:
        soak.heal_what_is_due()
        if now >= trouble_at:
            soak.trouble(now - soak.began < UNREST * MINUTES * 60)
            trouble_at = now + soak.rng.random() * 3
        if now >= looked_at:
            soak.look()
            looked_at = now + max(1.0, MINUTES / 4)
        if now >= said_at:
            soak.progress()
            said_at = now + 10
        for producer in soak.producers:
            assert producer.poll() is None, "a producer has ended"
        assert soak.workers[1].process.poll() is None, soak.workers[1].text()[-5000:]
        time.sleep(0.1)


def _right_results(client: Client) -> dict[tuple[str, int], Any]:
    """The result of each task, computed in peace."""
    ids = {}
    for pipeline in SHARES:
        for number in range(INPUTS):
            one, params = task_of(pipeline, number)
            ids[pipeline, number] = client.submit(pipeline, one, params=params)
    return {key: client.result(task_id, timeout_s=120) for key, task_id in ids.items()}


def _settle(soak: Soak) -> None:
    """Ends the producers, and waits until all tasks have ended."""
    for producer in soak.producers:
        producer.terminate()
    for producer in soak.producers:
        # One that was killed a moment ago, and started again, may not have taken the signal into its hands yet.
        assert producer.wait(60) in (0, -signal.SIGTERM), "a producer did not end as it should"
    deadline = time.monotonic() + SETTLE_S
    while True:
        soak.log.read()
        if not soak.log.open():
            break
        left = {one: story for one, story in soak.log.stories.items() if story[-1:] not in "SFC"}
        assert time.monotonic() < deadline, f"{len(left)} tasks do not end: {dict(list(left.items())[:10])}"
        time.sleep(0.2)
    soak.progress()


def _check_account(soak: Soak, want: dict[tuple[str, int], Any]) -> None:
    ledgers, stories = Ledgers(soak.ledgers), soak.log.stories
    assert ledgers.errors == []
    assert ledgers.accepted <= set(stories), "accepted, and never seen"
    wrong = {one: story for one, story in stories.items() if not STORY.fullmatch(story)}
    assert wrong == {}, f"ended more than once: {dict(list(wrong.items())[:10])}"
    assert {key: ids for key, ids in ledgers.of_key.items() if len(ids) > 1} == {}, "a key has two tasks"
    ended: Counter[str] = Counter()
    ids = sorted(set(stories) & set(ledgers.wanted))
    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(ids), 500):
            statuses = soak.client.status_many(ids[start : start + 500])
            # Results in the store are read side by side.
            ended.update(readers.map(lambda status: _check_end(soak, ledgers, status, want), statuses))
            if start % 20_000 == 0 and start:
                print(f"{start} of {len(ids)} ends are right", flush=True)
    with redis.Redis.from_url(soak.valkey.url) as db:
        _check_nothing_is_left(db)
        letters = Counter(
            json.loads(one)["id"] for name in SHARES for one in db.lrange(keys.dead_letter_key(name), 0, -1)
        )
    failed = {one for one, story in stories.items() if story.endswith("F")}
    assert set(letters) <= failed
    assert set(letters.values()) <= {1}
    assert failed - set(letters) <= soak.dropped, "a failed task has no dead letter"
    revived = sum("FQ" in story for story in stories.values())
    print(f"{len(stories)} tasks, {dict(ended)}, {revived} sent again after a failure, {len(letters)} dead letters")


def _check_end(soak: Soak, ledgers: Ledgers, status: TaskStatus, want: dict[tuple[str, int], Any]) -> str:
    """Checks that a task has ended as it should. Returns how."""
    pipeline, number, kind = ledgers.wanted[status.id]
    if status.state is State.CANCELLED:
        assert status.id in ledgers.cancelled, status
    elif status.state is State.EXPIRED:
        assert kind == "expires", status
    elif status.state is State.FAILED:
        assert number == BROKEN, status
        assert status.error is not None
        assert status.error.code == "input_undecodable", status
    else:
        assert status.state is State.SUCCEEDED, status
        assert number != BROKEN, status
        result = soak.client.result(status, timeout_s=10) if status.result_uri else status.result
        assert_same(result, want[pipeline, number])
    return str(status.state)


def _check_nothing_is_left(db: redis.Redis) -> None:
    deadline = time.monotonic() + 60
    while True:
        left = {
            key: count
            for name in SHARES
            for key in (*keys.list_keys(name), *map(keys.fair_key, keys.list_keys(name)), keys.waiting_key(name))
            if (count := db.llen(key) if db.type(key) == b"list" else db.zcard(key))
        }
        left |= {key: count for key in (keys.UNACKED, keys.RUNNING) if (count := db.hlen(key))}
        left |= {keys.LEASES: count} if (count := db.zcard(keys.LEASES)) else {}
        if not left:
            return
        assert time.monotonic() < deadline, f"left in Redis: {left}"
        time.sleep(0.1)
