"""What a reserver asks for, and what it gets: the arguments and the reply of the script that takes messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeq.contract import shown


class Reserved(NamedTuple):
    """A message that was taken off its list."""

    queue: str
    tag: str
    raw: bytes
    #: Its size in bytes if it is too large; ``raw`` then holds the id found in it, a line break, and its beginning.
    too_large: int = 0
    #: The place of its list among those of its queue, which are in order of priority.
    list_index: int = 0
    #: Whether nobody had it before, and the record of its task said that it waits. False if nobody has looked.
    is_new: bool = False


@dataclass(frozen=True)
class Wanted:
    """How much may be taken from one queue."""

    queue: str
    #: Its lists in order of priority, without the prefix.
    lists: list[str]
    messages: int
    #: Most bytes of messages; the message that crosses the limit is still taken.
    nbytes: int
    #: Number of messages that each list gets before more urgent lists are served.
    shares: list[int]
    #: Bytes of the largest message that is returned whole.
    largest: int = 2**30
    #: Lifetime of its lists, renewed each time that messages are asked for, in milliseconds; 0 for ever.
    lifetime_ms: int = 0
    #: Number of idle workers that can get messages from this one, if the lists are empty.
    gives: int = 0
    #: Whether this worker has no work, and whether others are to be told so now.
    is_idle: bool = False
    is_marked: bool = False


class Taken(NamedTuple):
    """What the script that takes messages has done."""

    messages: list[Reserved]
    #: For each message its queue, and the index of its list there.
    places: list[tuple[str, int]]
    #: Queue -> the key that is not a list, and the error.
    refused: dict[str, str]
    #: Whether messages of fair lists are left that the script has not put in order yet.
    is_unmoved: bool
    #: Queue -> idle workers that wait for messages of this worker now.
    idle: dict[str, int]


def taken(reply: Any, wanted: list[Wanted]) -> Taken:
    """Reads the reply of the script that takes messages."""
    messages, refused, unmoved, answered, waiting = reply
    lists = [(one.queue, at) for one in wanted for at in range(len(one.lists))]
    fields = zip(messages[::4], messages[1::4], messages[2::4], messages[3::4], strict=True)
    new = set(waiting)
    reserved = [
        Reserved(lists[at - 1][0], tag.decode(), raw, size, lists[at - 1][1], place in new)
        for place, (at, tag, size, raw) in enumerate(fields, 1)
    ]
    names = [name for one in wanted for name in one.lists]
    problems = {
        lists[at - 1][0]: f"the key {names[at - 1]!r}: {shown.line(error.decode('utf-8', 'replace'))}"
        for at, error in zip(refused[::2], refused[1::2], strict=True)
    }
    idle = {one.queue: int(number) for one, number in zip(wanted, answered, strict=True) if number}
    return Taken(reserved, [lists[at - 1] for at in messages[::4]], problems, bool(unmoved), idle)
