"""What a model is besides its weights, so that a forward pass leaves it as it was: compare, put back.

    loaded and warmed up -> ModelState(pipe) -> ... a pass that raised -> restore() -> the next pass

transformers changes models while they run and does not always change them back: an early exit sets the number of
layers of the shared configuration and stays there if it raises; Whisper's word timestamps switch the kind of attention.
Configurations are compared after each pass, which takes microseconds. After one that raised, everything is put back
together, so that what belongs together stays so: flags, hooks, replaced modules and buffers, those that were added.
Weights and lists that were changed in place are not seen here: the known sample finds those out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import transformers

#: Of a pipeline itself: what its calls are filled up with.
_DEFAULTS = ("_preprocess_params", "_forward_params", "_postprocess_params", "_generate_kwargs", "_generation_defaults")
#: Of a module: dictionaries in which it keeps what belongs to it, its hooks among them.
_KEPT = frozenset(name for name, value in vars(torch.nn.Module()).items() if isinstance(value, dict))
_CONFIGS = (transformers.PreTrainedConfig, transformers.GenerationConfig)
_PLAIN = (str, int, float, bool, bytes, type(None))
#: Entries of a list or dictionary that is copied for comparison; a vocabulary has more, and nobody changes it.
_SMALL = 200


class ModelState:
    """The state of a pipeline's model, as it is now."""

    def __init__(self, pipe: transformers.Pipeline) -> None:
        self._model = pipe.model
        self._configs = [_Values(config) for config in _configs(pipe)]
        # Every thread's copy of the pipeline has the same dictionaries.
        held = {name: getattr(pipe, name, None) for name in _DEFAULTS}
        self._defaults = [(name, one, copy.copy(one)) for name, one in held.items() if one is not None]
        self._modules = [(module, _shallow(module)) for module in pipe.model.modules()]

    def restore_configs(self) -> list[str]:
        """Puts configurations back.

        Returns:
            What had changed, in words.
        """
        return [what for values in self._configs if values.differ() for what in values.restore()]

    def restore(self) -> list[str]:
        """Puts back everything.

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
    """What tokenizers and processors are told between calls: sides, languages, lengths."""

    def __init__(self, parts: list[Any]) -> None:
        self._parts = [_Values(part) for part in parts]
        backends: list[Any] = [getattr(part, "_tokenizer", None) for part in parts]
        self._backends = [(one, one.truncation, one.padding) for one in backends if hasattr(one, "enable_truncation")]

    def restore(self) -> list[str]:
        """Puts them back.

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
    """The plain values among an object's attributes, those that were there and those that were not."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._names = frozenset(vars(owner))
        self._before = {name: copy.deepcopy(value) for name, value in vars(owner).items() if _is_plain(value)}
        #: Objects, the configurations of parts among them, are to be the same ones; these have values of their own.
        self._objects = {name: value for name, value in vars(owner).items() if not _is_plain(value)}

        self._all = {**self._before, **self._objects}

    def differ(self) -> bool:
        """Whether anything was changed; the same object is taken for equal without a look into it."""
        return not _equal(vars(self._owner), self._all)

    def _moved(self, now: dict[str, Any], name: str) -> bool:
        if name not in now:
            return True
        if name in self._objects:
            return now[name] is not self._objects[name]
        value, before = now[name], self._before[name]
        return value is not before and (type(value) is not type(before) or not _equal(value, before))

    def restore(self) -> Iterator[str]:
        """Yields what it puts back, in words."""
        now, kind = vars(self._owner), type(self._owner).__name__
        for name in now.keys() - self._names:
            yield f"{kind}.{name}"
            del now[name]
        for name in self._names:
            if self._moved(now, name):
                yield f"{kind}.{name}"
                now[name] = self._objects[name] if name in self._objects else copy.deepcopy(self._before[name])


def _configs(pipe: transformers.Pipeline) -> list[Any]:
    """The configurations that a model and its parts hold, and those inside them; each once."""
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
    except Exception:  # a tensor in its place, for instance
        return False


def _shallow(module: torch.nn.Module) -> dict[str, Any]:
    """A module's attributes; of the dictionaries in which it keeps its parts, copies."""
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
