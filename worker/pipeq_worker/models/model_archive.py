"""Models that are an archive on S3: fetches and unpacks one once, and keeps it in a cache. Used by models."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

from pipeq.contract import shown
from pipeq.contract.errors import PipeqError, SettingsError

from pipeq_worker.models.unpack import ArchiveError, unpack
from pipeq_worker.settings.read import ArchiveSettings, S3Settings
from pipeq_worker.stores.s3 import S3, S3Error

logger = logging.getLogger(__name__)

_CHUNK = 2**20
_TIMEOUT_S = 60
_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


def unpacked(model: str, s3: S3Settings) -> str:
    """Returns the folder of a model; returns a name on the Hub or a local folder unchanged.

    Args:
        model: ``s3://bucket/key.tar.gz`` (or another archive), a name or a folder.
        s3: how to reach S3.

    Raises:
        PipeqError: ``invalid_settings``.
    """
    if not model.startswith("s3://"):
        return model
    if not model.endswith(_ENDINGS):
        raise _problem(model, f"is no archive: its name must end in one of {', '.join(_ENDINGS)}")
    bucket, _, key = model.removeprefix("s3://").partition("/")
    store = S3(s3, _TIMEOUT_S, 1)
    try:
        version = store.version(bucket, key)
        # Each version of the object has a folder of its own.
        folder = cache_folder() / hashlib.sha256(f"{model}\n{version}".encode()).hexdigest()[:32]
        if not folder.is_dir():
            _fetch(store, bucket, key, model, folder, s3.archives)
    except S3Error as error:
        raise _problem(model, f"cannot be read: the store {error.reason}") from error
    except ArchiveError as error:
        raise _problem(model, f"cannot be unpacked: {error}") from error
    except OSError as error:
        raise _problem(model, f"cannot be unpacked ({type(error).__name__}: {error})") from error
    finally:
        store.close()
    return str(_model_in(folder, model))


def cache_folder() -> Path:
    """Folder of unpacked models: ``$PIPEQ_CACHE``, else ``pipeq/models`` below the user's cache folder."""
    own = os.environ.get("PIPEQ_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pipeq"
    return base / "models"


def _fetch(store: S3, bucket: str, key: str, model: str, folder: Path, limits: ArchiveSettings) -> None:
    logger.info("fetching %s", shown.uri(model), extra={"action": "fetch_model"})
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked next to its final place, so that the last step is a rename: a killed process leaves no incomplete folder.
    work = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    try:
        archive = work / ("archive" + next(ending for ending in _ENDINGS if model.endswith(ending)))
        size = 0
        with store.open(bucket, key) as (_, read), archive.open("wb") as file:
            while chunk := read(_CHUNK):
                size += len(chunk)
                if size > limits.max_bytes:
                    raise ArchiveError(f"it has more than {limits.max_bytes} bytes ([s3.archives] max_bytes)")
                file.write(chunk)
        content = work / "content"
        content.mkdir()
        unpack(archive, content, limits)
        archive.unlink()
        try:
            content.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another worker was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _model_in(folder: Path, model: str) -> Path:
    """The folder that holds the model's configuration: the archive's root, or its only subfolder."""
    for place in (folder, *(one for one in folder.iterdir() if one.is_dir())):
        if (place / "config.json").is_file() or (place / "adapter_config.json").is_file():
            return place
    raise _problem(model, "holds no config.json, neither at its root nor in a folder")


def _problem(model: str, what: str) -> PipeqError:
    return SettingsError(f"the model {shown.uri(model)} {what}")
