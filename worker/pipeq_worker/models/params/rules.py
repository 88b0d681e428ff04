"""What a parameter's value may be: its JSON type and its bounds. What is made of several is in ``compound.py``.

A value -> :meth:`Rule.check` -> the value as the pipeline is to have it, or :class:`UnfitError`. The same rule writes
its part of the JSON Schema. A bound is a number, or the name of one that the settings or the model decide.
"""

from __future__ import annotations

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeq.contract import shown

#: Beyond 64 bits no number of JSON means anything to a model, and some of Python's operations take for ever.
WHOLE_BITS = 63
#: A text that a parameter may hold, in characters, where its rule says no other number.
TEXT_CHARACTERS = 65_536


@dataclass(frozen=True)
class Bound:
    """A ceiling that is not written in a rule."""

    value: int
    #: Where it comes from, for the sentence that refuses.
    source: str


Bounds = Mapping[str, Bound]


class UnfitError(ValueError):
    """A value that its rule does not admit."""

    def __init__(self, where: str, value: Any, sentence: str) -> None:
        super().__init__(where, value, sentence)
        #: The parameter, or the place inside it: ``generate_kwargs.eos_token_id[3]``.
        self.where = where
        self.value = value
        #: What it should be, beginning with "not".
        self.sentence = sentence


def display(value: Any) -> str:
    """A producer's value in a sentence: one line, cut, and never an error of its own."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return str(value) if value.bit_length() <= WHOLE_BITS else f"a whole number of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return repr(shown.line(value[:1000], 60))
    return f"a list of {len(value)}" if isinstance(value, list) else f"an object of {len(value)} fields"


class Rule(ABC):
    """What one parameter may be."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What it is, in a sentence: ``a whole number``."""

    @abstractmethod
    def check(self, value: Any, bounds: Bounds, where: str) -> Any:
        """The value as the pipeline is to have it.

        Raises:
            UnfitError: naming the place and what it should be.
        """

    @abstractmethod
    def schema(self, bounds: Bounds) -> dict[str, Any]:
        """JSON Schema of what it admits."""

    @abstractmethod
    def fits_type(self, value: Any) -> bool:
        """Whether the JSON type, at least, is the right one."""

    def unfit(self, value: Any, where: str) -> UnfitError:
        """That the JSON type is another one."""
        return UnfitError(where, value, f"not {self.words}")


