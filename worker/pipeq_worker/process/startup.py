"""START: checks names, waits for Redis, and registers the worker as loading, all before models are loaded.

Nothing here imports torch, so that a typo is reported within a second or two.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from types import TracebackType
from typing import Self

import redis
from pipeq.contract import keys, shown
from pipeq.contract.errors import SettingsError
from pipeq.contract.heartbeat import Beat
from pipeq.contract.redis_url import connect, refusal
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,  # noqa: A004
    NoPermissionError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
)

from pipeq_worker.children.served import Served
from pipeq_worker.host import others
from pipeq_worker.models.task_types import ALIASES, TASK_TYPES, is_task_type
from pipeq_worker.observe.outage import outage
from pipeq_worker.process import rights
from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.fetch import Fetcher
from pipeq_worker.stores import registry
from pipeq_worker.stores.writer import Writer

logger = logging.getLogger(__name__)

#: The first version with RPOP of several elements, ZMSCORE, and TIME in a deterministic script.
OLDEST_REDIS = (6, 2)
#: While Redis does not answer, the log says so this often, in seconds ...
SAY_AGAIN_S = 60.0
#: ... and the worker tries again this often, in seconds.
_ASK_AGAIN_S = 1.0
#: Keys of a pipeline whose value may be a folder.
_FOLDERS = ("model", "tokenizer", "image_processor", "feature_extractor", "processor", "vocoder", "adapter")


def check(settings: Settings) -> None:
    """Checks that a worker could start: task types, folders, modules, prefixes of inputs, and stores of results.

    Raises:
        SettingsError: names what is wrong and, if a similar name exists, suggests it.
    """
    check_names(settings)
    for module in settings.include:
        _check_module(module)
    registry.check()
    # The constructors check prefixes, networks and certificates.
    Fetcher(settings.inputs, settings.s3).close()
    Writer(settings.results, settings.s3).close()


def _check_module(name: str) -> None:
    # Celery imports from the working directory, too.
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise SettingsError(f"include: there is no module {shown.line(name)!r}: {_said(error)}") from error
    finally:
        sys.path.remove(os.getcwd())
    if found is None:
        raise SettingsError(
            f"include: there is no module {shown.line(name)!r} here: is it installed, or below this folder?"
        )


def check_names(settings: Settings) -> None:
    """Checks that the task types and the folders that the pipelines name exist.

    Raises:
        SettingsError: names the pipeline and, if a similar task type exists, suggests it.
    """
    for name, section in settings.pipelines.items():
        task = section.task or name
        # A pipeline with a model may have any name: the model's configuration gives the task type.
        if not is_task_type(task) and (section.task is not None or section.model is None):
            raise SettingsError(f"pipeline {name!r}: {_no_task_type(task)}")
        for key in _FOLDERS:
            check_folder(getattr(section, key), f"pipeline {name!r}: {key} ")


def check_folder(text: str | None, what: str = "") -> None:
    """Checks that a folder exists, if ``text`` is a path and not a name on the Hub.

    Raises:
        SettingsError: the folder does not exist.
    """
    # A name on the Hub is OWNER/NAME; anything stored elsewhere has a scheme.
    if text is None or "://" in text or not (text.startswith(("/", "./", "../", "~")) or text.count("/") > 1):
        return
    if not os.path.isdir(text):
        why = "it is a file" if os.path.exists(text) else "there is no such folder"
        hint = "; ~ is not read here, write the whole path" if text.startswith("~") else ""
        raise SettingsError(f"{what}{shown.line(text)!r} is no model that can be read: {why}{hint}")


def _no_task_type(task: str) -> str:
    known = sorted({*TASK_TYPES, *ALIASES})
    close = get_close_matches(task, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
    return f"{shown.line(task)!r} is no task type; {hint}"


def wait_for_redis(url: str) -> None:
    """Waits until Redis answers: a worker that is started together with Redis may be up first.

    Raises:
        SettingsError: Redis answers but cannot be used: the password or the database is wrong, or the server is a
            cluster or too old. Only a Redis that cannot be reached is waited for.
    """
    where = shown.uri(url)
    said_at: float | None = None
    began = time.monotonic()
    with connect(url) as client:
        while True:
            try:
                client.ping()
                break
            except RedisError as error:
                if isinstance(error, AuthenticationError):
                    raise SettingsError(f"redis_url: {where} {refusal(error)}") from None
                if not isinstance(error, ConnectionError | TimeoutError):
                    raise SettingsError(f"redis_url: {where} answers: {_said(error)}") from None
                now = time.monotonic()
                if said_at is None or now - said_at >= SAY_AGAIN_S:
                    waited = "waiting" if said_at is None else f"waiting for {now - began:.0f} s now"
                    extra = {"action": "wait"}
                    logger.warning("Redis at %s does not answer (%s); %s", where, _said(error), waited, extra=extra)
                    said_at = now
                time.sleep(_ASK_AGAIN_S)
        if said_at is not None:
            logger.info("Redis at %s answers", where, extra={"action": "wait"})
        _check_server(client, where)


def _check_server(client: redis.Redis, where: str) -> None:
    """Raises SettingsError for a server that lacks what the worker needs."""
    try:
        server, cluster = client.info("server"), client.info("cluster")
    except RedisError:
        return  # not for this user to know; the first command will show
    if cluster.get("cluster_enabled"):
        raise SettingsError(
            f"redis_url: {where} is a Redis Cluster, where a script may touch one slot only: use a single server, with "
            "a replica for its failure"
        )
    version = tuple(int(part) for part in str(server.get("redis_version", "99")).split(".")[:2])
    if version < OLDEST_REDIS:
        raise SettingsError(
            f"redis_url: {where} is Redis {server['redis_version']}, pipeq needs {'.'.join(map(str, OLDEST_REDIS))} or "
            "newer"
        )


def _said(error: Exception) -> str:
    return shown.line(str(error))


class Loading:
    """Registers the worker in Redis as loading, so that a submit in the meantime does not warn of a missing worker.

    A context manager; it owns its thread, which ends with the block: when the worker's heartbeat is about to begin.
    After an error the registration is removed at once, otherwise it expires after ``keys.WORKER_TTL_S``.
    """

    def __init__(self, url: str, worker: str, pipelines: Iterable[str]) -> None:
        self._redis = connect(url)
        self._url = url
        self._worker = worker
        self._pipelines = list(pipelines)
        #: What it has claimed to serve, once that is loaded.
        self._claimed: Beat | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loading", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def claim(self, pipelines: Mapping[str, Served], *, strict: bool) -> None:
        """Says what the worker will serve: see :func:`pipeq_worker.host.others.claim`. Waits until Redis answers.

        Raises:
            SettingsError: Redis does not let this user do that, or ``strict`` is set, and others serve it otherwise.
        """
        while True:
            try:
                self._claimed = others.claim(self._redis, self._worker, pipelines, strict=strict)
            except (NoPermissionError, AuthenticationError) as error:
                raise rights.lacking(self._url, error) from None
            except RedisError as error:
                if isinstance(error, ResponseError) and not strict:
                    # A full Redis answers, and tasks can be ended there. The heartbeat says what is served once it can.
                    logger.warning("Redis accepts no claim of pipelines: %s", _said(error), extra={"action": "claim"})
                    return
                outage.noticed("claim", error)
                time.sleep(_ASK_AGAIN_S)
            else:
                outage.over("claim")
                return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is not None:
            with suppress(RedisError), self._redis.pipeline(transaction=False) as pipe:
                for name in self._pipelines:
                    pipe.zrem(keys.loading_key(name), self._worker)
                pipe.delete(keys.worker_key(self._worker))
                pipe.execute(raise_on_error=False)
        self._redis.close()

    def _run(self) -> None:
        while True:
            # A failure here only costs a producer a warning, and waiting for Redis is reported elsewhere.
            with suppress(RedisError):
                self._beat()
            if self._stop.wait(keys.HEARTBEAT_S):
                return

    def _beat(self) -> None:
        now = time.time()
        with self._redis.pipeline(transaction=False) as pipe:
            for name in self._pipelines:
                key = keys.loading_key(name)
                pipe.zadd(key, {self._worker: now})
                pipe.zremrangebyscore(key, "-inf", now - keys.WORKER_TTL_S)
                pipe.expire(key, 3600)
            if self._claimed is not None:
                others.register(pipe, self._worker, replace(self._claimed, at=now))
            pipe.execute(raise_on_error=False)
