"""OUTSET: what a worker finds at its start of all that its settings name, one line in the log for each.

It runs beside the first tasks, in the process that uses these things. What is wrong is a warning and no reason to stop:
a store may come back, and tasks that do not need it can be done.
"""

from __future__ import annotations

import logging
import os
import resource
import tempfile
from collections.abc import Iterator

from pipeq.contract import shown
from pipeq.contract.errors import PipeqError

from pipeq_worker.settings.read import Settings
from pipeq_worker.stages.placing import UPLOAD_THREADS
from pipeq_worker.stores import places
from pipeq_worker.stores.places import Looked

logger = logging.getLogger(__name__)

#: File handles of a child beside those of its connections to stores: libraries, shared memory, the models' files.
_HANDLES = 150


def say(settings: Settings) -> None:
    """Looks at everything, and logs what it finds. Never raises."""
    try:
        for one in _look(settings):
            extra = {"action": "check"}
            if one.problem is None:
                logger.info("%s: %s is in order", one.key, one.place, extra=extra)
            else:
                problem = shown.line(one.problem, 1000)
                logger.warning("%s: %s cannot be used now: %s", one.key, one.place, problem, extra=extra)
    except Exception:
        logger.exception("the checks at the start", extra={"action": "check"})


def _look(settings: Settings) -> Iterator[Looked]:
    yield _folder()
    yield _handles(settings)
    try:
        yield from places.look(settings.inputs, settings.results, settings.s3)
    except PipeqError as error:
        yield Looked("settings", "a place", error.message)


def _folder() -> Looked:
    """The folder for temporary files, which some libraries decode into."""
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        return Looked("the temporary folder", "TMPDIR", f"{error.strerror}: {error.filename or ''}")
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Looked("the temporary folder", folder, error.strerror or type(error).__name__)
    return Looked("the temporary folder", folder)


def _handles(settings: Settings) -> Looked:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _HANDLES + settings.fetch_threads * max(1, len(settings.pipelines)) + 2 * UPLOAD_THREADS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Looked("the limit of open files", str(soft))
    reason = f"this worker may need {needed}: raise the limit (`ulimit -n`), or lower `fetch_threads`"
    return Looked("the limit of open files", str(soft), reason)
