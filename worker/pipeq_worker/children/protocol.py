"""PROTOCOL: what the host and its child processes say to each other. Messages travel in lists, as MessagePack.

    host -> child   start, load, load_ends, unload, prepare, forward, forward_rows, outputs, free, cancel, stop, ask
    child -> host   loaded, ends, failed, ready, ready_rows, prepared, ran, taken, far, ended, answer, lost

The device process answers ``load`` with ``loaded`` and ``ends`` for each pipeline; a prepare process gets those ends.
A child answers ``prepare`` with one ``ready`` for each item (or ``ready_rows`` for several of a pack) and then
``prepared``, unless a ``ready`` said that there is only one; and sends ``ended`` once for each task, unless it was
cancelled. ``forward`` runs items that the device process has prepared itself, ``forward_rows`` those of prepare
processes; the answer is ``ran``. Its outputs go to the prepare process as ``outputs``, which says ``taken`` when it has
read them, whereupon the device process may ``free`` their place. ``cancel``, or ``stop`` for rows of prepare processes,
also stops what runs, between two of its steps. Answers come in any order.

What a producer sent goes to a child as bytes that only the child reads; what comes back is numbers, and results that
are JSON already. There is no ``stats``: what a child is doing stands on its board
(:mod:`pipeq_worker.children.board`), which can also be read when it is dead, and its memory in ``/proc``.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, Self, TypeAlias

import msgspec
from pipeq.contract.errors import Blame, PipeqError

from pipeq_worker.children.slab import Where


class Start(msgspec.Struct, tag="start", array_like=True, frozen=True):
    """The first message to a child."""

    #: The worker's :class:`Settings`, pickled.
    settings: bytes
    #: Whether the child only prepares and finishes.
    is_preparer: bool = False


class Load(msgspec.Struct, tag="load", array_like=True, frozen=True):
    """Loads pipelines, one after the other; the first such message names all."""

    pipelines: list[str]
    #: Whether a process before this one had loaded them. One that cannot be loaded is absent then, and no failure.
    again: bool = False
    #: Pipeline -> the revision that it was loaded from then, if its model is from the Hub.
    revisions: dict[str, str] = {}


class Unload(msgspec.Struct, tag="unload", array_like=True, frozen=True):
    """Gives the weights of pipelines back, between two batches. ``load`` brings them back; their ends stay."""

    pipelines: list[str]


class LoadEnds(msgspec.Struct, tag="load_ends", array_like=True, frozen=True):
    """Makes pipelines without weights: the name of each, and what the device process said in ``ends``."""

    ends: dict[str, bytes]


class Prepare(msgspec.Struct, tag="prepare", array_like=True, frozen=True):
    """Takes a task in: accept, fetch, decode, prepare; and finish, once its items have run."""

    #: By which host and child know the task.
    number: int
    id: str
    pipeline: str
    #: JSON, as its producer wrote it and nobody has read it: the body of a Celery message, ``[args, kwargs, embed]``,
    #: whose ``kwargs`` are the fields of a :class:`TaskMessage`; or only these.
    message: bytes
    #: Whether a process died with it: nothing else runs in the child while it does.
    alone: bool = False
    #: Whether another task gets its result.
    has_next: bool = False
    #: When the child ends it, by the monotonic clock, if the host has not; None if it may take any time.
    deadline: float | None = None


class Forward(msgspec.Struct, tag="forward", array_like=True, frozen=True):
    """Runs one batch; batches run in the order in which they come."""

    number: int
    #: Numbers of its items, as ``ready`` gave them.
    items: list[int]
    alone: bool = False


class Row(msgspec.Struct, array_like=True, frozen=True):
    """One row of a batch, in shared memory."""

    where: Where
    cost: int


class ForwardRows(msgspec.Struct, tag="forward_rows", array_like=True, frozen=True):
    """Runs one batch of rows that prepare processes have made."""

    number: int
    pipeline: str
    #: The parameters of the call, pickled; those of the forward pass are equal in all rows.
    params: bytes
    rows: list[Row]
    alone: bool = False


class Error(msgspec.Struct, tag="error", array_like=True, frozen=True):
    """A :class:`PipeqError`."""

    code: str
    message: str
    retryable: bool
    #: Where its cause was raised.
    traceback: str = ""
    #: A :class:`Blame`.
    blame: str = Blame.TASK

    @classmethod
    def of(cls, error: PipeqError) -> Self:
        """Makes it of an error."""
        return cls(error.code, text(error.message), error.retryable, text(error.traceback), error.blame)

    def error(self) -> PipeqError:
        """Returns the error again."""
        found = PipeqError(self.code, self.message, self.retryable)
        found.traceback, found.blame = self.traceback, Blame(self.blame)
        return found


class Outputs(msgspec.Struct, tag="outputs", array_like=True, frozen=True):
    """What a batch made of items of this prepare process."""

    number: int
    size: int
    padding: float
    began: float
    seconds: float
    #: Number of each item -> its output, or its error.
    items: dict[int, Where | Error]


class Free(msgspec.Struct, tag="free", array_like=True, frozen=True):
    """The outputs of a batch have been read."""

    number: int


class Cancel(msgspec.Struct, tag="cancel", array_like=True, frozen=True):
    """Stops working on tasks; nothing more is said of them."""

    tasks: list[int]
    #: Their items that the device may be reading now: their place is free after ``outputs``.
    busy: list[int] = []


class Stop(msgspec.Struct, tag="stop", array_like=True, frozen=True):
    """The answers of some rows of a batch are not wanted any more."""

    number: int
    #: Their positions in the batch.
    rows: list[int]


class Ask(msgspec.Struct, tag="ask", array_like=True, frozen=True):
    """Asks for an answer, to know that the child still reads what it is sent."""


class Loaded(msgspec.Struct, tag="loaded", array_like=True, frozen=True):
    """A pipeline is loaded and warmed up."""

    name: str
    task_type: str
    #: Its :class:`ModelInfo`, as JSON.
    model: bytes
    max_size: int
    max_cost: int
    launch_cost: int
    max_wait_s: float
    #: Whether measured passes choose ``max_cost``.
    is_auto: bool
    #: Its share of the device's time, beside the weights of the others.
    weight: float
    #: If its items run one by one, as soon as there is a place, the number of places; 0 if they run in batches.
    slots: int = 0
    #: Items, padded cost and seconds of passes that have run while it was loaded.
    first_passes: list[tuple[int, int, float]] = []
    #: Bytes of its weights, whether they are loaded now, and whether they can be unloaded.
    weight_bytes: int = 0
    is_resident: bool = True
    can_unload: bool = False
    #: What decides its answers: aspect -> a short text.
    identity: dict[str, str] = {}
    #: The names of the parameters that a task may give.
    parameters: list[str] = []


class Ends(msgspec.Struct, tag="ends", array_like=True, frozen=True):
    """What a prepare process needs to prepare for a pipeline; None if only the device process can."""

    name: str
    data: bytes | None


class Failed(msgspec.Struct, tag="failed", array_like=True, frozen=True):
    """A pipeline cannot be loaded; its settings or its model must be changed."""

    code: str
    message: str


class Absent(msgspec.Struct, tag="absent", array_like=True, frozen=True):
    """A pipeline that was served cannot be loaded now. Its tasks fail; ``loaded`` follows once it can be."""

    name: str
    reason: str


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    """An item lies ready for a batch."""

    task: int
    item: int
    #: Items with equal groups may share a forward pass.
    group: bytes
    cost: int
    nbytes: int
    #: Whether it is known to be the task's only one, so that no ``prepared`` follows.
    is_only: bool = False
    #: Where a prepare process has put it.
    where: Where | None = None
    #: The parameters of its task's call, pickled, with the first item of a prepare process.
    params: bytes = b""


class ReadyRows(msgspec.Struct, tag="ready_rows", array_like=True, frozen=True):
    """Items of a pack lie ready, all of one group, and with the same parameters."""

    task: int
    group: bytes
    items: list[int]
    costs: list[int]
    nbytes: list[int]
    #: Where a prepare process has put them, and the parameters of their call, pickled; empty from the device process.
    wheres: list[Where] = []
    params: bytes = b""


class Prepared(msgspec.Struct, tag="prepared", array_like=True, frozen=True):
    """All items of a task have been made."""

    task: int


class Ran(msgspec.Struct, tag="ran", array_like=True, frozen=True):
    """A batch has run; each of its items has an output or an error, which the child keeps."""

    number: int
    #: Items that ran, without those of cancelled tasks.
    size: int
    padded_cost: int
    padding: float
    began: float
    seconds: float
    #: Items, padded cost and seconds of each forward pass, and whether it had enough memory.
    passes: list[tuple[int, int, float, bool]]
    #: Size and error code of each part that was halved.
    splits: list[tuple[int, str]]
    #: Of ``forward_rows``: the output or the error of each row.
    outputs: list[Where | Error] = []


class Taken(msgspec.Struct, tag="taken", array_like=True, frozen=True):
    """A prepare process has read the outputs of a batch."""

    number: int


class Far(msgspec.Struct, tag="far", array_like=True, frozen=True):
    """How far a task is; said of tasks that take more than a second, once a second at most."""

    task: int
    done: int
    #: None if it is not known.
    total: int | None
    #: What a step is: ``tokens``, ``chunks`` or ``inputs``.
    unit: str


class FarRows(msgspec.Struct, tag="far_rows", array_like=True, frozen=True):
    """How far rows of prepare processes are that take more than a second: position, done, total, and unit of each."""

    number: int
    rows: list[tuple[int, int, int | None, str]]


class PackEnd(msgspec.Struct, array_like=True, frozen=True):
    """What became of the rows of a pack, beside those whose outcomes are its result."""

    #: Rows of the result that have one, and those that have failed, by their error's code.
    succeeded: int
    codes: dict[str, int]
    #: Places of rows that are to be tried again, their outcomes if nobody does, and the first of their errors.
    left: list[int]
    left_done: bytes
    left_codes: dict[str, int]
    error: Error | None
    #: Places of rows that did not fit beside the others.
    crowded: list[int]
    #: Milliseconds of the device that the pack took.
    device_ms: float


class Ended(msgspec.Struct, tag="ended", array_like=True, frozen=True):
    """A task has its result, or its error. The child has forgotten it."""

    task: int
    error: Error | None
    #: JSON: what its caller reads.
    result: bytes
    #: When work on it began (monotonic clock; None if it did not), and the milliseconds of each part from then on.
    began: float | None
    timing_ms: dict[str, float]
    #: Seconds for which threads were busy preparing it.
    busy_s: float
    result_uri: str | None = None
    #: JSON: what the next task gets, if that is something else.
    handed_on: bytes | None = None
    #: Size and padding of its largest batch.
    batch: tuple[int, float] | None = None
    #: If it is a pack whose rows were read.
    pack: PackEnd | None = None


class Answer(msgspec.Struct, tag="answer", array_like=True, frozen=True):
    """The answer to ``ask``."""


class Lost(msgspec.Struct, tag="lost", array_like=True, frozen=True):
    """The child cannot use its device any more, and ends."""

    reason: str


ToChild: TypeAlias = (
    Start | Load | LoadEnds | Unload | Prepare | Forward | ForwardRows | Outputs | Free | Cancel | Stop | Ask
)
ToHost: TypeAlias = (
    Loaded | Ends | Failed | Absent | Ready | ReadyRows | Prepared | Ran | Taken | Far | FarRows | Ended | Answer | Lost
)

_encoder = msgspec.msgpack.Encoder()
_to_child = msgspec.msgpack.Decoder(list[ToChild])
_to_host = msgspec.msgpack.Decoder(list[ToHost])


def encode(messages: Sequence[ToChild | ToHost]) -> bytes:
    """Messages -> bytes."""
    return _encoder.encode(messages)


def for_child(data: bytes) -> list[ToChild]:
    """Bytes from the host -> messages."""
    return _to_child.decode(data)


def for_host(data: bytes) -> list[ToHost]:
    """Bytes from a child -> messages.

    Raises:
        msgspec.DecodeError: they are none: the child's memory is damaged.
    """
    return _to_host.decode(data)


def packed(value: Any) -> bytes:
    """A value for a child. Only the host may make one, because reading it may run code."""
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def unpacked(data: bytes) -> Any:
    """A value from the host."""
    return pickle.loads(data)  # noqa: S301 - the host started this process


def text(value: str) -> str:
    """A text that MessagePack can hold: half of a surrogate pair, which UTF-8 has no bytes for, is escaped."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace").decode()
    return value
