"""Names of results: every field, with every kind of value, in every scheme; none leads out of its folder."""

from __future__ import annotations

import itertools
import os
import re
from typing import Any
from urllib.parse import quote, unquote

import pytest
from pipeq import PipeqError, checks
from pipeq.contract import keys, naming, schemes
from pipeq.contract.message import Output, TaskMessage
from pipeq_worker.stores import registry
from pipeq_worker.stores.base import Prefixes

WRITABLE = [name for name, one in schemes.SCHEMES.items() if one.writable]
#: Scheme -> the folder that outputs go to.
FOLDERS = {name: "file:///data/results/" if name == "file" else f"{name}://results/run/" for name in WRITABLE}
NOW = 1_796_083_200.0  # 2026-11-30 24:00:00 UTC
#: Values of strangers, each with a mark that tells them apart.
HOSTILE = [
    ".", "..", "...", "../..", "/", "//", "\\", "..\\..", "a/../../b", "%2e%2e", "%2F", "%252e", "..;x", "\0", "a\0b",
    "\n", "\x7f", " ", "-", "~", "~2E", "{id}", "}{", "$HOME", "`x`", "*?[]", "#a", "?b=c", "@", ":", "a:b@c", "ä",
    "a\u0308", "日本語", "\U0001f600", "\u202e", "\ud800", "．．", "／", "x" * 300, "ä" * 300, "." * 300, "/" * 300,
    "CON",
]  # fmt: skip


def expand(uri: str, inputs: Any = "x", **more: Any) -> str:
    return naming.expand(uri, **{"task_id": "t-1", "pipeline": "it", "inputs": inputs, "now": NOW, **more})


#: Field -> what it is for the input s3://scans/2026/Übung 1.tar.gz.
EXPECTED = {
    "id": "t-1",
    "custom_id": "row~207",
    "pipeline": "it",
    "date": "2026-12-01",
    "stem": "Übung~201.tar",
    "extension": "gz",
    "name": "Übung~201.tar.gz",
}
REFERENCE = {
    "s3": "s3://scans/2026/Übung 1.tar.gz",
    "gs": "gs://scans/Übung 1.tar.gz",
    "az": "az://scans/Übung 1.tar.gz",
    "hf": "hf://user/model/Übung 1.tar.gz",
    "file": f"file:///scans/{quote('Übung 1.tar.gz')}",
    "https": f"https://host/scans/{quote('Übung 1.tar.gz')}?signature=a/b.c#d/e",
}


@pytest.mark.parametrize("field", naming.FIELDS)
@pytest.mark.parametrize("scheme", WRITABLE)
def test_each_field_in_each_scheme(field: str, scheme: str) -> None:
    assert set(EXPECTED) == set(naming.FIELDS)
    assert set(REFERENCE) == set(schemes.SCHEMES)
    template = f"{FOLDERS[scheme]}a-{{{field}}}/b-{{id}}.json"
    assert Output(uri=template).uri == template
    for reference in REFERENCE.values():
        shapes: list[Any] = [{"uri": reference}, reference, [{"uri": reference}], [reference], {"image": reference}]
        shapes += [{"image": {"uri": reference, "sha256": None}, "question": "what?", "n": [1, None, True, 0.5]}]
        for inputs in shapes:
            found = expand(template, inputs, custom_id="row 7")
            assert found == f"{FOLDERS[scheme]}a-{EXPECTED[field]}/b-t-1.json"
    nothing: list[Any] = ["a text", 5, None, [], {}, {"base64": "eA=="}, [{"uri": "s3://a/b"}, {"uri": "s3://a/c"}]]
    nothing += ["s3://a/", {"uri": "https://host"}, {"uri": "https://host/?a=/b.c"}, ["s3://a/b", "a", {"base64": ""}]]
    for inputs in nothing:
        if field in naming.OF_REFERENCE:
            with pytest.raises(PipeqError, match=r"invalid_message: output .*: the (task's inputs? |input )"):
                expand(template, inputs)
        else:
            assert expand(template, inputs, custom_id="row 7") == f"{FOLDERS[scheme]}a-{EXPECTED[field]}/b-t-1.json"
    if field == "custom_id":
        with pytest.raises(PipeqError, match="the task has no custom_id"):
            expand(template)


