"""LISTING: ``s3://bucket/prefix/`` or ``s3://bucket/talks/*.flac`` -> the URIs of the objects, a page at a time.

With the caller's own credentials, and in the order of the keys, so that the n-th object is the same one at each try.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator

from pipeq.contract import shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.s3_client import s3_client, s3_errors

#: What makes a name stand for several.
WILDCARDS = re.compile(r"[*?[]")


def listed(uri: str) -> Iterator[str]:
    """Yields the URIs of all objects below a prefix, or of those that match a name with wildcards.

    A ``*`` does not stand for a slash, and ``**`` for anything. Objects that only mark a folder are left out.

    Raises:
        PipeqError: ``input_not_found``: there is none; ``input_forbidden``; ``input_unavailable``.
    """
    bucket, _, name = uri.removeprefix("s3://").partition("/")
    wildcard = WILDCARDS.search(name)
    prefix = name[: wildcard.start()] if wildcard else name
    matches = _pattern(name) if wildcard else None
    found = False
    for key in _keys(bucket, prefix, uri):
        if not key.endswith("/") and (matches is None or matches.fullmatch(key)):
            found = True
            yield f"s3://{bucket}/{key}"
    if not found:
        what = "matches" if wildcard else "is below"
        raise PipeqError(ErrorCode.INPUT_NOT_FOUND, f"no object {what} {shown.uri(uri)}")


def _pattern(name: str) -> re.Pattern[str]:
    plain = {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/?|\*|\?|\[!?\]?[^\]]*\])", name)
    # fnmatch knows how a range in brackets is written.
    ranges = {part: fnmatch.translate(part) for part in parts if part.startswith("[") and part.endswith("]")}
    known = plain | {part: written[len("(?s:") : -len(r")\Z")] for part, written in ranges.items()}
    return re.compile("".join(known.get(part) or re.escape(part) for part in parts), re.DOTALL)


def _keys(bucket: str, prefix: str, uri: str) -> Iterator[str]:
    from botocore.config import Config

    with s3_errors(uri, "listed"):
        # By default it tries for minutes to reach a server that is not there.
        config = Config(connect_timeout=10, read_timeout=60, retries={"mode": "standard", "total_max_attempts": 3})
        listing = s3_client(config=config).get_paginator("list_objects_v2")
        pages = listing.paginate(Bucket=bucket, Prefix=prefix)
        for page in pages:
            yield from (entry["Key"] for entry in page.get("Contents", ()))
