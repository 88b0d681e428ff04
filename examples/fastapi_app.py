"""FastAPI in front of the queue: it loads no model, and no request holds a thread, however many wait for results.

    pipeq worker text-classification=distilbert/distilbert-base-uncased-finetuned-sst-2-english
    python examples/fastapi_app.py [PORT]                     # or, in its folder: uvicorn fastapi_app:app
    curl --json '{"text": "I love this queue"}' localhost:8000/classify     # the result, or 202 after 10 seconds
    curl --json '{"text": "I love this queue"}' localhost:8000/tasks        # 202 and an id at once
    curl localhost:8000/tasks/ID

Needs FastAPI and uvicorn: pip install "pipeq[examples]".
"""

import gc
import sys

import uvicorn
from fastapi import Body, FastAPI, Request
from fastapi.responses import JSONResponse
from pipeq import AsyncClient, PipeqError, State, WaitTimeoutError

app = FastAPI()
client = AsyncClient()  # connects at the first request, in the server's own event loop; all requests share it
gc.freeze()  # to collect garbage among all that was imported takes 30 ms, in which nobody is answered


@app.post("/tasks", status_code=202)
async def submit(text: str = Body(embed=True)) -> dict[str, str]:
    """Queues a text. The worker batches the texts of all servers."""
    # 503 beyond 10,000 waiting tasks: better than an answer too late.
    return {"id": await client.submit("text-classification", text, max_backlog=10_000)}


@app.get("/tasks/{task}")
async def find(task: str, wait_s: float = 0) -> JSONResponse:
    """The result of a task, or its state."""
    try:
        return JSONResponse({"id": task, "result": await client.result(task, wait_s)})
    except WaitTimeoutError:
        state = (await client.status(task)).state
        return JSONResponse({"id": task, "state": state}, 404 if state is State.UNKNOWN else 202)


@app.post("/classify")
async def classify(text: str = Body(embed=True)) -> JSONResponse:
    """For callers who wait for the answer."""
    return await find((await submit(text))["id"], wait_s=10)


@app.exception_handler(PipeqError)
async def refuse(_: Request, error: PipeqError) -> JSONResponse:
    """Each error of the client names the offending thing, and has an HTTP status: 422 a bad input, 503 no Redis."""
    return JSONResponse({"error": error.code, "message": error.message}, error.http_status)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
