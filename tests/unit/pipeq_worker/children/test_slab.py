"""SLAB: what is put in comes out, places are given back, and no two of them overlap."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from pipeq_worker.children import slab
from pipeq_worker.children.slab import Rooms, Slabs
from transformers import BatchEncoding
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

VALUES: dict[str, Any] = {
    "small": {"input_ids": torch.arange(8).reshape(1, 8)},
    "large": {"pixel_values": torch.rand(1, 3, 64, 64), "name": "a"},
    "many": [torch.rand(5000), {"mask": torch.ones(3000, dtype=torch.bool)}, (np.random.rand(1000), "text", 3, None)],
    "transposed": torch.rand(64, 128).T,
    "a scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 3),
    "a parameter": torch.nn.Parameter(torch.rand(2000)),
    **{str(kind): torch.ones(3000, dtype=kind) for kind in (torch.bfloat16, torch.float16, torch.int64, torch.uint8)},
    "no numbers": ["text", {"a": 1}],
}


def pair() -> tuple[Slabs, Slabs]:
    descriptors = [slab.make(), slab.make()]
    return Slabs(descriptors, 0), Slabs(descriptors, 1)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


@pytest.mark.parametrize("nbytes", [0, 10**6])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_out_as_it_was(name: str, nbytes: int) -> None:
    writer, reader = pair()
    where = writer.put(VALUES[name], nbytes)
    assert same(reader.get(where), VALUES[name])
    copy = reader.copied(where)
    writer.free(where)
    other = writer.put(torch.zeros(20_000))
    assert same(copy, VALUES[name])
    writer.free(other)
    assert writer._rooms.free_bytes == slab.SIZE


@pytest.mark.parametrize("size", [1, 3, 5000])
@pytest.mark.parametrize("kind", [dict, BatchEncoding, ModelOutput, SequenceClassifierOutput])
def test_a_mapping_of_tensors_comes_out_as_what_it_was(kind: type, size: int) -> None:
    """It is not pickled. Its class, names, types and shapes are kept."""
    writer, reader = pair()
    logits, hidden = torch.rand(1, size), torch.rand(size, 2, 2).transpose(0, 2)[1:]
    value = kind({"logits": logits, "hidden_states": hidden, "loss": torch.tensor(0.5)})
    where = writer.put(value)
    assert where.is_flat
    copy, view = reader.copied(where), reader.get(where)
    for one in (copy, view):
        assert type(one) is kind
        assert list(one) == list(value)
        assert all(torch.equal(one[name], value[name]) and one[name].dtype == value[name].dtype for name in value)
        assert one["hidden_states"].shape == hidden.shape
    if kind is SequenceClassifierOutput:
        assert copy.logits is copy["logits"]
        assert copy.attentions is None
    writer.free(where)
    assert writer._rooms.free_bytes == slab.SIZE


@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.nn.Parameter(torch.rand(3))},
        {"a": torch.rand(3), "name": "text"},
        {"a": torch.rand(3, dtype=torch.bfloat16)},
        {"a": torch.rand(3, requires_grad=True)},
        {"a": torch.empty(0)},
        {1: torch.rand(3)},
        {},
        [torch.rand(3)],
        torch.rand(3),
    ],
)
def test_all_else_is_pickled(value: Any) -> None:
    writer, reader = pair()
    where = writer.put(value)
    assert not where.is_flat
    assert same(reader.get(where), value)


@pytest.mark.parametrize("seed", range(20))
def test_values_that_are_read_together_come_out_in_their_order(seed: int) -> None:
    """Of all shapes, types and classes, among values that are no mappings, or lie in a slab, or are no places."""
    rng, (writer, reader) = random.Random(seed), pair()
    kinds = (torch.int64, torch.float32, torch.float16, torch.bool, torch.uint8, torch.float64, torch.complex64)

    def mapping() -> Any:
        kind = rng.choice([dict, BatchEncoding, SequenceClassifierOutput])
        shapes = rng.choice([((1, 3), ()), ((1, 7), (2, 1, 5)), ((4,), (3, 2)), ((1, 900), (1,))])
        dtypes = rng.choice(kinds), rng.choice(kinds[:3])
        made = [(torch.rand(shape) * 100).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        return kind(dict(zip(("logits", "hidden_states"), made, strict=True)))

    values = [rng.choice([mapping, lambda: rng.choice(list(VALUES.values()))])() for _ in range(200)]
    wheres: list[Any] = [writer.put(one, 10**6) for one in values]
    for at in rng.sample(range(200), 20):
        wheres[at] = values[at] = f"no place {at}"

    def read(at: int) -> Any:
        return wheres[at] if isinstance(wheres[at], str) else reader.get(wheres[at])

    found = reader.get_all(wheres, read)
    assert len(found) == len(values)
    for one, value in zip(found, values, strict=True):
        assert type(one) is type(value) or isinstance(value, torch.nn.Parameter)
        assert same(dict(one), dict(value)) if isinstance(value, BatchEncoding) else same(one, value)
        if isinstance(value, dict | BatchEncoding):
            assert all(part.is_contiguous() for part in one.values() if isinstance(part, torch.Tensor))


def test_a_row_that_is_changed_changes_no_other() -> None:
    writer, reader = pair()
    wheres = [writer.put({"a": torch.full((1, 3), at), "b": torch.full((2,), at / 2)}) for at in range(4)]
    found = reader.get_all(wheres, lambda at: None)
    for at, one in enumerate(found):
        one["a"] += 10
        one["b"].fill_(at)
    for at, one in enumerate(found):
        assert one["a"].tolist() == [[at + 10] * 3]
        assert one["b"].tolist() == [at] * 2
    assert same(reader.get(wheres[1]), {"a": torch.full((1, 3), 1), "b": torch.full((2,), 0.5)})


def test_what_does_not_fit_goes_into_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    writer, reader = pair()
    writer._rooms = Rooms(10_000)
    value = torch.rand(10_000)
    where = writer.put(value)
    assert where.slab == -1
    assert torch.equal(reader.get(where), value)
    writer.free(where)


def test_an_object_that_is_repeated_comes_back_as_itself() -> None:
    """Also if it lies in another one, and however often it is repeated."""
    home, away = pair()
    image, text = np.zeros((3, 3)), "not marked"
    turn = {"role": "user", "content": [image, text]}
    originals = {id(one): one for one in (image, turn)}
    where = home.put({"chat": [turn, turn], "tensor": torch.ones(3)}, 0, originals)
    features, seen, objects = away.get_marked(where)
    assert features["chat"][0]["content"][1] == text
    assert features["chat"][0] is not turn
    assert len(objects) == 2
    back = away.put_back({"out": [features["chat"][0], features["chat"][0]["content"][0], "new"]}, seen)
    result = home.copied(back, originals)
    assert result["out"][0] is turn
    assert result["out"][1] is image
    assert result["out"][2] == "new"


def test_places_never_overlap_and_all_come_back() -> None:
    rng, rooms, taken = random.Random(1), Rooms(10_000), dict[int, int]()
    for _ in range(5000):
        if rng.random() < 0.55:
            size = rng.randrange(1, 600)
            start = rooms.take(size)
            if start is None:
                continue
            assert 0 <= start <= 10_000 - size
            assert all(start + size <= at or at + held <= start for at, held in taken.items())
            taken[start] = size
        elif taken:
            start = rng.choice(list(taken))
            rooms.give(start, taken.pop(start))
        assert rooms.free_bytes == 10_000 - sum(taken.values())
    for start, size in taken.items():
        rooms.give(start, size)
    assert rooms.take(10_000) == 0
