"""Dead letters against a real Valkey: chosen, shown, sent again, dropped, by Python and by the command line."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from pipeq import Client, PipeqError, State
from pipeq.contract import keys
from pipeq.contract.dead_letter import DeadLetter, Letter
from pipeq.contract.errors import ErrorCode
from pipeq.contract.record import LUA
from pipeq.dead import LETTERS_PER_CALL, Choice, DeadLetters, Letters
from pipeq.protocol import Steps
from pipeq.speaking import Speaker

from tests import both_clients
from tests.commands import run
from tests.integration.test_arguments import ODD

A, B = "text-classification", "summarization"
SECRET = "https://user:s3cret@h.example/a.wav?X-Amz-Signature=abcdef012345"


@pytest.fixture(params=both_clients.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipelines() -> tuple[str, ...]:
    return (A, B)


@pytest.fixture
def db(db: redis.Redis, valkey_url: str) -> Iterator[redis.Redis]:
    """It answers with texts."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as db:
        yield db


def fail(
    db: redis.Redis,
    task_id: str,
    pipeline: str = A,
    *,
    code: str = "timeout",
    age_s: float = 0.0,
    attempts: int = 1,
    list_key: str | None = None,
) -> None:
    """Fails a task that waits, as a worker does."""
    message = json.loads(db.rpop(list_key or pipeline))
    assert message["headers"]["id"] == task_id
    at = time.time() - age_s
    error = {"code": code, "message": "why", "retryable": False}
    part = {"pipeline": pipeline, "finished_at": at, "attempts": attempts, "worker": "w1", "error": error, "extra": 1}
    record = {"status": "FAILURE", "result": None, "children": [], "task_id": task_id, "pipeq": part}
    db.set(keys.record_key(task_id), json.dumps(record), ex=60)
    letter = Letter(id=task_id, code=code, reason="why", failed_at=at, attempts=attempts, worker="w1", message=message)
    db.lpush(keys.dead_letter_key(pipeline), letter.encode())


def failed(db: redis.Redis, client: Client, inputs: Any = "x", pipeline: str = A, **about: Any) -> str:
    """Submits a task, and fails it."""
    task_id = client.submit(pipeline, inputs)
    fail(db, task_id, pipeline, **about)
    return task_id


def waiting(db: redis.Redis, pipeline: str = A, priority: int = 0) -> list[str]:
    """The ids of the messages on a list, first served first."""
    return [json.loads(raw)["headers"]["id"] for raw in reversed(db.lrange(keys.list_key(pipeline, priority), 0, -1))]


# -- choosing ---------------------------------------------------------------------------------------------------------

#: Pipeline, code and age in seconds of each letter.
LETTERS = list(itertools.product([A, B], ["timeout", "worker_lost", "invalid_message"], [10.0, 5000.0]))
CHOICES: dict[str, list[Any]] = {
    "pipeline": [None, A, B, "another"],
    "code": [None, "timeout", ["timeout", "worker_lost"], "unheard of"],
    "older_than_s": [None, 0, 1000.0, 10**6],
    "newer_than_s": [None, 0, 1000.0, 10**6],
    "which": [None, [0], [0, 5, 7], []],
}


@pytest.fixture
def letters(db: redis.Redis, client: Client) -> dict[str, tuple[str, str, float]]:
    """A letter of every kind: the task's id -> pipeline, code, age."""
    return {failed(db, client, pipeline=one[0], code=one[1], age_s=one[2]): one for one in LETTERS}


def test_every_choice_is_what_all_of_its_parts_say(client: Client, letters: dict[str, tuple[str, str, float]]) -> None:
    ids = list(letters)
    for pipeline, code, older, newer, which in itertools.product(*CHOICES.values()):
        chosen = None if which is None else [ids[at] for at in which]
        found = client.dead(pipeline, ids=chosen, code=code, older_than_s=older, newer_than_s=newer).list()
        expected = [
            task
            for task, (queue, its_code, age) in letters.items()
            if (pipeline is None or queue == pipeline)
            and (code is None or its_code in ([code] if isinstance(code, str) else code))
            and (older is None or age >= older)
            and (newer is None or age < newer)
            and (chosen is None or task in chosen)
        ]
        # The newest of each queue first.
        by_queue = [task for queue in (B, A) for task in reversed(expected) if letters[task][0] == queue]
        assert [one.task_id for one in found] == by_queue


