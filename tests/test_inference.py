"""Test-time statistics against plain loops, and that a model comes back as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.inference import EvalNorm, ExampleWeighing, PseudoSamples, TestBatch, TestTimeStatistics, apply_statistics
from tests import references
from tests.helpers import images, plain, randomized, residual, unchanged

KINDS: list[TestTimeStatistics] = [
    TestBatch(),
    PseudoSamples(),
    PseudoSamples(n=3.5),
    PseudoSamples(n=5, between=True),
    ExampleWeighing(0.3),
    ExampleWeighing(1.0),
    EvalNorm(4),
]
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.label)


def twin(kind: Any, x: Tensor, mean: Tensor, var: Tensor) -> list[references.Pair]:
    """The (mean, variance) for each example, from the papers' formulas on E[x] and E[x²]."""
    found = []
    for example in x:
        if isinstance(kind, (TestBatch, PseudoSamples)):
            _, own_mean, own_var = references.moments(x)
            source = 0.0 if isinstance(kind, TestBatch) else kind.n
            mixed_mean = (source * mean + len(x) * own_mean) / (source + len(x))
            if isinstance(kind, PseudoSamples) and kind.between:
                square = (source * (var + mean**2) + len(x) * (own_var + own_mean**2)) / (source + len(x))
                mixed_var = square - mixed_mean**2
            else:
                mixed_var = (source * var + len(x) * own_var) / (source + len(x))
        else:
            weight = kind.weight if isinstance(kind, ExampleWeighing) else 1 / kind.batch_size
            _, own_mean, own_var = references.moments(example[None])
            mixed_mean = (1 - weight) * mean + weight * own_mean
            mixed_var = (1 - weight) * (var + mean**2) + weight * (own_var + own_mean**2) - mixed_mean**2
        found.append((mixed_mean, mixed_var))
    return found


def make_patched() -> nn.Module:
    """A forward that somebody has set on a layer is used, and comes back."""
    model = plain()
    own = model[1].forward
    model[1].forward = lambda input: own(input)
    return model


def layer_for(x: Tensor) -> nn.BatchNorm1d | nn.BatchNorm2d:
    kinds: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    return randomized(kinds[x.dim()](x.shape[1], eps=1e-3)).eval()


