"""PACKS: how a pack ended -> what changes in its job, and which of its rows go on alone. Before: deliver.

    ended             the outcomes of its rows, which the job counts
    rows left         a store was away for them, or this worker lacks something: each waits for its next try in a pack
                      of its own, and none of the others is computed again
    crowded, split    rows that did not fit beside others; and all rows of a pack with which a process died, or that
                      took too long: each goes on in a pack of its own at once, so that only one row is charged

See docs/decisions/jobs.md. What a pack has for its job is stored by finish.lua, together with its record.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pipeq.contract import job, keys
from pipeq.contract.asked import content
from pipeq.contract.errors import PipeqError
from pipeq.contract.pack import PackMessage, PackOf
from pipeq.contract.reading import UnreadableError, json_value
from pipeq.contract.writing import to_json

from pipeq_worker.delivery.backend import PackStored, Retry
from pipeq_worker.delivery.dead_letter import raw_frame
from pipeq_worker.delivery.delivery import Delivery
from pipeq_worker.delivery.retries import Retries


class Packs:
    """Knows what the end of a pack means.

    Args:
        retries: decides whether rows that are left are tried again.
        inline_max_bytes: most bytes of the outcomes of a pack that failed as a whole. No store has them: its outcomes
            are written here.
    """

    def __init__(self, retries: Retries, inline_max_bytes: int) -> None:
        self._retries = retries
        self._inline_max_bytes = inline_max_bytes

    def ended(self, delivery: Delivery) -> PackStored | None:
        """What changes in the job of a pack that has ended; None if it is no pack.

        A pack that failed as a whole is not tried again any more: its rows have failed.
        """
        of, end = delivery.pack_of, delivery.pack_end
        if of is None or delivery.id != f"{of.job}-{of.field}":
            return None  # of a message that somebody has overwritten, the rows fail as what its id says they are
        succeeded, codes, outcomes, left_over, alone = 0, Counter[str](), b"", b"", list[list[Any]]()
        if delivery.error is not None:
            if end is not None and end.left and len(end.left) == delivery.rows:
                codes, outcomes = Counter(end.left_codes), end.left_done
            else:
                codes, outcomes = _all_failed(delivery, delivery.error, self._inline_max_bytes)
        elif delivery.is_split:
            alone = list(self._alone(delivery, range(delivery.rows), None, is_suspect=delivery.deaths > 0))
        else:
            outcomes = delivery.result_json
            if end is not None:
                succeeded, codes = end.succeeded, Counter(end.codes)
                alone = list(self._alone(delivery, end.crowded, None))
                if end.left and (retry := self._retry(delivery, end.error.error())) is not None:
                    alone += self._alone(delivery, end.left, retry)
                elif end.left:
                    codes.update(end.left_codes)
                    left_over = end.left_done
        about = {
            "job": of.job,
            "field": of.field,
            "succeeded": succeeded,
            "failed": sum(codes.values()),
            "codes": codes,
            "left": left_over.decode(),
            "device_ms": 0 if end is None else round(end.device_ms, 3),
        }
        return PackStored(
            keys.waiting_key(delivery.queue or delivery.lane or ""),
            # Lua reads an empty list where it expects an empty object, which is the same to it.
            json.dumps(about),
            json.dumps(alone),
            outcomes,
        )

    def _retry(self, delivery: Delivery, error: PipeqError) -> Retry | None:
        """The next try of rows that are left."""
        delivery.error = error
        try:
            return self._retries.decide(delivery)
        finally:
            delivery.error, delivery.counts = None, True

    def _alone(
        self, delivery: Delivery, rows: Iterable[int], retry: Retry | None, *, is_suspect: bool = False
    ) -> Iterable[list[Any]]:
        """Messages that carry one row each: when it is due, the message, and what its job keeps."""
        rows = list(rows)
        if not rows:
            return
        message, of = _message_of(delivery), delivery.pack_of
        assert of is not None
        if retry is None:
            due, frame = time.time(), raw_frame(delivery.request.message)
            list_name = keys.list_key(delivery.queue, delivery.priority)
        else:
            entry = json.loads(retry.message)
            due, frame, list_name = retry.due, json.loads(entry["message"]), entry["list"]
        # In the message, because the row is to be alone from its first step on; what is in Redis is read at its batch.
        past = {keys.PAST_DEATHS_HEADER: 1} if is_suspect else {}
        for at in rows:
            row, alone = message.rows[at], PackOf(of.job, of.pack, at)
            one = replace(message, rows=(row,), of=alone)
            row_id = f"{delivery.id}.{at}"
            body = json.dumps([[], one.to_kwargs(), _EMBED], separators=(",", ":"))
            single = {
                **frame,
                "body": base64.b64encode(body.encode()).decode(),
                "headers": {**frame["headers"], **past, "id": row_id, "root_id": row_id},
                "properties": {
                    **frame["properties"],
                    "correlation_id": row_id,
                    "body_encoding": "base64",
                    "delivery_tag": str(uuid.uuid4()),
                },
            }
            entry_text = json.dumps({"list": list_name, "message": json.dumps(single)})
            yield [due, entry_text, alone.field, job.rows_text([(row.line, row.custom_id)])]


_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def _message_of(delivery: Delivery) -> PackMessage:
    value = json_value(delivery.message)
    return PackMessage.parse(value[1] if isinstance(value, list) else value)


def _all_failed(delivery: Delivery, error: PipeqError, most_bytes: int) -> tuple[Counter[str], bytes]:
    """The outcomes of a pack that failed as a whole: each of its rows has failed.

    Where that would be too much, they have one error together, and what was asked does not stand beside it.
    """
    about = {"code": error.code, "message": error.message, "retryable": error.retryable}
    try:
        message = _message_of(delivery)
    except (PipeqError, UnreadableError):
        nameless = [(None, None)] * delivery.rows
        return Counter({error.code: delivery.rows}), to_json({"error": about, "rows": nameless})
    codes = Counter({error.code: len(message.rows)})
    if message.include_inputs:
        found = to_json(
            [
                {"row": at, "line": row.line, "custom_id": row.custom_id}
                | content(row.inputs, {**message.params, **(row.params or {})})
                | {"error": about}
                for at, row in enumerate(message.rows)
            ]
        )
        if len(found) <= most_bytes:
            return codes, found
    return codes, to_json({"error": about, "rows": [(row.line, row.custom_id) for row in message.rows]})
