"""IDENTITY: a loaded pipeline -> what decides its answers, in short texts that other workers compare with theirs.

    settings, folder of the model -> aspect -> text -> heartbeat (pipeq.contract.unlike compares)

What counts is what changes an answer beyond rounding: the task type, the model's files or its commit on the Hub, the
other parts that the settings name, and the pipeline's own parameters. Device, dtype, attention and sizes of batches do
not: a fleet of CPUs and GPUs gives the same answers. Neither do limits: they refuse, and change nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeq.contract import shown
from pipeq.contract.unlike import NAME, short

from pipeq_worker.settings.sections import PipelineSettings

#: Settings that name a part: a folder, or a name on the Hub.
_PARTS = ("tokenizer", "image_processor", "feature_extractor", "processor", "vocoder", "adapter")
#: Arguments of ``from_pretrained`` that change where and how fast a model runs, or how it is found.
_NOT_ANSWERS = frozenset(
    "attn_implementation dtype torch_dtype token use_auth_token cache_dir local_files_only force_download proxies "
    "low_cpu_mem_usage device_map max_memory offload_folder offload_state_dict use_safetensors".split()
)
#: Files that a model is loaded from; its README and the state of its training are not among them.
_READ = frozenset(".json .jinja .txt .model .py .safetensors .bin .pt".split())
_WEIGHTS = frozenset((".safetensors", ".bin", ".pt"))
_UNREAD = frozenset(
    "training_args.bin optimizer.bin optimizer.pt scheduler.pt scheduler.bin trainer_state.json".split()
)
#: A folder of the Hub's cache, which has the name of the commit.
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")
#: A file up to this size is read whole; of a larger one, so many blocks of this size, spread over it.
_WHOLE_BYTES, _BLOCKS, _BLOCK_BYTES = 2**20, 64, 4096


def of_settings(
    settings: PipelineSettings, task: str, name: str, folder: str | None, commit: str | None
) -> dict[str, str]:
    """What a pipeline computes.

    Args:
        settings: its section of the settings.
        task: its task type, as the settings or the model's configuration name it.
        name: the model, as people call it.
        folder: where its files are, if it was loaded from a folder; None for a name on the Hub.
        commit: its commit on the Hub, if that is known.

    Returns:
        Aspect -> a short text.
    """
    found = {"task": task, NAME: short(shown.uri(name))}
    if folder is not None and os.path.isdir(folder):
        found["files"] = fingerprint(Path(folder))
    else:
        found["model"] = short(shown.uri(name))
        if (revision := commit or settings.revision) is not None:
            found["revision"] = short(revision)
    for part in _PARTS:
        if (value := getattr(settings, part)) is not None:
            is_folder = os.path.isdir(value)
            found[part] = f"files {fingerprint(Path(value))}" if is_folder else short(shown.uri(value))
    found |= _texts("params", {key: value for key, value in settings.params.items() if value is not None})
    found |= _texts("model_kwargs", {k: value for k, value in settings.model_kwargs.items() if k not in _NOT_ANSWERS})
    return found


def commit_of(model: str, settings: PipelineSettings) -> str | None:
    """The commit on the Hub that a model is loaded from now; None if it is from elsewhere, or if that is not known.

    Args:
        model: its name on the Hub, or a folder; perhaps one of the Hub's cache.
        settings: its pipeline's section of the settings.
    """
    # Where a worker loads no model of transformers, this module must not import it.
    from huggingface_hub import ResolvedRevision
    from transformers.utils.hub import resolve_revision

    if os.path.isdir(model):
        found = _SNAPSHOT.search(model + "/")
        return None if found is None else found[1]
    more = {name: settings.model_kwargs[name] for name in ("token", "cache_dir") if name in settings.model_kwargs}
    revision = resolve_revision(model, settings.revision, **more)
    return revision.resolved if isinstance(revision, ResolvedRevision) else None


def pinned(settings: PipelineSettings, commit: str | None) -> PipelineSettings:
    """The settings that load the same files of the Hub again, whatever was pushed there since.

    Args:
        settings: a pipeline's section of the settings.
        commit: the commit that it was loaded from; None if that is not known.
    """
    # Where parts have names of their own, the revision would be looked for in all of their repositories.
    parts = (settings.tokenizer, settings.image_processor, settings.feature_extractor, settings.processor)
    if commit is None or settings.model is None or os.path.isdir(settings.model) or any(parts):
        return settings
    return settings.model_copy(update={"revision": commit})


def fingerprint(folder: Path) -> str:
    """A hash of what a model's folder holds: equal for copies on different machines, wherever they lie.

    Small files are read whole. Of weights the names and sizes count, and the header and a sample of the blocks: other
    weights of the same model differ in nearly all of them. So it takes milliseconds for any size.
    """
    found = hashlib.sha256()
    for name, path in sorted(_files(folder)):
        size = path.stat().st_size
        found.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            if size <= _WHOLE_BYTES:
                found.update(file.read())
                continue
            for at in range(_BLOCKS):
                file.seek((size - _BLOCK_BYTES) * at // (_BLOCKS - 1))
                found.update(file.read(_BLOCK_BYTES))
    return found.hexdigest()[:16]


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files that decide: name below the folder, and path."""
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        ours = [name for name in names if Path(name).suffix in _READ and name not in _UNREAD]
        # Where there are both, safetensors are loaded.
        has_safe = any(name.endswith(".safetensors") for name in ours)
        for name in ours:
            suffix = Path(name).suffix
            if name.startswith(".") or (has_safe and suffix in _WEIGHTS and suffix != ".safetensors"):
                continue
            path = Path(where, name)
            yield str(path.relative_to(folder)), path


def _texts(where: str, values: Mapping[str, Any]) -> dict[str, str]:
    return {f"{where}.{name}": short(json.dumps(value, sort_keys=True, default=str)) for name, value in values.items()}
