"""Each forward begins with the model as its owner has left it, and with numbers of its own."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab import layer_calls, population_statistics, record_frozen, self_consistency
from bnlab.randomness import RandomStream
from tests.exact.test_hazards import LAYERWISE
from tests.helpers import images, plain, unchanged


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def measure_batch_upstream(model: nn.Module, batches: Any) -> Any:
    return population_statistics(model, batches, upstream="batch")


def list_moments(measured: Any) -> list[Tensor]:
    """Of all layers, of statistics or of a trace."""
    if hasattr(measured, "layers"):
        return [layer.moments for layer in measured.layers.values()]
    return [torch.stack((moments.mean, moments.var)) for moments in measured.values()]


def label(model: nn.Module, batches: Any, leaves: bool) -> Iterator[Tensor]:
    """The batches, for each of which the model is evaluated, and then put into another mode."""
    for x in batches:
        model.eval()(x)
        model.train(leaves)
        yield x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize("measure", [population_statistics, LAYERWISE, measure_batch_upstream])
def test_noise_of_a_forward_is_not_that_of_its_batch(measure: Callable[..., Any]) -> None:
    """Of latents that were drawn right after seeding, as those of all batches or each from a seed of its own."""
    model, n = nn.Sequential(Noisy(), nn.BatchNorm1d(1)), 4096
    torch.manual_seed(3)
    together = list(torch.randn(4, n, 1))
    apart = [torch.randn(n, 1, generator=torch.Generator().manual_seed(3 + index)) for index in range(4)]
    for batches in (together[:1], together, apart):
        torch.manual_seed(3)
        var = measure(model, batches)["1"].var.item()
        rows = n * len(batches)
        assert abs(var / 2 - 1) < 6 * (2 / rows) ** 0.5  # the standard error of a variance; the same numbers give 2


def test_streams_are_of_one_batch_of_one_process() -> None:
    torch.manual_seed(3)
    streams = [RandomStream(torch.device("cpu"), (), rank) for rank in range(3)]
    states = [torch.get_rng_state(), *(stream.begin(index)[0] for stream in streams for index in range(3))]
    assert len({state.numpy().tobytes() for state in states}) == 10


class Adapter(nn.Linear):
    """Adds to its weight in eval mode, and takes it away in train mode."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.extra, self.merged = nn.Parameter(torch.randn(width, width)), False

    def train(self, mode: bool = True) -> Adapter:
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.extra if mode else self.extra
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight if self.merged else self.weight + self.extra, self.bias)


class AdapterByState(Adapter):
    """The same with another name for the argument of `train`, which has to be given."""

    def train(self, state) -> AdapterByState:  # type: ignore[no-untyped-def, override]
        super().train(state)
        return self


def record_training(model: nn.Module, batches: Any) -> Any:
    return record_frozen(model, batches, training=True)


@pytest.mark.parametrize("kind", [Adapter, AdapterByState])
@pytest.mark.parametrize("training", [True, False])
def test_adapters_that_are_merged_in_eval_mode(training: bool, kind: type[Adapter]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), kind(4), nn.BatchNorm1d(4)).double().train(training)
    batches = [torch.randn(8, 4).double() * (1 + i) for i in range(3)]
    merged = nn.Linear(4, 4).double()
    merged.load_state_dict({key: copy.deepcopy(model).eval()[1].state_dict()[key] for key in ("weight", "bias")})
    plainly = nn.Sequential(model[0], merged, model[2])
    for measure in (population_statistics, LAYERWISE, measure_batch_upstream, record_frozen, record_training):
        wanted = list_moments(measure(plainly, batches))
        with unchanged(model):
            found = list_moments(measure(model, batches))
        assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, wanted, strict=True))


