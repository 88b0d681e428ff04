"""The Celery pool: passes each request through the stages. Before: Celery's consumer. After: accept.

Celery keeps its own Request, tracer, events, expiry and revocation; only the body of a task runs in batches. An
ordinary Celery task that is sent to this worker runs in a thread beside the stages.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from celery.concurrency.base import BasePool, apply_target
from celery.worker import state as celery_state
from pipeq.contract import keys, pack
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.message import TaskMessage
from pipeq.contract.pack import PackMessage
from redis.exceptions import RedisError

from pipeq_worker.broker.intake import Intake
from pipeq_worker.broker.requests import facts_of_request
from pipeq_worker.broker.serving import runtime_of
from pipeq_worker.broker.sharing import PipelineSharing
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.host.runtime import Runtime
from pipeq_worker.leases.leases import Leases
from pipeq_worker.observe.outage import outage

logger = logging.getLogger(__name__)

#: Exit code of the process when the device hangs or is unusable. A supervisor then starts the process again.
EXIT_DEVICE_LOST = 75
#: Tasks that are accepted before the dispatcher is told to go on; fewer if no more messages are there.
TOGETHER = 16
#: Time that this end may take before the process is killed, in seconds.
LOST_EXIT_S = 10.0


class TaskPool(BasePool):
    """Celery's setting ``worker_pool`` names it. ``limit``, Celery's concurrency, is the number of tasks inside."""

    signal_safe = False
    body_can_be_buffer = True
    #: Celery identifies a running task by a process id. These numbers replace it, and are larger than any process id.
    _numbers = itertools.count(1 << 22)

    _hub: Any = None

    def on_start(self) -> None:
        """Starts the stages."""
        #: Tasks that were accepted since the dispatcher was told to go on.
        self._accepted = 0
        self._deliveries: dict[int, Delivery] = {}
        self._inside: dict[str, Delivery] = {}
        #: Ordinary tasks that wait or run.
        self._plain_futures: set[Future[Any]] = set()
        #: None in an app without pipelines; there, this is a pool of threads, and Celery's concurrency is their number.
        self._serving: Runtime | None = runtime_of(self.app)
        self._plain = ThreadPoolExecutor(self.limit if self._serving is None else (os.cpu_count() or 1), "task")
        if self._serving is not None:
            self._serving.start(self.app, self._on_lost, self._delivered)

    @property
    def _runtime(self) -> Runtime:
        """The runtime, for methods that are only called in an app with pipelines."""
        assert self._serving is not None
        return self._serving

    def on_apply(
        self,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Any = None,
        accept_callback: Any = None,
        **_: Any,
    ) -> Any:
        """Accepts one request. Runs on Celery's event loop, so it only passes the request on."""
        if args[0] != keys.TASK_NAME or self._serving is None:
            future = self._plain.submit(apply_target, target, args, kwargs or {}, callback, accept_callback)
            self._plain_futures.add(future)
            future.add_done_callback(self._plain_futures.discard)
            return future
        request = callback.__self__
        if (delivery := self._inside.get(request.id)) is not None:
            # The broker delivers a message again that it considers lost, for instance after a broken connection.
            delivery.again.append(request)
            if self._inside.get(request.id) is not delivery:
                _send_back(delivery)  # let go of meanwhile, by the thread that delivers
            return None
        # The task's status is stored even if its producer wants no result.
        args[2]["ignore_result"] = False
        leases = getattr(request.message.channel, "leases", None)
        delivery = Delivery(
            id=request.id,
            request=request,
            trace=partial(target, *args, **(kwargs or {})),
            acknowledge=callback,
            **facts_of_request(request),
            leases=leases,
            tag=request.message.delivery_tag if leases is not None else "",
            is_suspect=leases is not None and leases.is_suspect(request.message.delivery_tag),
        )
        try:
            message = self._read(request)
            delivery.lane, delivery.pipeline = message.pipeline, self._runtime.pipelines[message.pipeline]
            delivery.message = json.dumps(message.to_kwargs()).encode()
            if isinstance(message, PackMessage):
                delivery.pack_of, delivery.rows = message.of, len(message.rows)
        except PipeqError as error:
            delivery.fail(error)
        except Exception as error:
            delivery.fail(PipeqError(ErrorCode.INVALID_MESSAGE, f"{type(error).__name__}: {error}"))
        self.take_in([delivery])
        return delivery

    def take_in(self, deliveries: list[Delivery]) -> None:
        """Has deliveries go through the stages. Runs on Celery's event loop."""
        for delivery in deliveries:
            delivery.number = number = next(self._numbers)
            # Called when its batch begins; until then Celery counts the task as reserved, and it can be revoked.
            delivery.accept = partial(_accept, delivery.request, number)
            self._deliveries[number] = self._inside[delivery.id] = delivery
        self._runtime.dispatcher.accept(deliveries)
        was, self._accepted = self._accepted, self._accepted + len(deliveries)
        if self._hub is None or self._accepted >= TOGETHER:
            self._feed()
        elif not was:
            # Called when the event loop has handed on the messages that are there.
            self._hub.call_soon(self._feed)

    def intake(self, consumer: Any) -> Intake:
        """What takes in the plain messages of a consumer."""
        return Intake(consumer, self._runtime.pipelines, self.take_in, self._inside.__contains__)

    def register_with_event_loop(self, loop: Any) -> None:
        """Called by Celery with its event loop, before that turns."""
        self._hub = loop

    def _feed(self) -> None:
        if self._accepted:
            self._accepted = 0
            self._runtime.dispatcher.feed()

    def _read(self, request: Any) -> TaskMessage | PackMessage:
        fields = dict(request.kwargs)
        if len(request.args) == 1 and "inputs" not in fields:
            fields["inputs"] = request.args[0]  # the result of the previous task of a chain
        elif request.args:
            raise PipeqError(
                ErrorCode.INVALID_MESSAGE,
                "the task takes keyword arguments (pipeline, inputs, ...), and one positional one for its inputs where "
                "they are not among them",
            )
        size, limit = len(request.body), self._runtime.settings.max_message_bytes
        if size > limit:
            raise PipeqError(
                ErrorCode.INVALID_MESSAGE,
                f"the message is {size} bytes, at most {limit} are allowed (`max_message_bytes`): send the input by "
                "reference",
            )
        message = pack.parse(fields)
        queue = (request.delivery_info or {}).get("routing_key")
        if queue and queue != message.pipeline:
            raise PipeqError(
                ErrorCode.INVALID_MESSAGE, f"a message for pipeline {message.pipeline!r} lay on the queue {queue!r}"
            )
        if message.pipeline not in self._runtime.pipelines:
            served = ", ".join(sorted(self._runtime.pipelines))
            sentence = f"this worker serves no pipeline {message.pipeline!r} (it serves {served})"
            raise PipeqError(ErrorCode.UNKNOWN_PIPELINE, sentence)
        return message

    def _delivered(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._deliveries.pop(delivery.number, None)
            self._inside.pop(delivery.id, None)
            _send_back(delivery)

    def sharing(self, leases: Leases) -> PipelineSharing:
        """What the worker takes of its pipelines' queues, and gives back."""
        runtime = self._runtime
        return PipelineSharing(
            leases, runtime.dispatcher, runtime.credit, list(runtime.pipelines), self._delivered, runtime.fitness
        )

    def on_stalled(self, reason: str) -> None:
        """Ends the process if no messages come in, or go out, and only a new one helps. Runs on the leases' thread."""
        if self._runtime.lost:
            return
        for delivery in self._runtime.deliverer.turns.late():
            delivery.let_lapse()
        self._on_lost(reason)

    def on_lost_leases(self, tags: set[str]) -> None:
        """Marks deliveries whose leases are lost. Runs on the leases' thread."""
        for delivery in list(self._deliveries.values()):
            if delivery.tag in tags:
                delivery.is_lost = True

    def terminate_job(self, pid: int, signum: Any = None) -> None:
        """``revoke(terminate=True)``: the task is dropped at its next stage. Celery has recorded the revocation."""
        if (delivery := self._deliveries.get(pid)) is not None:
            delivery.is_terminated = True

    def on_stop(self) -> None:
        """Stops after SIGTERM: waiting tasks go back on their queues at once, running tasks get ``drain_s``."""
        if self._serving is None:
            self._plain.shutdown(wait=True, cancel_futures=True)
            return
        drain_s = 0 if self._runtime.lost else self._runtime.settings.drain_s
        until = time.monotonic() + drain_s
        back = self._runtime.withdraw()
        for leases in {id(delivery.leases): delivery.leases for delivery in back}.values():
            assert leases is not None
            leases.requeue(delivery.tag for delivery in back if delivery.leases is leases)
        self._plain.shutdown(wait=False, cancel_futures=True)
        running = sum(self._runtime.dispatcher.in_flight().values()) + len(self._plain_futures)
        logger.info(
            "stopping: %d tasks go back on their queues, %d that run have %g s (`drain_s`)",
            *(len(back), running, drain_s),
            extra={"action": "drain"},
        )
        left = len(self._runtime.stop(drain_s))
        wait_s = 0 if self._runtime.dispatcher.is_hurried else max(0, until - time.monotonic())
        left += len(wait(list(self._plain_futures), wait_s).not_done)
        if left:
            logger.warning("%d tasks did not end in time and go back on their queues", left, extra={"action": "drain"})
        else:
            logger.info("every task that ran has ended", extra={"action": "drain"})

    def on_terminate(self) -> None:
        """Called at a cold shutdown, which only happens if a stock ``celery worker`` runs this pool."""
        if self._serving is not None:
            self._serving.stop(0)
        self._plain.shutdown(wait=False, cancel_futures=True)

    def _on_lost(self, reason: str) -> None:
        """Ends the process, because only a new one helps. May be called on any thread."""
        logger.critical("%s; ending this process", reason, extra={"action": "device_lost"})
        self._runtime.lost = True
        # If the orderly stop hangs, too, the process is killed, so that its leases lapse soon.
        backstop = threading.Timer(LOST_EXIT_S, os._exit, (EXIT_DEVICE_LOST,))
        backstop.daemon = True
        backstop.start()
        # Stops like any SIGTERM, but without waiting: the tasks inside go back on their queues.
        os.kill(os.getpid(), signal.SIGTERM)

    def _get_info(self) -> dict[str, Any]:
        """Returns what ``celery inspect stats`` shows of the pool."""
        return {
            **super()._get_info(),
            "processes": [os.getpid()],
        } | (self._pipeline_info() if self._serving is not None else {})

    def _pipeline_info(self) -> dict[str, Any]:
        return {
            "in-flight": self._runtime.dispatcher.in_flight(),
            "pipelines": {name: one.model.model_dump() for name, one in self._runtime.pipelines.items()},
        }


def _send_back(delivery: Delivery) -> None:
    """Puts the messages back that came while the task was inside. Called on several threads.

    Whoever takes them asks the record whether the task has ended. They may be of its new life (``dead retry``), which
    came before this worker had done with the old one.
    """
    while delivery.again:
        try:
            request = delivery.again.pop()
        except IndexError:
            return
        try:
            celery_state.task_ready(request)
            request.reject(requeue=True)
        except Exception:
            logger.exception("task %s", delivery.id, extra={"action": "deliver", "task_id": delivery.id})


def _accept(request: Any, number: int) -> bool:
    try:
        # `revoked()` stores the revocation, and announces it.
        if request.id in celery_state.revoked and request.revoked():
            return False
    except RedisError as error:
        # The revocation is stored when the task is dropped, or when it is delivered again.
        outage.noticed("revoke", error)
        return False
    outage.over("revoke")
    request.on_accepted(number, time.monotonic())
    return True
