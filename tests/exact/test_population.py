"""Exact statistics: against the slow twin in float64, against full-batch forwards, and what is refused."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import enum
import warnings
from collections import UserDict
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from bnlab import Statistics, gap, population_statistics, using
from bnlab.statistics.moments import compare_moments
from tests import references
from tests.exact.zoo import CASES, Case, Net
from tests.helpers import AddsItsCalls, images, measure_difference, plain, residual, unchanged

_scale = 1.0  # set by forwards of a test


def widen(batch: Any) -> Any:
    """Copy a batch in float64."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, (dict, UserDict)):
        return {key: widen(part) for key, part in batch.items()}
    if isinstance(batch, (list, tuple)):
        parts = [widen(part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if is_dataclass(batch):
        return replace(batch, **widen(vars(batch)))  # type: ignore[type-var]
    return batch


def evaluate(model: nn.Module, statistics: Statistics, batches: list[Any], forward: Any = None) -> Any:
    """What each layer is given in an ordinary evaluation under the statistics."""
    with using(model, statistics), torch.no_grad():
        return references.moments_of_inputs(model, list(statistics), batches, forward)


def measure(case: Case, **options: Any) -> Statistics:
    return population_statistics(case.model, case.batches, forward=case.forward, **options)


@pytest.mark.parametrize("name", CASES)
def test_each_model_is_measured_as_layer_by_layer_in_float64(name: str) -> None:
    """An ordinary evaluation gives each layer what was measured; the model comes back as it was."""
    case = CASES[name]()
    wide = replace(case, model=copy.deepcopy(case.model).double(), batches=widen(case.batches))
    twin = measure(wide, strategy="layerwise")
    with unchanged(case.model), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = measure(case)

    # Where a processor has no bfloat16, torch warns of its own slow way.
    messages = [str(warning.message) for warning in caught]
    messages = [message for message in messages if message.startswith("population_statistics")]
    assert all(case.warns in message for message in messages)
    assert bool(messages) == bool(case.warns)
    assert found.check is not None
    assert found.check.is_exact
    # Single images of a few pixels have variances of a few values; autocast computes in bfloat16.
    tolerance = 0.05 if name == "autocast" else 1e-5
    assert measure_difference(found, twin) <= tolerance
    assert found.unseen == twin.unseen
    assert found.cost is not None
    assert case.images in (None, found.cost.images)
    if name not in ("autocast", "data parallel"):
        assert measure_difference(twin, evaluate(wide.model, twin, wide.batches, case.forward)) <= 1e-5


def test_what_was_compiled_before_shows_its_layers() -> None:
    """Its few rows are all that is evaluated, so that no other shape makes torch compile again, with the hooks."""
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval(), backend="eager")
    x = torch.randn(4, 3)
    with torch.no_grad():
        compiled(x)

    assert len(population_statistics(compiled, [x])) == 1


def test_layers_that_no_data_reach_are_named() -> None:
    assert measure(CASES["not reached"]()).unseen == ("unused",)


@pytest.mark.parametrize("name", ["sequential", "residual", "branches", "concatenation", "features", "depthwise"])
def test_float64_equals_a_full_batch_forward(name: str) -> None:
    case = CASES[name]()
    found = population_statistics(copy.deepcopy(case.model).double(), widen(case.batches))

    assert measure_difference(found, references.full_batch_population(case.model, torch.cat(case.batches))) <= 1e-9
    assert found.cost is not None
    assert found.cost.forwards == found.cost.batches == len(case.batches)

    pooled = population_statistics(copy.deepcopy(case.model).double(), widen(case.batches), statistic="precise")
    assert measure_difference(pooled, references.batch_upstream_population(case.model, case.batches)) <= 1e-9


OF_ROUTES = ["domains", "exits", "routes"]


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("name", ["residual", "siamese", "several sizes", *OF_ROUTES])
def test_less_memory_gives_the_same(name: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch may wait, or about a third of them."""
    case = CASES[name]()
    case.batches = [batch for batch in case.batches for _ in range(3)]
    whole = measure(case)
    assert whole.cost is not None
    monkeypatch.setattr("bnlab.memory.read_free_bytes", lambda device: int(2 * share * whole.cost.peak_bytes))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*measured layer by layer")
        found = measure(case)

    assert found.unseen == whole.unseen
    assert measure_difference(found, whole) <= 1e-5
    assert found.cost is not None
    assert found.cost.peak_bytes < whole.cost.peak_bytes
    layer_by_layer = len(case.batches) * (len(found) + 1)
    assert whole.cost.forwards < found.cost.forwards <= found.cost.passes * layer_by_layer


def test_less_memory_takes_time_and_fewer_images_are_less_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(*[16] * 8)
    whole = population_statistics(residual(), data)
    sample = population_statistics(residual(), data, max_images=64)
    assert whole.cost is not None and sample.cost is not None
    monkeypatch.setattr("bnlab.memory.read_free_bytes", lambda device: whole.cost.peak_bytes)

    again = population_statistics(residual(), data)

    assert again.cost is not None
    assert sample.cost.peak_bytes < 0.7 * whole.cost.peak_bytes
    assert again.cost.forwards >= 2 * whole.cost.forwards == 4 * sample.cost.forwards
    assert measure_difference(again, whole) <= 1e-5
    assert max(max(compare_moments(whole[name], sample[name])) for name in whole) >= 1e-3


# -- layers that depend on themselves ---------------------------------------------------------------------------------


def test_shared_layers_settle_in_as_many_passes_as_there_are_layers_and_two() -> None:
    found = measure(CASES["siamese"]())
    assert found.cost is not None
    assert 2 < found.cost.passes <= len(found) + 2


def test_small_steps_find_what_plain_iteration_does_not() -> None:
    """A larger mean makes the next one smaller by more than that."""
    model = Net(lambda net, x: net.norm(6 * net.norm(x)), norm=nn.BatchNorm1d(1, affine=False)).double()
    data = [torch.randn(64, 1).double() + 1, torch.randn(64, 1).double() + 1]
    found = population_statistics(model, data)

    assert found.cost is not None
    assert found.cost.passes > 5
    assert measure_difference(found, evaluate(model, found, data)) <= 1e-5


def test_what_never_settles_is_not_called_exact() -> None:
    """A positive running mean makes the mean negative, and a negative one positive."""

    def switch(net: Any, x: Tensor) -> Tensor:
        return net.norm(x + 10 * torch.sign(net.norm(torch.zeros_like(x))))

    with pytest.warns(RuntimeWarning, match=r"called several times, do not settle"):
        found = population_statistics(Net(switch, norm=nn.BatchNorm1d(1, affine=False)), [torch.randn(64, 1)] * 2)

    assert found.check is not None
    assert not found.check.is_exact


# -- the check, and what forwards share -------------------------------------------------------------------------------


def test_a_check_that_fails_says_where_and_by_how_much() -> None:
    case = CASES["features in a hook"]()
    with pytest.warns(RuntimeWarning, match="another input") as caught:
        found = population_statistics(case.model, case.batches[:2])
    assert {warning.filename for warning in caught} == {__file__}  # the line that called

    assert found.check is not None
    assert not found.check.held
    assert found.check.held_layer_by_layer
    assert found.check.layer == "c.1"
    assert found.check.off > 0.01
    assert "check failed at c.1, measured layer by layer" in repr(found)


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
def test_statistics_that_fail_their_check_layer_by_layer_too_are_not_called_exact(strategy: str) -> None:
    model = nn.Sequential(AddsItsCalls(), nn.BatchNorm2d(3))
    with pytest.warns(RuntimeWarning, match="draw it in the batches"):
        found = population_statistics(model, images(*[8] * 6), strategy=strategy)

    assert found.check is not None
    assert not found.check.is_exact
    assert "check failed at 1, so not exact" in repr(found)


@pytest.mark.parametrize("scales", [(1.0, 0.25, 1.0), (1.0, 1.0, 0.25, 1.0, 1.0), (1.0, 0.25) * 4 + (1.0,)])
@pytest.mark.parametrize("in_a_list", [False, True])
def test_state_that_differs_from_batch_to_batch(scales: tuple[float, ...], in_a_list: bool) -> None:
    """An attribute is each forward's own; what it cannot have alone is noticed, and measured the slow way."""

    def run(model: Any, batch: tuple[Tensor, float]) -> None:
        x, scale = batch
        if in_a_list:
            model.scales[0] = scale
        else:
            model.scale = scale
        model(x)

    def build() -> Any:
        model: Any = Net(lambda n, x: n.b(n.a(x) * n.scale * n.scales[0]), a=nn.BatchNorm1d(4), b=nn.BatchNorm1d(4))
        model.scale = 1.0
        model.scales = [1.0]
        return model

    batches = [*zip((x.flatten(1)[:, :4] for x in images(*[64] * len(scales))), scales, strict=True)]
    expected = population_statistics(build(), batches, forward=run, strategy="layerwise")
    noticed = pytest.warns(RuntimeWarning, match="keeps state between its layers")
    with noticed if in_a_list else contextlib.nullcontext():
        found = population_statistics(build(), batches, forward=run)

    assert gap(expected, found)["var_gap"].max() < 1e-6


@pytest.mark.parametrize("kind", ["dictionary", "list", "Enum", "numpy integer", "global", "attribute of a class"])
def test_what_a_forward_sets_and_reads_behind_a_layer(kind: str) -> None:
    """Forwards of other batches come between; the late rows of each batch show it, the first eight do not."""

    class Kind(enum.Enum):
        WEAK = 0.5
        STRONG = 2.0

    class Shared:
        scale = 1.0

    held: dict[str, Any] = {"scale": 1.0}

    class Sets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm1d(4)
            self.second = nn.BatchNorm1d(4)
            self.scales = [1.0]

        def forward(self, x: Tensor) -> Any:
            scale = x.std().item()
            match kind:
                case "dictionary":
                    held["scale"] = scale
                case "global":
                    globals()["_scale"] = scale
                case "list":
                    self.scales[0] = scale
                case "Enum":
                    held["scale"] = Kind.STRONG if scale > 1.5 else Kind.WEAK
                case "numpy integer":
                    held["scale"] = np.int64(100 * scale)
                case _:
                    Shared.scale = scale
            normalized = self.first(x)

            places = {"list": self.scales[0], "attribute of a class": Shared.scale, "global": _scale}
            read: Any = places.get(kind, held["scale"])
            late = read.value if isinstance(read, enum.Enum) else float(read)
            factors = torch.ones(len(x), 1)
            factors[8:] = late
            return self.second(normalized * factors)

    batches = [torch.randn(32, 4) * (1 + number % 3) for number in range(6)]
    expected = population_statistics(Sets(), batches, strategy="layerwise")

    with pytest.warns(RuntimeWarning, match="keeps state between its layers"):
        found = population_statistics(Sets(), batches)

    assert gap(expected, found)["var_gap"].max() < 1e-6


def test_a_forward_that_counts_in_strides_gets_the_layout_that_was_given() -> None:
    """On a CPU images are turned to channels innermost, in which it is faster; this forward would read other pixels."""

    class ReadsMemory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Any:
            first_channels = x.as_strided((len(x), 2, 4, 4), (48, 16, 4, 1))  # of images [3, 4, 4] in C order
            return self.norm(first_channels)

    batches = [torch.arange(3.0).view(1, 3, 1, 1) + torch.randn(16, 3, 4, 4) for _ in range(4)]
    pixels = torch.cat(batches)[:, :2].double()

    with pytest.warns(RuntimeWarning, match="measured layer by layer"):
        found = population_statistics(ReadsMemory(), batches)

    torch.testing.assert_close(found["norm"].mean, pixels.mean((0, 2, 3)), rtol=0, atol=1e-6)
    assert found.check is not None
    assert found.check.is_exact


def test_inference_mode_in_some_batches_is_kept_apart() -> None:
    """In the last of several batches alone."""

    def run(net: Any, x: Tensor) -> Tensor:
        with torch.inference_mode(bool(x.mean() > 1)):
            return net.b(net.a(x))

    model = Net(run, a=nn.BatchNorm2d(3), b=nn.BatchNorm2d(3))
    batches = [x + 2.0 * (index == 4) for index, x in enumerate(images(*[8] * 5))]
    expected = population_statistics(model, batches, strategy="layerwise")

    found = population_statistics(model, batches)

    assert not torch.is_inference_mode_enabled()
    assert gap(expected, found)["var_gap"].max() < 1e-6


def test_what_the_caller_has_set_in_its_context_holds_in_forwards() -> None:
    scale = contextvars.ContextVar("scale", default=1.0)
    scale.set(10.0)
    model = Net(lambda net, x: net.a(x * scale.get()), a=nn.BatchNorm1d(1))

    found = population_statistics(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])])

    assert found["a"].mean.item() == pytest.approx(30)


