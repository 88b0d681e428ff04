"""GUARDED: a thread without which a worker would take tasks and never end them. If it breaks, the worker ends."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


def guarded(run: Callable[[], None], hopeless: Callable[[str], None]) -> Callable[[], None]:
    """A thread's target that tells why it broke; other workers then get the tasks.

    Args:
        run: the target.
        hopeless: called with a sentence if it raises.
    """

    def target() -> None:
        try:
            run()
        except BaseException as error:
            logger.exception("a thread of the worker broke", extra={"action": "thread"})
            hopeless(f"a thread of the worker broke: {type(error).__name__}: {error}")

    return target
