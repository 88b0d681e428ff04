"""The state of a worker process besides Celery: settings, pipelines, and the stages after they have started."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from celery import Celery
from pipeq.contract.redis_url import connect
from redis.exceptions import RedisError

from pipeq_worker.delivery.begin import Beginning
from pipeq_worker.delivery.deliver import Deliverer
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.marks import Marks
from pipeq_worker.delivery.placing import Placer
from pipeq_worker.delivery.refuse import refuse
from pipeq_worker.delivery.retries import Retries
from pipeq_worker.host.heartbeat import Heartbeat
from pipeq_worker.host.seen import Seen
from pipeq_worker.leases.receiving import Receiving
from pipeq_worker.models.pipeline import Pipeline
from pipeq_worker.observe.observer import Observer
from pipeq_worker.observe.outage import outage
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.engine import Engine
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stores.signed import Signatures
from pipeq_worker.stores.writer import Writer

logger = logging.getLogger(__name__)

#: More threads than this slow each other down, waiting for the interpreter's lock.
MOST_PREPARE_THREADS = 8
#: How long a stop may last beyond `drain_s`, in seconds.
END_S = 30.0


@dataclass
class Runtime:
    """Created before Celery starts; the pool starts and stops it."""

    settings: Settings
    pipelines: dict[str, Pipeline]
    #: Name of this worker, as Celery shows it.
    hostname: str
    #: Gets the events of this worker.
    observer: Observer
    #: What others may see of it.
    seen: Seen
    #: Set when the device hangs or is unusable, to the tasks that it was running. The process then ends without
    #: waiting.
    lost: list[Delivery] | None = None
    engine: Engine[Delivery] = field(init=False)
    deliverer: Deliverer = field(init=False)
    writer: Writer = field(init=False)
    _placer: Placer = field(init=False)
    _heartbeat: Heartbeat = field(init=False)
    _fetcher: Fetcher = field(init=False)
    _marks: Marks = field(init=False)
    #: Whether :meth:`start` has finished.
    _has_started: bool = field(init=False, default=False)

    @property
    def queues(self) -> list[str]:
        """The queues that messages are taken from: one for each pipeline, and those of ordinary Celery tasks."""
        return [*self.pipelines, *(self.settings.celery_queues if self.settings.include else ())]

    def start(
        self,
        app: Celery,
        on_lost: Callable[[str, list[Delivery]], None],
        on_delivered: Callable[[list[Delivery]], None],
    ) -> None:
        """Starts the stages."""
        settings = self.settings
        client = connect(settings.redis_url, retries=3)
        retries = Retries(client, settings, partial(refuse, app, self.hostname))

        def on_deaf(reason: str) -> None:
            if self.lost is None:
                on_lost(reason, [])

        self._marks = Marks(client, self.hostname)
        beginning = Beginning(self._marks)
        signatures = Signatures(client, settings.results)
        self.writer = Writer(settings.results, settings.s3)
        self._fetcher = Fetcher(settings.inputs, settings.s3, settings.fetch_threads * len(self.pipelines), signatures)
        self._placer = Placer(settings.results, self.writer, signatures)
        self.deliverer = Deliverer(app, settings, self._placer, retries, client, self.observer)
        outage.tell(self.observer)

        def deliver(deliveries: list[Delivery]) -> None:
            try:
                self.deliverer.deliver(deliveries)
            finally:
                on_delivered(deliveries)

        self.engine = Engine(
            self.pipelines,
            settings,
            self._fetcher,
            begin=beginning.begin,
            look=beginning.look,
            deliver=deliver,
            on_lost=on_lost,
            prepare_threads=settings.prepare_threads or min(os.cpu_count() or 1, MOST_PREPARE_THREADS),
            observer=self.observer,
        )
        self.engine.start()
        receiving = Receiving(self.queues, lambda: app.amqp.queues.consume_from, on_deaf, self.observer)
        self._heartbeat = Heartbeat(
            client,
            self.hostname,
            self.pipelines,
            self._counts,
            self.engine.costs.shown,
            retries,
            self.queues,
            receiving,
            self.seen.health,
            self.seen.rates,
        )
        self._show()
        threading.Thread(target=self._fetcher.warm_up, name="warm-up", daemon=True).start()
        self._has_started = True

    def announce(self) -> None:
        """Registers the pipelines, so that producers may submit to them. Called when messages are being taken."""
        self._heartbeat.start()
        self.seen.health.serves()
        logger.info("ready: serving %s as %s", ", ".join(self.queues), self.hostname, extra={"action": "ready"})

    def hurry(self) -> None:
        """Ends the waiting of a stop, now or later: what still runs then goes back on its queue."""
        if self._has_started:  # otherwise no task has come in yet
            self.engine.hurry()

    def _counts(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        return self.engine.in_flight(), self.engine.running()

    def _show(self) -> None:
        """Tells what others may see where to look."""
        self.seen.counts(self._counts)
        self.seen.health.hears(lambda: self._heartbeat.deaf)
        self.seen.health.watch(self.engine.hangs)

    def withdraw(self) -> list[Delivery]:
        """Stops accepting tasks. Returns those that have not reached the device; the caller puts them back."""
        self.seen.health.stops(self.settings.drain_s + END_S)
        self._heartbeat.leave()
        return self.engine.withdraw()

    def stop(self, timeout_s: float) -> list[Delivery]:
        """Waits up to ``timeout_s`` for tasks to end, or less after :meth:`hurry`. Returns those that did not end."""
        self._heartbeat.leave()
        left = self.engine.drain(0 if self.lost else timeout_s)
        try:
            self._marks.take_back([delivery for delivery in left if delivery not in (self.lost or [])])
        except RedisError as error:
            logger.warning("cannot take back %d marks: %s", len(left), error, extra={"action": "drain"})
        self._heartbeat.close()
        self._placer.close()
        self.writer.close()
        self._fetcher.close()
        return left