def ceiling(high: float | str | None, bounds: Bounds) -> tuple[float | None, str]:
    """A bound and where it comes from; None for one that nobody decided."""
    if not isinstance(high, str):
        return high, ""
    bound = bounds.get(high)
    return (None, "") if bound is None else (bound.value, f" ({bound.source})")


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number."""

    low: int
    #: The largest one, or the name of a bound.
    high: int | str
    words: ClassVar[str] = "a whole number"

    def check(self, value: Any, bounds: Bounds, where: str) -> int:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)  # JSON knows one kind of number: 3.0 is 3
        if not self.fits_type(value):
            raise self.unfit(value, where)
        if value < self.low:
            raise UnfitError(where, value, f"not {self.low} or more")
        high, source = ceiling(self.high, bounds)
        if value.bit_length() > WHOLE_BITS or (high is not None and value > high):
            most = 2**WHOLE_BITS - 1 if high is None else int(high)
            raise UnfitError(where, value, f"not {self.low} to {most}{source}")
        return int(value)

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        high, _ = ceiling(self.high, bounds)
        return {"type": "integer", "minimum": self.low, **({} if high is None else {"maximum": high})}


@dataclass(frozen=True)
class Number(Rule):
    """A number, which becomes a float: powers of whole numbers have no end, those of floats overflow."""

    low: float
    high: float
    #: Whether ``low`` itself is too low.
    above: bool = False
    words: ClassVar[str] = "a number"

    def check(self, value: Any, bounds: Bounds, where: str) -> float:
        if not self.fits_type(value):
            raise self.unfit(value, where)
        if isinstance(value, float) and not math.isfinite(value):
            raise UnfitError(where, value, "not a finite number")
        if not self.low <= value <= self.high or (self.above and value == self.low):
            low = f"more than {self.low:g}" if self.above else f"{self.low:g}"
            raise UnfitError(where, value, f"not {low} to {self.high:g}")
        return float(value)

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        low = "exclusiveMinimum" if self.above else "minimum"
        return {"type": "number", low: self.low, "maximum": self.high}


@dataclass(frozen=True)
class Flag(Rule):
    """True or false."""

    words: ClassVar[str] = "true or false"

    def check(self, value: Any, bounds: Bounds, where: str) -> bool:
        if not isinstance(value, bool):
            raise self.unfit(value, where)
        return value

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, bool)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(Rule):
    """Text that is data: it is never a path, a program, or a format."""

    #: Characters at most, or the name of a bound.
    most: int | str = TEXT_CHARACTERS
    #: A regular expression that the whole text must match.
    pattern: str | None = None
    #: Characters at least.
    least: int = 0
    #: Whether there must be more than white space.
    filled: bool = False
    words: ClassVar[str] = "text"

    def check(self, value: Any, bounds: Bounds, where: str) -> str:
        if not isinstance(value, str):
            raise self.unfit(value, where)
        most, source = ceiling(self.most, bounds)
        if most is not None and len(value) > most:
            raise UnfitError(where, value, f"not {most:g} characters at most{source}")
        if len(value) < self.least or (self.filled and not value.strip()):
            raise UnfitError(where, value, "not text: there is nothing in it")
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            raise UnfitError(where, value, f"not text of the form {self.pattern}")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise UnfitError(where, value, "not text: it holds half of a surrogate pair")
        return value

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, str)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        most, _ = ceiling(self.most, bounds)
        pattern = r"\S" if self.filled else None if self.pattern is None else f"^{self.pattern}$"
        return {
            "type": "string",
            **({"minLength": self.least} if self.least else {}),
            **({} if most is None else {"maxLength": most}),
            **({} if pattern is None else {"pattern": pattern}),
        }


@dataclass(frozen=True)
class Template(Rule):
    """Text with one ``{}`` in it, where a label goes, and no other brace: a format can ask for gigabytes."""

    words: ClassVar[str] = 'text with one {} in it, where the label goes, and no other brace, as in "This is {}."'

    def check(self, value: Any, bounds: Bounds, where: str) -> str:
        text = Text(1000).check(value, bounds, where)
        if text.count("{}") != 1 or set("{}") & set(text.replace("{}", "")):
            raise self.unfit(value, where)
        return text

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, str)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        return {"type": "string", "maxLength": 1000, "pattern": "^[^{}]*\\{\\}[^{}]*$"}


@dataclass(frozen=True)
class Choice(Rule):
    """One of a few values."""

    values: tuple[bool | str, ...]
    #: Whether upper case means the same; it becomes lower.
    folds: bool = False

    @property
    def words(self) -> str:
        """The values, as JSON writes them but for the quotes."""
        return f"one of {', '.join(display(one) if isinstance(one, bool) else one for one in self.values)}"

    def check(self, value: Any, bounds: Bounds, where: str) -> bool | str:
        found = value.lower() if self.folds and isinstance(value, str) and len(value) < 100 else value
        if any(type(found) is type(one) and found == one for one in self.values):
            return found
        close = difflib.get_close_matches(
            value[:40] if isinstance(value, str) else "", [one for one in self.values if isinstance(one, str)], n=1
        )
        raise UnfitError(where, value, f"not {self.words}" + (f"; did you mean {close[0]!r}?" if close else ""))

    def fits_type(self, value: Any) -> bool:
        return any(type(value) is type(one) for one in self.values)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        return {"enum": list(self.values)}
