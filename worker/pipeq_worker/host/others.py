"""OTHERS: live workers that serve one of this worker's pipelines with another model or other parameters.

    claim (before the first message is taken)          look (with each heartbeat)
    strict, here or there: refuses to start            logs those that have come, and that they have gone

Each worker says in its heartbeat what decides its answers. Who serves beside whom is found in two steps: a name in a
pipeline's sorted set, and a heartbeat that has not lapsed. See docs/decisions/one-name.md.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping

import redis
from pipeq.contract import keys, shown
from pipeq.contract.errors import SettingsError
from pipeq.contract.heartbeat import Beat
from pipeq.contract.unlike import differences

from pipeq_worker.children.served import Served
from pipeq_worker.observe.outage import Episodes

#: What another worker serves is read again after this time: a model on the Hub may have a new commit when its process
#: is started again. In seconds.
KNOWN_S = 60.0


class Others:
    """Finds them with each heartbeat. For use by the heartbeat's thread.

    Args:
        client: Redis.
        worker: this worker's name.
        pipelines: what this worker serves.
    """

    def __init__(self, client: redis.Redis, worker: str, pipelines: Mapping[str, Served]) -> None:
        self._redis = client
        self._worker = worker
        self._pipelines = pipelines
        #: Worker -> what it serves, and when that was read (monotonic clock).
        self._known: dict[str, tuple[Mapping[str, Mapping[str, str]], float]] = {}
        #: Pipeline -> the other workers whose heartbeats are fresh.
        self.alive: Mapping[str, frozenset[str]] = {}
        self._log = Episodes(
            "the same pipeline is served with another model or other parameters than here: %s: %s; a task's answer "
            "depends on who takes it",
            "no longer served otherwise than here: %s",
            "other_model",
        )

    def look(self, alive: Mapping[str, Iterable[bytes]]) -> None:
        """Logs what has changed.

        Args:
            alive: pipeline -> the workers whose heartbeats are fresh.

        Raises:
            RedisError: Redis does not answer.
        """
        self.alive = {
            pipeline: frozenset(one.decode("utf-8", "replace") for one in workers) - {self._worker}
            for pipeline, workers in alive.items()
        }
        names = frozenset().union(*self.alive.values())
        now = time.monotonic()
        self._known = {name: one for name, one in self._known.items() if name in names and now - one[1] < KNOWN_S}
        self._known |= {name: (beat.models, now) for name, beat in _beats(self._redis, names - self._known.keys())}
        wrong: dict[str, str] = {}
        for pipeline, workers in self.alive.items():
            ours = self._pipelines[pipeline].identity
            for name in workers & self._known.keys():
                how = differences(ours, self._known[name][0].get(pipeline, {}))
                if how is not None:
                    wrong[f"{shown.line(pipeline)} by {shown.line(name)}"] = how
        self._log.now(wrong)


def claim(client: redis.Redis, worker: str, pipelines: Mapping[str, Served], *, strict: bool) -> Beat:
    """Says in Redis what this worker is about to serve. Call it before messages are taken.

    Of two workers that claim one name at the same time, Redis serves one first: the later one sees the earlier one, so
    that at least one of two strict workers is refused, and the first one stays. One strict worker is enough.

    Args:
        client: Redis.
        worker: this worker's name.
        pipelines: what it will serve.
        strict: whether to refuse to serve beside others with another model.

    Returns:
        What was said; it has to be repeated until the heartbeat does so.

    Raises:
        SettingsError: a live worker serves a pipeline otherwise, and ``strict`` is set here or there.
        RedisError: Redis does not answer.
    """
    now, names = time.time(), list(pipelines)
    beat = Beat(
        host=socket.gethostname(),
        pid=os.getpid(),
        at=now,
        loading=names,
        models={name: one.identity for name, one in pipelines.items()},
        strict=strict,
    )
    # In one transaction: what it reads are all claims before this one.
    with client.pipeline(transaction=True) as pipe:
        for name in names:
            pipe.zrange(keys.workers_key(name), 0, -1)
            pipe.zrange(keys.loading_key(name), 0, -1)
        register(pipe, worker, beat)
        # A key of another type must not keep the worker from starting; the heartbeat logs it.
        replies = [one if isinstance(one, list) else [] for one in pipe.execute(raise_on_error=False)[: 2 * len(names)]]
    before = {name: {*replies[2 * at], *replies[2 * at + 1]} for at, name in enumerate(names)}
    _check(client, worker, pipelines, before, strict=strict)
    return beat


def register(pipe: redis.client.Pipeline, worker: str, beat: Beat) -> None:
    """Adds the commands that say what a worker is about to serve."""
    pipe.set(keys.worker_key(worker), beat.encode(), ex=int(keys.WORKER_TTL_S))
    for name in beat.loading:
        pipe.zadd(keys.loading_key(name), {worker: time.time()})


def _check(
    client: redis.Redis,
    worker: str,
    pipelines: Mapping[str, Served],
    before: Mapping[str, Iterable[bytes]],
    *,
    strict: bool,
) -> None:
    names = {name.decode("utf-8", "replace") for one in before.values() for name in one} - {worker}
    beats = dict(_beats(client, names))
    for pipeline, workers in before.items():
        for name in sorted(one.decode("utf-8", "replace") for one in workers):
            if (beat := beats.get(name)) is None or not (strict or beat.strict):
                continue
            how = differences(beat.models.get(pipeline, {}), pipelines[pipeline].identity)
            if how is not None:
                whose = "here" if strict else "there"
                raise SettingsError(
                    f"pipeline {pipeline!r}: the worker {shown.line(name)} serves it, and this one would serve it "
                    f"with {how}: give the pipeline another name, or stop that worker first (`strict = true` {whose})"
                )


def _beats(client: redis.Redis, names: Iterable[str]) -> list[tuple[str, Beat]]:
    """The heartbeats of those workers that live."""
    listed = sorted(names)
    raw = client.mget([keys.worker_key(name) for name in listed]) if listed else []
    return [(name, Beat.read(one)) for name, one in zip(listed, raw, strict=True) if one is not None]
