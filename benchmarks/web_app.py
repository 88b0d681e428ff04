"""The FastAPI example with a ping, and with a clock around each submit. benchmarks/producers.py starts it."""

from __future__ import annotations

import sys
import time
from typing import Any

import uvicorn
from fastapi import Body

from examples.fastapi_app import app, client

_submit = client.submit
_submits_ms: list[float] = []


async def _timed(*args: Any, **kwargs: Any) -> str:
    began = time.perf_counter()
    task = await _submit(*args, **kwargs)
    _submits_ms.append((time.perf_counter() - began) * 1000)
    return task


@app.get("/ping")
async def ping() -> dict[str, bool]:
    """Needs nothing."""
    return {"ok": True}


@app.post("/empty")
async def empty(text: str = Body(embed=True)) -> dict[str, str]:
    """What a submit costs without the submit."""
    return {"id": text[:36]}


@app.get("/clock")
async def clock() -> dict[str, Any]:
    """The milliseconds that each submit took, and the CPU time of this process in seconds."""
    return {"submits_ms": _submits_ms, "cpu_s": time.process_time()}


if __name__ == "__main__":
    client.submit = _timed  # type: ignore[method-assign]
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning")
