"""PLACE: outputs -> results, each as it stands in the record, or in the store. Before: infer. After: deliver."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.writing import to_json

from pipeq_worker.observe.traces import internal
from pipeq_worker.settings.sections import ResultSettings
from pipeq_worker.stages.outputs import Object, convert
from pipeq_worker.stages.task import Task
from pipeq_worker.stores import deadline
from pipeq_worker.stores.signed import Signatures, objects_of, sign_objects
from pipeq_worker.stores.writer import Writer

logger = logging.getLogger(__name__)

#: Size up to which a result stays in its record if there is no store, in bytes.
INLINE_LIMIT = 8 * 2**20
UPLOAD_THREADS = 16
RESULT_TYPE = "application/json"


@dataclass(frozen=True)
class Upload:
    """Data to be written to the store: a task's result, or an object that the result refers to."""

    uri: str
    data: bytes
    media_type: str


@dataclass(frozen=True)
class Uploads:
    """What a task has in the store: its result, if it is there, is written after the objects that it refers to."""

    parts: list[Upload] = field(default_factory=list)
    result: Upload | None = None


class Placer:
    """Converts outputs to results, and writes what does not fit into a record. Safe to call from several threads.

    Args:
        results: which results stay in their records, and where the others go.
        writer: writes to stores.
        signatures: signs references for the next task of a chain.
    """

    def __init__(self, results: ResultSettings, writer: Writer, signatures: Signatures) -> None:
        self._results = results
        self._writer = writer
        self._signatures = signatures
        self._uploads = ThreadPoolExecutor(UPLOAD_THREADS, "upload")

    def close(self) -> None:
        """Ends the threads. Call it when nothing will be placed any more."""
        self._uploads.shutdown(wait=False, cancel_futures=True)

    def check_output(self, uri: str) -> None:
        """Checks that a producer may have its output written to a URI.

        Raises:
            PipeqError: ``input_forbidden``, with the line to add to the settings.
        """
        self._writer.check_allowed(uri)

    def convert(self, task: Task, until: float = math.inf) -> Uploads | None:
        """Sets the ``result`` or the ``error`` of a task. Returns what must be uploaded, if anything.

        Args:
            task: all of its items have run.
            until: when other tasks should take their turn (monotonic clock).

        Returns:
            None if the results of some inputs are left to be made: call it again then.
        """
        if task.error is not None or task.is_cancelled:
            return self._forget(task)
        try:
            assert task.pipeline is not None
            if not _advance(task, until):
                return None
            return self._split(task, *convert(_value(task), task.echoes, task.pipeline.task_type.audio_key))
        except PipeqError as error:
            task.fail(error)
        except Exception as error:
            logger.exception("task %s", task.id, extra={"action": "deliver", "task_id": task.id})
            task.fail(internal(error))
        finally:
            if len(task.results) == len(task.outputs) or task.error is not None:
                self._forget(task)
        return Uploads()

    def _forget(self, task: Task) -> Uploads:
        task.outputs, task.results, task.inputs, task.echoes, task.originals, task.given = [], [], [], {}, {}, None
        return Uploads()

    def upload(self, task: Task, uploads: Uploads) -> None:
        """Writes what :meth:`convert` returned, and waits for it; fails the task if that cannot be written."""
        list(self._uploads.map(lambda one: self._put(task, one), uploads.parts))
        if uploads.result is not None and self._put(task, uploads.result):
            uri = uploads.result.uri
            task.result, task.result_uri = _encode({"uri": uri}), uri
            if task.has_next:
                self._sign_result(task, uploads.result)

    def _sign_result(self, task: Task, result: Upload) -> None:
        sha256 = hashlib.sha256(result.data).hexdigest()
        try:
            signature = self._signatures.sign(result.uri, "result", sha256)
        except PipeqError as error:
            task.fail(error)
        else:
            task.handed_on = _encode({"uri": result.uri, "sha256": sha256, "signature": signature})

    def _split(self, task: Task, value: Any, objects: list[Object]) -> Uploads:
        """Decides what stays in the record, what goes into the store, and under which names."""
        results = self._results
        asked = task.destination.object_uri(task.id) if task.destination is not None else None
        place = asked or (
            f"{results.store.rstrip('/')}/{keys.object_name(task.id)}.json" if results.store is not None else None
        )
        uploads: list[Upload] = []
        inline = sum(one.inline_size for one in objects)
        if objects and place is not None and (asked is not None or inline > results.inline_max_bytes):
            for one in objects:
                one.put_at(objects_of(place) + one.name)
                uploads.append(Upload(one.entry["uri"], one.data, one.media_type))
        else:
            if place is None:
                _check_inline(inline, results)
            for one in objects:
                one.put_inline()
        data = _encode(value)
        if place is not None and (asked is not None or len(data) > results.inline_max_bytes):
            return Uploads(uploads, Upload(place, data, RESULT_TYPE))
        _check_inline(len(data), results)
        task.result = data
        if uploads and task.has_next:
            handed_on = json.loads(data)
            assert place is not None
            sign_objects(handed_on, place, self._signatures)
            task.handed_on = _encode(handed_on)
        return Uploads(uploads)

    def _put(self, task: Task, upload: Upload) -> bool:
        """Writes one object. Returns whether it was written."""
        if task.error is not None or task.is_cancelled:
            return False
        try:
            with deadline.until(task.deadline):
                self._writer.put(upload.uri, upload.data, upload.media_type)
        except PipeqError as error:
            task.fail(error)
            return False
        except Exception as error:
            logger.exception(
                "task %s: cannot write %s", task.id, upload.uri, extra={"action": "deliver", "task_id": task.id}
            )
            sentence = f"cannot write {shown.uri(upload.uri)}: {shown.line(str(error))}"
            task.fail(PipeqError(ErrorCode.OUTPUT_FAILED, sentence, False))
            return False
        return True


def _encode(value: Any) -> bytes:
    """Returns a converted output as JSON."""
    try:
        return to_json(value)
    except ValueError as error:
        raise PipeqError(
            ErrorCode.INFERENCE_FAILED, "the model's output holds NaN or infinity; is its dtype too narrow?"
        ) from error


def _advance(task: Task, until: float) -> bool:
    """Makes the results of a task's inputs, from the outputs of their items. Returns whether all are made."""
    assert task.pipeline is not None
    for at in range(len(task.results), len(task.outputs)):
        task.results.append(task.pipeline.postprocess(task.outputs[at], task.call))
        # They may be large, and are needed no more.
        task.outputs[at] = []
        if time.monotonic() > until:
            break
    return len(task.results) == len(task.outputs)


def _value(task: Task) -> Any:
    """Returns the result of a task."""
    if task.is_list:
        return task.results
    assert task.pipeline is not None
    return task.pipeline.result(task.results[0], task.inputs[0].call_value, task.call)


def _check_inline(size: int, results: ResultSettings) -> None:
    limit = max(INLINE_LIMIT, results.inline_max_bytes)
    if size > limit:
        raise PipeqError(
            ErrorCode.OUTPUT_FAILED,
            f"the result is {size} bytes, at most {limit} stay inline: set `store` in [results] of the worker's "
            'settings, for instance store = "s3://results/", or submit the task with an output',
            False,
        )