def test_a_limit_is_a_limit(client: Client, letters: dict[str, Any]) -> None:
    assert [len(client.dead().list(limit)) for limit in (0, 1, 5, None)] == [0, 1, 5, 12]


@pytest.mark.parametrize("count", [1, LETTERS_PER_CALL, LETTERS_PER_CALL + 1, 2 * LETTERS_PER_CALL + 50])
def test_long_lists_are_walked_whole(client: Client, db: redis.Redis, count: int) -> None:
    ids = client.submit_many(A, ["x"] * count, priority=0)
    for task_id in ids:
        fail(db, task_id)
    assert [one.task_id for one in client.dead(A)] == ids[::-1]
    # Every third stays.
    drop = [task for at, task in enumerate(ids) if at % 3]
    if drop:
        assert [one.task_id for one in client.dead(A, ids=drop).drop()] == drop
    assert [one.task_id for one in client.dead(A)] == [task for task in ids if task not in drop][::-1]
    again = client.dead(A).retry()
    assert all(one.refused is None for one in again)
    assert waiting(db) == [task for task in ids if task not in drop]
    assert db.llen(keys.dead_letter_key(A)) == 0


@pytest.mark.parametrize("name", ["pipeline", "ids", "code", "older_than_s", "newer_than_s"])
def test_nonsense_is_refused_by_name(client: Client, name: str) -> None:
    refused = []
    for value in ODD.values():
        try:
            client.dead(**{name: value}).list()
        except PipeqError as error:
            refused.append(error.message)
    assert refused
    assert all(message.isprintable() for message in refused)


def test_a_list_that_is_none_is_empty(client: Client, db: redis.Redis) -> None:
    for put in (lambda key: db.set(key, "x"), lambda key: db.hset(key, "x", "y"), lambda key: db.sadd(key, "x")):
        db.delete(keys.dead_letter_key(A))
        put(keys.dead_letter_key(A))
        assert client.dead().list() == ()
        assert client.dead().retry() == client.dead().drop() == ()


# -- a new life -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", [0, 3, 5, 9])
def test_a_retry_is_a_new_life_under_the_old_id(client: Client, db: redis.Redis, priority: int) -> None:
    task = client.submit(A, "x", priority=priority, expires_s=500)
    fail(db, task, attempts=3, list_key=keys.list_key(A, priority))
    db.hset(keys.RUNNING, task, '{"worker": "", "since": 1, "deaths": 2, "attempt": 3}')
    other = client.submit(A, "y", priority=priority)
    (done,) = client.dead(ids=[task]).retry()
    assert (done.task_id, done.queue, done.refused) == (task, A, None)
    status = client.status(task)
    assert (status.state, status.attempts, status.error) == (State.QUEUED, 3, None)
    assert (status.expires_at, status.finished_at, status.worker) == (None, None, None)
    assert status.submitted_at == pytest.approx(time.time(), abs=5)
    assert waiting(db, priority=priority) == [other, task]
    headers = json.loads(db.lindex(keys.list_key(A, priority), 0))["headers"]
    assert (headers["retries"], headers["past_attempts"], headers["expires"]) == (0, 3, None)
    # What others keep in the record stays, and the record lives as long as that of a task that waits.
    record = json.loads(db.get(keys.record_key(task)))
    assert record["pipeq"]["extra"] == 1
    assert record["result"] is None
    assert db.ttl(keys.record_key(task)) > keys.PENDING_TTL_S - 60
    assert not db.hexists(keys.RUNNING, task)
    assert client.dead().list() == ()


def test_a_task_whose_record_is_gone_can_be_retried(client: Client, db: redis.Redis) -> None:
    task = failed(db, client)
    db.delete(keys.record_key(task))
    assert [one.refused for one in client.dead().retry()] == [None]
    status = client.status(task)
    assert (status.state, status.pipeline, status.attempts) == (State.QUEUED, A, 1)


def test_a_wait_sees_the_new_end(client: Client, db: redis.Redis) -> None:
    task = failed(db, client)
    assert client.wait(task, 0).state is State.FAILED
    client.dead(ids=[task]).retry()
    with ThreadPoolExecutor(1) as pool:
        end = pool.submit(client.wait, task, 30)
        time.sleep(0.2)
        assert not end.done()
        record = json.dumps({"status": "SUCCESS", "result": "new", "task_id": task, "pipeq": {}})
        db.pipeline().set(keys.record_key(task), record).publish(keys.record_key(task), record).execute()
        assert end.result().result == "new"


