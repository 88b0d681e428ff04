"""Django in front of the queue: ordinary views, and one client for all threads of a server.

    pipeq worker text-classification=distilbert/distilbert-base-uncased-finetuned-sst-2-english
    python examples/django_app.py runserver 8000                # in production: gunicorn django_app:application
    curl -d "text=I love this queue" localhost:8000/tasks       # 202 and an id at once
    curl "localhost:8000/tasks/ID?wait"                         # the result, or 202 after 10 seconds

Needs Django: pip install "pipeq[examples]". Under ASGI, views that are `async def` take AsyncClient (fastapi_app.py);
under WSGI they do not, since each has an event loop of its own, and a client belongs to one.
"""

import sys
from collections.abc import Callable

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from pipeq import Client, PipeqError, State, WaitTimeoutError

client = Client()  # connects at the first request


def submit(request: HttpRequest) -> JsonResponse:
    """Queues a text. Beside a database: transaction.on_commit(lambda: client.submit(..., task_id=row.task))."""
    return JsonResponse({"id": client.submit("text-classification", request.POST.get("text", ""))}, status=202)


def find(request: HttpRequest, task: str) -> JsonResponse:
    """The result of a task, or its state."""
    try:
        return JsonResponse({"id": task, "result": client.result(task, 10 if "wait" in request.GET else 0)})
    except WaitTimeoutError:
        state = client.status(task).state
        return JsonResponse({"id": task, "state": state}, status=404 if state is State.UNKNOWN else 202)


def refusing(view: Callable[..., JsonResponse]) -> Callable[..., HttpResponse]:
    """Each error of the client names the offending thing, and has an HTTP status: 422 a bad input, 503 no Redis."""

    def answer(*args: object, **kwargs: object) -> JsonResponse:
        try:
            return view(*args, **kwargs)
        except PipeqError as error:
            return JsonResponse({"error": error.code, "message": error.message}, status=error.http_status)

    return answer


urlpatterns = [path("tasks", refusing(submit)), path("tasks/<task>", refusing(find))]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["localhost", "127.0.0.1"])
application = get_wsgi_application()
if __name__ == "__main__":
    execute_from_command_line(sys.argv)
