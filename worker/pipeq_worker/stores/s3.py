"""S3: one client for all threads, and botocore's errors told apart. Used by fetch and store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from pipeq.contract import shown

from pipeq_worker.settings.read import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Tries of one call inside botocore, the first included. The worker's own retries, minutes apart, come on top.
_ATTEMPTS = 3

#: Codes of passing faults that do not all come with status 429 or 5xx.
_THROTTLED = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "SlowDown",
        "RequestTimeout",
        "BandwidthLimitExceeded",
    }
)
#: Codes with which S3 turns credentials away under another status than 403.
_REFUSED = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})


class Fault(Enum):
    """What kind of answer a failed call is."""

    #: No such object, or no such bucket.
    MISSING = auto()
    #: The store does not take the worker's credentials, or there are none.
    REFUSED = auto()
    #: Unreachable, throttled or broken for now: the same call may succeed later.
    PASSING = auto()
    #: The same call will fail again.
    PERMANENT = auto()


class S3Error(Exception):
    """A call to S3 failed.

    Args:
        fault: what kind of failure.
        reason: half a sentence, without credentials.
        code: S3's own code, or the name of botocore's error.
    """

    def __init__(self, fault: Fault, reason: str, code: str) -> None:
        super().__init__(fault, reason, code)
        self.fault = fault
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        return self.reason


class S3:
    """Reads and writes objects. Safe for any number of threads; connects on first use.

    Args:
        settings: which server; credentials come from the AWS chain.
        timeout_s: of one connect, and of one read.
        connections: how many are kept open, at least the number of threads that use this.
    """

    def __init__(self, settings: S3Settings, timeout_s: float, connections: int) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._connections = connections
        self._lock = threading.Lock()
        self._client: S3Client | None = None

    @contextmanager
    def open(self, bucket: str, key: str) -> Iterator[tuple[int | None, Callable[[int], bytes]]]:
        """An object's size in bytes if the server says it, and a function that reads at most so many (none at the end).

        Raises (the function too):
            S3Error: names neither bucket nor key.
        """
        with self._translated():
            response = self._connected().get_object(Bucket=bucket, Key=key)
        with closing(response["Body"]) as body:

            def read(size: int) -> bytes:
                with self._translated():
                    return body.read(size)

            size = response.get("ContentLength")
            yield size if size is not None and size >= 0 else None, read

    def version(self, bucket: str, key: str) -> str:
        """Differs where an object's content does: its ETag.

        Raises:
            S3Error: names neither bucket nor key.
        """
        with self._translated():
            return str(self._connected().head_object(Bucket=bucket, Key=key)["ETag"])

    def put(self, bucket: str, key: str, data: bytes, media_type: str) -> None:
        """Writes an object in one request.

        Raises:
            S3Error: names neither bucket nor key.
        """
        with self._translated():
            self._connected().put_object(Bucket=bucket, Key=key, Body=data, ContentType=media_type)

    def look(self, bucket: str, prefix: str) -> None:
        """Whether there is a bucket, as far as these credentials may know.

        Raises:
            S3Error: there is none, or the server cannot be asked. Not that the bucket may not be listed: its objects
                may be read all the same.
        """
        try:
            with self._translated():
                self._connected().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except S3Error as error:
            if error.code != "AccessDenied":
                raise

    def remove(self, bucket: str, key: str) -> None:
        """Removes an object.

        Raises:
            S3Error: names neither bucket nor key.
        """
        with self._translated():
            self._connected().delete_object(Bucket=bucket, Key=key)

    def warm_up(self) -> None:
        """Builds the client; what is wrong with its settings shows when it is used."""
        with suppress(S3Error):
            self._connected()

    def close(self) -> None:
        """Closes the connections. A later call opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> S3Client:
        # Building a client takes a tenth of a second and is not thread-safe; using one is.
        with self._lock:
            if self._client is None:
                with self._translated():
                    self._client = self._build()
            return self._client

    def _build(self) -> S3Client:
        # Imported here: a worker whose inputs are all inline or on disk never pays for it.
        import boto3
        from botocore.config import Config

        _keep_to_deadlines()

        settings = self._settings
        custom = self._endpoint
        style = settings.addressing_style
        if style == "auto" and custom:
            # http://bucket.localhost:9000 resolves almost nowhere.
            style = "path"
        config = Config(
            connect_timeout=self._timeout_s,
            read_timeout=self._timeout_s,
            max_pool_connections=self._connections,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            s3={"addressing_style": style},
        )
        if custom:
            # Many servers other than AWS refuse the checksum trailers that botocore adds by default.
            config = config.merge(Config(request_checksum_calculation="when_required"))
        # A session of our own: boto3's default one is shared with whatever else runs in the process.
        session = boto3.session.Session(region_name=settings.region)
        return session.client("s3", endpoint_url=settings.endpoint_url, config=config)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import botocore.exceptions as aws
        import urllib3.exceptions

        try:
            yield
        except S3Error:
            raise
        except aws.ClientError as error:
            raise _from_answer(error) from error
        except (aws.HTTPClientError, aws.ConnectionError, urllib3.exceptions.HTTPError, OSError) as error:
            raise S3Error(Fault.PASSING, f"cannot be reached ({self._line(error)})", type(error).__name__) from error
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound) as error:
            reason = f"cannot be asked: this worker has no AWS credentials ({self._line(error)})"
            raise S3Error(Fault.REFUSED, reason, type(error).__name__) from error
        except (
            aws.IncompleteReadError,
            aws.FlexibleChecksumError,
            aws.CredentialRetrievalError,
            aws.MetadataRetrievalError,
        ) as error:
            raise S3Error(Fault.PASSING, f"failed for now ({self._line(error)})", type(error).__name__) from error
        except (aws.BotoCoreError, ValueError) as error:
            # ValueError is what botocore makes of an endpoint URL that is none.
            raise S3Error(
                Fault.PERMANENT, f"cannot be asked for this ({self._line(error)})", type(error).__name__
            ) from error
        except Exception as error:
            # botocore raises anything on answers that are none of S3, RecursionError where a store redirects to itself.
            reason = f"answers with what is no answer of S3 ({type(error).__name__})"
            raise S3Error(Fault.PASSING, reason, type(error).__name__) from error

    def _line(self, error: Exception) -> str:
        text = str(error)
        # botocore quotes the endpoint, which may have a user and a password in it; malformed, it ends nowhere.
        if self._endpoint:
            text = text.replace(self._endpoint, shown.uri(self._endpoint))
        return shown.line(text)

    @property
    def _endpoint(self) -> str | None:
        custom = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return self._settings.endpoint_url or custom


