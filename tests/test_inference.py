"""Inference-time statistics against plain loops, and that a model comes back as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from bnlab import gap, inference, population_statistics
from bnlab.inference import EvalNorm, ExampleWeighing, PseudoSamples, Rule, TestBatch, applied
from bnlab.moments import Moments
from tests import references
from tests.helpers import Interrupted, images, plain, randomized, residual, unchanged

RULES: list[Rule] = [
    TestBatch(),
    PseudoSamples(),
    PseudoSamples(n=3.5),
    PseudoSamples(n=5, between=True),
    ExampleWeighing(0.3),
    ExampleWeighing(1.0),
    EvalNorm(4),
]
each = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)


def twin(rule: Any, x: Tensor, mean: Tensor, var: Tensor) -> list[references.Pair]:
    """The (mean, variance) for each example, from the papers' formulas on E[x] and E[x²]."""
    found = []
    for example in x:
        if isinstance(rule, (TestBatch, PseudoSamples)):
            _, own_mean, own_var = references.moments(x)
            source = 0.0 if isinstance(rule, TestBatch) else rule.n
            mixed_mean = (source * mean + len(x) * own_mean) / (source + len(x))
            if isinstance(rule, PseudoSamples) and rule.between:
                square = (source * (var + mean**2) + len(x) * (own_var + own_mean**2)) / (source + len(x))
                mixed_var = square - mixed_mean**2
            else:
                mixed_var = (source * var + len(x) * own_var) / (source + len(x))
        else:
            weight = rule.weight if isinstance(rule, ExampleWeighing) else 1 / rule.batch_size
            _, own_mean, own_var = references.moments(example[None])
            mixed_mean = (1 - weight) * mean + weight * own_mean
            mixed_var = (1 - weight) * (var + mean**2) + weight * (own_var + own_mean**2) - mixed_mean**2
        found.append((mixed_mean, mixed_var))
    return found


def layer_for(x: Tensor) -> nn.Module:
    kinds: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    return randomized(kinds[x.dim()](x.shape[1], eps=1e-3)).eval()


