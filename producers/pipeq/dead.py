"""DEAD: dead letters of queues: reads them, sends them again, drops them. Before: a worker. After: a worker.

A list of dead letters has its newest entry first. A retry and a drop walk it from its other end, so that the letters of
tasks that fail meanwhile change nothing for them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pipeq import checks
from pipeq.contract import dead_letter, keys, record, shown
from pipeq.contract.dead_letter import DeadLetter
from pipeq.contract.status import State
from pipeq.envelope import new_id
from pipeq.protocol import Give, Steps, Stream, is_wrong_type, listed, replies, scripts, single
from pipeq.scripts import source
from pipeq.speaking import Speaker, blocking, iterating

#: Letters that are read in one call; one may be as long as a message.
LETTERS_PER_CALL = 100
#: How often a retry begins anew, because other clients change the records meanwhile.
TRIES = 10
#: What revive.lua returns, if it did nothing.
GONE, CHANGED = 0, -1
_FASTER = "somebody else was faster: it is not among the dead letters any more"


@dataclass(frozen=True)
class Handled:
    """What became of one dead letter."""

    #: The letter's own id, its queue, and its task's id.
    letter: str
    queue: str
    task_id: str | None
    #: Why nothing was done; None if it was retried, or dropped.
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which letters are meant. What is given must all be true of a letter."""

    #: None for those of all pipelines.
    pipeline: str | None = None
    #: Ids of tasks, or letters' own.
    ids: frozenset[str] | None = None
    codes: frozenset[str] | None = None
    #: When the task failed, in seconds since the epoch, both included.
    since: float = float("-inf")
    until: float = float("inf")

    @classmethod
    def of(cls, pipeline: Any, ids: Any, code: Any, older_than_s: Any, newer_than_s: Any) -> Choice:
        """Checks the arguments of ``client.dead``."""
        older_than_s = checks.seconds("older_than_s", older_than_s)
        newer_than_s = checks.seconds("newer_than_s", newer_than_s)
        codes = None if code is None else checks.texts("code", [code] if isinstance(code, str) else code)
        now = time.time()
        return cls(
            pipeline=None if pipeline is None else checks.pipeline(pipeline),
            ids=None if ids is None else frozenset(checks.task_ids(ids)),
            codes=None if codes is None else frozenset(codes),
            since=float("-inf") if newer_than_s is None else now - newer_than_s,
            until=float("inf") if older_than_s is None else now - older_than_s,
        )

    def has(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant. One that does not say when it failed is older than any other."""
        return (
            (self.ids is None or letter.letter in self.ids or letter.task_id in self.ids)
            and (self.codes is None or letter.code in self.codes)
            and self.since <= (letter.failed_at or 0) <= self.until
        )


#: Steps that take letters off their list.
_Act: TypeAlias = Callable[[tuple[DeadLetter, ...]], Steps[tuple[Handled, ...]]]


class Letters:
    """The steps of :class:`pipeq.dead.DeadLetters` and its twin.

    Args:
        pipelines: steps to the names of all pipelines that a worker has ever served.
        choice: which letters are meant.
    """

    def __init__(self, pipelines: Callable[[], Steps[Iterable[str]]], choice: Choice) -> None:
        self._pipelines = pipelines
        self._choice = choice

    def each(self) -> Stream[DeadLetter]:
        """Hands out the letters of each queue, the newest first."""
        for queue in (yield from self._queues()):
            at, seen = 0, set[str]()
            while letters := (yield from self._read(queue, at, at + LETTERS_PER_CALL - 1)):
                at += len(letters)
                # A letter that comes in meanwhile moves the others on by one.
                for one in letters:
                    if one.letter not in seen and self._choice.has(one):
                        yield Give(one)
                seen = {one.letter for one in letters}
        return None

    def list(self, limit: int | None = None) -> Steps[tuple[DeadLetter, ...]]:
        """Returns the letters of each queue, the newest first.

        Args:
            limit: most letters that are returned; None for all.
        """
        return (yield from listed(self.each(), checks.limit(limit)))

    def retry(self) -> Steps[tuple[Handled, ...]]:
        """Sends the tasks again: each gets a new life under its id, and its letter leaves the list in the same step.

        The record says ``queued`` again, without the old error and the old expiry; attempts go on counting, and the
        task has all of its tries. It goes to the end of its queue, in the order of the failures. A letter stays, and
        ``refused`` says why, if its message cannot be read, or if its id belongs to a task that waits, runs, or has
        ended otherwise by now.
        """
        return (yield from self._handle(self._revive))

    def drop(self) -> Steps[tuple[Handled, ...]]:
        """Removes the letters for good. The records of their tasks stay, and say that they failed."""
        return (yield from self._handle(self._remove))

    # -- reading ------------------------------------------------------------------------------------------------------

    def _queues(self) -> Steps[Iterable[str]]:
        if self._choice.pipeline is not None:
            return [self._choice.pipeline]
        # Anybody may have registered anything.
        return filter(keys.is_queue_name, sorted((yield from self._pipelines())))

    def _read(self, queue: str, first: int, last: int) -> Steps[tuple[DeadLetter, ...]]:
        (found,) = yield from replies(("LRANGE", keys.dead_letter_key(queue), first, last))
        return tuple(dead_letter.read(raw, queue) for raw in found or ())

    # -- handling -----------------------------------------------------------------------------------------------------

    def _handle(self, act: _Act) -> Steps[tuple[Handled, ...]]:
        """Walks each list from its oldest letter, with steps that take letters off it."""
        began, done = time.time(), dict[str, Handled]()
        for queue in (yield from self._queues()):
            # Letters that others take off the list meanwhile move those that are still to be read, perhaps past the
            # place that is read next. So the list is walked until nothing more is found.
            while outcomes := (yield from self._walk(queue, act, began, done)):
                done |= outcomes
        return tuple(done.values())

    def _walk(self, queue: str, act: _Act, began: float, done: Mapping[str, Handled]) -> Steps[dict[str, Handled]]:
        """Walks a list once. Returns what became of the letters that were not handled before."""
        new, kept = dict[str, Handled](), 0
        while letters := (yield from self._read(queue, -kept - LETTERS_PER_CALL, -kept - 1)):
            # What has failed since is not meant: it may be what was just retried.
            meant = [
                one
                for one in letters
                if self._choice.has(one) and (one.failed_at or 0) <= began and not _stays(done.get(one.letter))
            ]
            outcomes = (yield from act(tuple(reversed(meant)))) if meant else ()
            new |= {one.letter: one for one in outcomes}
            kept += len(letters) - sum(not _stays(one) for one in outcomes)
        return new

    def _remove(self, letters: tuple[DeadLetter, ...]) -> Steps[tuple[Handled, ...]]:
        removed = yield from replies(
            *(("LREM", keys.dead_letter_key(one.queue), -1, one.raw) for one in letters), again=False
        )
        return tuple(_handled(one, None if count else _FASTER) for one, count in zip(letters, removed, strict=True))

    def _revive(self, letters: tuple[DeadLetter, ...]) -> Steps[tuple[Handled, ...]]:
        outcomes = {one.letter: _handled(one, one.obstacle) for one in letters}
        left = [one for one in letters if one.obstacle is None]
        for _ in range(TRIES):
            if not left:
                break
            changed = []
            records = yield from single("MGET", *(keys.record_key(str(one.task_id)) for one in left))
            able = []
            for letter, before in zip(left, records, strict=True):
                refused = _not_failed(str(letter.task_id), before)
                outcomes[letter.letter] = _handled(letter, refused)
                if refused is None:
                    able.append((letter, before))
            found = yield from scripts(source("revive"), [_call(letter, before) for letter, before in able])
            for (letter, _), reply in zip(able, found, strict=True):
                if reply == CHANGED:
                    changed.append(letter)
                elif isinstance(reply, Exception):
                    if not is_wrong_type(reply):
                        raise reply
                    outcomes[letter.letter] = _handled(letter, shown.line(str(reply)))
                else:
                    outcomes[letter.letter] = _handled(letter, _FASTER if reply == GONE else None)
            left = changed
        outcomes |= {one.letter: _handled(one, "other clients keep changing its record: try again") for one in left}
        return tuple(outcomes.values())


class DeadLetters:
    """Chosen dead letters, from :meth:`pipeq.Client.dead`: iterate over them, send them again, or drop them.

    Nothing is read before that. All of it needs the rights of an operator who may write.
    """

    def __init__(self, speaker: Speaker, letters: Letters) -> None:
        self._speaker = speaker
        self._steps = letters

    __iter__ = iterating(Letters.each)

    list = blocking(Letters.list)
    retry = blocking(Letters.retry)
    drop = blocking(Letters.drop)


def _call(letter: DeadLetter, before: bytes | None) -> tuple[Sequence[Any], Sequence[Any]]:
    """The keys and the arguments of the script that sends a letter again."""
    task_id, now = str(letter.task_id), time.time()
    list_key, message = dead_letter.again(letter, tag=new_id(), now=now)
    pipeline = letter.pipeline or letter.queue
    revived = record.revived(task_id, before, pipeline=pipeline, attempts=letter.attempts, now=now)
    return (
        [keys.dead_letter_key(letter.queue), keys.record_key(task_id), list_key, keys.RUNNING],
        [
            letter.raw,
            "" if before is None else hashlib.sha1(before, usedforsecurity=False).hexdigest(),
            revived,
            keys.PENDING_TTL_S,
            message,
            task_id,
        ],
    )


def _not_failed(task_id: str, before: bytes | None) -> str | None:
    """Why a task cannot get a new life; None if it has failed, or if nothing is known of it any more."""
    state = record.read(task_id, before).state
    if state in (State.FAILED, State.UNKNOWN):
        return None
    # Its id was used for another task since, or somebody has sent it again by other means.
    return f"task {shown.line(task_id)} is {state} now: drop the letter"


def _stays(one: Handled | None) -> bool:
    """Whether a letter was handled, and is still on its list."""
    return one is not None and one.refused not in (None, _FASTER)


def _handled(letter: DeadLetter, refused: str | None) -> Handled:
    return Handled(letter.letter, letter.queue, letter.task_id, refused)
