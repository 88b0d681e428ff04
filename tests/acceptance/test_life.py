"""The life of tasks in any order of steps: submits, takes, ends, crashes, retries, cancels, purges, lost answers.

hypothesis puts the steps in order; clients, two worker hosts (tests/host.py) and the Valkey are real. After each step,
every task is in exactly one place that leads to an end, and what was published of it is the story of a task: each life
ends once, and only a failed task gets a new one. At the end of each example all that is left runs to its end.

`EXAMPLES` in the environment says how many examples (`make long EXAMPLES=2000`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, ClassVar

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from kombu.asynchronous import set_event_loop
from kombu.exceptions import OperationalError
from pipeq import Client, State
from pipeq.contract import bare, keys, record
from pipeq.contract.errors import PipeqError, RedisUnavailableError
from pipeq.contract.record import HISTORY_MAX
from pipeq.demo import embedded
from pipeq_worker.delivery.delivery import Delivery

from tests.host import Host, Loop
from tests.proxy import Proxy, proxy

EXAMPLES = int(os.environ.get("EXAMPLES", "25"))
STEPS = 40
PIPELINE = "it"
ENDS = {"SUCCESS", "FAILURE", "REVOKED"}
#: What is published of a task, in order: Queued again, Retry, Success, Failure, revoked by Cancel, expiry or purge.
STORY = re.compile(r"(R*FQ)*R*[SFC]?")
LETTERS = {"QUEUED": "Q", "RETRY": "R", "SUCCESS": "S", "FAILURE": "F", "REVOKED": "C"}
#: Turns in which all that is left must have ended.
TURNS = 60


def where(is_so: Callable[[Life], bool]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A step that does nothing unless this is so.

    No precondition, because hypothesis draws the steps of a story anew and wants the same ones; what is so depends on
    clocks and threads, too.
    """

    def decorate(step: Callable[..., None]) -> Callable[..., None]:
        @wraps(step)
        def may(self: Life, **drawn: Any) -> None:
            if is_so(self):
                step(self, **drawn)

        return may

    return decorate


which = st.integers(0, 1)
chosen = st.integers(0, 50)


