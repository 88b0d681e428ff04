"""MODEL STATE: records a model's state beside its weights, and restores it after a forward pass has changed it.

    loaded and warmed up -> ModelState(pipe) -> ... a pass that raised -> restore() -> the next pass

transformers changes models while they run and does not always change them back: an early exit sets the number of layers
in the shared configuration, which stays so if it raises; Whisper's word timestamps switch the kind of attention.
Configurations are compared after each pass, which takes microseconds. After a pass that raised, everything is restored
together, so that it stays consistent: flags, hooks, and replaced or added modules and buffers. Changes to weights, and
changes inside lists, are not detected here; the known sample detects them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import transformers

#: Attributes of a pipeline that hold the defaults of its calls.
_DEFAULTS = ("_preprocess_params", "_forward_params", "_postprocess_params", "_generate_kwargs", "_generation_defaults")
#: Attributes of a module that are dictionaries of its parts, including its hooks.
_KEPT = frozenset(name for name, value in vars(torch.nn.Module()).items() if isinstance(value, dict))
_CONFIGS = (transformers.PreTrainedConfig, transformers.GenerationConfig)
_PLAIN = (str, int, float, bool, bytes, type(None))
#: Most entries of a list or dictionary that is copied for comparison. A vocabulary has more, and nothing changes it.
_SMALL = 200


class ModelState:
    """The state of a pipeline's model at the time of construction."""

    def __init__(self, pipe: transformers.Pipeline) -> None:
        self._model = pipe.model
        self._configs = [_Values(config) for config in _configs(pipe)]
        # All threads' copies of the pipeline share these dictionaries.
        held = {name: getattr(pipe, name, None) for name in _DEFAULTS}
        self._defaults = [(name, one, copy.copy(one)) for name, one in held.items() if one is not None]
        self._modules = [(module, _shallow(module)) for module in pipe.model.modules()]

    def restore_configs(self) -> list[str]:
        """Restores the configurations.

        Returns:
            What had changed, in words.
        """
        return [what for values in self._configs if values.differ() for what in values.restore()]

    def restore(self) -> list[str]:
        """Restores everything.

        Returns:
            What had changed, in words.
        """
        changed = self.restore_configs()
        for name, held, before in self._defaults:
            if not _equal(held, before):
                changed.append(f"the pipeline's {name}")
                held.clear()
                held.update(before)
        for module, before in self._modules:
            now = _shallow(module)
            if _alike(now, before):
                continue
            names = sorted(name for name in now.keys() | before.keys() if _apart(now, before, name))
            changed += [f"{type(module).__name__}.{name}" for name in names]
            attributes = vars(module)
            for name in now.keys() - before.keys():
                del attributes[name]
            for name, value in before.items():
                if name in _KEPT:
                    attributes[name].clear()
                    attributes[name].update(value)
                else:
                    attributes[name] = value
        return changed


class PartsState:
    """The state of tokenizers and processors that calls may change: sides, languages, lengths."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = [_Values(part) for part in parts]
        backends: list[Any] = [getattr(part, "_tokenizer", None) for part in parts]
        self._backends = [(one, one.truncation, one.padding) for one in backends if hasattr(one, "enable_truncation")]

    def restore(self) -> list[str]:
        """Restores it.

        Returns:
            What had changed, in words.
        """
        changed = [what for values in self._parts if values.differ() for what in values.restore()]
        for backend, truncation, padding in self._backends:
            if backend.truncation != truncation:
                changed.append("a tokenizer's truncation")
                backend.no_truncation() if truncation is None else backend.enable_truncation(**truncation)
            if backend.padding != padding:
                changed.append("a tokenizer's padding")
                backend.no_padding() if padding is None else backend.enable_padding(**padding)
        return changed


class _Values:
    """The plain values among an object's attributes, and the names of all its attributes."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._names = frozenset(vars(owner))
        self._before = {name: copy.deepcopy(value) for name, value in vars(owner).items() if _is_plain(value)}
        #: Attributes that are objects must stay the same objects. Configurations among them have a record of their own.
        self._objects = {name: value for name, value in vars(owner).items() if not _is_plain(value)}

        self._all = {**self._before, **self._objects}

    def differ(self) -> bool:
        """Whether anything was changed. An attribute that is still the same object counts as unchanged."""
        return not _equal(vars(self._owner), self._all)

    def _moved(self, now: dict[str, Any], name: str) -> bool:
        if name not in now:
            return True
        if name in self._objects:
            return now[name] is not self._objects[name]
        value, before = now[name], self._before[name]
        return value is not before and (type(value) is not type(before) or not _equal(value, before))

    def restore(self) -> Iterator[str]:
        """Restores the values, and yields what it restored, in words."""
        now, kind = vars(self._owner), type(self._owner).__name__
        for name in now.keys() - self._names:
            yield f"{kind}.{name}"
            del now[name]
        for name in self._names:
            if self._moved(now, name):
                yield f"{kind}.{name}"
                now[name] = self._objects[name] if name in self._objects else copy.deepcopy(self._before[name])


def _configs(pipe: transformers.Pipeline) -> list[Any]:
    """The configurations that a model and its parts hold, and those nested in them; each once."""
    found: dict[int, Any] = {}

    def add(value: Any) -> None:
        if isinstance(value, _CONFIGS) and id(value) not in found:
            found[id(value)] = value
            for one in list(vars(value).values()):
                add(one)

    for module in pipe.model.modules():
        for name in ("config", "generation_config"):
            add(getattr(module, name, None))
    return list(found.values())


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return len(value) <= _SMALL and all(map(_is_plain, value))
    if isinstance(value, dict):
        return len(value) <= _SMALL and all(map(_is_plain, value.values()))
    return isinstance(value, _PLAIN)


def _equal(value: Any, before: Any) -> bool:
    try:
        return bool(value == before)
    except Exception:  # a tensor took the value's place, for instance
        return False


def _shallow(module: torch.nn.Module) -> dict[str, Any]:
    """A module's attributes, with copies of the dictionaries that hold its parts."""
    attributes = dict(vars(module))
    for name in _KEPT:
        attributes[name] = dict(attributes[name])
    return attributes


def _alike(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return now.keys() == before.keys() and not any(_apart(now, before, name) for name in before)


def _apart(now: dict[str, Any], before: dict[str, Any], name: str) -> bool:
    if name not in now or name not in before:
        return True
    one, two = now[name], before[name]
    if name in _KEPT:
        return one.keys() != two.keys() or any(one[key] is not two[key] for key in two)
    return one is not two and not (type(one) is type(two) and isinstance(one, _PLAIN) and one == two)
