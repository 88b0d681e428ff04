"""AZ: ``az://container/blob``: Azure Blob Storage, by adlfs. `pip install 'pipeq[az]'`."""

from __future__ import annotations

from typing import Any

from pipeq_worker.stores.base import Fault
from pipeq_worker.stores.fsspec_store import FsspecStore


class Az(FsspecStore):
    """Blobs of one account. The environment names the account and its credentials.

    Set ``AZURE_STORAGE_CONNECTION_STRING``; or ``AZURE_STORAGE_ACCOUNT_NAME`` with a key or a SAS token. With neither
    of
    these two, Azure's default credentials are used.
    """

    scheme = "az"
    writable = True
    has_versions = True
    bucket = "container"
    version_fields = ("etag",)

    def build(self) -> Any:
        from adlfs.spec import AzureBlobFileSystem

        return AzureBlobFileSystem(
            connection_timeout=self._access.timeout_s,
            read_timeout=self._access.timeout_s,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def put_options(self, media_type: str) -> dict[str, Any]:
        return {"content_settings": {"content_type": media_type}}

    def fault_of(self, error: BaseException) -> Fault | None:
        from azure.core.exceptions import AzureError, ClientAuthenticationError

        if isinstance(error, ClientAuthenticationError):
            return Fault.REFUSED
        if isinstance(error, AzureError) and getattr(error, "status_code", None) is None:
            return Fault.PASSING  # no answer, or an incomplete one
        return None
