"""A web server in front of the queue: it loads no model, and answers 202 with an id if a task takes long.

    pipeq worker text-classification=distilbert/distilbert-base-uncased-finetuned-sst-2-english
    python examples/web_server.py [PORT]
    curl -d "I love this queue" localhost:8000          # the result, or 202 after 10 seconds
    curl -d "I love this queue" -H "Prefer: respond-async" localhost:8000       # 202 at once; then /tasks/ID

Needs Starlette and uvicorn: pip install "pipeq[examples]". FastAPI's handlers look the same.
"""

import sys

import uvicorn
from pipeq import AsyncClient, PipeqError, State, WaitTimeoutError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

client = AsyncClient()  # connects at the first request, in the server's own event loop


async def serve(request: Request) -> JSONResponse:
    """POST queues its body, a text; GET reports on an id. The worker batches the texts of all servers together."""
    task, wait_s = request.path_params.get("task"), 0
    if task is None:
        # 503 beyond 10,000 waiting tasks: better than an answer too late.
        task = await client.submit("text-classification", (await request.body()).decode(), max_backlog=10_000)
        wait_s = 0 if request.headers.get("prefer") == "respond-async" else 10
    try:
        return JSONResponse({"id": task, "result": await client.result(task, wait_s)})
    except WaitTimeoutError:
        state = (await client.status(task)).state
        return JSONResponse({"id": task, "state": state}, 404 if state is State.UNKNOWN else 202)


async def ping(_: Request) -> JSONResponse:
    """Answers at once, however many requests wait for results: none of them holds a thread."""
    return JSONResponse({"ok": True})


async def refuse(_: Request, error: PipeqError) -> JSONResponse:
    """Each error of the client names the offending thing, and has an HTTP status: 422 a bad input, 503 no Redis."""
    return JSONResponse({"error": error.code, "message": error.message}, error.http_status)


routes = [Route("/", serve, methods=["POST"]), Route("/ping", ping), Route("/tasks/{task}", serve)]
app = Starlette(routes=routes, exception_handlers={PipeqError: refuse})
if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
