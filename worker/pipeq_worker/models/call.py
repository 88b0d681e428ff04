"""One call of a pipeline: its parameters, and which rows may share its forward pass. Knows nothing of torch."""

from __future__ import annotations

#: Group of an item that shares a batch with nobody.
SOLO = "solo"