@each
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 4, 5), (1, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_rule_against_the_twin(rule: Rule, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if rule == ExampleWeighing(1.0) and len(shape) == 2:
        pytest.skip("one value has no variance; refused below")
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype) + 1
    layer = layer_for(x).to(dtype)
    mean, var = layer.running_mean.double(), layer.running_var.double()
    expected = []
    for example, (m, v) in zip(x.double(), twin(rule, x, mean, var), strict=True):
        channels = [
            (example[c] - m[c]) / (v[c] + layer.eps).sqrt() * layer.weight[c].double() + layer.bias[c].double()
            for c in range(len(example))
        ]
        expected.append(torch.stack(channels))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for given in (x, x.to(memory_format=torch.channels_last) if x.dim() == 4 else x):
        original = given.clone()
        with applied(layer, rule), torch.no_grad():
            found = layer(given)
            torch.testing.assert_close(layer(input=given), found, rtol=0, atol=0)
        assert found.dtype == dtype and torch.equal(given, original)
        assert found.is_contiguous(memory_format=torch.channels_last) or given is x
        torch.testing.assert_close(found.double(), torch.stack(expected), rtol=tolerance, atol=tolerance)


@each
def test_a_mean_far_above_the_deviation(rule: Rule) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 1000 + 0.01 * torch.randn(8, 3, 6, 6, generator=generator)
    layer = nn.BatchNorm2d(3, eps=1e-9)
    layer.running_mean.fill_(1000)
    layer.running_var.fill_(1e-4)
    exact = copy.deepcopy(layer).double()
    with applied(layer, rule), applied(exact, rule), torch.no_grad():
        torch.testing.assert_close(layer(x).double(), exact(x.double()), rtol=0, atol=0.01)  # float32 buffers: 0.006


@each
@pytest.mark.parametrize("network", [plain, residual])
def test_the_model_comes_back(rule: Rule, network: Callable[[], nn.Module]) -> None:
    model, x = network().train(), images(6)[0]
    with unchanged(model):
        with applied(model, rule) as lent, torch.no_grad():
            assert lent is model and not model.training
            buffers = [buffer.clone() for buffer in model.buffers()]
            assert not torch.equal(model(x), copy.deepcopy(model).eval()(x[:, :, :6])) and model(x).isfinite().all()
            assert all(map(torch.equal, buffers, model.buffers()))
        with pytest.raises(RuntimeError, match="channels"), applied(model, rule):
            model(torch.randn(2, 5, 8, 8))
        with pytest.raises(ZeroDivisionError), applied(model, rule):
            raise ZeroDivisionError


def test_the_test_batch_is_train_mode() -> None:
    """Also its gradients, with which a model is adapted at test time."""
    model, x = residual(), images(16)[0]
    trained, inputs = copy.deepcopy(model).train(), [x.clone().requires_grad_() for _ in range(2)]
    expected = trained(inputs[0])
    expected.square().sum().backward()
    with applied(model, TestBatch()):
        found = model(inputs[1])
        found.square().sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-3, atol=1e-4)
    for own, other in zip(model.parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", [ExampleWeighing(0.0), PseudoSamples(1e12), PseudoSamples(float("inf"), True)])
def test_the_source_alone_is_plain_evaluation(rule: Rule) -> None:
    model, x = residual().eval(), images(5)[0]
    expected = model(x)
    with applied(model, rule):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_equal_rules() -> None:
    model, x = residual().eval(), images(5)[0]
    for one, other in (
        (EvalNorm(4), ExampleWeighing(0.25)),
        (PseudoSamples(0.0, True), TestBatch()),
    ):
        with applied(model, one):
            found = model(x)
        with applied(model, other):
            torch.testing.assert_close(model(x), found, rtol=0, atol=0)
    # One image: the batch and the example are the same, and 3 pseudo-samples are a weight of 1/4.
    with applied(model, PseudoSamples(3, between=True)):
        found = model(x[:1])
    with applied(model, EvalNorm(4)):
        torch.testing.assert_close(model(x[:1]), found, rtol=1e-5, atol=1e-5)
        together = model(x)
        torch.testing.assert_close(model(x[:1]), together[:1], rtol=1e-5, atol=1e-5)  # whoever its neighbours are


def test_eval_norm_is_a_training_batch_on_average() -> None:
    """The mean exactly, the variance but for (B−1)/B² of the variance of the images' means."""
    generator, B, N = torch.Generator().manual_seed(0), 4, 20_000
    x = torch.randn(N, 1, 6, generator=generator, dtype=torch.float64) + torch.randn(N, 1, 1, generator=generator)
    example = torch.full((1, 1, 6), 2.0, dtype=torch.float64)
    batches = torch.cat((example.expand(N // 3, 1, 6)[:, None], x[: N // 3 * 3].view(-1, 3, 1, 6)), 1)
    var, mean = torch.var_mean(batches, (1, 2, 3), correction=0)
    source = Moments.of(x)
    m, v = EvalNorm(B).statistics(example, source.mean.view(1, 1, 1), source.var.view(1, 1, 1))
    between = x.mean(2).var()
    assert m.item() == pytest.approx(mean.mean().item(), abs=0.01)
    assert v.item() - (B - 1) / B**2 * between.item() == pytest.approx(var.mean().item(), abs=0.02)


def test_labels() -> None:
    assert [rule.label for rule in RULES[:2]] == ["test_batch", "pseudo_samples(n=16.0,between=False)"]
    assert [rule.label for rule in RULES[4:]] == [
        "example_weighing(weight=0.3)",
        "example_weighing(weight=1.0)",
        "eval_norm(batch_size=4)",
    ]


def test_statistics_written_inside_the_block_are_the_source() -> None:
    x = images(4)[0]
    layer, other = layer_for(x), layer_for(x)
    other.running_mean += 1
    with applied(other, EvalNorm(8)):
        expected = other(x)
    with applied(layer, EvalNorm(8)):
        layer.running_mean += 1
        assert torch.equal(layer(x), expected)


def test_what_is_refused() -> None:
    model = plain()
    with pytest.raises(TypeError, match=r"rule is a float; pass e\.g\. TestBatch\(\)"), applied(model, 0.1):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match=r"inference\.applied: no BatchNorm"), applied(nn.Linear(2, 2), TestBatch()):
        pass
    layer = nn.BatchNorm1d(3)
    for n, rule in (
        (1, TestBatch()),
        (1, PseudoSamples(n=0)),
        (4, ExampleWeighing(weight=1)),
        (4, EvalNorm(batch_size=1)),
    ):
        with pytest.raises(ValueError, match="one value per channel has no variance"), applied(layer, rule):
            layer(torch.ones(n, 3))
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"n=.* 0 or more"):
            PseudoSamples(wrong)
        with pytest.raises(ValueError, match=r"weight=.* lies in \[0, 1\]"):
            ExampleWeighing(wrong)
    with pytest.raises(ValueError, match="batch_size=0; it is 1 or more"):
        EvalNorm(0)
    half = nn.BatchNorm1d(3).half()
    with pytest.raises(ValueError, match=r"layer '' gets .* beyond torch\.float16"), applied(half, TestBatch()):
        half(torch.tensor([[-300.0], [300.0]]).half().expand(2, 3))  # their variance is 90,000


def test_measuring_inside_of_the_block_is_of_the_model_itself() -> None:
    model, batches = plain(), images(4, 5)
    expected = population_statistics(model, batches)
    with inference.applied(model, inference.TestBatch()):
        found = population_statistics(model, batches)
        assert gap(expected, found)["mean_gap"].max() == 0


def test_an_interrupt_inside_of_the_block() -> None:
    layer, x, y = Interrupted(3), torch.randn(8, 3) + 5, torch.randn(8, 3)
    rule = inference.PseudoSamples(n=8)
    with inference.applied(layer, rule):
        expected = layer(y)
        layer.armed, own = True, layer.running_mean
        with pytest.raises(KeyboardInterrupt):
            layer(x)
        assert layer.running_mean is own
        layer.armed = False
        torch.testing.assert_close(layer(y), expected)


class Gained(nn.BatchNorm1d):
    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return super().forward(x) * gain


@each
def test_further_arguments_of_a_layer(rule: Rule) -> None:
    layer, x = Gained(3), 3 * torch.randn(8, 3, 5) + 1
    with applied(layer, rule):
        expected = 5 * layer(x)
        for found in (layer(x, 5.0), layer(x, gain=5.0), layer(x=x, gain=5.0)):
            assert torch.equal(found, expected)


@each
def test_hooks_of_the_block_come_before_the_statistics(rule: Rule) -> None:
    layer, x = nn.BatchNorm1d(3), torch.randn(8, 3, 5) + 1
    with unchanged(layer), applied(layer, rule):
        expected = layer(x.clamp(-1, 1))
        hook = layer.register_forward_pre_hook(lambda _, args: (args[0].clamp(-1, 1),))
        assert torch.equal(layer(x), expected)
        hook.remove()


def test_a_forward_that_somebody_has_put_on_a_layer() -> None:
    layer, x = nn.BatchNorm1d(3), torch.randn(8, 3) + 1
    layer.forward = lambda x: 2 * nn.BatchNorm1d.forward(layer, x)  # type: ignore[method-assign]
    given, expected = layer.forward, 2 * nn.BatchNorm1d(3)(x)
    with applied(layer, TestBatch()):
        torch.testing.assert_close(layer(x), expected)
        with applied(layer, ExampleWeighing(0.0)):
            torch.testing.assert_close(layer(x), 2 * nn.BatchNorm1d(3).eval()(x))
        torch.testing.assert_close(layer(x), expected)
    assert layer.forward is given


class Clipping(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp(-1, 1))


class DoublingInPlace(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class InHalves(nn.BatchNorm1d):
    """All of its input, in parts, beside a layer inside of it that gets something else."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.inner = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(InHalves, self).forward(part.clone()) for part in x.chunk(2)]) + self.inner(3 * x)


class AlwaysOfTheBatch(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


class StaysInTraining(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> StaysInTraining:
        return super().train(True)


class ByHand(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = (buffer.view(-1, 1) for buffer in (self.running_mean, self.running_var))
        return (x - mean) / (var + self.eps).sqrt()


class Functional(nn.Module):
    """Normalizes by a layer's buffers without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return nn.functional.batch_norm(x, self.second.running_mean, self.second.running_var)


class InDouble(Functional):
    """With what it makes of the buffers."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.second.running_mean.double(), self.second.running_var.clone().double() + 1e-3
        return nn.functional.batch_norm(self.first(x).double(), mean, var).float()


@each
@pytest.mark.parametrize("kind", [Functional, InDouble])
def test_a_functional_batch_norm_is_refused(rule: Rule, kind: type[Functional]) -> None:
    model = kind()
    message = "a functional batch norm goes by the buffers of layer 'second', not by the rule; call the layer itself"
    with unchanged(model), pytest.raises(ValueError, match=message), applied(model, rule):
        model(torch.randn(8, 3, 5))


@each
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Clipping, "layer '0' normalizes something else than its input"),
        (DoublingInPlace, "layer '0' normalizes something else than its input"),
        (AlwaysOfTheBatch, "layer '0' normalizes with its batch's statistics in eval mode too"),
        (StaysInTraining, "layer '0' is in train mode"),
    ],
)
def test_layers_that_no_rule_holds_for(rule: Rule, context: Any, kind: type[nn.BatchNorm1d], message: str) -> None:
    model, x = nn.Sequential(kind(3)), torch.randn(8, 3, 5) + 1
    with (
        unchanged(model),
        pytest.raises(ValueError, match=f"inference.applied: {message}"),
        applied(model, rule),
        context(),
    ):
        model(x.clone())


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_layers_with_a_forward_of_their_own(context: Any, recwarn: pytest.WarningsRecorder) -> None:
    x = torch.randn(8, 3, 5) + 1
    with applied(nn.BatchNorm1d(3), TestBatch()) as plain_layer:
        expected = plain_layer(x)
    with applied(InHalves(3), TestBatch()) as layer, context():
        torch.testing.assert_close(layer(x.clone()), 2 * expected, rtol=1e-4, atol=1e-4)  # eps counts less at 3x
    assert not recwarn
    with (
        pytest.warns(RuntimeWarning, match="layer '' normalizes without torch's batch norm"),
        applied(ByHand(3), TestBatch()) as layer,
        context(),
    ):
        torch.testing.assert_close(layer(x.clone()), expected)


class Scaled(nn.Module):
    """Computes with the deviation of a layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x / (self.norm.running_var + self.norm.eps).sqrt())


class FoldedByHand(nn.Module):
    """In evaluation as mmcv's `efficient_conv_bn_eval`: a batch norm folded into weights anew in every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.last(self.norm(self.linear(x)))
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        bias = self.norm.bias + (self.linear.bias - self.norm.running_mean) * scale
        return self.last(F.linear(x, self.linear.weight * scale[:, None], bias))


@pytest.mark.parametrize("kind", [FoldedByHand, Scaled])
def test_layers_that_a_forward_folds_anew_are_told(
    kind: Callable[[], nn.Module], recwarn: pytest.WarningsRecorder
) -> None:
    """They keep to their running statistics: the prediction was that of plain evaluation, and nothing was said."""
    model, x = kind(), torch.randn(8, 3)
    told = pytest.warns(RuntimeWarning, match=r"'norm': no forward has called it.* does not go by the rule")
    with told as caught, applied(model, TestBatch()):
        model(x)
    assert caught[0].filename == __file__ and "'last'" not in str(caught[0].message)
    recwarn.clear()
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[0].register_module("auxiliary", nn.BatchNorm1d(4))  # of training alone
    average = AveragedModel(model, use_buffers=True)
    with applied(model, TestBatch()):
        copied = copy.deepcopy(model)
        copied(x)
        model(x)
        average.update_parameters(model)  # outside of the forward
    assert not recwarn


def test_copies_of_layers_on_several_devices_are_refused() -> None:
    model = nn.DataParallel(plain())
    model.device_ids = [0, 1]
    with pytest.raises(ValueError, match=r"applied: DataParallel runs copies"), applied(model, TestBatch()):
        pass


@pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickled"]
)
def test_copies_that_are_made_inside_of_the_block_go_by_the_rule(how: Callable[[nn.Module], nn.Module]) -> None:
    """A worker that the model is sent to, say."""
    model = residual()
    (x,) = images(5)
    with unchanged(model), torch.no_grad(), applied(model, PseudoSamples(n=2)):
        expected, other = model(x), how(model)
        torch.testing.assert_close(other(x), expected)
        for layer in other.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()  # the copy's own
        assert not torch.allclose(other(x), expected)
        assert torch.equal(model(x), expected)


@each
@pytest.mark.parametrize("graph", [False, True])
def test_derivatives_forwards_and_in_transforms(rule: Rule, graph: bool) -> None:
    """Also where torch does not say of a tensor that it takes part in one."""
    model = residual().double()
    x = images(3)[0].double()
    towards = x.cos()
    with unchanged(model), applied(model, rule), torch.set_grad_enabled(graph):
        found = torch.func.jvp(model, (x,), (towards,))[1]
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(model(forward_ad.make_dual(x, towards))).tangent
        mapped = torch.func.vmap(lambda image: model(image[None])[0])(x)
        alone = torch.cat([model(image[None]) for image in x])
        expected = (model(x + 1e-6 * towards) - model(x - 1e-6 * towards)) / 2e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dual, found)
    torch.testing.assert_close(mapped, alone)
