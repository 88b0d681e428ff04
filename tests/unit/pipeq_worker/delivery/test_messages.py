"""MESSAGES: what Celery is told of a success, with each state of its events."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from celery.worker import state
from pipeq_worker.delivery.messages import tell_success

#: Who wants events -> Celery's dispatcher. A worker without `-E` sends those of workers, heartbeats, alone.
EVENTERS: dict[str, Any] = {
    "nobody": None,
    "off": SimpleNamespace(enabled=False, groups=None),
    "of workers": SimpleNamespace(enabled=True, groups={"worker"}),
    "of all": SimpleNamespace(enabled=True, groups=None),
    "enable_events": SimpleNamespace(enabled=True, groups={"worker", "task"}),
}


def delivery_of(eventer: Any, *, acknowledged: bool = False) -> Any:
    class Request:
        """Celery refers to requests weakly, which a mock or a namespace does not allow."""

    request = Request()
    vars(request).update(id="t", eventer=eventer, acknowledged=acknowledged, message=Mock(), connection_errors=())
    vars(request).update(task=SimpleNamespace(resultrepr_maxsize=1024))
    return SimpleNamespace(request=request, started_at=None, received_at=0.0, result="done", acknowledge=Mock())


@pytest.mark.parametrize("who", ["of all", "enable_events"])
def test_events_are_celerys_own(who: str) -> None:
    delivery = delivery_of(EVENTERS[who])
    tell_success(delivery, is_acknowledged=True)
    ((failed, result, runtime_s),) = delivery.acknowledge.call_args.args
    assert (failed, result, runtime_s > 0) == (0, "'done'", True)


@pytest.mark.parametrize("who", ["nobody", "off", "of workers"])
@pytest.mark.parametrize("acknowledged", [False, True])
def test_without_events_the_request_just_ends(who: str, acknowledged: bool) -> None:
    delivery = delivery_of(EVENTERS[who], acknowledged=acknowledged)
    state.task_reserved(delivery.request)
    tell_success(delivery, is_acknowledged=True)
    assert not delivery.acknowledge.called
    assert delivery.request.acknowledged
    assert delivery.request.message.ack_log_error.called is not acknowledged
    assert delivery.request not in state.reserved_requests
    assert "t" not in state.requests
    assert "t" in state.successful_requests


@pytest.mark.parametrize("who", EVENTERS)
def test_a_message_of_another_transport_is_acknowledged_by_celery(who: str) -> None:
    delivery = delivery_of(EVENTERS[who])
    tell_success(delivery, is_acknowledged=False)
    assert delivery.acknowledge.called
