"""Clients of S3, as the environment says where and with which credentials; and what is said of its refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError

#: Codes with which S3 refuses the credentials themselves.
_REFUSED = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"})


def s3_client(**options: Any) -> Any:
    """Makes a client of S3 with a session of its own.

    boto3's default session keeps what the environment said when it was first used, and threads must not use it at a
    time to make clients.

    Args:
        options: those of ``boto3.client``.
    """
    import boto3  # not at the top: it takes half a second, and most programs never need it

    return boto3.session.Session().client("s3", **options)


@contextmanager
def s3_errors(uri: str, done: str) -> Iterator[None]:
    """Turns what boto3 raises into our errors.

    Args:
        uri: of the object, or of the prefix.
        done: what is not possible with it: ``read``, ``listed``.

    Raises:
        PipeqError: ``input_not_found``, ``input_forbidden`` or ``input_unavailable``.
    """
    import botocore.exceptions as aws

    cannot = f"{shown.uri(uri)} cannot be {done}"
    try:
        yield
    except aws.ClientError as error:
        raise _answered(error, cannot, uri) from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound) as error:
        message = f"{cannot}: there are no AWS credentials here ({shown.line(str(error))})"
        raise PipeqError(ErrorCode.INPUT_FORBIDDEN, message) from error
    except (aws.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise PipeqError(ErrorCode.INPUT_UNAVAILABLE, f"{cannot}: {shown.line(str(error))}") from error


def _answered(error: Exception, cannot: str, uri: str) -> PipeqError:
    answer = getattr(error, "response", {})
    code = shown.line(str(answer.get("Error", {}).get("Code", "")), 60)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code == "NoSuchBucket":
        bucket = uri.removeprefix("s3://").partition("/")[0]
        return PipeqError(ErrorCode.INPUT_NOT_FOUND, f"{cannot}: there is no bucket {shown.line(bucket)!r}")
    if code == "NoSuchKey" or status == 404:
        return PipeqError(ErrorCode.INPUT_NOT_FOUND, f"{cannot}: there is no such object ({code or status})")
    if status in (401, 403) or code in _REFUSED:
        whose = "S3 refuses these AWS credentials" if code in _REFUSED else "these AWS credentials may not do that"
        return PipeqError(ErrorCode.INPUT_FORBIDDEN, f"{cannot}: {whose} ({code or status})")
    said = shown.line(str(answer.get("Error", {}).get("Message", "")))
    return PipeqError(ErrorCode.INPUT_UNAVAILABLE, f"{cannot}: S3 answers {code or status}: {said}")
