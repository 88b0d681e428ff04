"""HF: ``hf://datasets/user/name/file``: files of the Hugging Face Hub, by huggingface_hub. Read only."""

from __future__ import annotations

from typing import Any

from pipeq_worker.stores.base import Fault
from pipeq_worker.stores.fsspec_store import FsspecStore
from pipeq_worker.stores.objects import ObjectPlace

#: First parts of URIs that name a kind of repository; any other first part is the owner of a model.
_KINDS = frozenset({"datasets", "spaces", "buckets", "models", "kernels"})


class Hf(FsspecStore):
    """Files of repositories: ``hf://user/model/file``, ``hf://datasets/user/name@revision/file``.

    The token is the Hub's own (``HF_TOKEN``). Read only, because each write would be a commit.
    """

    scheme = "hf"
    bucket = "repository"
    # The Hub says the same of a repository that is private and of one that does not exist.
    knows_credentials = False
    version_fields = ("blob_id", "xet_hash", "tree_id")
    # Asks for this file alone, and not for a listing of its folder.
    info_options = {"refresh": True, "expand_info": True}  # noqa: RUF012 - never changed

    @classmethod
    def split(cls, uri: str) -> ObjectPlace:
        place = "/".join(super().split(uri))
        parts = place.split("/")
        names = 3 if parts[0] in _KINDS else 2
        return ObjectPlace("/".join(parts[:names]), "/".join(parts[names:]))

    def look(self, prefix: str, name: str) -> None:
        # A prefix that names only a user cannot be looked up.
        if not self.split(f"{prefix.rstrip('/')}/").bucket.endswith("/"):
            super().look(prefix, name)

    def build(self) -> Any:
        from huggingface_hub import HfFileSystem

        return HfFileSystem(block_size=None, skip_instance_cache=True)

    def filesystem(self) -> Any:
        """Returns a new one each time, because huggingface_hub's remembers for ever which repositories exist."""
        return self.build()

    def fault_of(self, error: BaseException) -> Fault | None:
        from huggingface_hub.errors import GatedRepoError, HfUriError, OfflineModeIsEnabled

        if isinstance(error, OfflineModeIsEnabled | HfUriError):
            return Fault.PERMANENT
        return Fault.REFUSED if isinstance(error, GatedRepoError) else None
