"""Linear layers by oneDNN: the same answers, wherever the layer goes."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipeq_worker.models import linear
from pipeq_worker.models.linear import OneDnnLinear, quicken
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "gain", lambda threads: 2.0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what went to oneDNN."""
    shapes: list[tuple[int, ...]] = []
    one_dnn = linear._one_dnn

    def counted(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        shapes.append(tuple(rows.shape))
        return one_dnn(rows, *rest)

    monkeypatch.setattr(linear, "_one_dnn", counted)
    return shapes


def pipe(*layers: torch.nn.Module) -> SimpleNamespace:
    return SimpleNamespace(model=torch.nn.Sequential(*layers).eval(), tokenizer="none")


def conv() -> Any:
    layer = Conv1D(512, 256)
    torch.nn.init.normal_(layer.bias)
    return layer


def quick(inputs: int = 256, outputs: int = 512, bias: bool = True) -> torch.nn.Linear:
    one = pipe(torch.nn.Linear(inputs, outputs, bias))
    assert quicken(one) == 1
    return one.model[0]


ROWS = {
    "of a batch": lambda: torch.randn(4, 50, 256),
    "of more axes": lambda: torch.randn(2, 3, 25, 256),
    "transposed": lambda: torch.randn(256, 64).t(),
    "of an expanded row": lambda: torch.randn(1, 256).expand(30, 256),
    "in steps": lambda: torch.randn(10, 20, 512)[:, ::2, ::2],
    "in another order": lambda: torch.randn(20, 10, 256).transpose(0, 1),
    "tiny numbers": lambda: torch.randn(20, 256) * 1e-40,
    "large numbers": lambda: torch.randn(20, 256) * 1e18,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_the_answer_is_that_of_torch(rows: Any, bias: bool, faster: None, calls: list[tuple[int, ...]]) -> None:
    layer = quick(bias=bias)
    with torch.inference_mode():
        given = rows()
        found, wanted = layer(given), functional.linear(given, layer.weight, layer.bias)
    assert calls == [tuple(given.shape)]
    assert found.stride() == wanted.stride()
    # Sums are added up in another order, and what cancels out leaves a rest.
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(given.abs().max()))


@pytest.mark.parametrize("rows", [one for name, one in ROWS.items() if name != "transposed"])
def test_so_is_that_of_gpt2s_layers(rows: Any, faster: None, calls: list[tuple[int, ...]]) -> None:
    usual = conv()
    quickened = pipe(copy.deepcopy(usual))
    assert quicken(quickened) == 1
    with torch.inference_mode():
        given = rows().contiguous()
        found, wanted = quickened.model(given), usual(given)
    assert calls == [tuple(given.shape)]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6 * float(given.abs().max()))
    with torch.inference_mode(), pytest.raises(RuntimeError):
        quickened.model(torch.randn(64, 128))


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_row(odd: float, faster: None, calls: list[tuple[int, ...]]) -> None:
    layer = quick()
    with torch.inference_mode():
        given = torch.randn(20, 256)
        given[3, 5] = odd
        found, wanted = layer(given), functional.linear(given, layer.weight, layer.bias)
    assert calls
    assert (~found.isfinite()).any(1).nonzero().flatten().tolist() == [3]
    assert torch.equal(found.isnan(), wanted.isnan())


def test_little_work_a_gradient_and_other_numbers_take_the_usual_way(
    faster: None, calls: list[tuple[int, ...]]
) -> None:
    layer = quick()
    with torch.inference_mode():
        for few in (torch.randn(256), torch.randn(0, 256), torch.randn(3, 256), torch.randn(15, 256)):
            assert layer(few).shape == (*few.shape[:-1], 512)
    layer(torch.randn(64, 256)).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode():
        half = quick().bfloat16()
        assert half(torch.randn(64, 256, dtype=torch.bfloat16)).dtype is torch.bfloat16
        assert quick().to("meta")(torch.randn(64, 256, device="meta")).is_meta
        assert quick().double()(torch.randn(64, 256).double()).dtype is torch.float64
        with pytest.raises(RuntimeError, match="dtype"):  # as without it
            layer(torch.randn(64, 256).double())
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(torch.randn(64, 128))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(torch.randn(64, 256)).dtype is torch.bfloat16
    assert calls == []


def test_a_weight_that_is_replaced_counts_by_its_own_shape(faster: None, calls: list[tuple[int, ...]]) -> None:
    layer = quick(bias=False)
    layer.weight = torch.nn.Parameter(torch.randn(512, 192))
    with torch.inference_mode():
        given = torch.randn(64, 192)
        torch.testing.assert_close(layer(given), functional.linear(given, layer.weight), rtol=1e-5, atol=1e-4)
        assert calls == [(64, 192)]
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(torch.randn(64, 256))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr, torch.Tensor.to_mkldnn])
def test_a_weight_of_another_layout_is_left_alone(make: Any, faster: None) -> None:
    layer = torch.nn.Linear(8, 8)
    layer.weight = torch.nn.Parameter(make(torch.eye(8)), requires_grad=False)
    assert quicken(pipe(layer)) == 0


def test_other_layers_are_left_alone(faster: None) -> None:
    class Own(torch.nn.Linear):
        pass

    hooked = torch.nn.Linear(8, 8)
    hooked.forward = hooked.forward  # type: ignore[method-assign]  # as accelerate does
    layers = [Own(8, 8), hooked, torch.nn.Linear(8, 8).half(), torch.nn.Linear(8, 8, device="meta")]
    layers += [type("OwnConv1D", (Conv1D,), {})(8, 8), torch.nn.Conv1d(8, 8, 1), torch.nn.MultiheadAttention(8, 2)]  # type: ignore[list-item]
    one = pipe(*layers)
    kinds = [type(module) for module in one.model.modules()]
    assert quicken(one) == 0
    assert [type(module) for module in one.model.modules()] == kinds


def test_where_it_is_not_faster_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "gain", lambda threads: 1.1)
    one = pipe(torch.nn.Linear(256, 512))
    assert quicken(one) == 0
    assert type(one.model[0]) is torch.nn.Linear


def test_without_one_dnn_there_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    was = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        assert linear.gain.__wrapped__(1) == 0
    finally:
        torch._C._set_mkldnn_enabled(was)

    def missing(*_: Any) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(linear, "_one_dnn", missing)
    assert linear.gain.__wrapped__(1) == 0
    monkeypatch.setattr(linear, "_one_dnn", lambda rows, weight, bias: functional.linear(rows, weight) + 1)
    assert linear.gain.__wrapped__(1) == 0


def test_the_trial_measures_and_draws_no_numbers() -> None:
    before = torch.get_rng_state()
    assert 0.1 < linear.gain.__wrapped__(torch.get_num_threads()) < 20
    assert torch.equal(torch.get_rng_state(), before)


def test_what_hangs_on_a_layer_stays(faster: None) -> None:
    layer, other = torch.nn.Linear(256, 256), torch.nn.Linear(256, 256)
    other.weight = layer.weight
    heard: list[str] = []
    layer.register_forward_hook(lambda *_: heard.append("hook"))
    one = pipe(layer, other)
    assert quicken(one) == 2
    assert quicken(one) == 0
    assert one.model[0].weight is one.model[1].weight
    with torch.inference_mode():
        one.model(torch.randn(64, 256))
    assert heard == ["hook"]
    assert isinstance(one.model[0], torch.nn.Linear)
    for copied in (copy.deepcopy(one.model), pickle.loads(pickle.dumps(one.model[1]))):
        assert any(type(module) is OneDnnLinear for module in copied.modules())
