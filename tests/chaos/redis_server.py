"""A Valkey that can be killed and started again, and that has written to disk what it acknowledged."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from pipeq.demo import embedded

#: How long it may take to read what it has written, in seconds: on a busy machine, some MB in each.
START_S = 240
OPTIONS = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


class Server:
    """See the module.

    Args:
        folder: where it writes.
        options: more of its options.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        (port,) = embedded.free_ports(1)
        self.url = f"redis://127.0.0.1:{port}/0"
        program = str(embedded._valkey_program())
        self._command = [program, "--port", str(port), "--bind", "127.0.0.1", *OPTIONS, "--dir", str(folder), *options]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as client:
            deadline = time.monotonic() + START_S
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)

    def rewrite(self) -> None:
        """Has it write what it holds to a new file, so that it starts sooner next time; it appends to another one."""
        with redis.Redis.from_url(self.url) as client:
            client.bgrewriteaof()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends it as an operator does."""
        self._process.terminate()
        self._process.wait(60)


@contextmanager
def server(folder: Path, *options: str) -> Iterator[Server]:
    one = Server(folder, *options)
    try:
        yield one
    finally:
        one.kill()
