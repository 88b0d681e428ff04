"""Rules for a parameter's value: its JSON type and its bounds. Rules for composite values are in ``compound.py``.

A value -> :meth:`Rule.check` -> the value as the pipeline needs it, or :class:`UnfitError`. The same rule writes its
part of the JSON Schema. A bound is a number, or the name of one that the settings or the model give.
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

#: Most bits of a whole number. Models have no use for more, and some of Python's operations on more take for ever.
WHOLE_BITS = 63
#: Most characters of a text, unless its rule gives another number.
TEXT_CHARACTERS = 65_536


@dataclass(frozen=True)
class Bound:
    """A ceiling that the settings or the model give."""

    value: int
    #: Where the ceiling comes from, for the error message.
    source: str


Bounds = Mapping[str, Bound]


class UnfitError(ValueError):
    """A value that its rule does not allow."""

    def __init__(self, where: str, value: Any, sentence: str) -> None:
        super().__init__(where, value, sentence)
        #: The parameter, or the place inside it: ``generate_kwargs.eos_token_id[3]``.
        self.where = where
        self.value = value
        #: What it should be; begins with "not".
        self.sentence = sentence


def display(value: Any) -> str:
    """Formats a producer's value for an error message: on one line, cut to length, and without raising."""
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
    """What one parameter's value may be."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The kind of value, for an error message: ``a whole number``."""

    @abstractmethod
    def check(self, value: Any, bounds: Bounds, where: str) -> Any:
        """Returns the value as the pipeline needs it.

        Raises:
            UnfitError: names the place, and what should stand there.
        """

    @abstractmethod
    def schema(self, bounds: Bounds) -> dict[str, Any]:
        """JSON Schema of the values that the rule allows."""

    @abstractmethod
    def fits_type(self, value: Any) -> bool:
        """Whether at least the JSON type is right."""

    def unfit(self, value: Any, where: str) -> UnfitError:
        """The error for a value of another JSON type."""
        return UnfitError(where, value, f"not {self.words}")


def ceiling(high: float | str | None, bounds: Bounds) -> tuple[float | None, str]:
    """Returns a bound and its source; None if neither the settings nor the model give it."""
    if not isinstance(high, str):
        return high, ""
    bound = bounds.get(high)
    return (None, "") if bound is None else (bound.value, f" ({bound.source})")


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number."""

    low: int
    #: The largest value, or the name of a bound.
    high: int | str
    words: ClassVar[str] = "a whole number"

    def check(self, value: Any, bounds: Bounds, where: str) -> int:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)  # JSON has one type of number: 3.0 is 3
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
    """A number, as a float: Python's powers of integers have no limit, those of floats overflow."""

    low: float
    high: float
    #: Whether the value must be above ``low`` rather than at least ``low``.
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
    """Text that is used as data, never as a path, a program, or a format."""

    #: Most characters, or the name of a bound.
    most: int | str = TEXT_CHARACTERS
    #: A regular expression that the whole text must match.
    pattern: str | None = None
    #: Fewest characters.
    least: int = 0
    #: Whether it must have more than white space.
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
    """Text with one ``{}``, where a label goes, and no other brace: a format specification can ask for gigabytes."""

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
    #: Whether upper case is accepted; it is changed to lower case.
    folds: bool = False

    @property
    def words(self) -> str:
        """The values as JSON, without quotes."""
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
