"""What a forward changes, units, batches of every kind, and that nobody waits for a device."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnlab import gap, population_statistics, using
from bnlab.exact import population
from bnlab.exact import walk as walks
from bnlab.moments import Moments, compare_moments
from bnlab.reading import DeviceReader
from tests import references
from tests.helpers import assert_moments, images, plain, residual, unchanged
from tests.waits import Waits


def test_nobody_waits_for_the_device_between_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = population_statistics(residual(), images(8, 8, 5))
    waits = Waits()
    own_go = walks.Walk.go

    def go(walk: walks.Walk, progress: Callable[[], object]) -> walks.Walk:
        with waits:
            return own_go(walk, progress)

    monkeypatch.setattr(population, "choose_reader", lambda *_: DeviceReader())
    monkeypatch.setattr(walks.Walk, "go", go)
    found = population_statistics(residual(), images(8, 8, 5))

    assert not waits.counts
    assert max(max(compare_moments(expected[name], found[name])) for name in expected) < 1e-5


def test_what_is_not_finite_on_a_device_is_refused_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "choose_reader", lambda *_: DeviceReader())
    with pytest.raises(ValueError, match="the input of layer '1' has NaN or infinite values"):
        population_statistics(plain(), [images(8)[0] * torch.nan])


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


def under(*settings: Callable[[], Any]) -> Callable[[nn.Module, Tensor], Any]:
    def forward(model: nn.Module, batch: Tensor) -> Any:
        with contextlib.ExitStack() as stack:
            for setting in settings:
                stack.enter_context(setting())
            return model(batch)

    return forward


def half() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("settings", [(half,), (gradients,), (half, gradients), (gradients, half)])
def test_grad_and_autocast_inside_of_a_forward_begin_each_batch_once(settings: Any) -> None:
    forward = under(*settings)
    data = images(8, 8, 8, 5)
    found = population_statistics(residual(), data, forward=forward)

    assert found.cost is not None
    assert found.cost.forwards == found.cost.batches == 4

    slow = population_statistics(residual(), data, forward=forward, strategy="layerwise")
    for name, moments in slow.items():
        assert max(compare_moments(moments, found[name])) < 1e-4
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_settings_are_the_callers_after_an_exception() -> None:
    def fail(model: nn.Module, batch: Tensor) -> None:
        with half(), torch.no_grad():
            model(batch)
            raise KeyError("mine")

    with pytest.raises(KeyError):
        population_statistics(plain(), images(8, 8), forward=fail)

    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_each_forward_keeps_its_own_settings() -> None:
    """One under autocast, one without, waiting for each other."""

    def forward(model: nn.Module, batch: Tensor) -> None:
        with half() if len(batch) == 8 else contextlib.nullcontext():
            seen.append((len(batch), torch.is_autocast_enabled("cpu")))
            output = model(batch)
            seen.append((len(batch), output.dtype == torch.bfloat16))

    seen: list[tuple[int, bool]] = []
    found = population_statistics(plain(), images(8, 5, 8, 5), forward=forward)

    assert found.cost is not None
    assert found.cost.forwards == 4
    assert all(is_half == (size == 8) for size, is_half in seen)


# -- units ------------------------------------------------------------------------------------------------------------


def make_clouds(batches: int, clouds: int, points: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(batches, clouds, 1, 4, generator=generator)
    scattered = torch.randn(batches, clouds, points, 4, generator=generator)
    return list((scattered + 2 * centers).flatten(1, 2))


@pytest.mark.parametrize("images_of", [None, lambda batch: 3])
def test_standard_errors_of_rows_in_groups_cover_as_they_should(images_of: Any) -> None:
    """±2 errors cover the true mean, 0, and variance, 5, in 95% of cases; 60 draws of 4 channels each."""
    model = nn.Sequential(nn.BatchNorm1d(4))
    covered = []
    for seed in range(60):
        data = make_clouds(20, 3, 50, seed)
        found = population_statistics(model, data, standard_errors=True, images=images_of)
        assert found.standard_errors is not None
        mean_error, var_error = found.standard_errors["0"]
        covered.append((found["0"].mean.abs() < 2 * mean_error).double())
        covered.append(((found["0"].var - 5).abs() < 2 * var_error).double())
    share = float(torch.stack(covered).mean())

    assert 0.88 <= share <= 0.98


def test_one_batch_has_no_standard_errors() -> None:
    found = population_statistics(plain(), images(8), standard_errors=True)

    assert found.standard_errors is not None
    assert all(error.isnan().all() for errors in found.standard_errors.values() for error in errors)


def test_auto_does_not_stop_at_the_first_batch_of_clouds() -> None:
    """Case 2: one batch of two clouds was read, .025 σ was said, and it was .32 σ off."""
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16))
    data = make_clouds(150, 2, 800, 0)
    found = population_statistics(model, data, max_images="auto", tolerance=0.1)

    assert found.cost is not None
    assert found.cost.batches > 30
    everything = population_statistics(model, data)
    assert gap(everything, found)["mean_gap"].item() < 0.2


@pytest.mark.parametrize(
    ("images_of", "error", "message"),
    [
        (7, TypeError, "pass a function of a batch"),
        (lambda batch: "x", TypeError, "return how many images"),
        (lambda batch: [0.5] * 12, TypeError, "returned a list; return how many images"),
    ],
)
def test_what_images_may_be(images_of: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        population_statistics(
            nn.Sequential(nn.BatchNorm1d(3)), [torch.randn(12, 3)] * 2, images=images_of, standard_errors=True
        )


# -- batches ----------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, pictures: list[Tensor]) -> list[Tensor]:
        return [self.bn(picture[None]) for picture in pictures]


def test_a_list_of_images_counts_its_length() -> None:
    pictures = []
    for _ in range(10):
        batch = [torch.randn(3, 9, 9) for _ in range(8)]
        pictures.append((batch, None))

    found = population_statistics(Detector(), pictures)

    assert found.cost is not None
    assert found.cost.images == 80

    stopped = population_statistics(Detector(), pictures, max_images=20)
    assert stopped.cost is not None
    assert stopped.cost.images == 24


class Typed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.ModuleList(nn.BatchNorm1d(3) for _ in "ab")

    def forward(self, x: Tensor, kind: Tensor) -> list[Tensor]:
        return [self.bn[k](x[kind == k]) for k in (0, 1)]


def test_a_layer_that_gets_no_rows_in_a_batch_is_left_out_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(50, 3, generator=generator), (torch.rand(50, generator=generator) < 0.02).long())
               for _ in range(20)]  # fmt: skip

    assert any(not kind.any() for _, kind in batches)

    for upstream in ("population", "batch"):
        if upstream == "batch":
            batches = [batch for batch in batches if batch[1].sum() != 1]  # one value has no variance to normalize with
        found = population_statistics(Typed(), batches, forward=lambda m, b: m(*b), upstream=upstream)
        assert_moments(found["bn.1"], references.moments(torch.cat([x[kind == 1] for x, kind in batches])))


def test_tensors_of_different_lengths_are_never_cut() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)
            self.bn = nn.BatchNorm1d(4)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            assert int(edges.max()) < len(nodes)
            return self.bn(self.linear(nodes)[edges[0]])

    batches = [(torch.randn(100, 3), torch.randint(0, 100, (2, 300))) for _ in range(3)]
    found = population_statistics(Graph(), batches, forward=lambda model, batch: model(*batch))

    assert found.cost is not None
    assert found.cost.images == 300
    assert found["bn"].count == 900


def test_a_loader_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(4, 3, 8, 8)

    monkeypatch.setattr(population, "find_free_bytes", lambda device: 100_000)
    with pytest.raises(ValueError, match=r"17 batches take 52,224 bytes, more than half .* pass max_images="):
        population_statistics(plain(), endless())


def test_one_batch_may_take_more_than_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "find_free_bytes", lambda device: 10_000)
    (batch,) = images(8)

    assert batch.nbytes > 5_000

    found = population_statistics(plain(), [batch])
    assert found.cost is not None
    assert found.cost.images == 8

    with pytest.raises(ValueError, match=r"1 batch takes 6,144 bytes, more than half"):
        population_statistics(plain(), [batch, batch])


def test_float16_that_overflows_is_named() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).half()
    with pytest.raises(ValueError, match="float16 overflows beyond 65,504"):
        population_statistics(model, [torch.full((8, 3, 4, 4), torch.inf).half()])


def test_a_dict_batch_without_forward_says_what_to_pass() -> None:
    with pytest.raises(TypeError, match=r"a batch that is a dict .* forward=lambda model, batch: model\(\*\*batch\)"):
        population_statistics(plain(), [{"image": images(8)[0]}])


@pytest.mark.parametrize("options", [{}, {"upstream": "batch"}, {"strategy": "layerwise"}])
def test_buffers_of_functional_call_are_refused_and_left_as_they_were(options: Any) -> None:
    model = plain()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = copy.deepcopy(buffers)

    def forward(model: nn.Module, batch: Tensor) -> Any:
        return functional_call(model, buffers, (batch,))

    with unchanged(model), pytest.raises(ValueError, match="give functional_call parameters only"):
        population_statistics(model, images(8, 8, 5), forward=forward, **options)

    assert all(torch.equal(buffers[name], value) for name, value in before.items())


def test_parameters_of_functional_call_are_measured_in_one_pass() -> None:
    """As of a moving average of a network's weights."""
    model = plain()
    averaged = {name: 1.5 * value.detach() for name, value in model.named_parameters()}
    expected = copy.deepcopy(model)
    expected.load_state_dict(averaged, strict=False)

    def forward(model: nn.Module, batch: Tensor) -> Any:
        return functional_call(model, averaged, (batch,))

    with unchanged(model), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = population_statistics(model, images(8, 8, 5), forward=forward)

    assert found.cost is not None
    assert found.cost.forwards == 3
    for name, moments in population_statistics(expected, images(8, 8, 5)).items():
        assert max(compare_moments(moments, found[name])) < 1e-5


