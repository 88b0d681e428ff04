"""A worker's host inside the test's process: everything from the leases to the results is real, except the device.

Leases, kombu's channel, Celery's consumer, intake, pool, marks, retries, delivery and heartbeat are those of a worker.
Two things are the test's: it says when messages are taken (in place of the reserver's thread), and what becomes of a
task that was taken (:class:`Hands`, in place of the dispatcher and its children). So a test can put the steps of
several workers in any order, and end a worker between any two of them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from celery.signals import worker_ready
from celery.worker import state as celery_state
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.status import ModelInfo
from pipeq_worker.broker.app import build_app
from pipeq_worker.broker.consumer import Consumer
from pipeq_worker.broker.pool import TaskPool
from pipeq_worker.children.served import Served
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.host.runtime import Runtime
from pipeq_worker.host.seen import Seen
from pipeq_worker.leases.leases import Leases
from pipeq_worker.models.pipeline import BatchLimits
from pipeq_worker.observe.observer import Observer
from pipeq_worker.schedule.costs import Costs
from pipeq_worker.schedule.task import Place
from pipeq_worker.settings.read import Settings

#: Long enough that no thread renews or sweeps by itself.
LEASE_S = 10_000.0
_numbers = itertools.count(1)


class Loop:
    """Stands where kombu's event loop stands, of all hosts: what is to be called later is called when the test says."""

    #: As kombu's, between two turns: acknowledgements are sent at once.
    _running = False

    def __init__(self) -> None:
        self._later: list[Callable[[], object]] = []

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        self._later.append(callback)

    def turn(self) -> None:
        """Calls what is due."""
        later, self._later = self._later, []
        for callback in later:
            callback()


class Hands:
    """Stands where the dispatcher stands: holds the tasks inside, and does with each what it is told."""

    def __init__(self, settings: Settings) -> None:
        self._max_deaths = settings.max_deaths
        self.runtime: Any = None
        self.costs = Costs()
        self.tasks: list[Delivery] = []
        self.is_open = True
        self.is_hurried = False
        #: Whether messages under suspicion may be received; not while a task with deaths runs alone, for instance.
        self.may_receive = True
        self.has_claim = False
        self.pids: list[tuple[str, int]] = []

    # -- what a worker calls ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Has no threads."""

    def close(self) -> None:
        """Has no children."""

    def accept(self, deliveries: Sequence[Delivery]) -> None:
        for one in deliveries:
            self.tasks.append(one)
            if one.error is not None:
                self.end(one)

    def feed(self) -> None:
        """What begins, the test says."""

    def claim(self) -> bool:
        self.has_claim = True
        return self.may_receive

    def disclaim(self) -> None:
        self.has_claim = False

    def hangs(self) -> None:
        return None

    def in_flight(self) -> dict[str, int]:
        return {}

    running = in_flight

    def spare(self, name: str) -> list[Delivery]:
        return [one for one in self.tasks if one.lane == name and one.is_waiting and not one.deaths]

    def give_back(self, tasks: Sequence[Delivery], most: int) -> list[Delivery]:
        back = list(itertools.islice((one for one in tasks if one.withdraw()), most))
        self.tasks = [one for one in self.tasks if one not in back]
        return back

    def withdraw(self) -> list[Delivery]:
        back = [one for one in self.tasks if one.withdraw()]
        self.tasks = [one for one in self.tasks if one not in back]
        return back

    def drain(self, _: float) -> list[Delivery]:
        return list(self.tasks)

    # -- what the test says -------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[Delivery]:
        """Those that have not begun."""
        return [one for one in self.tasks if one.started_at is None]

    @property
    def begun(self) -> list[Delivery]:
        return [one for one in self.tasks if one.started_at is not None]

    def begin(self, one: Delivery) -> None:
        """As the thread that starts batches does: a task with deaths begins alone, unless it has too many."""
        if one.begins() and not one.needs_no_device:
            self.runtime._beginning.begin([one], False)
            if one.deaths and not one.needs_no_device:
                if one.deaths >= self._max_deaths:
                    one.fail(PipeqError(ErrorCode.WORKER_LOST, f"{one.deaths} workers died with it"))
                else:
                    self.runtime._beginning.begin([one], True)
        if one.needs_no_device:
            self.end(one)

    def child_died(self, one: Delivery) -> None:
        """The process that had the task dies, and no other task is suspected."""
        one.starts_over()
        one.deaths += 1
        self.runtime._beginning.died([one])
        if one.deaths >= self._max_deaths:
            one.fail(PipeqError(ErrorCode.WORKER_LOST, f"{one.deaths} processes died with it"))
            self.end(one)

    def look(self) -> None:
        """Asks which of the tasks that run have ended elsewhere."""
        begun = self.begun
        self.runtime._beginning.look(begun)
        for one in begun:
            if one.needs_no_device:
                self.end(one)

    def end(self, one: Delivery) -> None:
        """Delivers a task."""
        self.tasks.remove(one)
        one.moved(Place.ENDED)
        if one.begins():
            self.runtime._deliver([one])


class _Quiet:
    """Stands where the reserver's thread stands: nothing is taken until the test says so."""

    doorbell = -1

    def take_from(self, queues: tuple[str, ...]) -> None:
        """Takes nothing."""

    def close(self) -> None:
        """Has no thread."""


