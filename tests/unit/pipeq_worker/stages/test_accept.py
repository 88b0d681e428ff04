"""The inputs of a message by task type, and how references in them are found."""

from __future__ import annotations

from typing import Any

import pytest
from pipeq.contract.errors import PipeqError
from pipeq_worker.models.task_type import Media
from pipeq_worker.models.task_types import TASK_TYPES, find
from pipeq_worker.settings.sections import InputSettings
from pipeq_worker.stages.accept import Input, read_inputs

REF = {"uri": "s3://b/a.png"}


def read(task: str, value: Any) -> Input:
    (one,), _ = read_inputs(find(task), [value])
    return one


def media_of(one: Input) -> list[Media]:
    return [slot.media for slot in one.slots]


def test_a_plain_value_and_an_object_are_the_same() -> None:
    for value in (REF, "s3://b/a.png", {"image": REF}, {"image": "s3://b/a.png"}):
        one = read("image-classification", value)
        assert media_of(one) == [Media.IMAGE]
        one.slots[0].fill("pixels")
        assert one.call_value == "pixels"


def test_a_list_is_several_inputs() -> None:
    inputs, is_list = read_inputs(find("image-classification"), [REF, REF])
    assert (len(inputs), is_list) == (2, True)


def test_images_of_one_input() -> None:
    one = read("keypoint-matching", {"images": [REF, "file:///a.png"]})
    assert media_of(one) == [Media.IMAGE] * 2
    for slot, pixels in zip(one.slots, "ab", strict=True):
        slot.fill(pixels)
    assert one.call_value == {"images": ["a", "b"]} or one.call_value == ["a", "b"]


def test_a_chat_with_media_in_every_form() -> None:
    parts = [
        {"type": "image", "image": REF},
        {"type": "image", "url": "https://host/a.png"},
        {"type": "image", "uri": "s3://b/c.png", "media_type": "image/png"},
        {"type": "image", "base64": "AAAA"},
        {"type": "text", "text": "what?"},
    ]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "that"}]
    inputs, is_list = read_inputs(find("image-text-to-text"), chat)
    assert not is_list
    (one,) = inputs
    assert media_of(one) == [Media.IMAGE] * 4
    assert all(slot.in_chat for slot in one.slots)
    for at, slot in enumerate(one.slots):
        slot.fill(at)
    assert one.call_value[0]["content"] == [
        *({"type": "image", "image": at} for at in range(4)),
        {"type": "text", "text": "what?"},
    ]
    # The message itself is unchanged.
    assert parts[0] == {"type": "image", "image": REF}


def test_words_of_one_input() -> None:
    assert read("token-classification", ["a", "b"]).call_value == ["a", "b"]
    inputs, _ = read_inputs(find("token-classification"), ["a b", "c"])
    assert [one.call_value for one in inputs] == ["a b", "c"]


@pytest.mark.parametrize(
    "table",
    [
        {"a": ["1", "2"], "b": ["x", ""]},
        {"a": [1, 2], "b": ["x", None]},
        [{"a": 1, "b": "x"}, {"a": 2}],
    ],
)
def test_a_table_is_columns_of_text(table: Any) -> None:
    one = read("table-question-answering", {"table": table, "query": "how many?"})
    assert one.call_value["table"] == {"a": ["1", "2"], "b": ["x", ""]}


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ({"a": ["1"] * 40_000}, r"the table has 40000 cells, .* takes 4096 .*\[inputs\] max_table_cells"),
        ([{"a": 1, "b": 2}] * 2049, r"the table has 4098 cells, .*max_table_cells"),
        # As columns of one length these would be 400 million cells.
        ([{str(at): 1} for at in range(20_000)], r"the table has 20000 columns, .* takes 512 .*max_table_columns"),
        ({str(at): [1] for at in range(513)}, r"the table has 513 columns, .*\[inputs\] max_table_columns"),
        ({"a": ["x" * 65] * 2049}, r"the table has the text of 4098 cells.*max_table_cells"),
    ],
    ids=["rows", "objects", "names", "columns", "characters"],
)
def test_a_table_that_would_hold_a_thread_is_refused(table: Any, why: str) -> None:
    with pytest.raises(PipeqError, match=r"inputs\[0\]: " + why) as caught:
        read("table-question-answering", {"table": table, "query": "how many?"})
    assert caught.value.code == "input_too_large"


