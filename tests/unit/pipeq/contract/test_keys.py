"""The names in Redis: a stock Celery producer must push to the lists that we read."""

import re
from urllib.parse import unquote

import pytest
from kombu.transport.redis import PRIORITY_STEPS, Channel
from pipeq.contract import keys


@pytest.mark.parametrize(("priority", "step"), [(0, 0), (1, 0), (2, 0), (3, 3), (5, 3), (6, 6), (8, 6), (9, 9)])
def test_a_priority_rounds_down_to_a_list(priority: int, step: int) -> None:
    assert keys.list_key("asr", priority) == keys.list_key("asr", step)
    assert keys.list_key("asr", step) in keys.list_keys("asr")


@pytest.mark.parametrize("priority", range(10))
def test_lists_are_where_kombu_puts_them(priority: int) -> None:
    # A channel without its connection, because these two methods need only its options.
    channel = object.__new__(Channel)
    assert keys.list_key("asr", priority) == channel._q_for_pri("asr", channel.priority(priority))


def test_the_priority_steps_are_kombus() -> None:
    assert list(keys.PRIORITY_STEPS) == list(PRIORITY_STEPS)


@pytest.mark.parametrize("priority", [-1, 10])
def test_other_priorities_are_refused(priority: int) -> None:
    with pytest.raises(ValueError, match=str(priority)):
        keys.list_key("asr", priority)


def test_the_default_priority_is_the_plain_list_and_served_first() -> None:
    assert keys.list_key("asr") == "asr" == keys.list_keys("asr")[0]


def test_a_record_is_where_celery_keeps_it() -> None:
    from celery.backends.base import KeyValueStoreBackend

    assert keys.record_key("abc") == f"{KeyValueStoreBackend.task_keyprefix}abc"


def test_a_worker_may_miss_some_heartbeats() -> None:
    assert keys.WORKER_TTL_S >= 3 * keys.HEARTBEAT_S


IDS = [
    "report 5",
    "user/42",
    "äöü",
    "a" * 201,
    "..",
    "a%20b",
    "~",
    "a\nb",
    "\0",
    "日本" * 100,
    " ",
    "a~20b",
    "../" * 300,
]


@pytest.mark.parametrize("task_id", IDS)
def test_any_text_is_an_id_and_names_an_object_below_its_folder(task_id: str) -> None:
    assert keys.is_task_id(task_id)
    name = keys.object_name(task_id)
    # Also after decoding, because a file:// URI is decoded.
    assert unquote(name) == name
    assert re.fullmatch(r"[\w.:@+=~-]{1,200}", name, re.ASCII)


def test_no_two_ids_share_an_object() -> None:
    names = [keys.object_name(one) for one in [*IDS, *(f"a{chr(code)}" for code in range(0xD800))]]
    names += [keys.object_name(name) for name in names if "~" in name]
    assert len(set(names)) == len(names)
    assert keys.object_name("id-1.:@+=_") == "id-1.:@+=_"


@pytest.mark.parametrize("value", ["", "\ud800", None, 5, b"a", ["a"]])
def test_what_no_record_can_stand_under_is_no_id(value: object) -> None:
    assert not keys.is_readable_id(value)
    assert not keys.is_task_id(value)


def test_an_id_has_a_longest() -> None:
    assert keys.is_task_id("ä" * 500)
    assert not keys.is_task_id("ä" * 501)
    assert keys.is_readable_id("ä" * 501)