class Host:
    """See the module.

    Args:
        url: Redis.
        pipeline: the pipeline that it serves.
        settings: of the worker, besides those two.
    """

    def __init__(self, url: str, pipeline: str, **settings: Any) -> None:
        self.name = f"host-{next(_numbers)}-{os.urandom(3).hex()}@it"
        self.pipeline = pipeline
        found = Settings(redis_url=url, lease_s=LEASE_S, sweep_s=LEASE_S, pipelines={pipeline: {}}, **settings)
        self.runtime = Runtime(found, self.name, Observer(), Seen(found, self.name))
        self.hands = Hands(found)
        self.hands.runtime = self.runtime
        self.runtime.dispatcher = cast(Any, self.hands)
        limits = BatchLimits(max_size=8, max_cost=8, max_wait_s=0, weight=1)
        self.runtime.pipelines[pipeline] = Served(pipeline, "constant", ModelInfo(id="it"), limits)
        # The app announces itself when Celery's worker is ready, which does not happen here.
        receivers = list(worker_ready.receivers)
        self.app = build_app(self.runtime)
        worker_ready.receivers[:] = receivers
        self.pool = TaskPool(self.app.conf.worker_concurrency, app=self.app)
        #: Called when the end of tasks is stored, and it has not let go of them yet.
        self.between: Callable[[], object] = lambda: None
        let_go = self.pool._delivered

        def let_go_later(deliveries: list[Delivery]) -> None:
            self.between()
            let_go(deliveries)

        self.pool._delivered = let_go_later  # type: ignore[method-assign]
        self.pool.start()
        #: None until it consumes for the first time.
        self.leases: Any = None
        self._consume()
        self.beat()

    def _consume(self) -> None:
        """Does what Celery's consumer does when it starts, as far as messages of tasks need it."""
        controller = SimpleNamespace(state=celery_state, use_eventloop=False)
        self.consumer = Consumer(
            lambda request: request.execute_using_pool(self.pool),
            hostname=self.name, pool=self.pool, app=self.app, controller=controller,
            timer=SimpleNamespace(call_at=None),
        )  # fmt: skip
        self.consumer.event_dispatcher = SimpleNamespace(enabled=False, groups=None, send=None)
        self._connection = self.app.connection_for_read()
        self.channel = self._connection.channel()
        # Each host of this process has leases of its own, as if it was a process of its own.
        Leases._of.clear()
        if self.leases is not None:
            Leases._of[self.leases.server] = self.leases
        self.leases = self.channel.leases
        Leases._of.clear()
        self.channel.reserver = cast(Any, _Quiet())
        self.consumer.task_consumer = self.app.amqp.TaskConsumer(self.channel, on_decode_error=None)
        self.consumer.update_strategies()
        self.consumer.task_consumer.on_message = self.consumer.create_task_handler()
        self.consumer.task_consumer.consume()

    def beat(self) -> None:
        """Says that it lives."""
        self.runtime._heartbeat._beat()

    def take(self, most: int = 1, between: Callable[[], object] = lambda: None) -> int:
        """Takes messages off their lists and hands them on, as the reserver and the event loop do.

        Args:
            most: of them.
            between: called when one was taken, and nobody has seen it yet.

        Raises:
            redis.RedisError: Redis was away; the reserver's thread would try again.
        """
        wanted = replace(self.channel._wanted(self.pipeline, 1), messages=1)
        for count in range(most):
            if (one := self.leases.reserve_one(wanted)) is None:
                return count
            between()
            self.channel.reserver = cast(Any, SimpleNamespace(ready=lambda _, one=one: [one]))
            try:
                self.channel.deliver(1)
            finally:
                self.channel.reserver = cast(Any, _Quiet())
        return most

    def reconnect(self) -> None:
        """Closes its channel and opens another one, as Celery does when the connection to Redis is gone."""
        self.channel.close()
        self._connection.release()
        self._consume()

    def move_due(self) -> None:
        """Puts messages that are due back on their lists, as each heartbeat does."""
        self.runtime._heartbeat._retries.move_due([self.pipeline])

    def renew(self) -> None:
        self.leases._renewing.renew()

    def sweep(self) -> None:
        """Puts back the messages of lapsed leases."""
        self.leases._renewing.sweep()

    def give_back(self, idle: int) -> None:
        """Gives messages back to workers that have none."""
        assert self.leases.sharing is not None
        self.leases.sharing.give_back(self.pipeline, idle)

    def stop(self) -> None:
        """Ends in an orderly way, as after SIGTERM: what has not ended goes back."""
        self.pool.stop()
        self.leases.close()
        self._close()

    def die(self) -> list[str]:
        """Is gone, as after SIGKILL: nothing is said to anybody. Returns the tags of the messages that it held."""
        tags = list(self.leases._held)
        self.leases._held.clear()
        self.leases.close()
        self._close()
        return tags

    def _close(self) -> None:
        self.channel.reserver = None
        self._connection.release()
        self.pool._plain.shutdown(wait=False)
        self.runtime._marks._redis.close()
        self.app.backend.client.connection_pool.disconnect()
        # A process that dies closes those, too. Here they would wait for the collector, some hundred of them.
        for script in (self.runtime._marks._begin, vars(self.app.backend).get("_finish_script")):
            if script is not None and (mine := getattr(script._here, "mine", None)) is not None:
                mine.connection.disconnect()
        self.app.close()
        # Celery keeps the tasks of a process in variables of its module, and other tests look there.
        celery_state.reset_state()