def half() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize(
    "settings", [[half], [torch.enable_grad], [half, torch.enable_grad], [torch.enable_grad, half]]
)
def test_grad_and_autocast_inside_of_a_forward_begin_each_batch_once(settings: list[Callable[[], Any]]) -> None:
    """Larger batches under these settings wait for one without."""

    def forward(model: nn.Module, batch: Tensor) -> None:
        with contextlib.ExitStack() as stack:
            for setting in settings if len(batch) == 8 else ():
                stack.enter_context(setting())
            before = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
            model(batch)
            assert before == (torch.is_autocast_enabled("cpu"), torch.is_grad_enabled())

    data = images(8, 5, 8, 5)
    model = residual()
    with unchanged(model):
        found = population_statistics(model, data, forward=forward)

    assert found.cost is not None
    assert found.cost.forwards == found.cost.batches == 4
    slow = population_statistics(model, data, forward=forward, strategy="layerwise")
    # The order of sums may change a statistic's last bit, and with it the bfloat16 of an activation, by 2⁻⁸ of itself.
    tolerance = 2**-8 if half in settings else 1e-4
    assert measure_difference(found, slow) < tolerance


@pytest.mark.parametrize("in_place", [True, False])
def test_a_teacher_that_is_moved_in_the_forward_comes_back(in_place: bool) -> None:
    """As of MoCo and BYOL."""

    def run(net: Any, x: Tensor) -> Tensor:
        moved = net.teacher.weight * 0.999 + net.student.weight.detach() * 0.001
        if in_place:
            net.teacher.weight.data.copy_(moved)
        else:
            net.teacher.weight.data = moved
        return net.norm(net.teacher(x))

    teacher = nn.Linear(2, 2).requires_grad_(False)
    model = Net(run, student=nn.Linear(2, 2), teacher=teacher, norm=nn.BatchNorm1d(2))
    data = [torch.randn(8, 2)] * 3
    with unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        population_statistics(model, data)


