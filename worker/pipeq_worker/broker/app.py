"""The Celery app of a worker; each option with its reason."""

from __future__ import annotations

from typing import Any

from celery import Celery, Task
from celery.apps.worker import Worker as CeleryWorker
from celery.apps.worker import install_cry_handler
from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state as celery_state
from kombu import Queue
from kombu.asynchronous import get_event_loop
from pipeq.contract import keys as queues
from pipeq.contract.errors import PipeqError

from pipeq_worker.broker import transport
from pipeq_worker.broker.serving import ServingApp, runtime_of
from pipeq_worker.delivery import deliver
from pipeq_worker.host import signals
from pipeq_worker.host.runtime import Runtime
from pipeq_worker.leases.redis_arguments import plain as redis_arguments_of


def build_app(runtime: Runtime) -> Celery:
    """An app that consumes the queues of the runtime's pipelines and nothing else."""
    settings = runtime.settings
    broker_url, redis_arguments = redis_arguments_of(settings.redis_url)
    # Links and chains go on to queues of other workers, too.
    app = ServingApp(runtime, amqp="pipeq_worker.broker.routes:Routes")
    app.conf.update(
        broker_url=broker_url,
        broker_transport=transport.NAME,
        broker_connection_retry_on_startup=True,
        # Redis may refuse for a while: it is full, or a replica.
        broker_channel_error_retry=True,
        # One list for each of these and each queue, as stock Celery producers push them.
        broker_transport_options={
            "priority_steps": list(queues.PRIORITY_STEPS),
            "sep": queues.PRIORITY_SEPARATOR,
            "lease_s": settings.lease_s,
            "sweep_s": settings.sweep_s,
            # Of each pipeline, so that a busy one does not fill the place of another.
            "queue_prefetch": settings.prefetch,
            # Bulk work of a pipeline never starves; ordinary tasks keep Celery's strict order.
            "shared_queues": tuple(runtime.pipelines),
            # Measured before anything is decoded. Ordinary tasks may be larger, but are JSON, too.
            "queue_body_bytes": dict.fromkeys(runtime.pipelines, settings.max_message_bytes),
            "content_types": ["application/json"],
            # Redis may be silent without closing a connection.
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "redis_arguments": redis_arguments,
        },
        result_backend=f"pipeq_worker:Backend+{broker_url}",
        result_expires=settings.results.expires_s,
        # What is computed waits for Redis to come back: once a second, for ten minutes.
        result_backend_transport_options={"retry_policy": {"max_retries": 600, "interval_start": 0.2}},
        # JSON only: a pickle from a producer would be code.
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        result_accept_content=["json"],
        task_queues=[Queue(name, routing_key=name) for name in runtime.queues],
        include=settings.include,
        worker_pool="pipeq_worker:TaskPool",
        worker_consumer="pipeq_worker:Consumer",
        # Tasks that wait inside, not CPUs: the window that batches are picked from.
        worker_concurrency=settings.prefetch * len(runtime.queues),
        worker_prefetch_multiplier=1,
        # A message is acknowledged when its result is stored, so that no death loses it.
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        # STARTED would be written when the tracer runs, that is, at the end; running marks say it in time.
        task_track_started=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # What a lost connection leaves behind is delivered again; computing it twice is better than dropping it.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        pipeq_dead_letter_max=settings.results.dead_letter_max,
    )
    app.register_task(_Infer())
    # Weak references are Celery's default; nothing else would hold this one.
    worker_ready.connect(lambda **_: runtime.announce(), weak=False)
    return app


class Worker(CeleryWorker):
    """Celery's worker, told to stop in a way that its threads survive; see :mod:`pipeq_worker.host.signals`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Gossip brings the workers' elections, which nothing here holds, and whatever else somebody broadcasts.
        super().__init__(*args, without_gossip=True, **kwargs)

    def install_platform_tweaks(self, worker: Any) -> None:
        """Installs the signal handlers. SIGUSR1 prints what every thread is doing, as in any Celery worker."""
        signals.on_stop(self._drain, self._hurry)
        install_cry_handler()

    def _drain(self) -> None:
        worker_shutting_down.send(sender=self.hostname, sig="SIGTERM", how="Warm", exitcode=0)
        celery_state.should_stop = 0
        if (loop := get_event_loop()) is not None:
            # Wakes it up, to look at what was just set.
            loop.call_soon(bool)

    def _hurry(self) -> None:
        runtime = runtime_of(self.app)
        assert runtime is not None
        runtime.hurry()
        self._drain()


class _Infer(Task):
    """The one task. Its body runs when the outcome is known; see :mod:`pipeq_worker.delivery.deliver`."""

    name = queues.TASK_NAME
    # Known failures are one line in the log, not a traceback.
    throws = (PipeqError,)
    ignore_result = False

    def run(self, *args: object, **kwargs: object) -> object:
        return deliver.body(*args, **kwargs)
