"""CONTRACT: the headers of a message that are pipeq's own, beside Celery's, as a JSON Schema for any language."""

from __future__ import annotations

import json

from pipeq.contract import keys


def headers_schema() -> str:
    """The JSON Schema of a message's own headers, as exported to ``docs/headers.schema.json``."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Headers",
        "description": "Headers of a message that pipeq reads beside those of Celery's protocol 2. All are optional.",
        "type": "object",
        "properties": {
            keys.FAIR_KEY_HEADER: {
                "type": ["string", "null"],
                "minLength": 1,
                "maxLength": keys.FAIR_KEY_MAX,
                "description": "Whose task it is: tasks of equal priority are served by turns of their keys.",
            },
            keys.DEADLINE_HEADER: {
                "type": ["number", "null"],
                "minimum": 0,
                "description": "A wish: seconds from its submission within which the task should be done. Among "
                "tasks of equal priority and key, the one with the next deadline goes first.",
            },
            keys.SENT_AT_HEADER: {
                "type": ["number", "null"],
                "minimum": 0,
                "description": "When the task was submitted, in seconds since the epoch. Without it, the deadline "
                "counts from the receipt by a worker.",
            },
            keys.TIMEOUT_HEADER: {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "description": "A limit: seconds from the start of a try, when a worker begins to read and prepare the "
                "inputs, to its result. When they have passed, the task fails as timeout, in whatever stage it is.",
            },
            keys.PAST_ATTEMPTS_HEADER: {
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": keys.ATTEMPTS_MAX,
                "description": "How often workers had begun to run the task before it was taken out of the dead "
                "letters. Producers leave it out.",
            },
            keys.RETRYING_SINCE_HEADER: {
                "type": ["number", "null"],
                "minimum": 0,
                "description": "When the task's first try failed, in seconds since the epoch: it is given up some time "
                "after that. Producers leave it out.",
            },
            keys.PUT_OFF_HEADER: {
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": keys.ATTEMPTS_MAX,
                "description": "How often the task waited although no worker that could do it had tried it. Producers "
                "leave it out.",
            },
            keys.REFUSED_BY_HEADER: {
                "type": ["array", "null"],
                "maxItems": keys.REFUSED_BY_MAX,
                "items": {"type": "string", "maxLength": keys.WORKER_NAME_MAX},
                "description": "Names of workers that may not touch the place that the task names. Producers leave it "
                "out.",
            },
            keys.PAST_DEATHS_HEADER: {
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": keys.ATTEMPTS_MAX,
                "description": "How many workers, or processes of workers, died in earlier tries while they worked on "
                "the task. Producers leave it out.",
            },
            keys.FAILED_ON_HEADER: {
                "type": ["object", "null"],
                "maxProperties": keys.REFUSED_BY_MAX,
                "propertyNames": {"maxLength": keys.WORKER_NAME_MAX},
                "additionalProperties": {"type": "number", "minimum": 0},
                "description": "Names of workers that could not do the task by a fault of their own, each with the "
                "time in seconds since the epoch. Producers leave it out.",
            },
        },
    }
    return json.dumps(schema, indent=2) + "\n"
