"""ARRIVALS: when items came in -> whether an idle device should wait for more of them. Used by window."""

from __future__ import annotations

from collections.abc import Hashable

#: Weight of the last arrival in the share of arrivals that others followed.
LATEST = 0.5
#: Company is likely if more than this share of arrivals was followed by another in time.
LIKELY = 0.5
#: Groups that are remembered.
MOST_GROUPS = 256


class Arrivals:
    """The arrivals of one pipeline, by group. Not safe for threads."""

    def __init__(self) -> None:
        #: Group -> its last arrival, and the share of its arrivals that others followed in time; least recent first.
        self._groups: dict[Hashable, tuple[float, float]] = {}
        #: The same for the whole pipeline, for groups that are new.
        self._all: tuple[float, float] | None = None

    def add(self, group: Hashable, now: float, max_wait_s: float, count: int = 1) -> None:
        """Items of this group came in, all at once."""
        self._groups[group] = _followed(self._groups.pop(group, self._all), now, max_wait_s, count)
        self._all = _followed(self._all, now, max_wait_s, count)
        if len(self._groups) > MOST_GROUPS:
            del self._groups[next(iter(self._groups))]

    def is_company_likely(self, group: Hashable) -> bool:
        """Whether another item of this group is likely to come in time. Of the first item, nothing is known: yes."""
        return self._groups[group][1] > LIKELY if group in self._groups else True


def _followed(before: tuple[float, float] | None, now: float, max_wait_s: float, count: int) -> tuple[float, float]:
    if before is None:
        return now, 1.0
    last, share = before
    share += LATEST * ((now - last <= max_wait_s) - share)
    # Each of the others came in time after the one before it.
    return now, share if count == 1 else 1.0 - (1.0 - share) * (1.0 - LATEST) ** (count - 1)
