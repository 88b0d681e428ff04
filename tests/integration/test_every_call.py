"""Every argument of every public call, with values of every kind; and every call, where Redis is away or refuses.

A call takes what it is given, or raises an error of ours that names the argument.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import redis
from pipeq import AsyncClient, Client, PipeqError, RedisUnavailableError, SubmitUnavailableError, WaitTimeoutError
from pipeq.async_client import AsyncDeadLetters
from pipeq.cli import main
from pipeq.contract import keys
from pipeq.contract.job import VERSION
from pipeq.dead import DeadLetters
from pipeq.jobs.async_jobs import AsyncJobs
from pipeq.jobs.jobs import Jobs

from tests import both_clients
from tests.commands import run
from tests.integration.conftest import PIPELINE
from tests.odd import ODD

BOTH = {Client: AsyncClient, Jobs: AsyncJobs, DeadLetters: AsyncDeadLetters}
#: The calls that take no argument, or none that this file walks: they end, or close.
NOTHING: dict[str, Any] = {}
SUBMIT = {"pipeline": PIPELINE, "inputs": "x"}
BULK = {"pipeline": PIPELINE, "inputs": ["x"]}
#: What a call takes, and would wait for.
WAITS = {("Client.events", "timeout_s"): {"none", "int", "float"}}
#: Every call, with arguments that it takes.
CALLS: dict[str, dict[str, Any]] = {
    "Client.close": NOTHING,
    "Client.ping": NOTHING,
    "Client.submit": SUBMIT,
    "Client.submit_many": {**BULK, "full_wait_s": 0.0},
    "Client.submit_each": {**BULK, "full_wait_s": 0.0},
    "Client.map": {**BULK, "return_exceptions": True},
    "Client.cancel": {"task_id": "gone"},
    "Client.cancel_many": {"task_ids": ["gone"]},
    "Client.cancel_pipeline": {"pipeline": PIPELINE},
    "Client.status": {"task_id": "done"},
    "Client.status_many": {"task_ids": ["done"]},
    "Client.wait": {"task_id": "done", "timeout_s": 0.05},
    "Client.as_completed": {"task_ids": ["done"], "timeout_s": 0.05},
    "Client.result": {"task": "done", "timeout_s": 0.05},
    "Client.read": {"part": {"base64": "eA=="}},
    "Client.pipelines": NOTHING,
    "Client.queues": NOTHING,
    "Client.queue": {"pipeline": PIPELINE},
    "Client.events": {"timeout_s": 0.05},
    "Client.purge": {"pipeline": PIPELINE},
    "Client.forget": {"pipeline": "other"},
    "Client.keep_events": {"count": 100},
    "Client.dead": {"pipeline": PIPELINE},
    "Jobs.submit": {**BULK, "job_id": None},
    "Jobs.status": {"job_id": "ended"},
    "Jobs.wait": {"job_id": "ended", "timeout_s": 0.05},
    "Jobs.results": {"job_id": "ended"},
    "Jobs.save": {"job_id": "ended", "results": "{folder}/results.jsonl"},
    "Jobs.cancel": {"job_id": "ended"},
    "Jobs.retry": {"job_id": "ended", "inputs": []},
    "Jobs.list": NOTHING,
    "DeadLetters.list": NOTHING,
    "DeadLetters.retry": NOTHING,
    "DeadLetters.drop": NOTHING,
}
#: Words for an argument, where a message does not have its name.
WORDS = {
    "task_id": ("task id",),
    "task": ("task id",),
    "task_ids": ("task id",),
    "job_id": ("task id", "no job"),
    "part": ("reference", "base64", "read"),
    "ids": ("task id",),
    "inputs": ("input", "JSON", "Ref", "bytes are allowed", "no file matches"),
    "pipeline": ("served",),
    "force": ("served",),
    "results": ("cannot write",),
    "errors": ("cannot write",),
}


def calls(of: type) -> set[str]:
    return {f"{of.__name__}.{name}" for name, one in vars(of).items() if not name.startswith("_") and callable(one)}


def test_the_calls_are_those_walked_here() -> None:
    assert set.union(*map(calls, BOTH)) == CALLS.keys()


@pytest.fixture
def stage(client: Client, db: redis.Redis) -> Client:
    """A client of a Redis in which a task has ended, and a job without rows."""
    record = {"status": "SUCCESS", "result": "x", "task_id": "done", "pipeq": {}}
    db.set(keys.record_key("done"), json.dumps(record))
    db.hset(keys.PIPELINES, PIPELINE, json.dumps({"task": PIPELINE, "jobs": VERSION}))
    client.keep_events(100)
    client.jobs.submit(PIPELINE, [], job_id="ended")
    return client


@pytest.fixture
def answers(db: redis.Redis, valkey_url: str) -> Iterator[None]:
    """Ends every task with a result, as a worker does."""

    def answer() -> None:
        with redis.Redis.from_url(valkey_url) as own:
            while (found := own.brpop(keys.list_keys(PIPELINE), 60))[1] != b"stop":
                task = keys.record_key(json.loads(found[1])["headers"]["id"])
                record = json.dumps({"status": "SUCCESS", "result": "x", "pipeq": {}})
                own.pipeline().set(task, record).publish(task, record).execute()

    worker = threading.Thread(target=answer)
    worker.start()
    yield
    db.lpush(PIPELINE, "stop")
    worker.join(30)


def made(value: Any, folder: Path) -> Any:
    """Arguments with the test's folder, and with a generator of their own."""
    if isinstance(value, str):
        return value.replace("{folder}", str(folder))
    return (n for n in [1]) if inspect.isgenerator(value) else value


