from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from pipeq_worker.delivery.urgency import urgency_of


def request(priority: Any = 0, expires: Any = None, **headers: Any) -> Any:
    return SimpleNamespace(request_dict=headers, delivery_info={"priority": priority}, expires=expires)


def left_s(deadline: float) -> float:
    return deadline - time.monotonic()


@pytest.mark.parametrize(
    ("said", "priority"), [(0, 0), (6, 6), (9, 9), (255, 9), (-3, 0), (None, 0), ("5", 0), (True, 0), ([], 0)]
)
def test_priority(said: Any, priority: int) -> None:
    assert urgency_of(request(said))["priority"] == priority


@pytest.mark.parametrize("said", [None, 5, [], {}])
def test_only_text_is_a_tenant(said: Any) -> None:
    assert urgency_of(request(fair_key=said))["tenant"] is None
    assert urgency_of(request(fair_key="acme"))["tenant"] == "acme"


def test_without_a_wish_there_is_no_deadline() -> None:
    assert urgency_of(request()) == {"priority": 0, "deadline": math.inf, "tenant": None}


def test_a_wish_counts_from_the_submission_or_else_from_the_receipt() -> None:
    now = time.time()
    assert left_s(urgency_of(request(deadline_s=5))["deadline"]) == pytest.approx(5, abs=0.5)
    assert left_s(urgency_of(request(deadline_s=5, sent_at=now - 3))["deadline"]) == pytest.approx(2, abs=0.5)
    # A producer whose clock is ahead wins no time.
    assert left_s(urgency_of(request(deadline_s=5, sent_at=now + 900))["deadline"]) == pytest.approx(5, abs=0.5)
    for wrong in ("5", None, [], math.nan, True):
        assert urgency_of(request(deadline_s=wrong))["deadline"] == math.inf


def test_an_expiry_is_a_deadline_too() -> None:
    expires = datetime.now(UTC) + timedelta(seconds=4)
    assert left_s(urgency_of(request(expires=expires))["deadline"]) == pytest.approx(4, abs=0.5)
    assert left_s(urgency_of(request(expires=expires, deadline_s=1))["deadline"]) == pytest.approx(1, abs=0.5)
    assert left_s(urgency_of(request(expires=expires, deadline_s=60))["deadline"]) == pytest.approx(4, abs=0.5)
    for wrong in ("soon", 5, datetime.min):  # noqa: DTZ901 - what cannot be a time of the epoch
        assert isinstance(urgency_of(request(expires=wrong))["deadline"], float)


def test_without_delivery_info() -> None:
    one = request()
    one.delivery_info = None
    assert urgency_of(one)["priority"] == 0
