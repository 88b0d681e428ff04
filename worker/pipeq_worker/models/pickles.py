"""PICKLES: forbids reading pickles while a pipeline loads, because reading a pickle runs the code in it.

``use_safetensors`` covers only the model. A vocoder (the default one, too), an adapter, a language's adapter and
whatever else a library loads all go through ``torch.load``, which is blocked here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest import mock

import torch
from pipeq.contract import shown
from pipeq.contract.errors import SettingsError

#: Pipelines load one at a time, because ``torch.load`` is blocked for the whole process.
_loading = threading.RLock()


@contextmanager
def refused(allowed: bool) -> Iterator[None]:
    """Makes ``torch.load`` raise inside the block, unless the pipeline's settings allow pickles.

    Raises (inside):
        PipeqError: ``invalid_settings``, naming the file.
    """
    with _loading:
        if allowed:
            yield
            return
        with (
            mock.patch.object(torch, "load", _refuse),
            mock.patch.object(torch.serialization, "load", _refuse),
            mock.patch.object(torch.jit, "load", _refuse),
        ):
            yield


def _refuse(file: Any, *_: Any, **__: Any) -> NoReturn:
    raise SettingsError(
        f"{shown.line(str(getattr(file, 'name', file)))} is a pickle, which runs code when it is loaded: only "
        "safetensors are (`allow_pickle = true` allows it)",
    )