def ended(found: Any) -> Any:
    """Takes what a call hands out."""
    return list(itertools.islice(found, 10)) if isinstance(found, Iterator) else found


def target(client: Any, call: str) -> Any:
    owner, _, name = call.partition(".")
    holder = {"Client": lambda: client, "Jobs": lambda: client.jobs, "DeadLetters": lambda: client.dead(PIPELINE)}
    return getattr(holder[owner](), name)


@pytest.mark.filterwarnings("ignore::pipeq.client.NoLiveWorkerWarning")
@pytest.mark.parametrize("call", [name for name in CALLS if CALLS[name] or name == "DeadLetters.list"])
def test_an_argument_is_taken_or_named(
    stage: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, call: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if call == "Client.map":
        request.getfixturevalue("answers")
    method = target(stage, call)
    wrong = []
    for argument, about in inspect.signature(method).parameters.items():
        if about.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        for kind, value in ODD.items():
            if kind in WAITS.get((call, argument), ()):
                continue
            given = {name: made(one, tmp_path) for name, one in {**CALLS[call], argument: value}.items()}
            try:
                found = method(**given)
                ended(found.list() if isinstance(found, DeadLetters) else found)
            except WaitTimeoutError:
                pass  # it was taken
            except PipeqError as error:
                words = (argument, argument.removesuffix("_s"), argument.replace("_", " "), *WORDS.get(argument, ()))
                if not any(word in error.message for word in words):
                    wrong.append(f"{argument}={kind}: does not name it: {error.message[:150]}")
                if not error.message.isprintable() or len(error.message) > 1500:
                    wrong.append(f"{argument}={kind}: {error.message[:100]!r}")
            except Exception as error:
                wrong.append(f"{argument}={kind}: {type(error).__name__}: {str(error)[:150]}")
    assert not wrong, "\n".join(wrong)


# -- Redis does not do it ---------------------------------------------------------------------------------------------


async def awaited(found: Any) -> None:
    """Takes what a call of the asynchronous client hands out."""
    if inspect.isawaitable(found):
        await found
    elif isinstance(found, AsyncIterator):
        async for _ in found:
            pass


def failed(which: str, url: str, call: str, folder: Path) -> PipeqError | None:
    """The error of a call of one of the clients; None if it has none. Nothing else is raised."""
    given = {name: made(one, folder) for name, one in CALLS[call].items()}

    async def main() -> None:
        async with AsyncClient(url) as client:
            await awaited(target(client, call)(**given))

    try:
        if which == "AsyncClient":
            asyncio.run(main())
        else:
            with Client(url) as client:
                ended(target(client, call)(**given))
    except PipeqError as error:
        return error
    return None


@pytest.mark.parametrize("which", both_clients.KINDS)
def test_redis_is_away(tmp_path: Path, closed_port: int, which: str) -> None:
    for call in CALLS.keys() - {"Client.close", "Client.read", "Client.dead"}:
        error = failed(which, f"redis://:secret@127.0.0.1:{closed_port}/0", call, tmp_path)
        assert isinstance(error, RedisUnavailableError | SubmitUnavailableError), call
        assert f"127.0.0.1:{closed_port}" in error.message
        assert "secret" not in error.message
        assert error.retryable


@pytest.mark.parametrize("which", both_clients.KINDS)
def test_redis_does_not_let_this_user_do_it(
    stage: Client, db: redis.Redis, valkey_url: str, tmp_path: Path, which: str
) -> None:
    assert stage.status("done").state == "succeeded"
    db.acl_setuser("nobody", enabled=True, passwords=["+secret"], reset_keys=True, categories=["-@all"])
    try:
        for user, says in (("nobody:secret", "does not let this user do that"), ("nobody:wrong", "password")):
            url = valkey_url.replace("redis://", f"redis://{user}@")
            for call in CALLS.keys() - {"Client.close", "Client.read", "Client.dead"}:
                error = failed(which, url, call, tmp_path)
                assert isinstance(error, RedisUnavailableError | SubmitUnavailableError), (call, error)
                assert says in error.message, (call, error)
                assert user not in error.message
                assert not error.retryable
    finally:
        db.acl_deluser("nobody")


@pytest.mark.filterwarnings("ignore::pipeq.client.NoLiveWorkerWarning")
@pytest.mark.parametrize("which", both_clients.KINDS)
def test_redis_is_full(stage: Client, db: redis.Redis, valkey_url: str, tmp_path: Path, which: str) -> None:
    assert stage.status("done").state == "succeeded"
    before = {key: db.dump(key) for key in db.scan_iter()}
    db.config_set("maxmemory", 1)
    try:
        for call in CALLS:
            error = failed(which, valkey_url, call, tmp_path)
            if call != "Client.forget":  # there is nothing to forget
                assert error is None or "maxmemory" in error.message, (call, error)
            assert error is not None or "submit" not in call
    finally:
        db.config_set("maxmemory", 0)
    assert {key: db.dump(key) for key in db.scan_iter()} == before, "something was written"


@pytest.mark.parametrize("which", both_clients.KINDS)
def test_a_wait_that_redis_refuses_disturbs_no_other(db: redis.Redis, valkey_url: str, which: str) -> None:
    channel = keys.record_key("a")
    db.acl_setuser("few", enabled=True, passwords=["+secret"], keys=["*"], channels=[channel], categories=["+@all"])
    got: list[Any] = []
    try:
        with both_clients.make(which, valkey_url.replace("redis://", "redis://few:secret@")) as client:
            waiting = threading.Thread(target=lambda: got.append(client.result("a", timeout_s=30)))
            waiting.start()
            while db.pubsub_numsub(channel)[0][1] == 0:
                time.sleep(0.01)
            with pytest.raises(PipeqError, match="does not let this user do that"):
                client.wait("b", timeout_s=5)
            record = json.dumps({"status": "SUCCESS", "result": "x", "pipeq": {}})
            db.set(channel, record)
            db.publish(channel, record)
            waiting.join(30)
        assert got == ["x"]
    finally:
        db.acl_deluser("few")


# -- the command line -------------------------------------------------------------------------------------------------

#: Every command of the client, with arguments that it takes.
COMMANDS = {
    "submit": [PIPELINE, "x"],
    "wait": ["done", "--timeout=0.01"],
    "result": ["done"],
    "status": ["done"],
    "cancel": ["done"],
    "job submit": [PIPELINE, "{folder}/rows.txt", "--timeout=0.01"],
    "job status": ["ended"],
    "job wait": ["ended"],
    "job results": ["ended"],
    "job cancel": ["ended"],
    "job retry": ["ended", "{folder}/rows.txt"],
    "job list": [],
    "queues": [],
    "pipelines": [],
    "top": ["--once"],
    "dead list": [PIPELINE],
    "dead show": [PIPELINE, "nobody"],
    "dead retry": [PIPELINE, "--all"],
    "dead drop": [PIPELINE, "--all"],
    "purge": [PIPELINE, "--yes"],
    "forget": ["other"],
    "events": [],
}
#: Commands that start servers, and one that only prints.
NOT_WALKED = {"dev", "demo", "completion", "worker", "doctor", "run"}
#: Values of options, and of arguments.
TEXTS = [
    "",
    "x",
    "-1",
    "0",
    "1",
    "nan",
    "1e999",
    "9" * 400,
    "{",
    "[]",
    "null",
    "\udc80",
    "\x1b[2J\n",
    "x" * 5000,
    "a=b",
    "../x",
]


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        if not before and name in NOT_WALKED:
            continue
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command


def test_the_commands_are_those_walked_here() -> None:
    assert {name for name, _ in commands(main)} == COMMANDS.keys()


def fine(done: Any) -> bool:
    """Whether a command ended with one of its codes, and what it says can be shown."""
    return done.exit_code in range(7) and all(line.isprintable() for line in done.stderr.splitlines())


@pytest.mark.filterwarnings("ignore::pipeq.client.NoLiveWorkerWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_with_a_code_whatever_it_is_given(
    stage: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert stage.status("done").state == "succeeded"
    monkeypatch.chdir(tmp_path)
    Path("rows.txt").write_text("x\n")
    command = dict(commands(main))[name]
    arguments = [made(one, tmp_path) for one in COMMANDS[name]]
    wrong = []
    for option in command.params:
        is_argument = isinstance(option, click.Argument)
        if getattr(option, "is_flag", False) or option.name == "help":
            continue
        for value in TEXTS:
            if is_argument:
                at = [one.name for one in command.params if isinstance(one, click.Argument)].index(option.name)
                given = [*arguments[:at], value, *arguments[at + 1 :]]
            else:
                given = [*arguments, f"{option.opts[0]}={value}"]
            if name == "events" or "--wait" in given:
                given = [*given, "--limit=1"]
            try:
                done = run(*name.split(), *given)
            except Exception as error:
                wrong.append(f"{option.name}={value[:20]!r}: {type(error).__name__}: {str(error)[:200]}")
                continue
            if not fine(done):
                wrong.append(f"{option.name}={value[:20]!r}: {done.exit_code} {done.stderr[:200]!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_that_redis_is_away_or_refuses(
    db: redis.Redis, valkey_url: str, tmp_path: Path, closed_port: int, name: str
) -> None:
    (tmp_path / "rows.txt").write_text("x\n")
    arguments = [made(one, tmp_path) for one in COMMANDS[name]]
    away = f"redis://:secret@127.0.0.1:{closed_port}/0"
    for url in (away, valkey_url.replace("redis://", "redis://nobody:secret@")):
        done = run(*name.split(), *arguments, "--redis-url", url)
        assert done.exit_code == 5, done.output
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "secret" not in done.output
