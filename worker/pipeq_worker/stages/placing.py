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
from pipeq_worker.stages.pack import Pack
from pipeq_worker.stages.steps import Stage, Steps
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
    #: The row of a pack that it belongs to; None for the whole task.
    row: int | None = None


@dataclass(frozen=True)
class Uploads:
    """What a task has in the store. A result is written after the objects that it refers to."""

    parts: list[Upload] = field(default_factory=list)
    result: Upload | None = None
    #: The results of a pack's rows that have an object of their own.
    rows: list[Upload] = field(default_factory=list)


class Placer:
    """Converts outputs to results, and writes what does not fit into a record. Safe to call from several threads.

    Args:
        results: which results stay in their records, and where the others go.
        writer: writes to stores.
        signatures: signs references for the next task of a chain.
        steps: what each thread does is noted there.
    """

    def __init__(
        self, results: ResultSettings, writer: Writer, signatures: Signatures, steps: Steps | None = None
    ) -> None:
        self._steps = steps or Steps()
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
            if task.pack is not None:
                return self._convert_rows(task, task.pack, until)
            if not _advance(task, until):
                return None
            return self._split(task, *convert(_value(task), task.echoes, task.pipeline.task_type.audio_key))
        except PipeqError as error:
            task.fail(error)
        except Exception as error:
            logger.exception("task %s", task.id, extra={"action": "deliver", "task_id": task.id})
            task.fail(internal(error))
        finally:
            made = len(task.results) if task.pack is None else task.pack.finished
            if made == len(task.outputs) or task.error is not None:
                self._forget(task)
        return Uploads()

    def _convert_rows(self, task: Task, pack: Pack, until: float) -> Uploads | None:
        """Makes the results of a pack's rows. What fails is the row."""
        assert task.pipeline is not None
        pipeline, audio_key = task.pipeline, task.pipeline.task_type.audio_key
        while pack.finished < len(task.outputs):
            at, pack.finished = pack.finished, pack.finished + 1
            outputs, task.outputs[at] = task.outputs[at], []
            if at in pack.errors:
                continue
            try:
                call = task.call_of(at)
                result = pipeline.result(pipeline.postprocess(outputs, call), task.inputs[at].call_value, call)
                pack.results[at] = self._row_result(task, pack, at, *convert(result, task.echoes, audio_key))
            except BaseException as error:  # a panic inside a tokenizer is not an Exception
                pack.fail(at, error)
            if time.monotonic() > until and pack.finished < len(task.outputs):
                return None
        has_more = bool(pack.uploads or pack.objects)
        return Uploads(pack.uploads, None if has_more else self._assembled(task, pack), pack.objects)

    def _row_result(self, task: Task, pack: Pack, at: int, value: Any, objects: list[Object]) -> bytes:
        """The result of a row as JSON, or where it is. Its objects go to the store if they are too large for that."""
        place = pack.rows[at].output
        if not objects and place is None:
            return _encode(value)
        results, inline = self._results, sum(one.inline_size for one in objects)
        prefix = self._prefix(task)
        if objects and (place is not None or (prefix is not None and inline > results.inline_max_bytes)):
            below = objects_of(place or f"{prefix}{keys.object_name(f'{task.id}.{at}')}")
            for one in objects:
                one.put_at(below + one.name)
                pack.uploads.append(Upload(one.entry["uri"], one.data, one.media_type, at))
        else:
            _check_inline(inline, results)
            for one in objects:
                one.put_inline()
        if place is None:
            return _encode(value)
        pack.objects.append(Upload(place, pack.object_of(at, _encode(value)), RESULT_TYPE, at))
        return _encode({"uri": place})

    def _prefix(self, task: Task) -> str | None:
        """Below which the large results of a pack go."""
        found = task.destination.uri if task.destination is not None else self._results.store
        return None if found is None else f"{found.rstrip('/')}/"

    def _assembled(self, task: Task, pack: Pack) -> Upload | None:
        """Sets the result, or the error, of a pack whose rows are all done. Returns what must be uploaded of it."""
        results, prefix = self._results, self._prefix(task)
        if prefix is None and sum(map(len, pack.results.values())) > INLINE_LIMIT // 2 and len(pack.rows) > 1:
            # Together they are too much for one record of Redis, though not each of them.
            for at in list(pack.results):
                pack.crowd_out(at, PipeqError(ErrorCode.OUTPUT_FAILED, "too large beside the other rows", False))
        if (error := pack.end(results.inline_max_bytes)) is not None:
            task.fail(error)
            return None
        assert pack.outcomes is not None
        data = pack.outcomes.done
        if prefix is not None and len(data) > results.inline_max_bytes:
            return Upload(f"{prefix}{keys.object_name(task.id)}.json", data, RESULT_TYPE)
        _check_inline(len(data), results)
        task.result = data
        return None

    def _forget(self, task: Task) -> Uploads:
        task.outputs, task.results, task.inputs, task.echoes, task.originals, task.given = [], [], [], {}, {}, None
        return Uploads()

    def upload(self, task: Task, uploads: Uploads) -> None:
        """Writes what :meth:`convert` returned, and waits for it; fails the task if that cannot be written."""
        list(self._uploads.map(lambda one: self._put(task, one), uploads.parts))
        result = uploads.result
        if (pack := task.pack) is not None and (uploads.parts or uploads.rows):
            rows = [one for one in uploads.rows if one.row not in pack.errors]
            list(self._uploads.map(lambda one: self._put(task, one), rows))
            result = self._assembled(task, pack)
        if result is not None and self._put(task, result):
            task.result, task.result_uri = _encode({"uri": result.uri}), result.uri
            if task.has_next:
                self._sign_result(task, result)

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
            if task.asked:
                data = b"%b%b}" % (task.asked, data)
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
            with self._steps.step(Stage.PLACE, task.number, alone=task.alone), deadline.until(task.deadline):
                self._writer.put(upload.uri, upload.data, upload.media_type)
        except PipeqError as error:
            self._not_put(task, upload, error)
            return False
        except Exception as error:
            logger.exception(
                "task %s: cannot write %s", task.id, upload.uri, extra={"action": "deliver", "task_id": task.id}
            )
            sentence = f"cannot write {shown.uri(upload.uri)}: {shown.line(str(error))}"
            self._not_put(task, upload, PipeqError(ErrorCode.OUTPUT_FAILED, sentence, False))
            return False
        return True

    def _not_put(self, task: Task, upload: Upload, error: PipeqError) -> None:
        if upload.row is None:
            task.fail(error)
        else:
            task.fail_input(upload.row, error)


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