class Life(RuleBasedStateMachine):
    """See the module."""

    url: ClassVar[str]
    between: ClassVar[Proxy]
    through: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.db = redis.Redis.from_url(self.url)
        self.db.flushdb()
        self.listener = self.db.pubsub(ignore_subscribe_messages=True)
        self.listener.psubscribe(f"{keys.record_key('')}*", "mark")
        self.between.answers_left = None
        self.client = Client(self.through)
        #: None while a host has not been needed; making one takes longer than most steps.
        self.hosts: list[Host | None] = [None, None]
        self.loop = Loop()
        set_event_loop(self.loop)
        self.ids: list[str] = []
        self.named: dict[tuple[str, bool], str] = {}
        #: Id -> what was published of it.
        self.story: dict[str, str] = defaultdict(str)
        self.attempts: dict[str, int] = defaultdict(int)
        self.dropped: Counter[str] = Counter()
        #: Names of hosts that died.
        self.dead: list[str] = []
        self.is_sound = True

    def host(self, at: int) -> Host:
        if (found := self.hosts[at]) is None:
            lost, self.between.answers_left = self.between.answers_left, None
            found = self.hosts[at] = Host(self.through, PIPELINE, retry_backoff_s=1000)
            self.between.answers_left = lost
        return found

    def has_host(self) -> bool:
        return any(one is not None and one.leases.held()[0] for one in self.hosts)

    def has_tasks(self) -> bool:
        if not self.ids:
            with away():
                self.ids += self.client.submit_many(PIPELINE, ["x"], check=False)
        return bool(self.ids)

    def has_letters(self) -> bool:
        return any("F" in one for one in self.story.values())

    # -- producers ----------------------------------------------------------------------------------------------------

    @rule(
        kind=st.sampled_from(["plain", "plain", "plain", "fair", "late", "expiring", "expired", "delayed"]),
        count=st.integers(1, 4),
        priority=st.sampled_from([0, 0, 6]),
    )
    def submit(self, kind: str, count: int, priority: int) -> None:
        more: dict[str, Any] = {
            "plain": {},
            "fair": {"fair_key": f"tenant{count % 2}"},
            "late": {"expires_s": 3600},
            "expiring": {"expires_s": 0.03},
            "expired": {"expires_s": 0.0001},
            "delayed": {"delay_s": 3600},
        }[kind]
        with away():
            self.ids += self.client.submit_many(PIPELINE, ["x"] * count, priority=priority, check=False, **more)

    @rule(count=st.integers(1, 3), priority=st.sampled_from([0, 6]), is_fair=st.booleans())
    def push(self, count: int, priority: int, is_fair: bool) -> None:
        """Another program pushes bare objects, with their first records (docs/any-language.md)."""
        for _ in range(count):
            task_id = str(uuid.uuid4())
            message = {"id": task_id, "pipeline": PIPELINE, "inputs": {"id": "x"}}
            if is_fair:
                message = {"fair_key": f"tenant{count % 2}", **message}
            part = record.Part(pipeline=PIPELINE, submitted_at=time.time())
            with self.db.pipeline() as pipe:
                pipe.set(keys.record_key(task_id), record.queued(task_id, part), ex=keys.PENDING_TTL_S)
                pipe.lpush(keys.list_key(PIPELINE, priority), json.dumps(message)).execute()
            self.ids.append(task_id)

    @rule(name=st.sampled_from("ab"), is_key=st.booleans())
    def submit_named(self, name: str, is_key: bool) -> None:
        how = {"idempotency_key": name} if is_key else {"task_id": f"own-{name}"}
        before = self.named.get((name, is_key))
        is_held = before is not None and (not is_key or self.state(before) not in {"FAILURE", "REVOKED"})
        with away():
            found = self.client.submit(PIPELINE, name, check=False, **how)
            assert (found == before) == is_held, (found, before)
            if not is_held:
                self.ids.append(found)
                self.named[name, is_key] = found

    @rule(at=chosen, count=st.integers(1, 3))
    @where(has_tasks)
    def cancel(self, at: int, count: int) -> None:
        some = [self.pick(at + more) for more in range(count)]
        with away():
            assert all(one.is_final for one in self.client.cancel_many(some))

    @rule()
    @where(has_tasks)
    def cancel_pipeline(self) -> None:
        with away():
            self.client.cancel_pipeline(PIPELINE)

    @rule()
    @where(has_tasks)
    def purge(self) -> None:
        with away():
            self.client.purge(PIPELINE)

    @rule(at=chosen, all_of_them=st.booleans())
    @where(has_letters)
    def revive(self, at: int, all_of_them: bool) -> None:
        with away():
            self.client.dead(PIPELINE, ids=None if all_of_them else [self.pick(at)]).retry()

    @rule(at=chosen)
    @where(has_letters)
    def drop_letters(self, at: int) -> None:
        before = self.letters()
        with away():
            self.client.dead(PIPELINE, ids=[self.pick(at)]).drop()
        self.dropped += before - self.letters()

    def pick(self, at: int) -> str:
        return self.ids[at % len(self.ids)]

    # -- workers ------------------------------------------------------------------------------------------------------

    @rule(host=which)
    @where(has_tasks)
    def take_while_redis_goes_away(self, host: int) -> None:
        one = self.host(host)

        def go_away() -> None:
            self.between.is_closed = True
            self.between.cut()

        with away():
            one.take(1, go_away)
        self.between.is_closed = False

    @rule(host=which, most=st.integers(1, 5), begins=st.booleans())
    @where(has_tasks)
    def take(self, host: int, most: int, begins: bool) -> None:
        one = self.host(host)
        with away():
            one.take(most)
        for task in one.hands.waiting if begins else ():
            with away():
                one.hands.begin(task)

    @rule(host=which, at=chosen)
    def begin(self, host: int, at: int) -> None:
        for one in self.waiting(host, at):
            with away():
                self.host(host).hands.begin(one)

    @rule(host=which, at=chosen, outcome=st.sampled_from(["result", "result", "again", "again", "failure"]))
    def finish(self, host: int, at: int, outcome: str) -> None:
        """Also of a task whose message another worker has by now."""
        for one in self.begun(host, at):
            self.end(self.host(host), one, outcome)

    @rule(host=which, at=chosen, outcome=st.sampled_from(["again", "failure"]), taker=which)
    def finish_slowly(self, host: int, at: int, outcome: str, taker: int) -> None:
        """Its end is stored, and it is sent again and taken by a worker, before its own one lets go of it."""
        one = self.host(host)

        def meanwhile() -> None:
            one.between = lambda: None
            with away():
                self.client.dead(PIPELINE).retry()
            self.all_due()
            with away():
                self.host(taker).move_due()
            with away():
                self.host(taker).take(3)

        for task in self.begun(host, at):
            one.between = meanwhile
            self.end(one, task, outcome)
        one.between = lambda: None

    @rule(host=which, at=chosen, outcome=st.sampled_from(["again", "failure"]))
    def cannot_begin(self, host: int, at: int, outcome: str) -> None:
        """An input is away, or is no input."""
        for one in self.waiting(host, at):
            self.end(self.host(host), one, outcome)

    @rule(host=which, at=chosen)
    def child_dies(self, host: int, at: int) -> None:
        for one in self.begun(host, at):
            with away():
                self.host(host).hands.child_died(one)

    @rule(host=which)
    def look(self, host: int) -> None:
        self.begun(host, 0)
        with away():
            self.host(host).hands.look()

    @rule(host=which)
    def give_back(self, host: int) -> None:
        self.waiting(host, 0)
        with away():
            self.host(host).give_back(1)

    @rule(host=which)
    @where(has_host)
    def stop(self, host: int) -> None:
        with away():
            self.host(host).stop()
        self.hosts[host] = None

    @rule(host=which)
    @where(has_host)
    def crash(self, host: int) -> None:
        self.host(host).die()
        self.dead.append(self.host(host).name)
        self.hosts[host] = None

    @rule(host=which)
    @where(has_host)
    def freeze(self, host: int) -> None:
        """A host stops for longer than its leases and its heartbeat last. Each later step of it is one too late."""
        self.lapse(list(self.host(host).leases._held))
        self.db.delete(keys.worker_key(self.host(host).name))

    @rule(host=which, are_dead=st.booleans())
    def time_passes(self, host: int, are_dead: bool) -> None:
        """The leases that nobody renews lapse, perhaps the heartbeats of dead hosts, too; a host notices."""
        held = {tag.encode() for one in self.hosts if one is not None for tag in one.leases._held}
        self.lapse([tag for tag in self.db.hkeys(keys.UNACKED) if tag not in held])
        if are_dead:
            self.heartbeats_lapse()
        with away():
            self.host(host).sweep()

    @rule(host=which)
    @where(has_host)
    def renew(self, host: int) -> None:
        with away():
            self.host(host).renew()
            self.host(host).beat()

    @rule(host=which)
    @where(has_tasks)
    def become_due(self, host: int) -> None:
        self.all_due()
        with away():
            self.host(host).move_due()

    @rule(host=which)
    @where(has_host)
    def reconnect(self, host: int) -> None:
        with away():
            self.host(host).reconnect()

    @rule(host=which, may_receive=st.booleans())
    def receive_suspects(self, host: int, may_receive: bool) -> None:
        """A task that is as suspect begins, or ends."""
        self.host(host).hands.may_receive = may_receive
        with away():
            self.loop.turn()

    @rule()
    def cut(self) -> None:
        self.between.cut()

    @rule(after=st.integers(0, 4))
    def lose_an_answer(self, after: int) -> None:
        """A command is executed, and whoever sent it does not hear so."""
        self.between.answers_left = after

    def end(self, host: Host, one: Delivery, outcome: str) -> None:
        if outcome == "again":
            one.fail(PipeqError("input_unavailable", "the store is away", True))
        elif outcome == "failure":
            one.fail(PipeqError("inference_failed", "broken", False))
        with away():
            host.hands.end(one)

    def waiting(self, host: int, at: int) -> list[Delivery]:
        """A task that has not begun, of this host; it takes one if it has none. None if it gets none."""
        one = self.host(host)
        if not one.hands.waiting:
            if not self.db.llen(PIPELINE):
                self.submit("plain", 1, 0)
            with away():
                one.take(1)
        return _one_of(one.hands.waiting, at)

    def begun(self, host: int, at: int) -> list[Delivery]:
        """A task that has begun, of this host; one begins if none has. None if none can."""
        one = self.host(host)
        if not one.hands.begun:
            for task in self.waiting(host, at):
                with away():
                    one.hands.begin(task)
        return _one_of(one.hands.begun, at)

    def heartbeats_lapse(self) -> None:
        for name in self.dead:
            self.db.delete(keys.worker_key(name))
        self.dead = []

    def lapse(self, tags: Iterable[str | bytes]) -> None:
        if lapsed := dict.fromkeys(tags, 1):
            self.db.zadd(keys.LEASES, lapsed, xx=True)

    def all_due(self) -> None:
        key = keys.waiting_key(PIPELINE)
        if found := self.db.zrange(key, 0, -1):
            self.db.zadd(key, dict.fromkeys(found, 1))

    # -- what Redis says ----------------------------------------------------------------------------------------------

    def state(self, task_id: str) -> str:
        return str(json.loads(self.db.get(keys.record_key(task_id)) or b'{"status": ""}')["status"])

    def letters(self) -> Counter[str]:
        return _ids_of_letters(self.db.lrange(keys.dead_letter_key(PIPELINE), 0, -1))

    def look_up(self) -> None:
        """Reads all of it in one step."""
        lists = keys.list_keys(PIPELINE)
        with self.db.pipeline() as pipe:
            for name in lists:
                pipe.lrange(name, 0, -1).zrange(keys.fair_key(name), 0, -1)
            pipe.zrange(keys.waiting_key(PIPELINE), 0, -1)
            pipe.hgetall(keys.UNACKED).zrange(keys.LEASES, 0, -1)
            pipe.lrange(keys.dead_letter_key(PIPELINE), 0, -1)
            pipe.mget([keys.record_key(one) for one in ("", *self.ids)])
            *waiting, later, unacked, leases, letters, records = pipe.execute()
        found: dict[str, list[str]] = defaultdict(list)
        for at, texts in enumerate(waiting):
            start, where = (keys.FAIR_NUMBER_DIGITS, "fair") if at % 2 else (0, "list")
            for text in texts:
                found[_id_in(text[start:])].append(where)
        for text in later:
            found[_id_in(json.loads(text)["message"])].append("waiting")
        for text in unacked.values():
            size, _, rest = text.partition(b":")
            found[_id_in(rest[int(size) :])].append("unacked")
        assert set(unacked) == set(leases)
        #: Id -> where its message lies; and its record; ids of the dead letters.
        self.places, self.letters_now = found, _ids_of_letters(letters)
        self.records = dict(zip(self.ids, records[1:], strict=True))

    def hear(self) -> None:
        """Reads what was published since."""
        self.db.publish("mark", "")
        for message in self.listener.listen():
            if message["channel"] == b"mark":
                return
            task_id = message["channel"].decode().removeprefix(keys.record_key(""))
            fields = json.loads(message["data"])
            self.story[task_id] += LETTERS[fields["status"]]
            attempts = fields["pipeq"].get("attempts", 0)
            assert attempts >= self.attempts[task_id], (
                f"{task_id} had {self.attempts[task_id]} attempts, now {attempts}"
            )
            self.attempts[task_id] = attempts

    # -- what must be true --------------------------------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        self.is_sound = False
        self.hear()
        self.look_up()
        places, letters = self.places, self.letters_now
        assert set(places) | set(letters) | set(self.story) <= set(self.ids)
        for task_id in self.ids:
            record = self.records[task_id]
            assert record is not None, f"{task_id} has no record"
            state, story, where = json.loads(record)["status"], self.story[task_id], places.get(task_id, [])
            assert STORY.fullmatch(story), f"{task_id}: {story}"
            if state in ENDS:
                assert story.endswith(LETTERS[state]), f"{task_id} is {state}, and {story!r} was published"
                assert len(where) <= 1, f"{task_id} is {state}, and its message lies in {where}"
            else:
                assert story[-1:] not in ("S", "F", "C"), f"{task_id} is {state}, and {story!r} was published"
                assert len(where) == 1, f"{task_id} is {state}, and its message lies in {where}"
            want = story.count("F") - story.count("Q") - self.dropped[task_id]
            assert letters[task_id] == want, f"{task_id}: {story!r}, {letters[task_id]} letters"
        self.is_sound = True

    def teardown(self) -> None:
        try:
            if self.is_sound:
                self.between.answers_left = None
                self.run_to_the_end()
        finally:
            for one in filter(None, self.hosts):
                one.die()
            set_event_loop(None)
            self.listener.close()
            self.client.close()
            self.db.close()

    def run_to_the_end(self) -> None:
        """All that is left is done, by both hosts; nothing goes wrong any more."""
        for turn in range(TURNS):
            self.time_passes(turn % 2, True)
            for host in filter(None, self.hosts):
                host.hands.may_receive = True
                self.loop.turn()
                host.renew()
                host.beat()
                self.all_due()
                host.move_due()
                host.take(100)
                for one in host.hands.waiting:
                    host.hands.begin(one)
                for one in host.hands.begun:
                    host.hands.end(one)
            self.all_is_well()
            if not self.places:
                break
        assert self.places == {}, "messages are left"
        assert not any(host.hands.has_claim for host in self.hosts if host is not None), "no task with deaths may run"
        assert self.db.hgetall(keys.RUNNING) == {}, "marks are left"
        for status in self.client.status_many(self.ids):
            assert status.is_final, status
            told = f"{self.story[status.id]}: {status!r}"
            if status.attempts <= HISTORY_MAX:
                assert len(status.history) == status.attempts, told
            else:
                assert len(status.history) >= HISTORY_MAX, told
            if status.state is State.SUCCEEDED:
                assert status.error is None


def _one_of(tasks: list[Delivery], at: int) -> list[Delivery]:
    return [tasks[at % len(tasks)]] if tasks else []


def _id_in(message: bytes | str) -> str:
    return str(bare.id_in(message))


def _ids_of_letters(letters: list[bytes]) -> Counter[str]:
    return Counter(json.loads(one)["id"] for one in letters)


@contextmanager
def away() -> Iterator[None]:
    """A step may fail because Redis is away: a thread of a worker goes on then, and a caller tries again."""
    with suppress(redis.RedisError, RedisUnavailableError, OperationalError):
        yield


@pytest.fixture
def servers() -> Iterator[None]:
    with embedded.valkey() as Life.url, proxy(Life.url) as (Life.between, Life.through):
        yield


@pytest.mark.timeout(600 + 5 * EXAMPLES)
@pytest.mark.filterwarnings("ignore::pipeq.client.NoLiveWorkerWarning")
def test_every_task_ends_exactly_once(servers: None, caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    caplog.set_level(logging.CRITICAL)
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    print(f"{EXAMPLES} examples in {time.monotonic() - began:.0f} s")
