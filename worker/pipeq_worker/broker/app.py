"""The Celery app of a worker, with the reason for each option."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import Celery, Task
from celery.apps.worker import Worker as CeleryWorker
from celery.apps.worker import install_cry_handler
from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state as celery_state
from kombu import Queue
from kombu.asynchronous import get_event_loop
from pipeq.contract import keys
from pipeq.contract.errors import PipeqError

from pipeq_worker.broker import transport
from pipeq_worker.broker.serving import ServingApp, runtime_of
from pipeq_worker.delivery import tracing
from pipeq_worker.host import dead_man, signals
from pipeq_worker.host.runtime import Runtime
from pipeq_worker.leases.redis_arguments import plain as redis_arguments_of


def build_app(runtime: Runtime) -> Celery:
    """Builds an app that consumes only the queues of the runtime's pipelines and of its ordinary Celery tasks."""
    settings = runtime.settings
    broker_url, redis_arguments = redis_arguments_of(settings.redis_url)
    # The next tasks of links and chains may be on queues of other workers.
    app = ServingApp(runtime, amqp="pipeq_worker.broker.routes:Routes")
    app.conf.update(
        broker_url=broker_url,
        broker_transport=transport.NAME,
        broker_connection_retry_on_startup=True,
        # A Redis that is full, or a replica, refuses commands for a while.
        broker_channel_error_retry=True,
        # Each queue has one list for each of these priorities; stock Celery producers use the same lists.
        broker_transport_options={
            "priority_steps": list(keys.PRIORITY_STEPS),
            "sep": keys.PRIORITY_SEPARATOR,
            "lease_s": settings.lease_s,
            "sweep_s": settings.sweep_s,
            # For each pipeline separately, so that a busy one does not take the places of another.
            "queue_prefetch": settings.prefetch,
            # The bulk work of a pipeline never starves; ordinary tasks keep Celery's strict order.
            "shared_queues": tuple(runtime.pipelines),
            # Producers without Celery push plain JSON objects. On a queue of ordinary tasks, that would be a mistake.
            "bare_queues": list(runtime.pipelines),
            # Checked before anything is decoded. Messages of ordinary tasks may be larger, but must be JSON, too.
            "queue_body_bytes": dict.fromkeys(runtime.pipelines, settings.max_message_bytes),
            "content_types": ["application/json"],
            "max_deaths": settings.max_deaths,
            "hung_s": settings.metrics.hung_s,
            # Redis may stop answering without closing a connection.
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "redis_arguments": redis_arguments,
        },
        result_backend=f"pipeq_worker:Backend+{broker_url}",
        result_expires=settings.results.expires_s,
        # Computed results wait until Redis is back: one try a second, for ten minutes.
        result_backend_transport_options={"retry_policy": {"max_retries": 600, "interval_start": 0.2}},
        # Only JSON, because a pickle from a producer could run code.
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        result_accept_content=["json"],
        task_queues=[Queue(name, routing_key=name) for name in runtime.queues],
        include=settings.include,
        worker_pool="pipeq_worker:TaskPool",
        worker_consumer="pipeq_worker:Consumer",
        # The number of tasks inside, from which batches are formed; not a number of CPUs.
        worker_concurrency=settings.prefetch * len(runtime.queues),
        worker_prefetch_multiplier=1,
        # A message is acknowledged after its result is stored, so that a crash does not lose it.
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        # Celery would write STARTED when the tracer runs, which is at the end. Running marks say it when the task
        # starts.
        task_track_started=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # After a lost connection, running tasks are delivered again. Computing them twice is better than dropping them.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        pipeq_dead_letter_max=settings.results.dead_letter_max,
    )
    app.register_task(_Infer())
    # Celery holds receivers by weak references by default, and nothing else refers to this one.
    worker_ready.connect(lambda **_: runtime.announce(), weak=False)
    return app


class Worker(CeleryWorker):
    """Celery's worker, with stop signals that its threads handle; see :mod:`pipeq_worker.host.signals`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Gossip serves elections among workers, which pipeq does not use, and would receive any broadcast.
        super().__init__(*args, without_gossip=True, **kwargs)

    def install_platform_tweaks(self, worker: Any) -> None:
        """Installs the signal handlers. SIGUSR1 prints the stack of every thread, as in any Celery worker."""
        signals.on_stop(self._drain, self._hurry)
        install_cry_handler()
        if (runtime := runtime_of(self.app)) is not None:
            runtime.seen.health.loop.on_turn = partial(dead_man.arm, runtime.settings.metrics.hung_s)

    def _drain(self) -> None:
        # From now on the event loop need not turn.
        if (runtime := runtime_of(self.app)) is not None:
            runtime.seen.health.loop.on_turn = dead_man.disarm
        dead_man.disarm()
        worker_shutting_down.send(sender=self.hostname, sig="SIGTERM", how="Warm", exitcode=0)
        celery_state.should_stop = 0
        if (loop := get_event_loop()) is not None:
            # Wakes the loop up, so that it checks the flag that was just set.
            loop.call_soon(bool)

    def _hurry(self) -> None:
        runtime = runtime_of(self.app)
        assert runtime is not None
        runtime.hurry()
        self._drain()


class _Infer(Task):
    """The Celery task ``pipeq.infer``. Its body runs after the stages; see :mod:`pipeq_worker.delivery.tracing`."""

    name = keys.TASK_NAME
    # Celery logs these errors as one line, without a traceback.
    throws = (PipeqError,)
    ignore_result = False

    def run(self, *args: object, **kwargs: object) -> object:
        return tracing.body(*args, **kwargs)
