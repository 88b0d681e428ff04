"""RIGHTS: may this user of Redis do what a worker does? Asked at the start, before models are loaded.

Without this, a worker would load its models, and then try for ever to take messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipeq.contract import keys, shown
from pipeq.contract.errors import SettingsError
from pipeq.contract.redis_url import connect
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError


def check(url: str, queues: Iterable[str]) -> None:
    """Checks that Redis lets this user do what a worker does.

    Redis checks rights when it queues a command of a transaction, and this one is discarded, so that nothing is done.

    Raises:
        SettingsError: it does not; with what Redis said.
    """
    with connect(url) as client:
        db = client.connection_pool.connection_kwargs.get("db") or 0
        try:
            connection = client.connection_pool.get_connection()
            for command in (("MULTI",), *_needed(queues, db), ("DISCARD",)):
                connection.send_command(*command)
                connection.read_response()
        except (NoPermissionError, AuthenticationError) as error:
            raise lacking(url, error) from None
        except RedisError:
            return  # whoever needs that will say it
        finally:
            client.connection_pool.disconnect()


def _needed(queues: Iterable[str], db: int) -> Iterator[tuple[str | int, ...]]:
    """A command for each kind of key and channel that a worker uses, and each kind of use."""
    for name in queues:
        for key in (keys.workers_key(name), keys.loading_key(name), keys.waiting_key(name)):
            yield "ZADD", key, 0, "x"
        yield "RPOP", name
        yield "LPUSH", keys.dead_letter_key(name), "x"
    for key in (keys.worker_key("x"), keys.record_key("x")):
        yield "SET", key, "x", "EX", 1
        yield "GET", key
    yield "HSET", keys.PIPELINES, "x", "x"
    yield "HDEL", keys.RUNNING, "x"
    yield "EVAL", "return 0", 0
    yield "PUBLISH", keys.record_key("x"), "x"
    # Celery's remote control, and kombu's list of who hears it.
    yield "SADD", "_kombu.binding.celery.pidbox", "x"
    yield "PUBLISH", f"/{db}.celery.pidbox", "x"
    yield "PSUBSCRIBE", f"/{db}.celery.pidbox"


def lacking(url: str, error: Exception) -> SettingsError:
    """The error for a user of Redis who may not do what a worker does."""
    where, says = shown.uri(url), shown.line(str(error))
    return SettingsError(
        f"redis_url: {where} does not let this user serve pipelines ({says}): deploy/redis-users.acl has the "
        "rights that a worker needs"
    )
