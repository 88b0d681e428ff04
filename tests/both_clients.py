"""The asynchronous client behind the methods of the blocking one, so that the same tests run through both."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

from pipeq import AsyncClient, Client

#: Names of the two, as parameters of tests.
KINDS = ("Client", "AsyncClient")


def make(kind: str, *arguments: Any, **options: Any) -> Client:
    return Client(*arguments, **options) if kind == "Client" else Awaited(*arguments, **options)  # type: ignore[return-value]


class Awaited:
    """An AsyncClient in an event loop of its own thread, where several calls may run at once."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._wrapped = AsyncClient(*arguments, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop.is_closed():
            return
        self._run(self._wrapped.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __getattr__(self, name: str) -> Any:
        return self._plain(getattr(self._wrapped, name))

    def _plain(self, found: Any) -> Any:
        if inspect.isroutine(found):
            return lambda *arguments, **options: self._plain(found(*arguments, **options))
        if inspect.iscoroutine(found):
            return self._run(found)
        if isinstance(found, AsyncIterator):
            return self._iterate(found)
        return Letters(self, found) if type(found).__name__ == "AsyncDeadLetters" else found

    def _run(self, steps: Any) -> Any:
        async def awaited() -> Any:
            return await steps

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    def _iterate(self, found: AsyncIterator[Any]) -> Iterator[Any]:
        end = object()
        try:
            while (value := self._run(anext(found, end))) is not end:
                yield value
        finally:
            self._run(found.aclose())  # type: ignore[attr-defined]


class Letters:
    """Dead letters of an AsyncClient."""

    def __init__(self, client: Awaited, letters: Any) -> None:
        self._client = client
        self._letters = letters

    def __iter__(self) -> Iterator[Any]:
        return self._client._iterate(aiter(self._letters))

    def __getattr__(self, name: str) -> Any:
        return self._client._plain(getattr(self._letters, name))
