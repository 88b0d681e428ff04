"""Clients of S3, as the environment says where and with which credentials."""

from __future__ import annotations

from typing import Any


def s3_client(**options: Any) -> Any:
    """Makes a client of S3 with a session of its own.

    boto3's default session keeps what the environment said when it was first used, and threads must not use it at a
    time to make clients.

    Args:
        options: those of ``boto3.client``.
    """
    import boto3  # not at the top: it takes half a second, and most programs never need it

    return boto3.session.Session().client("s3", **options)
