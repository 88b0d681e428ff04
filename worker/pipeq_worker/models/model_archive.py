"""Models that are an archive in a store such as S3: fetches and unpacks one once, and caches it. Used by models."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from pathlib import Path

from pipeq.contract import schemes, shown
from pipeq.contract.errors import PipeqError, SettingsError

from pipeq_worker.models.unpack import ArchiveError, unpack
from pipeq_worker.settings.sections import ArchiveSettings, S3Settings
from pipeq_worker.stores import registry
from pipeq_worker.stores.base import Access, Prefixes, Source, StoreError

logger = logging.getLogger(__name__)

_CHUNK = 2**20
_TIMEOUT_S = 60
_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


def unpacked(model: str, s3: S3Settings) -> str:
    """Returns the folder of a model; returns a name on the Hub or a local folder unchanged.

    Args:
        model: ``s3://bucket/key.tar.gz`` (or another archive, or another store), a name or a folder.
        s3: how to reach S3.

    Raises:
        PipeqError: ``invalid_settings``.
    """
    kind = registry.find(schemes.of(model))
    if kind is None or not kind.has_versions:
        return model
    if not model.endswith(_ENDINGS):
        raise _problem(model, f"is no archive: its name must end in one of {', '.join(_ENDINGS)}")
    try:
        place = kind.check(model, Prefixes((kind.prefix(model),), "model"))
    except ValueError as error:
        raise _problem(model, str(error)) from error
    except StoreError as error:
        raise SettingsError(error.sentence) from error
    store, name = kind(Access(_TIMEOUT_S, 1, s3=s3)), f"the model {shown.uri(model)} cannot be read"
    try:
        version = store.version(place, name)
        # Another version of the object is another folder.
        folder = cache_folder() / hashlib.sha256(f"{model}\n{version}".encode()).hexdigest()[:32]
        if not folder.is_dir():
            with store.open(place, name) as source:
                _fetch(source, model, folder, s3.archives)
    except StoreError as error:
        raise SettingsError(error.sentence) from error
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


def _fetch(source: Source, model: str, folder: Path, limits: ArchiveSettings) -> None:
    logger.info("fetching %s", shown.uri(model), extra={"action": "fetch_model"})
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked next to its final place, so that the last step is a rename: a killed process leaves no incomplete folder.
    work = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    try:
        archive = work / ("archive" + next(ending for ending in _ENDINGS if model.endswith(ending)))
        size = 0
        with archive.open("wb") as file:
            while chunk := source.read(_CHUNK):
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