class Teaching(nn.Module):
    """Runs with averaged weights first, which it copies into its own and takes out again without a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.averaged = [torch.randn_like(p) for p in self.linear.parameters()]

    def _swap(self, values: list[Tensor]) -> list[Tensor]:
        own = [p.detach().clone() for p in self.linear.parameters()]
        for p, value in zip(self.linear.parameters(), values, strict=True):
            p.data.copy_(value)
        return own

    def forward(self, x: Tensor) -> Tensor:
        own = self._swap(self.averaged)
        first = self.bn(self.linear(x))
        self._swap(own)
        return first + self.bn(self.linear(x))


class Averaged(nn.Linear):
    """Is evaluated with other weights, which it exchanges with its mode."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        self.other, self.exchanged = nn.Parameter(torch.randn(width, width)), False

    def train(self, mode: bool = True) -> Averaged:
        if mode == self.exchanged:
            self.weight.data, self.other.data = self.other.data, self.weight.data
            self.exchanged = not mode
        return super().train(mode)


@pytest.mark.parametrize("measure", [record_frozen, record_training, measure_batch_upstream])
@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("make", [Adapter, Averaged])
def test_weights_of_modes_that_a_loader_has_changed(
    measure: Callable[..., Any], leaves: bool, make: Callable[[int], nn.Module]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), make(4), nn.BatchNorm1d(4)).double()
    batches = [torch.randn(8, 4).double() * (1 + i) for i in range(3)]

    wanted = list_moments(measure(model, batches))
    with unchanged(model):
        found = list_moments(measure(model, label(model, batches, leaves)))
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, wanted, strict=True))


@pytest.mark.filterwarnings("default")
def test_weights_that_are_exchanged_without_a_trace_are_told() -> None:
    torch.manual_seed(0)
    model, batches = Teaching(), [torch.randn(8, 3) for _ in range(3)]
    with unchanged(model), pytest.warns(RuntimeWarning, match="layer 'bn': the first batch, evaluated again"):
        population_statistics(model, batches)


class Momentum(nn.Module):
    """Has an encoder that follows another one at each forward, and counts these."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.following = nn.Linear(3, 3), nn.Linear(3, 3)
        self.bn = nn.BatchNorm1d(3)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        for p, q in zip(self.own.parameters(), self.following.parameters(), strict=True):
            q.data.mul_(0.9).add_(0.1 * p.data)
        return self.bn(self.following(x) * self.steps)


def test_self_consistency_begins_anew_with_each_batch() -> None:
    torch.manual_seed(0)
    model, batches = Momentum().double(), [torch.randn(8, 3).double() for _ in range(3)]
    found = LAYERWISE(model, batches)
    with unchanged(model):
        for _ in range(2):
            assert max(self_consistency(model, found, batches)) < 1e-14


class Inverse(nn.Module):
    """Reads the running buffers of a layer that it has called, as a flow's inverse does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y * self.first.running_var.sqrt() + self.first.running_mean)


def test_running_buffers_that_are_read_after_the_call() -> None:
    model, (x, *others) = Inverse(), [torch.randn(8, 3) * (1 + i) for i in range(3)]
    alone, twice = (list_moments(measure_batch_upstream(model, [x] * n)) for n in (1, 2))
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(alone, twice, strict=True))
    assert measure_batch_upstream(model, [x, *others]).check.leaking is None


