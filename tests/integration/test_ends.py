"""A pipeline's two ends without its weights: every parity case gives the same answer through shared memory.

The ends are made here from bytes, as in another process; rows and outputs pass through slabs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pipeq_worker.children import slab
from pipeq_worker.doctor.compare import differences
from pipeq_worker.models import ends
from pipeq_worker.models.transformers_pipeline import TransformersPipeline

from tests.integration.test_parity import CASES, Case, name_of

torch.set_num_threads(1)
Loaded = Callable[[str, str], TransformersPipeline]


@pytest.fixture(scope="module")
def slabs() -> list[slab.Slabs]:
    descriptors = [slab.make(), slab.make()]
    return [slab.Slabs(descriptors, own) for own in range(2)]


@pytest.fixture(scope="module")
def ends_of(loaded: Loaded) -> Loaded:
    made: dict[tuple[str, str], TransformersPipeline] = {}

    def get(task: str, model: str) -> TransformersPipeline:
        if (task, model) not in made:
            device = loaded(task, model)
            data = ends.dump(device)
            assert data is not None
            made[task, model] = ends.load(data, device.name, device.settings)
        return made[task, model]

    return get


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_the_answer_is_the_same(loaded: Loaded, ends_of: Loaded, slabs: list[slab.Slabs], case: Case) -> None:
    task, model, inputs, params, _ = case
    device, two_ends = loaded(task, model), ends_of(task, model)
    weights = [*two_ends._pipe.model.parameters(), *two_ends._pipe.model.buffers()]
    assert all(one.device.type == "meta" for one in weights)
    at_device, at_ends = slabs
    for value in list(inputs() if callable(inputs) else inputs)[:4]:
        call = two_ends.merge(copy.deepcopy(params))
        torch.manual_seed(1)
        rows = list(two_ends.prepare(copy.deepcopy(value), call))
        there = [at_ends.put(row.features, row.nbytes) for row in rows]
        # The device process makes its own call of the parameters.
        device_call = device.call(call.params)
        outputs: list[Any] = []
        for where in there:
            (output,) = device.forward([at_device.get(where)], device_call)
            back = at_device.put(output)
            outputs.append(copy.deepcopy(at_ends.get(back)))
            at_device.free(back)
            at_ends.free(where)
        got = two_ends.result(two_ends.postprocess(outputs, call), value, call)
        torch.manual_seed(1)
        want = device.alone(copy.deepcopy(value), copy.deepcopy(dict(device.merge(copy.deepcopy(params)).params)))
        assert not list(differences(got, want))[:3]
    assert [one._rooms.free_bytes for one in slabs] == [slab.SIZE] * 2
