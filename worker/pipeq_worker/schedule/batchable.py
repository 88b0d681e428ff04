"""What the window needs to know of an item."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol


class Batchable(Protocol):
    """The attributes of an item that waits for the device."""

    @property
    def group(self) -> Hashable:
        """Items with equal groups may share a forward pass."""

    @property
    def lane(self) -> Hashable:
        """The pipeline: its items share its part of the window, and its turns on the device. A group lies within it."""

    @property
    def cost(self) -> int:
        """Cost of the item alone, in the unit of the task type (tokens, frames, patches)."""

    @property
    def nbytes(self) -> int:
        """Bytes that the item holds while it waits."""

    @property
    def priority(self) -> int:
        """0 is served first, 9 last."""

    @property
    def deadline(self) -> float:
        """When it should be done, by the monotonic clock; infinite if its producer did not say."""

    @property
    def tenant(self) -> Hashable:
        """Whose it is: items of equal priority are served by turns of their tenants. None is a tenant, too."""

    @property
    def arrived(self) -> float:
        """When it was ready, by the monotonic clock; its age decides among items that are equally urgent."""
