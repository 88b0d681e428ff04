"""Ports of this machine for what the tests start, and for what they do not.

The kernel gives the ports from 32768 on to outgoing connections, and the processes of the tests open hundreds in a
minute: such a port that is free now may be in use a moment later. Nobody gets those of :data:`embedded.PORTS` unasked.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pipeq.demo import embedded


def consecutive(count: int) -> int:
    """The first of some consecutive ports on which no process listens now."""
    while True:
        first = random.choice(embedded.PORTS[: -count or None])
        if all(embedded.is_free(first + at) for at in range(count)):
            return first


@contextmanager
def refusing() -> Iterator[int]:
    """A port that refuses connections: nobody listens there, and nobody else can."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))  # without `listen`
        yield kept.getsockname()[1]