# -- layers that depend on themselves ---------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """One layer for all time steps."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.input = nn.Linear(3, size)
        self.hidden = nn.Linear(size, size)
        self.bn = nn.BatchNorm1d(size)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.hidden.in_features)
        for step in range(x.shape[1]):
            state = torch.tanh(self.input(x[:, step]) + self.bn(self.hidden(state)))
        return state


@pytest.mark.parametrize(
    "seed", [1, 8, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4, 5, 6, 7, 9, 10))]
)
def test_a_recurrent_layer_settles(seed: int) -> None:
    torch.manual_seed(seed)
    model = Recurrent(8 if seed < 8 else 20)
    data = [torch.randn(32, 6, 3) for _ in range(6)]
    found = population_statistics(model, data)
    if seed == 1:
        np.testing.assert_allclose(found["bn"].mean[:3], [-0.1692, 0.2075, -0.2259], atol=1e-4)
    with using(model, found), torch.no_grad():
        seen = references.moments_of_inputs(model, ["bn"], data, None)["bn"]

    assert max(compare_moments(Moments(*seen), found["bn"])) < 1e-5


class Quantized(nn.Module):
    """Weights that are rounded with their own norm folded in."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.bn = nn.BatchNorm2d(8)
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.bn.get_buffer("running_var") + 1e-5).rsqrt()[:, None, None, None]
        step = (self.weight * scale).abs().max() / self.levels
        return self.bn(nn.functional.conv2d(x, (self.weight * scale / step).round() * step / scale))


def test_a_layer_whose_buffers_are_part_of_its_input_is_not_called_exact() -> None:
    torch.manual_seed(0)
    model = Quantized(7)
    model.bn.get_buffer("running_var").copy_(27 * torch.linspace(0.3, 3, 8))
    with pytest.warns(RuntimeWarning, match="observers of quantization can be disabled"):
        found = population_statistics(model, [torch.randn(32, 3, 8, 8) for _ in range(8)])

    assert found.check is not None
    assert not found.check.is_exact


# -- ways through a model ---------------------------------------------------------------------------------------------


class Routes(nn.Module):
    """Two layers, of which an image's first pixel chooses one, and a third for all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) if x[0, 0, 0, 0] > 0 else self.b(x)
        return self.c(y * x)


