"""What a task tells and takes: its parameters, its status, its inputs in each form, its errors."""

from __future__ import annotations

import json
import threading
import time

import pytest
import transformers
from pipeq import PipeqError, Ref, State

from tests.acceptance.conftest import Service
from tests.device import DEVICE
from tests.parity import assert_same, plain


def test_a_parameter_is_overridden_by_one_task_and_back_for_the_next(service: Service) -> None:
    submit, result = service.client.submit, service.client.result
    assert len(result(submit("top-two", "fox"), 30)) == 2
    assert len(result(submit("top-two", "fox", params={"top_k": 1}), 30)) == 1
    assert len(result(submit("top-two", "fox"), 30)) == 2
    mixed = [submit("top-two", f"fox {at}", params={"top_k": at % 3 + 1}) for at in range(60)]
    assert [len(result(task, 30)) for task in mixed] == [at % 3 + 1 for at in range(60)]


def test_status_tells_the_whole_story(service: Service) -> None:
    status = service.client.wait(service.client.submit("text-classification", "fox"), timeout_s=30)
    assert status.state is State.SUCCEEDED
    assert status.submitted_at is not None
    assert status.started_at is not None
    assert status.finished_at is not None
    assert status.submitted_at <= status.started_at <= status.finished_at
    assert status.attempts == 1
    assert status.timing_ms is not None
    assert {"queued", "prepare", "wait_device", "infer", "deliver"} == status.timing_ms.keys()
    assert status.model is not None
    assert (status.model.dtype, status.model.device) == ("float32", DEVICE)
    assert status.worker is not None
    assert status.worker.startswith("pipeq-")


def test_text_by_reference_and_inline_is_the_same(service: Service) -> None:
    (service.inputs / "text.txt").write_text("the quick brown fox")
    by_reference = service.client.submit("text-embedding", Ref.from_path(service.inputs / "text.txt"))
    inline = service.client.submit("text-embedding", "the quick brown fox")
    assert_same(service.client.result(by_reference, 30), service.client.result(inline, 30))


def test_chats(service: Service) -> None:
    chat = [{"role": "user", "content": "hello"}]
    params = {"max_new_tokens": 8, "do_sample": False}
    pipe = transformers.pipeline("text-generation", model=str(service.models / "llama"), device=DEVICE)
    one = service.client.submit("chat", chat, params=params)
    several = service.client.submit("chat", [chat, chat], params=params)
    assert_same(service.client.result(one, 30), plain(pipe(chat, **params)))
    assert_same(service.client.result(several, 30), plain(pipe([chat, chat], **params)))


def test_an_empty_list_gives_an_empty_list(service: Service) -> None:
    assert service.client.result(service.client.submit("text-classification", []), timeout_s=30) == []


def test_wait_is_woken_not_polled(service: Service) -> None:
    """A result can be read within a few milliseconds of its publication."""
    late = []

    def wait(task: str) -> None:
        status = service.client.wait(task, timeout_s=30)
        late.append(time.time() - (status.finished_at or 0))

    ids = [service.client.submit("text-classification", f"fox {at}", delay_s=0.5) for at in range(4)]
    threads = [threading.Thread(target=wait, args=(task,)) for task in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(late) == 4
    assert max(late) < 1.0


def test_result_raises_the_tasks_own_error(service: Service) -> None:
    task = service.client.submit("text-classification", 5)
    with pytest.raises(PipeqError) as caught:
        service.client.result(task, timeout_s=30)
    assert caught.value.code == "invalid_input"
    assert json.loads(service.client.status(task).model_dump_json())["error"]["code"] == "invalid_input"
