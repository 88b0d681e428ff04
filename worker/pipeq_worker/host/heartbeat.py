"""A worker's heartbeat in Redis: its pipelines, its host, and its load. It also puts due retries on their queues."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import redis
from pipeq.contract import keys, shown
from pipeq.contract.heartbeat import Beat
from redis.exceptions import RedisError

from pipeq_worker.children.served import Served
from pipeq_worker.delivery.retries import Retries
from pipeq_worker.host.health import Health
from pipeq_worker.host.others import Others
from pipeq_worker.leases.receiving import Receiving
from pipeq_worker.observe.outage import Episodes, is_wrong_type, outage
from pipeq_worker.observe.rates import Rates

logger = logging.getLogger(__name__)


class Heartbeat:
    """A thread that the runtime owns."""

    def __init__(
        self,
        client: redis.Redis,
        worker: str,
        pipelines: Mapping[str, Served],
        counts: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]],
        costs: Callable[[], dict[Hashable, dict[str, Any]]],
        retries: Retries,
        waiting: Iterable[str],
        receiving: Receiving,
        health: Health,
        rates: Rates,
        *,
        strict: bool = False,
    ) -> None:
        self._strict = strict
        self._redis = client
        self._worker = worker
        self._pipelines = pipelines
        #: Returns the number of tasks inside, and of those that run, for each pipeline.
        self._counts = counts
        #: Pipeline -> what its forward passes take.
        self._costs = costs
        self._retries = retries
        #: Queues whose waiting messages are put back when they are due.
        self._waiting = list(waiting)
        self._receiving = receiving
        self._health = health
        self._rates = rates
        #: Queue -> why no messages were taken from it at the last beat.
        self.deaf: dict[str, str] = {}
        self._log = Episodes(
            "the key %s is not what pipeq keeps there: %s", "the key %s is as it should be", "heartbeat"
        )
        self._others = Others(client, worker, pipelines)
        #: Called after the first beat.
        self._on_registered: Callable[[], object] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def others(self, pipeline: str) -> frozenset[str]:
        """The other workers that serve a pipeline, and lived at the last beat."""
        return self._others.alive.get(pipeline, frozenset())

    def start(self, on_registered: Callable[[], object]) -> None:
        """Starts the thread, which registers the pipelines, so that producers may submit to them.

        Args:
            on_registered: called by the thread once they are registered; that waits until Redis answers.
        """
        self._on_registered = on_registered
        self._thread.start()

    def leave(self) -> None:
        """Stops receiving new messages; the worker still finishes the tasks that it holds."""
        self._receiving.leave()

    def close(self) -> None:
        """Removes the worker from Redis. Its pipelines stay registered."""
        if not self._thread.is_alive():
            return
        self._stop.set()
        self._thread.join()
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for name in self._pipelines:
                    pipe.zrem(keys.workers_key(name), self._worker)
                    # Where its start is not long ago, this still says that it is loading.
                    pipe.zrem(keys.loading_key(name), self._worker)
                pipe.delete(keys.worker_key(self._worker))
                pipe.execute()
        except RedisError:
            logger.debug("could not sign off; the heartbeat lapses by itself", extra={"action": "heartbeat"})

    def _run(self) -> None:
        while True:
            served = False
            self._health.heartbeat.turned()
            try:
                self._beat()
                served = True
                self._health.redis.turned()
                if self._on_registered is not None:
                    on_registered, self._on_registered = self._on_registered, None
                    on_registered()
                self._retries.move_due(self._waiting)
                outage.over("heartbeat")
            except RedisError as error:
                outage.noticed("heartbeat", error)
            except Exception:
                # The thread must go on: without a heartbeat the worker would look dead, and no retry would be put back.
                logger.exception("heartbeat", extra={"action": "heartbeat"})
            try:
                self._receiving.beaten(served)
            except Exception:
                logger.exception("heartbeat", extra={"action": "heartbeat"})
            if self._stop.wait(keys.HEARTBEAT_S / 2):
                return

    def _beat(self) -> None:
        now = time.time()
        in_flight, running = self._counts()
        deaf = self._receiving.deaf()
        rates = self._rates.measure(in_flight)
        batches, busy = self._rates.lately()
        about = Beat(
            host=socket.gethostname(),
            pid=os.getpid(),
            at=now,
            in_flight=dict(in_flight),
            running=dict(running),
            rates=rates,
            batches=batches,
            busy=busy,
            failed=self._rates.failed(),
            loading=self._health.loading(),
            stopping=self._health.is_stopping,
            deaf=deaf,
            costs={str(name): about for name, about in self._costs().items()},
            models={name: one.identity for name, one in self._pipelines.items()},
            strict=self._strict,
        )
        self.deaf = {queue: one["reason"] for queue, one in deaf.items()}
        written = []
        with self._redis.pipeline(transaction=False) as pipe:
            for name, pipeline in self._pipelines.items():
                pipe.hset(keys.PIPELINES, name, json.dumps(pipeline.registration()))
                pipe.zadd(keys.workers_key(name), {self._worker: now})
                pipe.zremrangebyscore(keys.workers_key(name), "-inf", now - 3600)
                written += [keys.PIPELINES, keys.workers_key(name), keys.workers_key(name)]
            pipe.set(keys.worker_key(self._worker), about.encode(), ex=int(keys.WORKER_TTL_S))
            written.append(keys.worker_key(self._worker))
            for name in self._pipelines:
                pipe.zrangebyscore(keys.workers_key(name), now - keys.WORKER_TTL_S, "+inf")
            # A key of the wrong type must not keep the other keys from being written.
            replies = pipe.execute(raise_on_error=False)
        wrong = {}
        for key, reply in zip(written, replies[: len(written)], strict=True):
            if is_wrong_type(reply):
                wrong[key] = shown.line(str(reply))
            elif isinstance(reply, Exception):
                raise reply
        self._log.now(wrong)
        alive = dict(zip(self._pipelines, replies[len(written) :], strict=True))
        self._others.look({name: reply for name, reply in alive.items() if isinstance(reply, list)})
