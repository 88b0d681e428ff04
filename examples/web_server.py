"""A web server in front of the queue: it loads no model, and answers 202 with an id if a task takes long.

    pipeq worker text-classification=distilbert/distilbert-base-uncased-finetuned-sst-2-english
    python examples/web_server.py [PORT]
    curl -d "I love this queue" localhost:8000          # the result, or 202 after 10 seconds
    curl -d "I love this queue" -H "Prefer: respond-async" localhost:8000       # 202 at once
    curl localhost:8000/tasks/ID

Needs Starlette and uvicorn: pip install "pipeq[examples]".
"""

import asyncio
import sys

import uvicorn
from pipeq import Client, PipeqError, State, WaitTimeoutError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

client = Client()


async def serve(request: Request) -> JSONResponse:
    """POST queues its body, a text; GET reports on an id. The worker batches the texts of all servers together."""
    task, wait_s = request.path_params.get("task"), 0
    # The client blocks, so each call runs in a thread; a thread that waits for a result is busy until the task ends.
    if task is None:
        task = await asyncio.to_thread(client.submit, "text-classification", (await request.body()).decode())
        wait_s = 0 if request.headers.get("prefer") == "respond-async" else 10
    try:
        return JSONResponse({"id": task, "result": await asyncio.to_thread(client.result, task, wait_s)})
    except WaitTimeoutError:
        state = (await asyncio.to_thread(client.status, task)).state
        return JSONResponse({"id": task, "state": state}, 404 if state is State.UNKNOWN else 202)


def refuse(_: Request, error: PipeqError) -> JSONResponse:
    """Each error of the client names the offending thing, and has an HTTP status: 422 a bad input, 503 no Redis, ..."""
    return JSONResponse({"error": error.code, "message": error.message}, error.http_status)


routes = [Route("/", serve, methods=["POST"]), Route("/tasks/{task}", serve)]
app = Starlette(routes=routes, exception_handlers={PipeqError: refuse})
if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