def _keep_to_deadlines() -> None:
    """Makes botocore's connections such that keep to the deadline of their thread; others notice nothing of it."""
    from botocore import awsrequest

    from pipeq_worker.stores.deadline import TimedExpecting

    made: tuple[tuple[Any, Any], ...] = (
        (awsrequest.AWSHTTPConnectionPool, awsrequest.AWSHTTPConnection),
        (awsrequest.AWSHTTPSConnectionPool, awsrequest.AWSHTTPSConnection),
    )
    for pool, connection in made:
        if not issubclass(pool.ConnectionCls, TimedExpecting):
            pool.ConnectionCls = type(f"Timed{connection.__name__}", (TimedExpecting, connection), {})


def _from_answer(error: Exception) -> S3Error:
    answer = getattr(error, "response", {})
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = shown.line(str(answer.get("Error", {}).get("Code", status)), 60)
    message = shown.line(str(answer.get("Error", {}).get("Message", ""))).rstrip(".")
    said = f"{code}: {message}" if message else code
    if status in (429, 408) or status >= 500 or code in _THROTTLED:
        return S3Error(Fault.PASSING, f"failed for now ({said})", code)
    if status == 404 or code in ("NoSuchKey", "NoSuchBucket"):
        return S3Error(Fault.MISSING, f"does not have it ({said})", code)
    if status in (401, 403) or code in _REFUSED:
        # Not the message: AWS names the account and the role in it, which is nothing for producers.
        return S3Error(Fault.REFUSED, f"refused this worker's credentials ({code})", code)
    return S3Error(Fault.PERMANENT, f"does not take the request ({said})", code)