@pytest.mark.parametrize("celery_state", ["QUEUED", "RETRY", "STARTED", "SUCCESS", "REVOKED"])
def test_what_did_not_fail_is_not_retried(client: Client, db: redis.Redis, celery_state: str) -> None:
    task = failed(db, client)
    db.set(keys.record_key(task), json.dumps({"status": celery_state, "result": 1, "task_id": task, "pipeq": {}}))
    before = db.get(keys.record_key(task))
    (done,) = client.dead().retry()
    assert done.refused is not None
    assert task in done.refused
    assert (waiting(db), db.get(keys.record_key(task)), len(client.dead().list())) == ([], before, 1)
    assert [one.refused for one in client.dead().drop()] == [None]
    assert client.dead().list() == ()


def test_of_many_who_retry_at_once_one_succeeds(client: Client, db: redis.Redis, valkey_url: str) -> None:
    ids = client.submit_many(A, ["x"] * 150, priority=0)
    for task in ids:
        fail(db, task)
    barrier = threading.Barrier(8)

    def retry() -> list[str]:
        with Client(valkey_url) as own:
            barrier.wait()
            return [str(one.task_id) for one in own.dead(A).retry() if one.refused is None]

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(retry) for _ in range(8)]
    assert sorted(itertools.chain.from_iterable(one.result() for one in done)) == sorted(ids)
    assert sorted(waiting(db)) == sorted(ids)


def test_letters_that_others_take_off_the_list_hide_no_others(client: Client, db: redis.Redis, valkey_url: str) -> None:
    ids = client.submit_many(A, ["x"] * 5 * LETTERS_PER_CALL, priority=0)
    for task in ids:
        fail(db, task)
    taken: list[str] = []

    class Meddled(Letters):
        """Somebody else retries the oldest letters whenever a page of them was read."""

        def _read(self, queue: str, first: int, last: int) -> Steps[tuple[DeadLetter, ...]]:
            found = yield from super()._read(queue, first, last)
            with Client(valkey_url) as other:
                some = {str(one.task_id) for one in list(found)[-70:]}
                taken.extend(str(one.task_id) for one in other.dead(A, ids=some).retry() if one.refused is None)
            return found

    choice = Choice.of(A, None, None, None, None)
    with redis.Redis.from_url(valkey_url) as mine:
        own = DeadLetters(Speaker(mine, valkey_url), Meddled(client._steps.pipelines, choice)).retry()
    done = [str(one.task_id) for one in own if one.refused is None]
    assert sorted(done + taken) == sorted(ids)


def test_retries_and_drops_that_race_agree(client: Client, db: redis.Redis, valkey_url: str) -> None:
    ids = client.submit_many(A, ["x"] * 300, priority=0)
    for task in ids:
        fail(db, task)
    barrier = threading.Barrier(4)

    def act(name: str) -> set[str]:
        with Client(valkey_url) as own:
            barrier.wait()
            return {str(one.task_id) for one in getattr(own.dead(A), name)() if one.refused is None}

    with ThreadPoolExecutor(4) as pool:
        done = [(name, pool.submit(act, name)) for name in ("retry", "drop") * 2]
    sets = {name: [end.result() for other, end in done if other == name] for name in ("retry", "drop")}
    retried, dropped = set.union(*sets["retry"]), set.union(*sets["drop"])
    assert sum(map(len, itertools.chain(*sets.values()))) == len(retried | dropped) == 300
    assert set(waiting(db)) == retried
    assert {one.id for one in client.status_many(ids) if one.state is State.FAILED} == dropped


