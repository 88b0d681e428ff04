"""Reads the files of a sentence-transformers checkpoint, once, when a pipeline is loaded.

    modules.json                        the modules in their order, each with a folder of its own
    sentence_bert_config.json           of the first module, the transformer: longest text, lower case, arguments
    FOLDER/config.json, weights         of the other modules: pooling, dense layers, ...
    config_sentence_transformers.json   prompts, and the activation function

Follows sentence-transformers 6.2: ``base/model.py``, ``base/modules/transformer.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import snapshot_download
from pipeq.contract.errors import PipeqError, SettingsError
from transformers.utils.hub import cached_file

EMBEDDER, RERANKER = "SentenceTransformer", "CrossEncoder"
#: Names that the transformer's file has had.
_TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json" for name in "bert roberta distilbert camembert albert xlm-roberta xlnet".split()
)
#: Arguments that are not taken from a checkpoint, because the operator decides where code and models come from.
_NOT_ITS = frozenset(
    "trust_remote_code code_revision revision token use_auth_token cache_dir local_files_only subfolder device "
    "device_map dtype torch_dtype use_safetensors".split()
)
#: The only way of computing token vectors that is supported, in the words of ``modality_config``; others are refused.
_PLAIN = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True)
class ModuleFiles:
    """The files of one module after the transformer."""

    #: The name of its class, for instance ``Pooling``.
    kind: str
    config: dict[str, Any]
    #: The file with its weights; None if it has none.
    weights: Path | None


@dataclass(frozen=True)
class Checkpoint:
    """What the checkpoint's files say; defaults for missing files."""

    #: What ``from_pretrained`` takes: the model itself, or the transformer's folder in it.
    model: str
    #: The modules after the transformer; None if there is no modules.json.
    modules: tuple[ModuleFiles, ...] | None = None
    #: Most tokens of a text; None to use the limits of the tokenizer and the model.
    max_seq_length: int | None = None
    do_lower_case: bool = False
    #: Arguments for the tokenizer's ``from_pretrained``, for the model's, and for the tokenizer's call.
    tokenizer_args: dict[str, Any] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)
    call_args: dict[str, Any] = field(default_factory=dict)
    #: Name of a prompt -> the text that it puts before an input.
    prompts: dict[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    default_prompt_name: str | None = None
    #: How many numbers of the vector are kept; None for all.
    truncate_dim: int | None = None
    #: A reranker's activation function, as the path of its class in torch.
    activation: str | None = None

    def prompt(self, text: str | None, name: str | None) -> str:
        """Returns the text to put before an input.

        Args:
            text: the call's ``prompt``; None if it has none.
            name: name of one of the prompts; None for the default.

        Raises:
            ValueError: there is no prompt of this name.
        """
        if text is not None:
            return text
        name = self.default_prompt_name if name is None else name
        if name is not None and name not in self.prompts:
            known = ", ".join(repr(one) for one in self.prompts)
            raise ValueError(f"prompt_name is {name!r}, the model has the prompts {known}; `prompt` takes any text")
        return self.prompts[name] if name is not None else ""


def read(model: str, revision: str | None, family: str) -> Checkpoint:
    """Reads the files of a folder, or of a repository on the Hub.

    Args:
        model: the folder, or the repository's name.
        revision: revision of the repository.
        family: :data:`EMBEDDER` or :data:`RERANKER`. The files of a checkpoint of the other family are ignored, as in
            sentence-transformers.

    Raises:
        PipeqError: ``invalid_settings`` for a module that this worker does not have, or a file that cannot be read.
    """
    files = _Files(model, revision)
    listed = files.json("modules.json", list)
    settings = files.json("config_sentence_transformers.json", dict) or {}
    if not listed or settings.get("model_type", EMBEDDER) != family:
        return Checkpoint(model)
    folders = [_folder(entry) for entry in listed]
    kinds = [_kind(entry) for entry in listed]
    if kinds[0] != "Transformer":
        raise refused(f"its first module is {kinds[0]}, not a transformer")
    transformer = _transformer(files, folders[0], family)
    folder = files.folder(folders[0])
    modules = tuple(
        ModuleFiles(kind, files.json("config.json", dict, one) or {}, files.weights(one))
        for kind, one in zip(kinds[1:], folders[1:], strict=True)
    )
    default = settings.get("default_prompt_name")
    prompts = {"query": "", "document": ""} | {name: one or "" for name, one in (settings.get("prompts") or {}).items()}
    if default is not None and default not in prompts:
        raise refused(f"its default prompt {default!r} is none of its prompts {', '.join(map(repr, prompts))}")
    return Checkpoint(
        folder,
        modules,
        **transformer,
        prompts=prompts,
        default_prompt_name=default,
        truncate_dim=settings.get("truncate_dim"),
        activation=settings.get("activation_fn"),
    )


def family_of(folder: Path) -> str | None:
    """The family of a local sentence-transformers folder; None for any other folder."""
    files = _Files(str(folder), None)
    if not (folder / "modules.json").is_file():
        return None
    return str((files.json("config_sentence_transformers.json", dict) or {}).get("model_type", EMBEDDER))


def _transformer(files: _Files, folder: str, family: str) -> dict[str, Any]:
    found: dict[str, Any] = next((one for name in _TRANSFORMER_FILES if (one := files.json(name, dict, folder))), {})
    usual = "feature-extraction" if family == EMBEDDER else "sequence-classification"
    task = found.get("transformer_task", usual)
    if task != usual:
        raise refused(f"its transformer is loaded for {task}, here only for {usual}")
    ways = found.get("modality_config") or {"text": _PLAIN}
    if "text" not in ways or "message" in ways:
        raise refused(f"it takes {', '.join(ways)}, here only plain text")
    if family == EMBEDDER and any(ways["text"].get(key) != one for key, one in _PLAIN.items()):
        raise refused(f"its vectors are {ways['text']}, here only the model's last hidden state")
    tokenizer = found.get("processor_kwargs") or found.get("tokenizer_args")
    model = {**(found.get("config_kwargs") or found.get("config_args") or {})}
    model |= found.get("model_kwargs") or found.get("model_args") or {}
    call = found.get("processing_kwargs") or {}
    return {
        "max_seq_length": found.get("max_seq_length"),
        "do_lower_case": bool(found.get("do_lower_case", False)),
        "tokenizer_args": _its(tokenizer),
        "model_args": _its(model),
        "call_args": {name: one for name, one in {**(call.get("common") or {}), **(call.get("text") or {})}.items()
                      if name not in ("padding", "return_tensors")},
    }  # fmt: skip


def _its(arguments: Any) -> dict[str, Any]:
    return {name: one for name, one in (arguments or {}).items() if name not in _NOT_ITS}


def _kind(entry: Mapping[str, Any]) -> str:
    package, _, name = str(entry.get("type")).rpartition(".")
    if not package.startswith("sentence_transformers."):
        raise refused(f"its module {entry.get('type')} is code of its own, which is not run here")
    return name


def _folder(entry: Mapping[str, Any]) -> str:
    path = PurePosixPath(str(entry.get("path", "")))
    if path.is_absolute() or ".." in path.parts or "\\" in str(path):
        raise refused(f"the path {str(path)!r} of a module in modules.json leaves its folder")
    return "" if str(path) == "." else str(path)


class _Files:
    """Reads files of a folder, or of a repository on the Hub."""

    def __init__(self, model: str, revision: str | None) -> None:
        self._model = model
        self._revision = revision
        self._is_folder = Path(model).is_dir()

    def path(self, name: str, folder: str = "") -> Path | None:
        """Path of a file on the local disk; None if there is no such file."""
        if self._is_folder:
            path = Path(self._model, folder, name)
            return path if path.is_file() else None
        missing_is_none = {"_raise_exceptions_for_missing_entries": False}
        missing_is_none["_raise_exceptions_for_connection_errors"] = False
        found = cached_file(self._model, name, subfolder=folder, revision=self._revision, **missing_is_none)
        return None if found is None else Path(found)

    def json(self, name: str, kind: type, folder: str = "") -> Any:
        """Content of a JSON file; None if there is no such file."""
        path = self.path(name, folder)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise refused(f"its {PurePosixPath(folder, name)} is no JSON: {error}") from error
        if not isinstance(content, kind):
            raise refused(f"its {PurePosixPath(folder, name)} is no JSON {'list' if kind is list else 'object'}")
        return content

    def weights(self, folder: str) -> Path | None:
        return self.path("model.safetensors", folder) or self.path("pytorch_model.bin", folder)

    def folder(self, name: str) -> str:
        """The value with which ``from_pretrained`` loads a folder of the model."""
        if not name:
            return self._model
        whole = self._model if self._is_folder else snapshot_download(self._model, revision=self._revision)
        return str(Path(whole, name))


def refused(what: str) -> PipeqError:
    """The error that stops the start because of these files."""
    sentence = f"sentence-transformers' files of the model cannot be followed: {what}"
    return SettingsError(sentence)
