"""Handmade messages as they lie in Redis, for cases that no client would send."""

from __future__ import annotations

import base64
import json
from typing import Any

from pipeq.contract import keys


def frame(task_id: str, queue: str, kwargs: dict[str, Any] | None = None, **more: Any) -> str:
    """A message as Celery sends it; keywords set headers, properties and embedded options."""
    headers = {"lang": "py", "task": keys.TASK_NAME, "id": task_id, "retries": 0, "root_id": task_id}
    properties = {
        "correlation_id": task_id,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": task_id,
    }
    body = [[], {"pipeline": queue, "inputs": 1, **(kwargs or {})}, {"callbacks": None, **more.get("embed", {})}]
    return json.dumps(
        {
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {**headers, **more.get("headers", {})},
            "properties": {**properties, **more.get("properties", {})},
            "body": base64.b64encode(json.dumps(body).encode()).decode(),
        }
    )
