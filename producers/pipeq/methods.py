"""METHODS: what the clients' methods are made of steps with, whichever of the two. Used by the speakers and clients."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

_S = TypeVar("_S")
_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])
_P = ParamSpec("_P")


def as_method(method: _F, call: Callable[..., Any], returns: str) -> _F:
    """Gives a method that was made of steps the steps' signature, with what it returns itself.

    Args:
        method: the method.
        call: makes the steps.
        returns: what the method returns, with braces for the type of the steps' result, or of what they hand out.
    """
    signature = inspect.signature(call)
    inner = re.fullmatch(r"(?:Steps|Stream)\[(.*)\]", str(signature.return_annotation))
    found = returns.format(inner[1] if inner else "")
    method.__annotations__ = {**method.__annotations__, "return": found}
    method.__signature__ = signature.replace(return_annotation=found)  # type: ignore[attr-defined]
    return method


def handling(
    call: Callable[Concatenate[Any, _P], _S], handle: Callable[[Any, _S], _T]
) -> Callable[Concatenate[Any, _P], _T]:
    """Makes a method that does nothing yet: it returns an object whose methods take the steps.

    Args:
        call: returns the object that has the steps.
        handle: makes what is returned, of the client's speaker and that object.
    """

    @wraps(call)
    def method(self: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return handle(self._speaker, call(self._steps, *args, **kwargs))

    return as_method(method, call, getattr(handle, "__name__", "Any"))