@pytest.mark.parametrize("measure", [measure_batch_upstream, record_frozen])
@pytest.mark.parametrize("leaves", [True, False])
def test_a_loader_may_leave_the_model_in_another_mode(measure: Callable[..., Any], leaves: bool) -> None:
    """As one that labels its images with the model does, and then gives back train mode."""
    model, batches = plain(), images(4, 3)
    model.insert(1, nn.Dropout(0.5))

    wanted = list_moments(measure(model, batches))
    with unchanged(model):
        found = list_moments(measure(model, label(model, batches, leaves)))
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("measure", [measure_batch_upstream, record_frozen])
def test_a_loader_evaluates_the_model_with_its_own_averages(measure: Callable[..., Any]) -> None:
    """As one that takes images by how the model predicts them, itself or a copy."""
    model, batches = plain().double(), [x.double() for x in images(4, 3, 5)]

    def load(model: nn.Module = model) -> Iterator[Tensor]:
        for x in batches:
            copied = copy.deepcopy(model).eval()
            yield x + model.eval()(x).mean() + copied(x).mean()

    kept = list(load(copy.deepcopy(model)))
    wanted, statistics = list_moments(measure(model, kept)), population_statistics(model, kept)
    with unchanged(model):
        found = list_moments(measure(model, load()))
        assert max(self_consistency(model, statistics, load())) < 1e-12
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("measure", [measure_batch_upstream, record_frozen])
def test_a_loader_may_change_the_weights(measure: Callable[..., Any]) -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(8, 3)

    def load() -> Iterator[Tensor]:
        for _ in range(3):
            yield x
            with torch.no_grad():
                model[0].weight.mul_(2.0)

    scaled = [copy.deepcopy(model) for _ in range(3)]
    for i, other in enumerate(scaled):
        other[0].weight.data.mul_(2.0**i)
    wanted = torch.stack([other[0](x).var(0) for other in scaled])
    found = measure(model, load())
    if measure is record_frozen:
        assert torch.allclose(found.layers["1"].moments[:, 1], wanted, rtol=1e-5)
    else:
        whole = torch.cat([other[0](x) for other in scaled]).var(0, correction=0)
        assert torch.allclose(found["1"].var.float(), whole, rtol=1e-5)


def test_a_forward_may_train_its_model() -> None:
    """As adaptation at test time does: there is nothing to be told of steps, each forward is one."""

    class Adapting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                loss = super().forward(x).softmax(1).square().mean()
                optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
                loss.backward()
                optimizer.step()
            return super().forward(x)

    torch.manual_seed(0)
    model, batches = Adapting(nn.Linear(3, 3), nn.BatchNorm1d(3)), [torch.randn(8, 3) for _ in range(3)]
    with unchanged(model):
        trace = record_frozen(model, batches)
    assert trace.layers["1"].steps == [1, 1, 2, 2, 3, 3]


class Named(nn.BatchNorm1d):
    """Takes its running statistics, has a forward of its own, and many attributes."""

    def forward(self, x: Tensor, sigma: float = 0.0, time: int = 0) -> Tensor:
        return (x - self.running_mean) / (self.running_var + self.eps).sqrt()  # type: ignore[operator]


def count_trials(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    trials: list[Any] = []
    own = layer_calls._takes_running
    monkeypatch.setattr(layer_calls, "_takes_running", lambda *args: trials.append(args) or own(*args))
    return trials


def test_layers_are_tried_anew_for_other_sizes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Conditional(nn.BatchNorm1d):
        def forward(self, x: Tensor, sigma: float, time: int) -> Tensor:
            return super().forward(x) * sigma

    class Diffusion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = Conditional(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x, float(len(x)) / 100, len(x))

    trials = count_trials(monkeypatch)
    batches = [torch.randn(n, 3) for n in range(16, 32)]
    measure_batch_upstream(Diffusion(), batches)
    assert len(trials) == 1
    measure_batch_upstream(Diffusion(), [*batches, torch.randn(32, 3)])
    assert len(trials) == 3
    monkeypatch.setattr(layer_calls, "_are_several_processes", lambda: True)
    measure_batch_upstream(Diffusion(), [*batches, torch.randn(32, 3)])
    assert len(trials) == 4


class Choosing(nn.BatchNorm1d):
    """Takes its running statistics in one of its domains, or as a container of its own says."""

    def __init__(self) -> None:
        super().__init__(3)
        self.options = {"takes": False}

    def forward(self, x: Tensor, domain: int) -> Tensor:
        takes = domain == 3 or self.options["takes"]
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=not takes)


def test_a_loader_may_label_all_images_when_it_begins() -> None:
    model, batches = plain().double(), [x.double() for x in images(4, 3, 5)]

    class Labelling:
        def __iter__(self) -> Iterator[Tensor]:
            return iter([x + model.eval()(x).mean() for x in batches])

    statistics = population_statistics(model, list(Labelling()))
    assert max(self_consistency(model, statistics, Labelling())) < 1e-12