def test_the_settings_say_how_large_a_table_may_be() -> None:
    value = {"table": {"a": ["1"] * 4097}, "query": "how many?"}
    task = find("table-question-answering")
    read_inputs(task, value, InputSettings(max_table_cells=4097))
    with pytest.raises(PipeqError, match="has 4097 cells, and this worker takes 4096"):
        read_inputs(task, value, InputSettings(max_table_cells=4096))


def test_a_table_may_be_a_reference() -> None:
    assert media_of(read("table-question-answering", {"table": REF, "query": "how many?"})) == [Media.TABLE]


@pytest.mark.parametrize(
    ("task", "value", "sentence"),
    [
        ("image-classification", 7, "image is a number, not a reference"),
        ("image-classification", "cat", 'image is the text "cat", not a reference to image bytes'),
        ("image-classification", {"picture": REF}, "unknown field 'picture'"),
        ("visual-question-answering", {"image": REF}, "field 'question' is missing"),
        ("visual-question-answering", "what?", 'got text; visual-question-answering takes {"image": a reference'),
        ("text-classification", [1], "text is a list, not text"),
        ("text-generation", [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "`content` must be text"),
        ("image-text-to-text", [{"role": "user", "content": [{"type": "audio"}]}], "a `type` of text, image"),
        ("image-text-to-text", [{"role": "user", "content": [{"type": "image"}]}], "needs the field `image`"),
        ("image-text-to-text", [{"role": "user", "content": [{"type": "text"}]}], "needs the field `text`"),
        ("table-question-answering", {"table": {"a": [1], "b": []}, "query": "x"}, "columns of one length"),
        ("table-question-answering", {"table": {}, "query": "x"}, "columns of one length"),
        ("keypoint-matching", {"images": [7]}, "images[0] is a number"),
        ("image-classification", {"uri": "ftp://a"}, "the reference is not valid"),
    ],
)
def test_what_is_refused_says_what_and_where(task: str, value: Any, sentence: str) -> None:
    with pytest.raises(PipeqError) as caught:
        read(task, value)
    assert caught.value.code == "invalid_input"
    assert caught.value.message.startswith("inputs[0]: ")
    assert sentence in caught.value.message


@pytest.mark.parametrize("name", TASK_TYPES)
def test_every_row_holds_together(name: str) -> None:
    row = TASK_TYPES[name]
    assert row.optional <= row.fields.keys()
    assert row.main is None or row.main in row.fields
    assert {parameter for parameter, _ in row.required} <= row.params
    assert not row.chat_media or Media.CHAT in row.fields.values()


def test_aliases() -> None:
    assert find("ner").name == "token-classification"
    assert find("vqa").name == "visual-question-answering"
    assert find("translation_en_to_de").name == "translation"
    with pytest.raises(PipeqError, match="'translate' is no task type"):
        find("translate")


@pytest.mark.parametrize("task", ["text-generation", "text-to-audio", "image-text-to-text", "any-to-any"])
@pytest.mark.parametrize(
    ("chat", "sentence"),
    [
        ([{"rolle": "user", "content": "hi"}], "turn 0 of the chat: it has no key 'rolle'; did you mean 'role'"),
        ([{"role": "user", "contnt": "hi"}], "did you mean 'content'"),
        ([{"Role": "user", "content": "hi"}], "did you mean 'role'"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], "turn 1 of the chat has no `content`"),
        ([{"role": "tool", "content": "1", "tool_cal_id": "x"}], "did you mean 'tool_call_id'"),
    ],
)
def test_a_misspelt_key_of_a_chat_is_named(task: str, chat: list[dict[str, Any]], sentence: str) -> None:
    for inputs in (chat, [chat], {"text": chat}):
        with pytest.raises(PipeqError) as caught:
            read_inputs(find(task), inputs)
        assert caught.value.code == "invalid_input"
        assert sentence in caught.value.message


def test_a_misspelt_key_of_a_part_is_named() -> None:
    for part, meant in (({"typ": "text", "text": "x"}, "type"), ({"type": "text", "txt": "x"}, "text")):
        with pytest.raises(PipeqError, match=f"did you mean '{meant}'"):
            read_inputs(find("image-text-to-text"), [{"role": "user", "content": [part]}])


def test_keys_that_templates_read_stay() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    chat = [
        {"role": "user", "content": "hi", "name": "Ann", "x_template": 1},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    inputs, _ = read_inputs(find("text-generation"), chat)
    assert inputs[0].fields["text"] == chat