@each
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 5), (1, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind_against_the_twin(kind: TestTimeStatistics, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if kind == ExampleWeighing(1.0) and len(shape) == 2:
        pytest.skip("one value has no variance; refused below")
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype) + 1
    layer = layer_for(x).to(dtype)
    mean = layer.get_buffer("running_mean").double()
    var = layer.get_buffer("running_var").double()
    weight = layer.weight.double()
    bias = layer.bias.double()
    expected = []
    for example, (m, v) in zip(x.double(), twin(kind, x, mean, var), strict=True):
        channels = []
        for c, values in enumerate(example):
            normalized = (values - m[c]) / (v[c] + layer.eps).sqrt()
            channels.append(normalized * weight[c] + bias[c])
        expected.append(torch.stack(channels))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    layouts = [x]
    if x.dim() == 4:
        layouts.append(x.to(memory_format=torch.channels_last))
    for given in layouts:
        original = given.clone()
        with apply_statistics(layer, kind), torch.no_grad():
            found = layer(given)
            torch.testing.assert_close(layer(input=given), found, rtol=0, atol=0)
        assert found.dtype == dtype
        assert torch.equal(given, original)
        assert found.is_contiguous(memory_format=torch.channels_last) or given is x
        torch.testing.assert_close(found.double(), torch.stack(expected), rtol=tolerance, atol=tolerance)


@each
def test_a_mean_far_above_the_deviation(kind: TestTimeStatistics) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1000 + 0.01 * torch.randn(8, 3, 6, 6, generator=generator)
    layer = nn.BatchNorm2d(3, eps=1e-9)
    layer.get_buffer("running_mean").fill_(1000)
    layer.get_buffer("running_var").fill_(1e-4)
    exact = copy.deepcopy(layer).double()
    with apply_statistics(layer, kind), apply_statistics(exact, kind), torch.no_grad():
        torch.testing.assert_close(layer(x).double(), exact(x.double()), rtol=0, atol=0.01)  # float32 buffers: 0.006


@each
def test_the_model_comes_back(kind: TestTimeStatistics) -> None:
    model = make_patched().train()
    x = images(6)[0]
    with unchanged(model):
        with apply_statistics(model, kind) as lent, torch.no_grad():
            assert lent is model
            assert not model.training
            buffers = [buffer.clone() for buffer in model.buffers()]
            output = model(x)
            without = copy.deepcopy(model).eval()
            assert output.isfinite().all()
            assert not torch.equal(output, without(x[:, :, :6]))
            assert all(map(torch.equal, buffers, model.buffers()))
        with pytest.raises(RuntimeError, match="channels"), apply_statistics(model, kind):
            model(torch.randn(2, 5, 8, 8))
        with pytest.raises(ZeroDivisionError), apply_statistics(model, kind):
            raise ZeroDivisionError


def test_the_test_batch_is_train_mode() -> None:
    """Also its gradients, with which a model is adapted at test time."""
    model = residual()
    x = images(16)[0]
    trained = copy.deepcopy(model).train()
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    expected = trained(inputs[0])
    expected.square().sum().backward()
    with apply_statistics(model, TestBatch()):
        found = model(inputs[1])
        found.square().sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-3, atol=1e-4)
    for own, other in zip(model.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match=r"float; .*TestBatch\(\)"), apply_statistics(plain(), 0.1):  # type: ignore[arg-type]
        pass
    layer = nn.BatchNorm1d(3)
    for n, kind in ((1, TestBatch()), (1, PseudoSamples(n=0)), (4, ExampleWeighing(weight=1)), (4, EvalNorm(1))):
        with pytest.raises(ValueError, match="no variance"), apply_statistics(layer, kind):
            layer(torch.ones(n, 3))
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"n={wrong}"):
            PseudoSamples(wrong)
        with pytest.raises(ValueError, match=f"weight={wrong}"):
            ExampleWeighing(wrong)
    with pytest.raises(ValueError, match="batch_size=0"):
        EvalNorm(0)


class OwnForward(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.clamp(-1, 1))


def test_layers_that_take_no_other_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), OwnForward(3))
    x = torch.randn(8, 3)
    with unchanged(model):
        with pytest.raises(ValueError, match="'1': "), apply_statistics(model, TestBatch()):
            pass
        with pytest.raises(ValueError, match=r"'0' .*train mode"), apply_statistics(model[:1], TestBatch()):
            model[:1].train()(x)


def test_a_copy_that_is_made_inside_of_the_block_keeps_the_rule() -> None:
    """A worker that the model is sent to, say."""
    model = residual()
    (x,) = images(5)
    with unchanged(model), torch.no_grad(), apply_statistics(model, PseudoSamples(n=2)):
        expected = model(x)
        other = pickle.loads(pickle.dumps(model))
        torch.testing.assert_close(other(x), expected)
        for layer in other.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()  # the copy's own
        assert not torch.allclose(other(x), expected)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("source", [torch.nan, torch.inf, 1e20])
@pytest.mark.parametrize("kind", [TestBatch(), PseudoSamples(0), ExampleWeighing(1.0), EvalNorm(1)], ids=str)
def test_a_broken_source_of_weight_0_leaves_nothing_behind(kind: TestTimeStatistics, source: float) -> None:
    """When averages are broken, people evaluate by the batch."""
    (x,) = images(4)
    layer = nn.BatchNorm2d(x.shape[1]).eval()
    with apply_statistics(layer, kind):
        expected = layer(x)
    layer.running_mean.fill_(source)  # type: ignore[union-attr]

    with apply_statistics(layer, kind):
        found = layer(x)

    assert torch.equal(found, expected)
