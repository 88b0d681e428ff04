"""GS: ``gs://bucket/key``: Google Cloud Storage, by gcsfs. `pip install 'pipeq[gs]'`."""

from __future__ import annotations

from typing import Any

from pipeq_worker.stores.base import Fault
from pipeq_worker.stores.fsspec_store import FsspecStore


class Gs(FsspecStore):
    """Objects of Google Cloud Storage, with Google's default credentials.

    They come from ``GOOGLE_APPLICATION_CREDENTIALS`` or from the machine. Without credentials, only public objects can
    be
    read.
    """

    scheme = "gs"
    writable = True
    has_versions = True
    version_fields = ("generation", "etag")

    def build(self) -> Any:
        # Imported here because it takes a second. gcsfs.GCSFileSystem would first ask for each bucket's layout, by
        # gRPC, which may take a minute.
        from aiohttp import ClientTimeout
        from gcsfs.core import GCSFileSystem

        timeout = ClientTimeout(sock_connect=self._access.timeout_s, sock_read=self._access.timeout_s)
        return GCSFileSystem(
            access="read_write", requests_timeout=timeout, use_listings_cache=False, skip_instance_cache=True
        )

    def put_options(self, media_type: str) -> dict[str, Any]:
        return {"content_type": media_type}

    def fault_of(self, error: BaseException) -> Fault | None:
        from google.auth.exceptions import GoogleAuthError, TransportError

        if isinstance(error, GoogleAuthError):
            return Fault.PASSING if isinstance(error, TransportError) else Fault.REFUSED
        # gcsfs raises a plain OSError for status 403.
        return Fault.REFUSED if type(error) is OSError and str(error).startswith("Forbidden") else None
