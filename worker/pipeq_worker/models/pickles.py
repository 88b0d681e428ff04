"""No pickle is read while a pipeline loads, wherever its parts bring one: reading a pickle runs what is in it.

``use_safetensors`` reaches the model alone. A vocoder, also the default one, an adapter, the adapter of a language and
whatever else a library loads beside it come through ``torch.load``, the one door that is shut here.
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

#: One pipeline loads at a time: what is shut for one is shut for the process.
_loading = threading.RLock()


@contextmanager
def refused(allowed: bool) -> Iterator[None]:
    """For as long as a pipeline loads, ``torch.load`` is an error, unless its settings allow pickles.

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
