"""PLACE: outputs -> results, each in its record or in the store. Before: infer. After: deliver."""

from __future__ import annotations

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeq.contract import keys, shown
from pipeq.contract.errors import ErrorCode, PipeqError
from pipeq.contract.writing import to_json

from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.outputs import Object, convert
from pipeq_worker.settings.sections import ResultSettings
from pipeq_worker.stores.signed import Signatures, objects_of, sign_objects
from pipeq_worker.stores.writer import Writer

logger = logging.getLogger(__name__)

#: Size up to which a result stays in its record if there is no store, in bytes.
INLINE_LIMIT = 8 * 2**20
UPLOAD_THREADS = 16
RESULT_TYPE = "application/json"


@dataclass(frozen=True)
class _Upload:
    """Data to be written to the store: a task's result, or an object that the result refers to."""

    delivery: Delivery
    uri: str
    data: bytes
    media_type: str

    def is_result(self) -> bool:
        return self.media_type == RESULT_TYPE

    def is_part(self) -> bool:
        return self.media_type != RESULT_TYPE


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

    def place(self, deliveries: list[Delivery]) -> None:
        """Sets the ``result`` or the ``error`` of each delivery, and writes to the store what goes there."""
        uploads = [upload for delivery in deliveries for upload in self._complete(delivery)]
        # A result is written after the objects that it refers to.
        for kind in (_Upload.is_part, _Upload.is_result):
            list(self._uploads.map(self._upload, filter(kind, uploads)))

    def _complete(self, delivery: Delivery) -> list[_Upload]:
        """Converts outputs to the result. Returns what must be uploaded because it does not stay in the record."""
        if delivery.error is not None:
            return []
        try:
            with delivery.timed("deliver"):
                assert delivery.pipeline is not None
                return self._split(
                    delivery, *convert(_value(delivery), delivery.echoes, delivery.pipeline.task_type.audio_key)
                )
        except PipeqError as error:
            delivery.fail(error)
        except Exception as error:
            logger.exception("task %s", delivery.id, extra={"action": "deliver"})
            delivery.fail(PipeqError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}"))
        finally:
            delivery.outputs, delivery.inputs, delivery.echoes, delivery.given = [], [], {}, None
        return []

    def _split(self, delivery: Delivery, value: Any, objects: list[Object]) -> list[_Upload]:
        """Decides what stays in the record, what goes into the store, and under which names."""
        results, message = self._results, delivery.message
        asked = message.output.object_uri(delivery.id) if message is not None and message.output is not None else None
        place = asked or (
            f"{results.store.rstrip('/')}/{keys.object_name(delivery.id)}.json" if results.store is not None else None
        )
        uploads: list[_Upload] = []
        inline = sum(one.inline_size for one in objects)
        if objects and place is not None and (asked is not None or inline > results.inline_max_bytes):
            for one in objects:
                one.put_at(objects_of(place) + one.name)
                uploads.append(_Upload(delivery, one.entry["uri"], one.data, one.media_type))
        else:
            if place is None:
                _check_inline(inline, results)
            for one in objects:
                one.put_inline()
        data = _encode(value)
        if place is not None and (asked is not None or len(data) > results.inline_max_bytes):
            return [*uploads, _Upload(delivery, place, data, RESULT_TYPE)]
        _check_inline(len(data), results)
        delivery.result = json.loads(data)
        if uploads and delivery.has_next:
            delivery.handed_on = json.loads(data)
            assert place is not None
            sign_objects(delivery.handed_on, place, self._signatures)
        return uploads

    def _upload(self, upload: _Upload) -> None:
        delivery, uri = upload.delivery, upload.uri
        if delivery.error is not None:
            return
        try:
            with delivery.timed("deliver"):
                self._writer.put(uri, upload.data, upload.media_type)
            if upload.is_result():
                delivery.result = {"uri": uri}
                delivery.result_uri = uri
                if delivery.has_next:
                    sha256 = hashlib.sha256(upload.data).hexdigest()
                    signature = self._signatures.sign(uri, "result", sha256)
                    delivery.handed_on = {"uri": uri, "sha256": sha256, "signature": signature}
        except PipeqError as error:
            delivery.fail(error)
        except Exception as error:
            logger.exception("task %s: cannot write %s", delivery.id, uri, extra={"action": "deliver"})
            delivery.fail(
                PipeqError(ErrorCode.OUTPUT_FAILED, f"cannot write {shown.uri(uri)}: {shown.line(str(error))}", False)
            )


def _encode(value: Any) -> bytes:
    """Returns a converted output as JSON."""
    try:
        return to_json(value)
    except ValueError as error:
        raise PipeqError(
            ErrorCode.INFERENCE_FAILED, "the model's output holds NaN or infinity; is its dtype too narrow?"
        ) from error


def _value(delivery: Delivery) -> Any:
    """Returns the result of a task, from the outputs of its items."""
    pipeline = delivery.pipeline
    assert pipeline is not None
    results = [pipeline.postprocess(outputs, delivery.call) for outputs in delivery.outputs]
    if delivery.is_list:
        return results
    return pipeline.result(results[0], delivery.inputs[0].call_value, delivery.call)


def _check_inline(size: int, results: ResultSettings) -> None:
    limit = max(INLINE_LIMIT, results.inline_max_bytes)
    if size > limit:
        raise PipeqError(
            ErrorCode.OUTPUT_FAILED,
            f"the result is {size} bytes, at most {limit} stay inline: set `store` in [results] of the worker's "
            'settings, for instance store = "s3://results/", or submit the task with an output',
            False,
        )
