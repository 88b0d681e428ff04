"""The state of a worker's host process besides Celery: settings, pipelines, and what runs their tasks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from celery import Celery
from pipeq.contract.redis_url import connect
from redis.exceptions import RedisError

from pipeq_worker.children import slab
from pipeq_worker.children.dispatcher import Dispatcher
from pipeq_worker.children.hooks import Hooks
from pipeq_worker.children.preparers import preparers_of
from pipeq_worker.children.process import ChildProcess
from pipeq_worker.children.served import Served
from pipeq_worker.delivery.begin import Beginning
from pipeq_worker.delivery.deliver import Deliverer
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.fitness import Fitness
from pipeq_worker.delivery.marks import Marks
from pipeq_worker.delivery.refuse import refuse
from pipeq_worker.delivery.retries import Retries
from pipeq_worker.host.heartbeat import Heartbeat
from pipeq_worker.host.jobs import JobKeeper
from pipeq_worker.host.seen import Seen
from pipeq_worker.leases.receiving import Receiving
from pipeq_worker.observe.observer import Observer
from pipeq_worker.observe.outage import outage
from pipeq_worker.schedule.credit import Credit
from pipeq_worker.settings.read import Settings

logger = logging.getLogger(__name__)

#: How long a stop may last beyond `drain_s`, in seconds.
END_S = 30.0


@dataclass
class Runtime:
    """Created before Celery starts; the pool starts and stops it."""

    settings: Settings
    #: Name of this worker, as Celery shows it.
    hostname: str
    #: Gets the events of this worker.
    observer: Observer
    #: What others may see of it.
    seen: Seen
    #: What the child has loaded, by name.
    pipelines: dict[str, Served] = field(default_factory=dict)
    #: Called when the heartbeat is about to begin.
    on_serving: Callable[[], None] = lambda: None
    #: Set when only a new process helps: nothing is waited for then.
    lost: bool = False
    dispatcher: Dispatcher[Delivery] = field(init=False)
    deliverer: Deliverer = field(init=False)
    #: Which pipelines it is able to serve now.
    fitness: Fitness = field(init=False)
    _beginning: Beginning = field(init=False)
    _deliver: Callable[[list[Delivery]], None] = field(init=False)
    _lose: Callable[[str], None] = field(init=False)
    _heartbeat: Heartbeat = field(init=False)
    _jobs: JobKeeper = field(init=False)
    _marks: Marks = field(init=False)
    #: Whether :meth:`start` has finished.
    _has_started: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.fitness = Fitness(settings.max_own_faults, settings.own_fault_pause_s, settings.retry_backoff_max_s)

    @property
    def queues(self) -> list[str]:
        """The queues that messages are taken from: one for each pipeline, and those of ordinary Celery tasks."""
        return [*self.pipelines, *(self.settings.celery_queues if self.settings.include else ())]

    def load(self) -> None:
        """Starts the child process, and waits until it has loaded the pipelines.

        Raises:
            PipeqError: one cannot be loaded.
        """
        settings = self.settings
        # Until `start`, no task comes in, so none of these is called.
        hooks: Hooks[Delivery] = Hooks(
            begin=lambda tasks, alone: self._beginning.begin(tasks, alone),
            look=lambda tasks: self._beginning.look(tasks),
            deliver=lambda tasks: self._deliver(tasks),
            died=lambda tasks: self._beginning.died(tasks),
            hopeless=lambda reason: self._lose(reason),
        )
        # The first one for the device process, and one for each prepare process.
        slabs = [slab.make() for _ in range(preparers_of(settings) + 1)]
        start = partial(ChildProcess, settings, slabs)
        health = self.seen.health
        self.dispatcher = Dispatcher(settings, start, hooks, self.observer, loads=health.loads, loaded=health.loaded)
        if settings.pipelines:
            self.pipelines = self.dispatcher.load()

    def start(
        self,
        app: Celery,
        on_lost: Callable[[str], None],
        on_delivered: Callable[[list[Delivery]], None],
    ) -> None:
        """Starts the threads."""
        settings = self.settings
        client = connect(settings.redis_url, retries=3)
        retries = Retries(client, settings, partial(refuse, app, self.hostname), self.hostname)

        def lose(reason: str) -> None:
            if not self.lost:
                on_lost(reason)

        def deliver(deliveries: list[Delivery]) -> None:
            try:
                self.deliverer.deliver(deliveries)
            finally:
                on_delivered(deliveries)

        self._lose, self._deliver = lose, deliver
        self._marks = Marks(client, self.hostname)
        self._beginning = Beginning(self._marks)
        self.deliverer = Deliverer(app, settings, retries, client, self._marks, self.observer, self.fitness)
        outage.tell(self.observer)
        self.dispatcher.start()
        receiving = Receiving(
            self.queues, lambda: app.amqp.queues.consume_from, lose, self.observer, self.fitness.unfit
        )
        self._heartbeat = Heartbeat(
            client,
            self.hostname,
            self.pipelines,
            self._counts,
            self.dispatcher.costs.shown,
            retries,
            self.queues,
            receiving,
            self.seen.health,
            self.seen.rates,
            strict=settings.strict,
        )
        self._jobs = JobKeeper(client, settings, self.pipelines)
        self._show()
        self._has_started = True

    def announce(self) -> None:
        """Registers the pipelines, so that producers may submit to them. Called when messages are being taken."""
        self.on_serving()
        self.seen.health.serves()
        self._heartbeat.start(self._say_ready)
        self._jobs.start()

    def _say_ready(self) -> None:
        """Whoever waits for this line may submit without a warning that the worker is loading, and `/readyz` agrees."""
        logger.info("ready: serving %s as %s", ", ".join(self.queues), self.hostname, extra={"action": "ready"})

    @property
    def credit(self) -> Credit:
        """How many tasks of each pipeline this worker takes."""
        settings, costs = self.settings, self.dispatcher.costs
        return Credit(costs, lambda name: self.pipelines[name].limits, settings.prefetch, settings.prefetch_s)

    def others(self, pipeline: str) -> frozenset[str]:
        """The other workers that serve a pipeline, as far as that is known."""
        return self._heartbeat.others(pipeline)

    def hurry(self) -> None:
        """Ends the waiting of a stop, now or later: what still runs then goes back on its queue."""
        if self._has_started:  # otherwise no task has come in yet
            self.dispatcher.hurry()

    def _counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        return self.dispatcher.in_flight(), self.dispatcher.running()

    def _processes(self) -> Iterable[tuple[str, int]]:
        return [("host", os.getpid()), *self.dispatcher.pids]

    def _show(self) -> None:
        """Tells what others may see where to look."""
        self.seen.counts(self._counts)
        self.seen.processes(self._processes)
        self.seen.health.hears(lambda: self._heartbeat.deaf)
        self.seen.health.watch(self.dispatcher.hangs)
        self.seen.health.watch(self.deliverer.turns.hangs)

    def withdraw(self) -> list[Delivery]:
        """Stops accepting tasks. Returns those that have not reached the device; the caller puts them back."""
        self.seen.health.stops(self.settings.drain_s + END_S)
        self._heartbeat.leave()
        back = self.dispatcher.withdraw()
        self._take_back(back)
        return back

    def _take_back(self, deliveries: list[Delivery]) -> None:
        """Takes back the marks of tasks that go back on their queues."""
        try:
            self._marks.take_back(deliveries)
        except RedisError as error:
            logger.warning("cannot take back %d marks: %s", len(deliveries), error, extra={"action": "drain"})

    def stop(self, timeout_s: float) -> list[Delivery]:
        """Waits up to ``timeout_s`` for tasks to end, or less after :meth:`hurry`. Returns those that did not end."""
        self._heartbeat.leave()
        left = self.dispatcher.drain(0 if self.lost else timeout_s)
        self._take_back(left)
        self._jobs.close(0 if self.lost or left else timeout_s)
        self._heartbeat.close()
        self.dispatcher.close()
        return left