@pytest.mark.parametrize("memory", [8_000, 12_000, 16_000, 24_000, 10**6])
def test_batches_on_different_routes_lose_nothing_where_memory_is_short(memory: int) -> None:
    batches = [torch.randn(2, 3, 8, 8) + index for index in range(6)]
    for index, batch in enumerate(batches):
        takes_the_second = index in (0, 3)
        batch[0, 0, 0, 0] = -1.0 if takes_the_second else 1.0
    expected = population_statistics(Routes(), batches)

    assert expected["a"].count == 512
    assert expected["b"].count == 256

    for options in ({"memory": memory}, {"strategy": "layerwise"}):
        found = population_statistics(Routes(), batches, **options)

        assert found.unseen == ()
        assert {name: moments.count for name, moments in found.items()} == {"a": 512, "b": 256, "c": 768}
        for name, moments in expected.items():
            assert max(compare_moments(moments, found[name])) < 1e-5


def test_grad_mode_stays_after_an_error_where_a_forward_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(DeviceReader):
        def read(self, x: Tensor) -> Any:
            raise MemoryError("no room")

    monkeypatch.setattr(population, "choose_reader", lambda *_: Failing())
    with contextlib.suppress(MemoryError):
        population_statistics(plain(), images(8, 8), forward=under(gradients))

    assert torch.is_grad_enabled()

    with torch.no_grad():
        with contextlib.suppress(MemoryError):
            population_statistics(plain(), images(8, 8), forward=under(gradients))
        assert not torch.is_grad_enabled()


