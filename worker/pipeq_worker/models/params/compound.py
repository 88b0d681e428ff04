"""Rules for composite values: lists, objects, and values of several kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeq_worker.models.params.rules import Bounds, Number, Rule, Text, UnfitError, ceiling


@dataclass(frozen=True)
class ListOf(Rule):
    """A list whose items all follow one rule."""

    item: Rule
    #: Most items, or the name of a bound.
    most: int | str
    least: int = 0
    #: For texts: the name of a bound for the total of their characters.
    characters: str | None = None

    @property
    def words(self) -> str:
        """For instance ``a list, each of it a whole number``."""
        return f"a list, each of it {self.item.words}"

    def check(self, value: Any, bounds: Bounds, where: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.unfit(value, where)
        most, source = ceiling(self.most, bounds)
        if len(value) < self.least or (most is not None and len(value) > most):
            count = f"{self.least}" if self.least == most else f"{self.least} to {most:g}"
            raise UnfitError(where, value, f"not a list of {count}{source}")
        if self.characters is not None:
            most, source = ceiling(self.characters, bounds)
            if most is not None and sum(len(one) for one in value if isinstance(one, str)) > most:
                raise UnfitError(where, value, f"not {most:g} characters together{source}")
        return [self.item.check(one, bounds, f"{where}[{at}]") for at, one in enumerate(value)]

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, list)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        most, _ = ceiling(self.most, bounds)
        found: dict[str, Any] = {"type": "array", "items": self.item.schema(bounds), "minItems": self.least}
        return found if most is None else {**found, "maxItems": most}


@dataclass(frozen=True)
class Pair(Rule):
    """A list of two items with a rule each."""

    first: Rule
    second: Rule

    @property
    def words(self) -> str:
        """``a list of two: ...``."""
        return f"a list of two, {self.first.words} and {self.second.words}"

    def check(self, value: Any, bounds: Bounds, where: str) -> list[Any]:
        if not isinstance(value, list) or len(value) != 2:
            raise self.unfit(value, where)
        return [self.first.check(value[0], bounds, f"{where}[0]"), self.second.check(value[1], bounds, f"{where}[1]")]

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, list)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        items = [self.first.schema(bounds), self.second.schema(bounds)]
        return {"type": "array", "prefixItems": items, "minItems": 2, "maxItems": 2}


@dataclass(frozen=True)
class Either(Rule):
    """A value that follows one of several rules.

    If none of them admits it, the last one whose JSON type fits gives the error.
    """

    rules: tuple[Rule, ...]

    @property
    def words(self) -> str:
        """The words of all rules, joined."""
        return " or ".join(dict.fromkeys(rule.words for rule in self.rules))

    def check(self, value: Any, bounds: Bounds, where: str) -> Any:
        fitting = [rule for rule in self.rules if rule.fits_type(value)]
        if not fitting:
            raise self.unfit(value, where)
        for rule in fitting[:-1]:
            try:
                return rule.check(value, bounds, where)
            except UnfitError:
                continue
        return fitting[-1].check(value, bounds, where)

    def fits_type(self, value: Any) -> bool:
        return any(rule.fits_type(value) for rule in self.rules)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        return {"anyOf": [rule.schema(bounds) for rule in self.rules]}


@dataclass(frozen=True)
class Fields(Rule):
    """An object with these fields and no others."""

    fields: Mapping[str, Rule]
    #: Fields that transformers knows and that are refused: name -> reason.
    refused: Mapping[str, str]
    words: ClassVar[str] = "an object"

    def check(self, value: Any, bounds: Bounds, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.unfit(value, where)
        found: dict[str, Any] = {}
        for name, one in value.items():
            rule = self.fields.get(name)
            if rule is None:
                raise UnknownNameError(where, name, self)
            if one is not None:
                found[name] = rule.check(one, bounds, f"{where}.{name}")
        return found

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, dict)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        properties = {name: rule.schema(bounds) for name, rule in sorted(self.fields.items())}
        return {"type": "object", "properties": properties, "additionalProperties": False}


class UnknownNameError(UnfitError):
    """An object has a field that its rule does not know."""

    def __init__(self, where: str, name: str, fields: Fields) -> None:
        super().__init__(where, name, "not a field of it")
        self.name = name
        self.fields = fields


@dataclass(frozen=True)
class Numbers(Rule):
    """A tensor: numbers, or lists of numbers."""

    #: Most numbers in total.
    most: int
    words: ClassVar[str] = "a list of numbers, or of such lists"

    def check(self, value: Any, bounds: Bounds, where: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self.unfit(value, where)
        if self._count(value, where) > self.most:
            raise UnfitError(where, value, f"not {self.most} numbers at most")
        shapes = {len(one) if isinstance(one, list) else -1 for one in value}
        if len(shapes) > 1:
            raise UnfitError(where, value, "not lists of one length")
        return [self._float(one, where) for one in value]

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, list)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        rows = {"type": "array", "items": {"type": "number"}}
        return {"type": "array", "items": {"anyOf": [{"type": "number"}, rows]}, "minItems": 1}

    def _count(self, value: list[Any], where: str) -> int:
        if any(isinstance(one, list) and any(isinstance(two, list) for two in one) for one in value):
            raise UnfitError(where, value, "not numbers in two dimensions at most")
        return sum(len(one) if isinstance(one, list) else 1 for one in value)

    def _float(self, value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [self._float(one, where) for one in value]
        return Number(-1e6, 1e6).check(value, {}, where)


@dataclass(frozen=True)
class Json(Rule):
    """Any JSON object, for instance the description of a tool. A chat's template writes it into the prompt."""

    #: Deepest nesting.
    depth: int = 16
    words: ClassVar[str] = "an object"

    def check(self, value: Any, bounds: Bounds, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.unfit(value, where)
        self._walk(value, where, self.depth)
        return value

    def fits_type(self, value: Any) -> bool:
        return isinstance(value, dict)

    def schema(self, bounds: Bounds) -> dict[str, Any]:
        return {"type": "object"}

    def _walk(self, value: Any, where: str, depth: int) -> None:
        if depth < 0:
            raise UnfitError(where, value, f"not {self.depth} levels deep at most")
        if isinstance(value, dict | list):
            for key, one in value.items() if isinstance(value, dict) else ((None, one) for one in value):
                if key is not None:
                    Text(1000).check(key, {}, where)
                self._walk(one, where, depth - 1)
        elif isinstance(value, str):
            Text().check(value, {}, where)
        elif value is not None and not isinstance(value, bool):
            Number(-(2.0**63), 2.0**63).check(value, {}, where)