def test_averages_that_a_loader_writes_stay() -> None:
    model, x = nn.Sequential(nn.BatchNorm1d(3)).eval(), torch.randn(8, 3)
    seen: list[Tensor] = []

    def load() -> Iterator[Tensor]:
        for _ in range(3):
            seen.append(model.eval()(x))
            yield x
            if len(seen) == 1:
                model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})

    with unchanged(model):
        measure_batch_upstream(model, load())
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("wrap", [int, torch.tensor, np.int64])
@pytest.mark.parametrize("switches", [False, True])
def test_layers_are_tried_anew_for_each_domain_and_option(switches: bool, wrap: Callable[[int], Any]) -> None:
    class Domains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.last = Choosing(), nn.BatchNorm1d(3)

        def forward(self, batch: tuple[Tensor, int]) -> Tensor:
            x, domain = batch
            self.bn.options["takes"] = switches and domain == 2
            return self.last(self.bn(x, min(domain, wrap(2)) if switches else domain))

    batches = [(torch.randn(8, 3), wrap(domain)) for domain in (1, 2, 3)]
    with pytest.raises(ValueError, match="the running statistics of 'bn' are used"):
        population_statistics(Domains(), batches, upstream="batch", forward=lambda model, batch: model(batch))


class Halving(nn.BatchNorm1d):
    """Normalizes each half of its batch by itself, the second one by another layer's average."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.second = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        first, second = x.chunk(2)
        return torch.cat((super().forward(first), self.second(second)))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("scale", "offsets"), [(1.0, (0.0, 1.0)), (0.5, (1.0, 0.5)), (1.0, (0.5, -1.5)), (0.0, (1.0, 0.0))]
)
def test_layers_that_average_a_part_of_their_input_are_told(
    channels: int, scale: float, offsets: tuple[float, float]
) -> None:
    """Parts with other means, also multiples of the others', of the other sign, or nothing but padding."""
    model = nn.Sequential(Halving(channels), nn.BatchNorm1d(channels))
    first, second = offsets
    batches = [torch.randn(8, channels) for _ in range(2)]
    batches = [torch.cat((x + first, scale * x + second)) for x in batches]
    with unchanged(model), pytest.warns(RuntimeWarning, match="layer '0': normalizes something else than its input"):
        assert measure_batch_upstream(model, batches).check.transformed == ("0",)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parts_are_told_under_autocast_too(dtype: torch.dtype) -> None:
    """Running buffers are float32 there, and lose nothing."""
    model, x = nn.Sequential(nn.Linear(3, 3), Halving(3)), torch.randn(8, 3)
    nn.init.eye_(model[0].weight)

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            return model(batch)

    with pytest.warns(RuntimeWarning, match="layer '1': normalizes something else than its input"):
        population_statistics(model, [torch.cat((x, x + 0.8))], upstream="batch", forward=forward)