def test_what_a_forward_raises_on_its_way_out_does_not_hide_what_is_wrong() -> None:
    def forward(model: nn.Module, batch: Tensor) -> None:
        try:
            model(batch)
        except BaseException as error:
            raise RuntimeError("cleanup failed") from error

    with pytest.raises(ValueError, match="NaN or infinite values"):
        population_statistics(plain(), [images(8)[0] * torch.nan] * 2, forward=forward)


@pytest.mark.parametrize("offset", [0.0, 300.0, 30_000.0])
def test_the_check_holds_far_from_zero_where_rows_are_no_images(offset: float) -> None:
    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x.flatten(0, 1))

    found = population_statistics(Frames(), [torch.randn(16, 5, 3, 8, 8) + offset for _ in range(3)])

    assert found.check is not None
    assert found.check.held


def test_standard_errors_of_a_layer_that_is_called_several_times_are_of_images() -> None:
    class Twice(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)
            self.times = times

        def forward(self, x: Tensor) -> None:
            for _ in range(self.times):
                self.bn(x)

    data = [torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(10)]
    once = population_statistics(Twice(1), data, standard_errors=True)
    often = population_statistics(Twice(4), data, standard_errors=True)

    assert once.standard_errors is not None
    assert often.standard_errors is not None
    torch.testing.assert_close(often.standard_errors["bn"][0], once.standard_errors["bn"][0], rtol=1e-6, atol=0)


def test_a_model_that_changes_its_route_with_every_call_ends() -> None:
    class Alternating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.BatchNorm2d(3)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.b(self.b(x)) if self.calls % 2 == 0 else x

    with warnings.catch_warnings(), contextlib.suppress(ValueError):
        warnings.simplefilter("ignore")
        population_statistics(Alternating(), images(8))


def test_layers_in_other_threads_are_refused() -> None:
    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(self.bn, x).result()

    with warnings.catch_warnings(), pytest.raises(ValueError, match="runs in another thread"):
        warnings.simplefilter("ignore")
        population_statistics(Threaded(), images(8, 8))


def test_auto_doubles_what_was_read() -> None:
    data = [torch.randn(300, 3, 2, 2) for _ in range(40)]
    found = population_statistics(nn.Sequential(nn.BatchNorm2d(3)), data, max_images="auto", tolerance=0.012)

    assert found.cost is not None
    assert found.cost.batches in (8, 16, 32, 40)


def test_auto_measures_again_only_what_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    own_measure = population.measure_exactly

    def count_and_measure(task: Any, *args: Any) -> Any:
        measured.append(len(task.data))
        return own_measure(task, *args)

    monkeypatch.setattr(population, "measure_exactly", count_and_measure)
    data = [torch.randn(32, 3, 2, 2) for _ in range(16)]
    found = population_statistics(nn.Sequential(nn.BatchNorm2d(3)), data, max_images="auto", tolerance=1e-9)

    assert measured == [8, 16]
    assert found.cost is not None
    assert found.cost.batches == 16


def test_a_check_of_values_that_cannot_be_compared_says_so() -> None:
    """Of a channel that was constant in the walk and is not in the check."""

    class Woken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.BatchNorm1d(3)
            self.b = nn.BatchNorm1d(3)
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = self.a(x)
            return self.b(x if self.calls > 3 else torch.zeros_like(x))

    with pytest.warns(RuntimeWarning, match="does not call layer 'b' in its turn, or gives it values that cannot be"):
        population_statistics(Woken(), [torch.randn(16, 3)] * 2)


def test_a_count_may_be_a_tensor() -> None:
    found = population_statistics(plain(), images(8, 8), images=lambda batch: torch.tensor(len(batch)))
    assert found.cost is not None
    assert found.cost.images == 16