def test_gradients_are_not_touched() -> None:
    model = residual().train()
    (x,) = images(8)
    loss = model(x).sum()
    population_statistics(model, images(8, 5))
    loss.backward()  # the buffers that it saved have been put back

    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("options", [{}, {"statistic": "precise"}, {"max_images": "auto", "tolerance": 1.0}])
def test_a_loader_draws_no_number_of_the_callers(options: dict[str, Any]) -> None:
    model = plain().train()
    loader = DataLoader(TensorDataset(torch.cat(images(8, 8, 5))), batch_size=9, shuffle=True)
    with unchanged(model):
        population_statistics(model, loader, **options)


def _call_forward(net: Any, x: Tensor) -> Any:
    return net.c(net.b.forward(net.a(x)))


def _normalize_by_hand(net: Any, x: Tensor) -> Any:
    b = net.b
    return net.c(F.batch_norm(net.a(x), b.running_mean, b.running_var, b.weight, b.bias))


def _use_slices(net: Any, x: Tensor) -> Any:
    return F.batch_norm(net.a(x), net.b.running_mean[:4], net.b.running_var[:4])


def _refuse_nan(net: Any, x: Tensor) -> Any:
    y = _call_forward(net, x)
    if y.isnan().any():
        raise RuntimeError("the loss is NaN")
    return y.argmax(1)