class Diverting(nn.BatchNorm1d):
    """Gives adversarial images to another layer, as AdvProp does."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.other, self.diverts = nn.BatchNorm1d(width), False

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x) if self.diverts else super().forward(x)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_layers_that_average_some_of_their_calls_are_told(order: tuple[bool, bool]) -> None:
    def forward(model: nn.Sequential, batch: Tensor) -> None:
        for diverts in order:
            model[0].diverts = diverts
            model(batch + diverts)

    model, batches = nn.Sequential(Diverting(3)), [torch.randn(8, 3) for _ in range(2)]
    with pytest.warns(RuntimeWarning, match="layer '0': normalizes something else than its input"):
        found = population_statistics(model, batches, upstream="batch", forward=forward)
    assert found.check.transformed == ("0",)
    trace = record_frozen(model, batches, forward=forward)  # which tells its calls from each other
    assert torch.allclose(trace.layers["0"].moments[:, 0], torch.stack([x.mean(0) for x in batches]), atol=1e-6)


class Scaling(nn.BatchNorm1d):
    """Takes its running statistics, and a scale whose weight a hook makes in front of each call."""

    def __init__(self) -> None:
        super().__init__(3)
        self.scale = nn.Linear(3, 3)
        self.scale.original = self.scale._parameters.pop("weight")
        self.scale.register_forward_pre_hook(lambda scale, _: setattr(scale, "weight", 2 * scale.original))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.batch_norm(x, self.running_mean, self.running_var)
        return y * self.scale(x)


@pytest.mark.parametrize("measure", [measure_batch_upstream, record_frozen])
def test_trials_run_hooks_that_make_weights(measure: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="running statistics of '0' are used"):
        measure(nn.Sequential(Scaling()), [torch.randn(8, 3)])


class Borrowing(nn.BatchNorm1d):
    """Calls a layer that is no part of it, and averages nothing itself."""

    def __init__(self, other: nn.BatchNorm1d) -> None:
        super().__init__(3)
        self.others = (other,)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(self.others[0](x), None, None, training=True)


@pytest.mark.filterwarnings("default")
def test_trials_do_not_count_as_calls_of_other_layers() -> None:
    other = nn.BatchNorm1d(3)
    model = nn.Sequential(Borrowing(other), other)
    batches = [torch.randn(8, 3) for _ in range(2)]
    with pytest.warns(RuntimeWarning, match="'0' averaged nothing"):
        assert len(record_frozen(model, batches).layers["1"]) == 4


class Deciding(nn.BatchNorm1d):
    """Takes its running statistics where something says so that cannot be seen from outside."""

    def __init__(self, decide: Callable[[Tensor], bool]) -> None:
        super().__init__(3)
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        takes = self.training and self.decide(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=self.training and not takes)


@pytest.mark.parametrize("decide", [lambda x: len(x) < 50, lambda x: x[0, 0] < 0, lambda x: torch.rand(()) < 0.5])
def test_layers_that_take_running_statistics_now_and_then(decide: Callable[[Tensor], bool]) -> None:
    model = nn.Sequential(Deciding(decide), nn.BatchNorm1d(3))
    batches = [torch.randn(60, 3).abs(), *(-torch.randn(40, 3).abs() for _ in range(9))]
    with pytest.raises(ValueError, match="the running statistics of '0' are used"):
        measure_batch_upstream(model, batches)


class Tapping(nn.BatchNorm1d):
    """Keeps its output in a list that it is given, and adds it to another argument."""

    def forward(self, x: Tensor, taps: list[Tensor], total: Tensor) -> Tensor:
        y = self.activation(super().forward(x))
        taps.append(y)
        total.add_(y)
        return y


class Tapped(nn.Module):
    """Two layers whose outputs' mean goes to a third; a hook inside of them keeps these too."""

    def __init__(self, *, taps: bool) -> None:
        super().__init__()
        self.taps, self.seen = taps, list[Tensor]()
        self.layers = nn.ModuleList((Tapping if taps else nn.BatchNorm1d)(3) for _ in range(2))
        self.last = nn.BatchNorm1d(9)
        for layer in self.layers if taps else ():
            layer.activation = nn.Tanh()
            layer.activation.register_forward_hook(lambda module, args, output: SEEN.append(output))

    def forward(self, x: Tensor) -> Tensor:
        SEEN.clear()
        taps, total = list[Tensor](), torch.zeros_like(x)
        for layer in self.layers:
            if self.taps:
                x = layer(x, taps, total)
            else:
                x = layer(x).tanh()
                SEEN.append(x)
                taps.append(x)
                total = total + x
        return self.last(torch.cat((torch.stack(taps).mean(0), total, torch.stack(SEEN).std(0)), 1))


SEEN: list[Tensor] = []


@pytest.mark.parametrize("measure", [measure_batch_upstream, record_frozen])
def test_trials_leave_arguments_and_inner_hooks_alone(measure: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(8, 3) + 1 for _ in range(3)]
    wanted, found = (list_moments(measure(Tapped(taps=taps), batches)) for taps in (False, True))
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(found, wanted, strict=True))


