"""S3: ``s3://bucket/key``. One client serves all threads; botocore's errors are translated to faults."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pipeq.contract import shown
from pipeq.contract.errors import Blame

from pipeq_worker.observe.own_faults import has_no_address, is_own_fault_of_call
from pipeq_worker.stores.base import Access, Fault, Source, StoreError
from pipeq_worker.stores.objects import ObjectPlace, ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: Tries of one call inside botocore, including the first. The worker's own retries, minutes apart, are additional.
_ATTEMPTS = 3

#: Codes of temporary faults that may come with another status than 429 or 5xx.
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
#: Codes with which S3 refuses the credentials themselves, under whatever status. Any other refusal is about the place.
REFUSED_CREDENTIALS = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)


class S3(ObjectStore):
    """Objects of an S3 server. It connects at first use, with credentials from the AWS chain."""

    scheme = "s3"
    writable = True
    has_versions = True

    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._settings = access.s3
        self._lock = threading.Lock()
        self._client: S3Client | None = None

    @contextmanager
    def open(self, place: ObjectPlace, name: str) -> Iterator[Source]:
        self.require_key(place, name)
        with self._translated(name):
            response = self._connected().get_object(Bucket=place.bucket, Key=place.key)
        with closing(response["Body"]) as body:

            def read(size: int) -> bytes:
                with self._translated(name):
                    return body.read(size)

            size = response.get("ContentLength")
            yield Source(size if size is not None and size >= 0 else None, read)

    def version(self, place: ObjectPlace, name: str) -> str:
        """The object's ETag."""
        with self._translated(name):
            return str(self._connected().head_object(Bucket=place.bucket, Key=place.key)["ETag"])

    def put(self, place: ObjectPlace, data: bytes, media_type: str, name: str) -> None:
        """Writes the object in one request."""
        with self._translated(name):
            self._connected().put_object(Bucket=place.bucket, Key=place.key, Body=data, ContentType=media_type)

    def look(self, prefix: str, name: str) -> None:
        """A bucket that may not be listed passes, because its objects may still be readable."""
        bucket, start = self.split(prefix)
        try:
            with self._translated(name):
                self._connected().list_objects_v2(Bucket=bucket, Prefix=start, MaxKeys=1)
        except StoreError as error:
            if error.code != "AccessDenied":
                raise

    def remove(self, place: ObjectPlace, name: str) -> None:
        with self._translated(name):
            self._connected().delete_object(Bucket=place.bucket, Key=place.key)

    def warm_up(self) -> None:
        """Builds the client, which takes half a second."""
        with suppress(StoreError), self._translated("S3"):
            self._connected()

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> S3Client:
        # Building a client takes a tenth of a second and is not thread-safe; using it is.
        with self._lock:
            if self._client is None:
                self._client = self._build()
            return self._client

    def _forget(self) -> None:
        """Has the next call make a new client: credentials are looked for only then, and may be there by now."""
        with self._lock:
            self._client = None  # not closed, because other threads may use it

    def _build(self) -> S3Client:
        # Imported here, so that a worker whose inputs are all inline or on disk does not pay for it.
        import boto3
        from botocore.config import Config

        _keep_to_deadlines()

        settings = self._settings
        custom = self._endpoint
        style = settings.addressing_style
        if style == "auto" and custom:
            # A name such as http://bucket.localhost:9000 resolves almost nowhere.
            style = "path"
        config = Config(
            connect_timeout=self._access.timeout_s,
            read_timeout=self._access.timeout_s,
            max_pool_connections=self._access.connections,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            s3={"addressing_style": style},
        )
        if custom:
            # Many servers other than AWS refuse the checksum trailers that botocore adds by default.
            config = config.merge(Config(request_checksum_calculation="when_required"))
        # A session of our own, because boto3's default session is shared with other code in the process.
        session = boto3.session.Session(region_name=settings.region)
        return session.client("s3", endpoint_url=settings.endpoint_url, config=config)

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        import botocore.exceptions as aws
        import urllib3.exceptions

        try:
            yield
        except StoreError:
            raise
        except aws.ClientError as error:
            found = _from_answer(error, name)
            if found.blame is Blame.WORKER:
                self._forget()
            raise found from error
        except (aws.HTTPClientError, aws.ConnectionError, urllib3.exceptions.HTTPError, OSError) as error:
            reason = f"cannot be reached ({self._line(error)})"
            # A name that nobody knows is a wrong setting, and not an outage.
            is_own = is_own_fault_of_call(error) or has_no_address(error)
            blame = Blame.WORKER if is_own else Blame.TASK
            raise _failed(Fault.PASSING, reason, type(error).__name__, name, blame) from error
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound) as error:
            self._forget()
            reason = f"cannot be asked: this worker has no AWS credentials ({self._line(error)})"
            raise _failed(Fault.REFUSED, reason, type(error).__name__, name, Blame.WORKER) from error
        except (aws.CredentialRetrievalError, aws.MetadataRetrievalError) as error:
            reason = f"cannot be asked: this worker gets no AWS credentials now ({self._line(error)})"
            raise _failed(Fault.PASSING, reason, type(error).__name__, name, Blame.WORKER) from error
        except (aws.IncompleteReadError, aws.FlexibleChecksumError) as error:
            raise _failed(Fault.PASSING, f"failed for now ({self._line(error)})", type(error).__name__, name) from error
        except (aws.BotoCoreError, ValueError) as error:
            # botocore raises ValueError for a malformed endpoint URL.
            reason = f"cannot be asked for this ({self._line(error)})"
            is_setting = isinstance(error, aws.NoRegionError) or not isinstance(error, aws.BotoCoreError)
            blame = Blame.WORKER if is_setting else Blame.TASK
            raise _failed(Fault.PERMANENT, reason, type(error).__name__, name, blame) from error
        except Exception as error:
            # botocore raises anything for answers that are not S3's, for instance RecursionError for a redirect loop.
            reason = f"answers with what is no answer of S3 ({type(error).__name__})"
            blame = Blame.WORKER if is_own_fault_of_call(error) else Blame.TASK
            raise _failed(Fault.PASSING, reason, type(error).__name__, name, blame) from error

    def _line(self, error: Exception) -> str:
        text = str(error)
        # botocore quotes the endpoint, which may hold a user and a password; in a malformed one their end is unclear.
        if self._endpoint:
            text = text.replace(self._endpoint, shown.uri(self._endpoint))
        return shown.line(text)

    @property
    def _endpoint(self) -> str | None:
        custom = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return self._settings.endpoint_url or custom


