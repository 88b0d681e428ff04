"""PACKS: what a child says of the rows of a pack: few messages with columns, not one for each row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from pipeq_worker.children import protocol
from pipeq_worker.children.exchange import Exchange
from pipeq_worker.stages.pack import Pack
from pipeq_worker.stages.task import Item


def group_of(item: Item) -> bytes:
    """The group of an item as bytes, which are the same in all processes: it is made of names, numbers and shapes."""
    return repr(item.group).encode("utf-8", "surrogatepass")


def said_of_rows(items: Sequence[Item], exchange: Exchange | None) -> Iterator[protocol.ReadyRows]:
    """Says that items of a pack are ready; those of one group and call together.

    Args:
        items: of one pack.
        exchange: where a prepare process puts them; None in the device process.
    """
    for (group, _), some in itertools.groupby(items, _group_and_call if _has_calls(items) else _group):
        rows = list(some)
        wheres, params = ([], b"") if exchange is None else exchange.keep_rows(rows)
        yield protocol.ReadyRows(
            rows[0].task.number,
            repr(group).encode("utf-8", "surrogatepass"),
            [item.number for item in rows],
            [item.cost for item in rows],
            [item.nbytes for item in rows],
            wheres,
            params,
        )


def _has_calls(items: Sequence[Item]) -> bool:
    """Whether some of the rows have parameters of their own."""
    return any(task.pack is None or task.pack.calls for task in {item.task for item in items})


def _group(item: Item) -> tuple[object, int]:
    return item.group, 0


def _group_and_call(item: Item) -> tuple[object, int]:
    return item.group, id(item.call)


def end_of(pack: Pack) -> protocol.PackEnd | None:
    """Says how the rows of a pack have ended; None if that is not known, because the pack failed as a whole."""
    found = pack.outcomes
    if found is None:
        return None
    error = None if pack.first_left is None else protocol.Error.of(pack.first_left)
    return protocol.PackEnd(
        found.succeeded,
        found.codes,
        found.left,
        found.left_done,
        found.left_codes,
        error,
        found.crowded,
        pack.device_s * 1000,
    )