@pytest.mark.parametrize("strategy", ["breadth", "layerwise"])
@pytest.mark.parametrize("function", [_call_forward, _normalize_by_hand, _refuse_nan])
def test_a_layer_that_is_read_without_a_call_is_measured_layer_by_layer(function: Any, strategy: str) -> None:
    """As the same network is that calls it."""
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.BatchNorm2d(4), "c": nn.BatchNorm2d(4), "d": nn.BatchNorm2d(4)}
    expected = population_statistics(Net(lambda net, x: net.c(net.b(net.a(x))), **layers), images(8, 8))

    model = Net(function, **layers)
    with unchanged(model), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = population_statistics(model, images(8, 8), strategy=strategy)

    assert measure_difference(found, expected) < 1e-6
    assert found.unseen == ("d",)
    assert found.check is not None and found.check.is_exact
    assert ["without calling them" in str(each.message) for each in caught] == [True] * (strategy == "breadth")


def test_norms_that_are_not_measured_are_no_mistake_the_slow_way() -> None:
    """Instance norms with averages, and constants in a batch norm of torch's."""

    class FrozenNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.ones(4))
            self.register_buffer("running_var", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.get_buffer("running_mean"), self.get_buffer("running_var"))

    layers = {"a": nn.Conv2d(3, 4, 1), "b": nn.BatchNorm2d(4), "c": nn.BatchNorm2d(4)}
    for other in (FrozenNorm(), nn.InstanceNorm2d(4, track_running_stats=True)):
        expected = population_statistics(
            Net(lambda net, x: net.c(net.n(net.b(net.a(x)))), n=other, **layers), images(8)
        )
        model = Net(lambda net, x: net.c.forward(net.n(net.b(net.a(x)))), n=other, **layers)
        with pytest.warns(RuntimeWarning, match="without calling them"):
            found = population_statistics(model, images(8))
        assert measure_difference(found, expected) < 1e-6


def test_averages_that_are_no_layers_are_refused() -> None:
    """As some channels of a layer's."""
    model = Net(_use_slices, a=nn.Conv2d(3, 4, 1), b=nn.BatchNorm2d(8))
    with unchanged(model), pytest.raises(ValueError, match="a part of a layer's averages"):
        population_statistics(model, images(8, 8))


def test_a_layer_that_is_neither_called_nor_read_is_unseen() -> None:
    model = Net(lambda net, x: net.c(net.a(x)), a=nn.Conv2d(3, 4, 1), b=nn.BatchNorm2d(4), c=nn.BatchNorm2d(4))

    assert population_statistics(model, images(8, 8)).unseen == ("b",)


def test_nan_that_a_model_gives_by_itself_is_of_no_layer() -> None:
    """As of a mask with the logarithm of 0 minus itself."""

    def run(net: Any, x: Tensor) -> Any:
        return net.c(net.a(x)) + torch.tensor(torch.inf) - torch.inf

    model = Net(run, a=nn.Conv2d(3, 4, 1), b=nn.BatchNorm2d(4), c=nn.BatchNorm2d(4))

    assert population_statistics(model, images(8, 8)).unseen == ("b",)