def _keep_to_deadlines() -> None:
    """Makes botocore's connections keep the deadline of their thread; threads without a deadline are not affected."""
    from botocore import awsrequest

    from pipeq_worker.stores.deadline import TimedExpecting

    made: tuple[tuple[Any, Any], ...] = (
        (awsrequest.AWSHTTPConnectionPool, awsrequest.AWSHTTPConnection),
        (awsrequest.AWSHTTPSConnectionPool, awsrequest.AWSHTTPSConnection),
    )
    for pool, connection in made:
        if not issubclass(pool.ConnectionCls, TimedExpecting):
            pool.ConnectionCls = type(f"Timed{connection.__name__}", (TimedExpecting, connection), {})


def _failed(fault: Fault, reason: str, code: str, name: str, blame: Blame = Blame.TASK) -> StoreError:
    return StoreError(fault, f"{name}: the store {reason}", code, blame)


def _from_answer(error: Exception, name: str) -> StoreError:
    answer = getattr(error, "response", {})
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = shown.line(str(answer.get("Error", {}).get("Code", status)), 60)
    message = shown.line(str(answer.get("Error", {}).get("Message", ""))).rstrip(".")
    said = f"{code}: {message}" if message else code
    if status in (429, 408) or status >= 500 or code in _THROTTLED:
        return _failed(Fault.PASSING, f"failed for now ({said})", code, name)
    if status == 404 or code in ("NoSuchKey", "NoSuchBucket"):
        # A bucket that is not there may be one of another server.
        blame = Blame.EITHER if code == "NoSuchBucket" else Blame.TASK
        return _failed(Fault.MISSING, f"does not have it ({said})", code, name, blame)
    if status in (401, 403) or code in REFUSED_CREDENTIALS:
        # Without the message, because AWS names the account and the role in it, which producers must not see.
        blame = Blame.WORKER if status == 401 or code in REFUSED_CREDENTIALS else Blame.EITHER
        return _failed(Fault.REFUSED, f"refused this worker's credentials ({code})", code, name, blame)
    return _failed(Fault.PERMANENT, f"does not take the request ({said})", code, name)