@pytest.mark.parametrize("field", naming.FIELDS)
@pytest.mark.parametrize("scheme", WRITABLE)
def test_no_value_leads_out_of_its_folder(field: str, scheme: str) -> None:
    """As the store itself reads the name, and as one that decodes it would."""
    folder, store = FOLDERS[scheme], registry.OURS[scheme]
    allowed = Prefixes((store.prefix(folder),), "[results] allow", None)
    for value, form in itertools.product(HOSTILE, ("{%s}", "{%s}{%s}", "a-{%s}", "{%s}.x", ".{%s}")):
        template = f"{folder}{form.replace('%s', field)}/{{id}}"
        key = value if scheme != "az" else value.replace("@", "").replace(":", "") or "x"
        more = {"task_id": key, "pipeline": value, "custom_id": value}
        quoted = quote(value.encode("utf-8", "surrogatepass"), safe="")
        inputs = f"file:///in/{quoted}.{quoted}"
        if field == "id" and not keys.is_task_id(value):
            continue
        if field != "id":
            more["task_id"] = "t-1"
        found = _expanded(template, inputs, **more)
        if isinstance(found, PipeqError):
            # Two dots are refused where they would be a whole part of the name, and an id may be long.
            assert "which has an empty part" in found.message or "too long" in found.message, (value, form)
            continue
        for read in (found, unquote(found), unquote(unquote(found))):
            assert read.startswith(folder)
            inside = read.removeprefix(folder)
            assert inside.count("/") == 1, (value, found)
            assert inside.isprintable()
            assert not {".", ".."} & set(inside.split("/")), (value, found)
            path = "/" + read.partition("://")[2].removeprefix("/")
            assert os.path.normpath(path) == path
        assert store.check(found, allowed)
        assert all(len(part.encode()) <= 255 for part in found.split("/"))
        Output(uri=found)


def _expanded(template: str, inputs: Any, **more: Any) -> str | PipeqError:
    try:
        return expand(template, inputs, **more)
    except PipeqError as error:
        return error


def test_values_are_parts_of_names_and_stay_apart() -> None:
    names = [naming.safe(value) for value in HOSTILE]
    assert len(set(names)) == len(set(HOSTILE))
    for value, name in zip(HOSTILE, names, strict=True):
        assert re.fullmatch(r"[\w.+=~-]*", name), (value, name)
        assert len(name.encode()) <= naming.VALUE_MAX_BYTES
    assert naming.safe("Übung_1.2-b+c=d") == "Übung_1.2-b+c=d"
    long = naming.safe("report-" * 50)
    assert long.startswith("report-report-")
    assert naming.safe("report-" * 51) != long


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("s3://results/{stam}-{id}", r"unknown field \{stam\}; known are \{id\}, \{custom_id\}"),
        ("s3://results/{}-{id}", r"unknown field \{\}"),
        ("s3://results/{id!r}", "unknown field"),
        ("s3://results/{id:>9}", "unknown field"),
        ("s3://results/{ id }", "unknown field"),
        ("s3://results/{id", "has a brace that belongs to no field"),
        ("s3://results/id}", "has a brace that belongs to no field"),
        ("s3://results/{{id}}", "has a brace that belongs to no field"),
        ("s3://{pipeline}/{id}", "has a field where a bucket or a first folder must stand"),
        ("s3://res{id}/x", "has a field where a bucket or a first folder must stand"),
        ("file:///{pipeline}/{id}", "has a field where a bucket or a first folder must stand"),
        ("s3://results/{stem}.json", r"has no \{id\}, so that two tasks might write one object"),
        ("s3://results/{date}/x", r"has no \{id\}"),
        ("s3://results/{custom_id}", r"has no \{id\}"),
    ],
)
def test_what_is_no_template(uri: str, sentence: str) -> None:
    for call in (
        lambda: Output(uri=uri),
        lambda: checks.output(uri, many=False),
        lambda: TaskMessage.parse({"pipeline": "it", "inputs": 1, "output": {"uri": uri}}),
    ):
        with pytest.raises(PipeqError, match=sentence) as caught:
            call()
        assert caught.value.code == "invalid_message"
        assert "output" in caught.value.message


def test_what_a_task_makes_of_a_template_may_be_no_name() -> None:
    no_extension = {"uri": "s3://a/README"}
    assert expand("s3://results/{stem}.{extension}{id}", no_extension) == "s3://results/README.t-1"
    for uri in ("s3://results/{extension}/{id}", "s3://results/.{extension}/{id}", "s3://results/a//{id}"):
        with pytest.raises(PipeqError, match="which has an empty part, or dots as one"):
            expand(uri, no_extension)
    with pytest.raises(PipeqError, match="it would be too long"):
        expand("s3://results/{id}{id}", task_id="x" * 200)
    with pytest.raises(PipeqError, match="it would be too long"):
        expand("s3://results/" + "/".join(["{name}"] * 12) + "/{id}", f"s3://a/{'x' * 200}")


def test_two_tasks_have_two_names() -> None:
    """Whatever else they share; and an output that ends in a slash has the id by itself."""
    for uri in ("s3://results/{date}/{stem}-{id}.json", "s3://results/{date}/{stem}/"):
        found = {
            Output(uri=expand(uri, "s3://a/same.png", task_id=task_id)).object_uri(task_id)
            for task_id in ("a", "b", "a/b", "a~2Fb", "A")
        }
        assert len(found) == 5
    assert checks.output("s3://results/{stem}-{id}", many=True) == {"uri": "s3://results/{stem}-{id}"}
    assert naming.prefix("s3://results/{date}/{id}") == naming.prefix("s3://results/a{id}") == "s3://results/"
    assert naming.prefix("s3://results/x.json") == "s3://results/x.json"


def test_only_what_has_fields_is_filled_in() -> None:
    message = TaskMessage(pipeline="it", inputs="x", output={"uri": "s3://r/%7Bid%7D.json"})
    assert message.destination("t-1") is message.output
    assert TaskMessage(pipeline="it", inputs="x").destination("t-1") is None