class Forgetting(nn.BatchNorm1d):
    """Averages nothing while it is trained."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


@pytest.mark.filterwarnings("default")
def test_layers_that_are_called_and_average_nothing_are_told() -> None:
    model, batches = nn.Sequential(nn.BatchNorm1d(3), Forgetting(3)), [torch.randn(8, 3)]
    with pytest.warns(RuntimeWarning, match="record_frozen: '1' averaged nothing"):
        trace = record_frozen(model, batches)
    assert [len(entries) for entries in trace.layers.values()] == [1, 0]
    with unchanged(model), pytest.raises(ValueError, match="nor of other layers; let the forward call"):
        record_frozen(model[1:], batches)


class ByHand(nn.BatchNorm1d):
    """Averages moments in the precision of its input, with a floor below the variance, and part after part."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        for part in x.chunk(2):
            var, mean = torch.var_mean(part, 0)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_(var.clamp(min=1e-4).to(self.running_var), self.momentum)
        var, mean = torch.var_mean(x, 0)
        return (x - mean) / (var + self.eps).sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_average_all_of_their_input_by_hand_are_not_told(dtype: torch.dtype) -> None:
    model = nn.Sequential(ByHand(3))
    batch = torch.randn(64, 3) * torch.tensor([1.0, 0.0, 1.0]) + torch.tensor([0.0, 0.7, 300.0])
    assert measure_batch_upstream(model, [batch.to(dtype)]).check.transformed == ()


@pytest.mark.parametrize("value", [torch.tensor(1.0), np.array(1.0), torch.zeros(0, 3)])
@pytest.mark.parametrize("measure", [record_frozen, measure_batch_upstream])
def test_attributes_of_layers_without_a_length(measure: Callable[..., Any], value: Any) -> None:
    model = nn.Sequential(Deciding(lambda x: False))
    model[0].limit = value
    assert measure(model, [torch.randn(8, 3)])


@pytest.mark.parametrize("measure", [population_statistics, LAYERWISE, measure_batch_upstream, record_frozen])
def test_weights_in_other_layouts(measure: Callable[..., Any]) -> None:
    model = nn.Sequential(Adapter(4), nn.BatchNorm1d(4))
    model[0].register_parameter("graph", nn.Parameter(torch.eye(4).to_sparse(), requires_grad=False))
    assert measure(model, [torch.randn(8, 4)])


def test_gradients_that_a_loader_takes_are_put_back() -> None:
    """As adversarial images are made."""
    model, batches = plain(), images(4, 3)
    statistics = population_statistics(model, batches)

    def load() -> Iterator[Tensor]:
        for x in batches:
            model.eval()(x).square().sum().backward()
            yield x

    for measure in (lambda: self_consistency(model, statistics, load()), lambda: record_frozen(model, load())):
        measure()
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_whose_input_a_hook_prepares_is_tried_with_it() -> None:
    class Wrap(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x}

    model = nn.Sequential(Wrap(), Named(3), nn.BatchNorm1d(3))
    model[1].register_forward_pre_hook(lambda module, args: (args[0]["x"],))
    with pytest.raises(ValueError, match="the running statistics of '1' are used"):
        measure_batch_upstream(model, [torch.randn(8, 3)])


def test_a_trial_that_runs_out_of_memory_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*args: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(layer_calls, "_run_with_moved_buffers", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        measure_batch_upstream(nn.Sequential(Named(3), nn.BatchNorm1d(3)), [torch.randn(8, 3)])


class WithHead(nn.Module):
    """Calls its head in train mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.head = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        return x + self.head(x) if self.training else x


@pytest.mark.filterwarnings("default")
def test_layers_that_no_forward_calls_are_told() -> None:
    model, batches = WithHead(), [torch.randn(8, 4) for _ in range(3)]
    with (
        unchanged(model),
        pytest.warns(RuntimeWarning, match="record_frozen: no values have come to 'head' "),
    ):
        assert [len(entries) for entries in record_frozen(model, batches).layers.values()] == [3, 0]
    assert [len(entries) for entries in record_frozen(model, batches, training=True).layers.values()] == [3, 3]
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"no values have come to 'bn', 'head' .* let the forward call"),
    ):
        record_frozen(model, batches, forward=lambda model, x: copy.deepcopy(model)(x))