def test_a_record_that_changes_meanwhile_is_read_again(
    client: Client, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = failed(db, client)
    from pipeq import dead

    real, calls = dead._call, []

    def late(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:  # for instance a worker that ends the task with another error
            record = json.loads(db.get(keys.record_key(task)))
            db.set(keys.record_key(task), json.dumps({**record, "other": 1}))
        return real(*args)

    monkeypatch.setattr(dead, "_call", late)
    assert [one.refused for one in client.dead().retry()] == [None]
    assert len(calls) == 2


def test_an_unreadable_letter_can_be_shown_and_dropped_but_not_retried(client: Client, db: redis.Redis) -> None:
    for raw in ("[[[[", json.dumps({"id": None, "code": "invalid_message", "reason": "r", "message": "\x1b[2Jx"})):
        db.lpush(keys.dead_letter_key(A), raw)
    good = failed(db, client)
    done = client.dead().retry()
    assert [one.refused is None for one in done] == [False, False, True]
    assert waiting(db) == [good]
    shown = run("dead", "show", A)
    assert (shown.exit_code, shown.output.count("no message that can be read")) == (0, 2)
    assert "\x1b" not in shown.output
    assert len(client.dead().drop()) == 2


def test_a_list_of_another_type_loses_no_letter(client: Client, db: redis.Redis) -> None:
    task = failed(db, client)
    db.set(A, "no list")
    (done,) = client.dead().retry()
    assert done.refused is not None
    assert "WRONGTYPE" in done.refused
    assert client.status(task).state is State.FAILED
    assert len(client.dead().list()) == 1


def test_a_redis_that_is_full_takes_a_retry(client: Client, db: redis.Redis) -> None:
    task = failed(db, client)
    db.config_set("maxmemory", 1)
    try:
        assert [one.refused for one in client.dead().retry()] == [None]
    finally:
        db.config_set("maxmemory", 0)
    assert waiting(db) == [task]


def test_what_fails_again_while_letters_are_retried_is_not_meant(
    client: Client, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = client.submit_many(A, ["x"] * 20, priority=0)
    for task in ids:
        fail(db, task, age_s=1)
    from pipeq import dead

    monkeypatch.setattr(dead, "LETTERS_PER_CALL", 5)
    real = dead.Letters._revive

    def at_once(*args: Any) -> Any:
        done = yield from real(*args)
        for task in waiting(db):
            fail(db, task)
        return done

    monkeypatch.setattr(dead.Letters, "_revive", at_once)
    assert len(client.dead().retry()) == 20
    assert len(client.dead().list()) == 20


# -- the command line -------------------------------------------------------------------------------------------------


def test_list_is_a_table_of_every_letter(client: Client, letters: dict[str, tuple[str, str, float]]) -> None:
    done = run("dead", "list")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(letters)
    for task, (pipeline, code, _) in letters.items():
        (line,) = (line for line in lines if task in line)
        assert pipeline in line
        assert code in line


def test_list_as_json_is_one_letter_a_line(client: Client, letters: dict[str, tuple[str, str, float]]) -> None:
    found = [json.loads(line) for line in run("dead", "list", A, "--json").stdout.splitlines()]
    assert {one["task_id"]: one["code"] for one in found} == {
        task: code for task, (pipeline, code, _) in letters.items() if pipeline == A
    }
    assert all(one["inputs"] == "x" and one["worker"] == "w1" for one in found)


#: Words of a command line -> which of LETTERS it means, by number.
WORDS: dict[str, Callable[[int], bool]] = {
    "": lambda _: True,
    A: lambda at: LETTERS[at][0] == A,
    f"{A} --code timeout": lambda at: LETTERS[at][:2] == (A, "timeout"),
    "--code timeout --code worker_lost": lambda at: LETTERS[at][1] in ("timeout", "worker_lost"),
    "--older-than 1h": lambda at: LETTERS[at][2] > 3600,
    "--newer-than 60m": lambda at: LETTERS[at][2] < 3600,
    "--older-than 5 --newer-than 1.5h": lambda _: True,
    f"{B} --older-than 1000s --code worker_lost": lambda at: at == 9,
    "ID3": lambda at: at == 3,
    "ID3 ID4": lambda at: at in (3, 4),
    f"{A} ID3 ID9": lambda at: at == 3,
    "LETTER7": lambda at: at == 7,
    "ID3 --code timeout": lambda _: False,
}


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("command", ["list", "show", "retry", "drop"])
def test_every_command_takes_every_choice(
    client: Client, db: redis.Redis, letters: dict[str, tuple[str, str, float]], command: str, words: str
) -> None:
    ids = list(letters)
    own = {str(one.task_id): one.letter for one in client.dead()}
    arguments = [
        ids[int(word[2:])] if word[:2] == "ID" else own[ids[int(word[6:])]] if word[:6] == "LETTER" else word
        for word in words.split()
    ]
    meant = {task for at, task in enumerate(ids) if WORDS[words](at)}
    acts = command in ("retry", "drop")
    has_filter = any(word.startswith(("--", "ID", "LETTER")) for word in words.split())
    if acts and not has_filter:
        refused = run("dead", command, *arguments)
        assert (refused.exit_code, "--all" in refused.stderr) == (2, True)
        arguments.append("--all")
    if command == "drop":
        arguments.append("--yes")
    done = run("dead", command, *arguments, "--json")
    found = {json.loads(line)["task_id"] for line in done.stdout.splitlines()}
    assert found == meant
    asked = {word for word in words.split() if word.startswith(("ID", "LETTER"))}
    assert done.exit_code == (4 if command != "list" and len(asked) > len(meant) else 0)
    gone = meant if acts else set()
    assert {one.task_id for one in client.dead()} == set(ids) - gone
    assert set(waiting(db, A) + waiting(db, B)) == (meant if command == "retry" else set())


def test_people_are_told_how_many(client: Client, db: redis.Redis, letters: dict[str, Any]) -> None:
    ids = list(letters)
    db.set(keys.record_key(ids[0]), '{"status": "SUCCESS", "result": 1, "pipeq": {}}')
    done = run("dead", "retry", ids[0], ids[1])
    assert (done.exit_code, done.stdout) == (1, "1 retried\n")
    assert f"pipeq: refused: {ids[0]}: task {ids[0]} is succeeded now" in done.stderr
    assert run("dead", "drop", ids[0]).stdout == "1 dropped\n"


def test_a_drop_of_many_asks(client: Client, letters: dict[str, Any]) -> None:
    for stdin in ("n\n", ""):
        done = run("dead", "drop", "--all", stdin=stdin)
        assert done.exit_code == 1
        assert "Drop 12 dead letters?" in done.stderr
    assert len(client.dead().list()) == 12
    assert run("dead", "drop", "--all", stdin="y\n").exit_code == 0
    assert client.dead().list() == ()


def test_an_unknown_id_is_said(client: Client, letters: dict[str, Any]) -> None:
    for command in ("show", "retry", "drop"):
        done = run("dead", command, "nobody")
        assert (done.exit_code, done.stderr) == (4, "pipeq: unknown: no dead letter has the id nobody\n")


def test_letters_of_a_forgotten_pipeline_are_found_by_its_name(client: Client, db: redis.Redis) -> None:
    task = failed(db, client)
    db.hdel(keys.PIPELINES, A)
    assert task not in run("dead", "list").stdout
    assert task in run("dead", "list", A).stdout


def test_no_letters_are_said(db: redis.Redis) -> None:
    done = run("dead", "list")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "No dead letters.\n")


def test_more_letters_than_the_limit_are_said(client: Client, letters: dict[str, Any]) -> None:
    done = run("dead", "list", "--limit", "5")
    assert len(done.stdout.splitlines()) == 6
    assert done.stderr == "There are more than 5: --limit shows more of them.\n"


@pytest.mark.parametrize("age", ["", "x", "-1", "1w", "1e9", "99999999999d", "nan"])
def test_an_age_that_is_none_is_refused(age: str) -> None:
    done = run("dead", "list", "--older-than", age)
    assert (done.exit_code, "--older-than" in done.stderr) == (2, True)


def test_no_command_shows_a_secret(client: Client, db: redis.Redis) -> None:
    task = failed(db, client, {"audio": {"uri": SECRET}, "note": SECRET})
    assert client.dead().list()[0].inputs["note"] == SECRET
    for arguments in (("list",), ("list", "--json"), ("show", task), ("show", task, "--json"), ("retry", task)):
        done = run("dead", *arguments)
        assert "s3cret" not in done.output
        assert "abcdef012345" not in done.output
    # The task itself is sent again whole.
    assert SECRET in base64.b64decode(json.loads(db.lindex(A, 0))["body"]).decode()


def test_every_code_of_a_task_can_be_chosen(client: Client, db: redis.Redis) -> None:
    ids = {code: failed(db, client, code=code) for code in ErrorCode}
    for code, task in ids.items():
        assert [one.task_id for one in client.dead(code=code)] == [task]
        assert run("dead", "retry", "--code", code).exit_code == 0
    assert waiting(db) == list(ids.values())


def test_the_script_knows_the_records_names() -> None:
    from pipeq.scripts import source

    assert source("purge").startswith(LUA)
