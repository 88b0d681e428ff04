"""DELIVER: outputs -> result, stored, published, acknowledged. Before: infer. After: nothing.

Celery's own tracer runs for each task with links, chords, receivers of signals or an error, so Celery itself handles
them; the others end without it (delivery/plain.py). The results of a batch are stored in one round trip; their messages
are acknowledged only after that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import redis
from celery import Celery
from celery.worker import state as celery_state
from kombu.exceptions import OperationalError
from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.record import Before
from redis.exceptions import RedisError

from pipeq_worker.delivery.backend import Annotation, Backend, Buffer, annotation
from pipeq_worker.delivery.dead_letter import letter_of
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.fitness import Fitness
from pipeq_worker.delivery.marks import Marks
from pipeq_worker.delivery.messages import drop, let_go, put_back, tell, tell_put_off, tell_success
from pipeq_worker.delivery.packs import Packs
from pipeq_worker.delivery.part import part_of
from pipeq_worker.delivery.plain import Plain, is_plain
from pipeq_worker.delivery.retries import Retries
from pipeq_worker.delivery.tracing import Tracing
from pipeq_worker.delivery.turns import Turns
from pipeq_worker.leases.leases import Leases
from pipeq_worker.leases.server import place
from pipeq_worker.observe.failures import failures
from pipeq_worker.observe.frames import forget
from pipeq_worker.observe.observer import Ended, Observer
from pipeq_worker.observe.outage import outage
from pipeq_worker.settings.read import Settings

logger = logging.getLogger(__name__)

#: Errors of a Redis that is away or refuses commands.
_AWAY = (RedisError, OSError, OperationalError)


class Deliverer:
    """Ends tasks: stores their results and acknowledges their messages. Safe to call from several threads."""

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        retries: Retries,
        client: redis.Redis,
        marks: Marks,
        observer: Observer,
        fitness: Fitness,
    ) -> None:
        self._app = app
        self._fitness = fitness
        self._marks = marks
        self._observer = observer
        self._plain = Plain(app)
        self._tracing = Tracing(retries, settings.results.inline_max_bytes)
        self._packs = Packs(retries, settings.results.inline_max_bytes)
        #: What its threads are at.
        self.turns = Turns(settings.step_timeout_s, outage.quiet_s)
        self.server = place(client.connection_pool.connection_kwargs)

    def deliver(self, deliveries: list[Delivery]) -> None:
        """Stores, publishes and acknowledges tasks that have passed all other stages.

        Each task ends or goes back on its queue. A fault of one task does not affect the others.
        """
        # What a host died with, and has no mark because it never reached a batch, is delivered alone, and Redis knows.
        suspects = [one for one in deliveries if one.is_suspect and not one.is_marked]
        self.turns.at(deliveries)
        try:
            self._deliver([one for one in deliveries if one not in suspects] if suspects else deliveries)
            while suspects:
                one = suspects.pop(0)
                if one.leases is not None:
                    one.leases.hold(one.tag)
                self._deliver([one])
        finally:
            self.turns.over()
            for one in suspects:
                put_back(one)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        deliveries = self._without_dropped(deliveries)
        if not deliveries:
            return
        try:
            self._read_records(deliveries)
            plain = set(filter(is_plain, deliveries)) if self._plain.is_possible() else set()
            # Renewed now, so that the tracer runs links and chords only for tasks that are still ours.
            self._claim([delivery for delivery in deliveries if delivery not in plain])
            deliveries = self._without_dropped(deliveries)
            done, broken, stored = self._publish(deliveries, plain)
        except Exception:
            # Redis did not accept the results for minutes. The tasks go back on their queues and free this worker's
            # places.
            for delivery in deliveries:
                put_back(delivery)
            raise
        # Only after the results are stored: a crash in between repeats work, but never loses it.
        untouched = stored.lost | stored.cannot_wait
        for leases, tags in self._tags([delivery for delivery, _ in done if delivery.id not in untouched]):
            # The script that stored the results has acknowledged the messages, too.
            leases.release(tags)
        if stored.lost:
            logger.warning(
                "%d leases are gone: their work is dropped", len(stored.lost), extra={"action": "lease_lost"}
            )
            self._observer.leases_lost(len(stored.lost))
        for delivery, last_step in done:
            if delivery.id in stored.lost:
                delivery.is_lost = True
                self._end(delivery, drop)
            elif delivery.id in stored.cannot_wait:
                sentence = f"it cannot wait for its next try: {keys.waiting_key(delivery.queue)} is no sorted set"
                broken.append((delivery, PipeqError(ErrorCode.INTERNAL, sentence)))
            else:
                delivery.is_over = delivery.id in stored.over
                self._end(delivery, last_step)
        for delivery, cause in broken:
            self._end(delivery, partial(self._give_up, cause=cause))

    def _publish(
        self, deliveries: list[Delivery], plain: set[Delivery]
    ) -> tuple[list[tuple[Delivery, Callable[[Delivery], None]]], list[tuple[Delivery, Exception]], Buffer]:
        """Stores the results.

        Returns:
            Each task with what then tells Celery how it ended; the tasks that cannot be ended; and what was stored.
        """
        done: list[tuple[Delivery, Callable[[Delivery], None]]] = []
        broken: list[tuple[Delivery, Exception]] = []
        for leases, tags in self._tags(deliveries):
            leases.end(tags)
        backend: Backend = self._app.backend
        with backend.buffered() as stored:
            for delivery in deliveries:
                self.turns.at([delivery])
                try:
                    done.append((delivery, self._store(backend, delivery, delivery in plain)))
                except Exception as problem:
                    logger.exception(
                        "task %s cannot be ended", delivery.id, extra={"action": "deliver", "task_id": delivery.id}
                    )
                    forget(problem)
                    broken.append((delivery, problem))
            self.turns.at(deliveries)
        return done, broken, stored

    def _store(self, backend: Backend, delivery: Delivery, is_plain: bool) -> Callable[[Delivery], None]:
        fence = self._fence(delivery)
        tag = delivery.tag if fence else ""
        if is_plain and delivery.error is not None and (retry := self._tracing.next_try(delivery)) is not None:
            backend.store_record(delivery.id, *self._plain.put_off(delivery, retry.due), fence, tag, retry)
            return partial(tell_put_off, is_acknowledged=fence is not None)
        if not is_plain or delivery.error is not None:
            return partial(tell, ended=self._tracing.run(delivery, fence))
        pack = self._packs.ended(delivery)
        if pack is not None:
            delivery.result_json = b"null"  # the job has the outcomes
        backend.store_record(delivery.id, *self._plain.record(delivery), fence, tag, pack=pack)
        return partial(tell_success, is_acknowledged=fence is not None)

    def _tags(self, deliveries: list[Delivery]) -> list[tuple[Leases, list[str]]]:
        """The tags of messages that the script which stores the results acknowledges, by their leases."""
        found: dict[Leases, list[str]] = {}
        for delivery in deliveries:
            if (leases := self._fence(delivery)) is not None:
                found.setdefault(leases, []).append(delivery.tag)
        return list(found.items())

    def _without_dropped(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Ends the tasks whose results are not wanted any more, and returns the others."""
        for delivery in deliveries:
            if delivery.is_dropped:
                self._end(delivery, drop)
        return [delivery for delivery in deliveries if not delivery.is_dropped]

    def _end(self, delivery: Delivery, step: Callable[[Delivery], None]) -> None:
        """Takes the last step of one task. If it fails, the task still ends, and the others go on."""
        self.turns.at([delivery])
        try:
            step(delivery)
        except _AWAY as error:
            # No fault of the task: it ends, or is found to have ended, when Redis is back.
            outage.noticed("results", error)
            if not delivery.is_lost:
                put_back(delivery)
        except Exception as cause:
            try:
                if not delivery.is_lost:
                    self._give_up(delivery, cause)
            except Exception:
                logger.exception("task %s", delivery.id, extra={"action": "deliver", "task_id": delivery.id})
            let_go(delivery)
        self._tell(delivery)

    def _tell(self, delivery: Delivery) -> None:
        name = delivery.pipeline.name if delivery.pipeline is not None else None
        if name is not None and "deliver" in delivery.told_ms:
            self._observer.stage_ended(delivery.id, name, "deliver", delivery.told_ms["deliver"] / 1000)
        ended: Ended = "succeeded" if delivery.error is None else "retrying" if delivery.is_retried else "failed"
        code = delivery.error.code if delivery.error is not None else None
        if delivery.is_dropped:
            ended, code = "dropped", None
        elif name is not None:
            self._tell_fitness(name, delivery)
        if ended == "failed" and delivery.error is not None:
            failures.failed(
                delivery.id,
                name or delivery.queue,
                delivery.error,
                worker=delivery.request.hostname,
                attempt=delivery.attempts,
            )
        self._observer.task_ended(delivery.id, name, ended, code, delivery.told_ms or delivery.timing_ms)

    def _tell_fitness(self, name: str, delivery: Delivery) -> None:
        end = delivery.pack_end
        if delivery.error is None and end is not None and end.left:
            if end.succeeded:
                self._fitness.ended(name, None, is_retried=False)
            self._fitness.ended(name, end.error.error(), is_retried=True)
        else:
            self._fitness.ended(name, delivery.error, is_retried=delivery.is_retried)

    def _claim(self, deliveries: list[Delivery]) -> None:
        """Renews the leases now, so that the tracer runs links and chords only for tasks that are still ours."""
        tags = [delivery.tag for delivery in deliveries if delivery.leases is not None and not delivery.is_lost]
        leases = next((delivery.leases for delivery in deliveries if delivery.leases is not None), None)
        if leases is None or not tags:
            return
        try:
            leases.lose(leases.renew(tags))
        except RedisError as error:
            outage.noticed("claim", error)
        else:
            outage.over("claim")

    def _fence(self, delivery: Delivery) -> Leases | None:
        """Returns the task's leases if the script that stores the result can check them, being on the same server."""
        leases = delivery.leases
        return leases if leases is not None and leases.server.place == self.server else None

    def _read_records(self, deliveries: list[Delivery]) -> None:
        """Reads what is known of the tasks that never reached a batch; of the others it was read there."""
        try:
            self._marks.learn(deliveries)
        except RedisError:
            for delivery in deliveries:
                delivery.before = delivery.before or Before()

    def _give_up(self, delivery: Delivery, cause: Exception) -> None:
        """Fails a task that Celery cannot end because of its message; its links and callbacks do not run."""
        logger.error(
            "task %s cannot be ended: %r", delivery.id, cause, extra={"action": "deliver", "task_id": delivery.id}
        )
        if not isinstance(cause, PipeqError):
            sentence = f"its message cannot be worked with: {type(cause).__name__}: {shown.line(str(cause))}"
            cause = PipeqError(ErrorCode.INVALID_MESSAGE, sentence)
        delivery.error, delivery.is_retried = PipeqError(cause.code, cause.message, cause.retryable), False
        letter = Annotation(
            part_of(delivery),
            keys.dead_letter_key(delivery.queue),
            letter_of(delivery) if delivery.pack_of is None else "",
            pack=self._packs.ended(delivery),
        )
        # The message is acknowledged afterwards, whether or not the failure was stored; if Redis is away it goes back.
        token = annotation.set(letter)
        try:
            self._app.backend.mark_as_failure(delivery.id, delivery.error)
        except _AWAY:
            put_back(delivery)
            return
        finally:
            annotation.reset(token)
        celery_state.task_ready(delivery.request)
        delivery.request.acknowledge()
