"""What a CUDA device would be given. There is none here: a tensor that notes the calls takes the place of another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pipeq_worker.models import pinned


class Noted(torch.Tensor):
    """A tensor that notes what is done with it."""

    calls: list[Any]

    def pin_memory(self, *_: Any) -> Noted:  # type: ignore[override]
        self.calls.append("pinned")
        return self

    def to(self, *where: Any, **how: Any) -> Noted:  # type: ignore[override]
        self.calls.append((*where, how))
        return self


def noted() -> Noted:
    tensor = torch.ones(2, 3).as_subclass(Noted)
    tensor.calls = []
    return tensor


CUDA = torch.device("cuda", 1)


def test_tensors_go_to_a_cuda_device_through_pinned_memory() -> None:
    tensor, other = noted(), object()
    batch = pinned.on_device({"pixel_values": tensor, "other": other, "none": None}, CUDA)
    assert tensor.calls == ["pinned", (CUDA, {"non_blocking": True})]
    assert list(batch) == ["pixel_values", "other", "none"]
    assert (batch["other"], batch["none"]) == (other, None)


@pytest.mark.parametrize("kind", ["cpu", "mps", "xpu", "meta"])
def test_no_other_device_is_concerned(kind: str) -> None:
    batch = {"pixel_values": noted()}
    assert pinned.on_device(batch, torch.device(kind)) is batch
    assert batch["pixel_values"].calls == []


def test_what_is_there_already_or_is_no_dictionary_stays() -> None:
    there = torch.ones(1, device="meta")
    assert pinned.on_device({"a": there}, CUDA)["a"] is there
    rows = [noted()]
    assert pinned.on_device(rows, CUDA) is rows
