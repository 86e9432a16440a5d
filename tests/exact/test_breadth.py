"""Memory, layers that are shared or skipped, several ranks, sampling errors: what breadth-first alone can do."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab import Statistics, memory, population_statistics, self_consistency
from bnlab.memory import LiveBytes, memory_limit
from tests import references
from tests.helpers import assert_moments, images, plain, randomized, residual, run_two_ranks, unchanged

FLOAT32 = 2e-6  # a few roundings of float32, relative to σ and to the variance


def assert_same(a: Statistics, b: Statistics, tolerance: float = FLOAT32) -> None:
    assert list(a) == list(b)
    for name in a:
        assert_moments(a[name], b[name], mean=tolerance, var=tolerance)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_tenth_of_the_memory_gives_the_same_result(channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = residual(8).to(memory_format=layout)
    batches = [x.contiguous(memory_format=layout) for x in images(*[4] * 40, side=16)]
    with LiveBytes() as unlimited:
        expected = population_statistics(model, batches)
    assert expected.cost.forwards == 40 and expected.cost.passes == 1
    for share in (0.6, 0.3, 0.1):
        limit = int(share * unlimited.peak)
        with unchanged(model), LiveBytes() as live:
            found = population_statistics(model, batches, memory=limit)
        assert live.peak <= limit
        assert 0 < found.cost.peak_bytes <= limit
        assert found.cost.forwards > 40 or share > 0.5
        assert_same(found, expected)


def test_layer_by_layer_counts_its_forwards_too() -> None:
    """One for each layer and batch, and one that finds no further layer."""
    model, batches = residual(8), images(*[4] * 5, side=16)
    found = population_statistics(model, batches, strategy="layerwise")
    assert (found.cost.images, found.cost.batches) == (20, 5)
    assert found.cost.forwards == 5 * (len(found) + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_tensors() -> None:
    # A few tensors that live and end as in a forward. One alone tells nothing: glibc before 2.38 cuts an aligned block
    # out of a larger one, so that a block which was freed is too small for the next tensor of its size, unless its
    # neighbour in memory is free too.
    script = """
import resource, torch
from bnlab.memory import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.ones(2**20)  # 4 MiB
    for _ in range(10):
        x = (x + 1).relu()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), min(faults() for _ in range(5)))
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    fresh, again = map(int, printed.split())
    pages = 2**22 // 4096
    assert fresh > 2 * pages and again < pages / 100


def test_the_smaller_the_memory_the_more_is_run_again() -> None:
    model, batches = residual(8), images(*[4] * 30, side=16)
    with LiveBytes() as unlimited:
        population_statistics(model, batches)
    found = [population_statistics(model, batches, memory=unlimited.peak // k).cost.forwards for k in (2, 4, 8)]
    assert found == sorted(found) and found[0] < found[2]
    # Never more than a run for each batch and layer, and one more to see whether a layer comes twice.
    assert found[2] <= 30 * (len(population_statistics(model, batches)) + 1)


def test_batches_of_other_sizes_keep_the_limit() -> None:
    model, batches = residual(8), images(2, 9, 4, 12, 1, 7, 3, 8, 6, 5, 11, 2, side=12)
    with LiveBytes() as unlimited:
        expected = population_statistics(model, batches)
    limit = unlimited.peak // 3
    with LiveBytes() as live:
        found = population_statistics(model, batches, memory=limit)
    assert live.peak <= limit
    assert_same(found, expected)


def test_noise_and_far_means_under_short_memory() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1000 + 0.01 * (x + torch.randn_like(x))

    model, batches = nn.Sequential(Noisy(), *plain()), images(*[4] * 20)
    with LiveBytes() as unlimited:
        expected = population_statistics(model, batches)
    assert_same(population_statistics(model, batches, memory=unlimited.peak // 4), expected)


def test_one_batch_that_does_not_fit() -> None:
    model = plain()
    with (
        unchanged(model),
        pytest.raises(
            ValueError, match=r"forward needs [\d,]+ bytes, moments and copies of weights [\d,]+, memory= allows 1,000"
        ),
    ):
        population_statistics(model, images(8, 8), memory=1000)


def test_a_batch_that_is_changed_after_it_was_read() -> None:
    x = images(6)[0]

    def refilled() -> object:
        for _ in range(20):
            yield x
            x.mul_(1.1)

    model = plain()
    with LiveBytes() as unlimited:
        population_statistics(model, images(*[6] * 20))
    with unchanged(model), pytest.raises(ValueError, match=r"batch \d+ was changed after it was read"):
        population_statistics(model, refilled(), memory=unlimited.peak // 4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("memory", "limit"), [(1000, 1000), ("2 KiB", 2048), ("1.5MB", 1_500_000), ("3gib", 3 * 2**30)]
)
def test_reading_a_limit(memory: int | str, limit: int) -> None:
    assert memory_limit(memory, torch.device("cpu")) == limit
    assert memory_limit(None, torch.device("cpu")) > 2**20


def test_live_bytes_of_a_chain() -> None:
    x = torch.zeros(256)  # 1 kB
    with LiveBytes() as live:
        y = x + 1
        z = (y * 2) * 3  # the product in between is alive while z is made
        del y
    assert live.peak == 3 * 1024 and live.now() == 1024
    del z
    assert live.now() == 0


# -- layers that depend on themselves ---------------------------------------------------------------------------------


class CallsTwice(nn.Module):
    """One norm before and after a convolution; as the last layer, or before another."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.other = None if last else nn.BatchNorm2d(3)
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(self.bn(x).relu()))
        return x if self.other is None else self.other(x)


class Branching(nn.Module):
    """Batches with a positive mean pass `a` first, the others come to `b` at once."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.a, self.c = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu() if x.mean() > 0.4 else x).relu())


@pytest.mark.parametrize("build", [lambda: CallsTwice(True), lambda: CallsTwice(False), Branching])
@pytest.mark.parametrize("memory", [None, 30_000])
def test_the_fixed_point_is_self_consistent(build: object, memory: int | None) -> None:
    model, batches = build(), images(4, 3, 5, 2)  # type: ignore[operator]
    with unchanged(model):
        found = population_statistics(model, batches, memory=memory)
    # The residual is that of the last pass; the ordinary evaluation sees it again, to the rounding of float32.
    assert found.cost.passes > 1 and found.cost.residual <= 1e-6
    mean, var = self_consistency(model, found, batches)
    assert mean <= 1e-6 + FLOAT32 and var <= 1e-6 + FLOAT32
    assert set(found) == {name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def test_a_skipped_layer_counts_what_reached_it() -> None:
    batches = images(4, 3, 5, 2)
    found = population_statistics(Branching(), batches)
    assert found["a"].count == sum(64 * len(x) for x in batches if x.mean() > 0.4) < found["b"].count


class Again(nn.Module):
    """Batches with `y`, or with large images, or of large values, come to the same layer once more at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = randomized(nn.BatchNorm2d(3))

    def forward(self, batch: dict[str, Tensor]) -> None:
        x = self.bn(batch["x"])
        if "y" in batch:
            self.bn(batch["y"])
        if x.shape[-1] > 8 or batch["x"].max() > 100:
            self.bn(x + 1)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_same_past_and_another_future(reverse: bool) -> None:
    (small,), (large,) = images(4), images(4, side=12)
    batches = [{"x": small, "y": small + 5}, {"x": small}, {"x": large}, {"x": small * 100}]
    model = Again()
    found = population_statistics(model, batches[::-1] if reverse else batches)
    assert found["bn"].count == 4 * (64 + 64 + 64 + 2 * 144 + 2 * 64)
    assert max(self_consistency(model, found, batches)) <= 1e-6 + FLOAT32


def test_calls_on_the_same_images_count_but_tell_no_more() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> None:
            self.bn(x)
            self.bn(x)

    batches = images(5, 9)
    found = population_statistics(Twice(), batches, standard_errors=True)
    once = population_statistics(nn.Sequential(nn.BatchNorm2d(3)), batches, standard_errors=True)
    assert found["bn"].count == 2 * once["0"].count
    assert found.standard_errors is not None and once.standard_errors is not None
    for twice, expected in zip(found.standard_errors["bn"], once.standard_errors["0"], strict=True):
        torch.testing.assert_close(twice, expected, rtol=1e-5, atol=0)


class Siamese(nn.Module):
    """One deep trunk for two images, and a head for both together."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(depth)]
        self.trunk = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat((self.trunk(x), self.trunk(1 - 2 * x.flip(-1))), dim=1))


class Chunked(nn.Module):
    """Every layer normalizes its batch in two pieces, one after the other."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(depth))
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.cat([norm(piece) for piece in conv(x).tensor_split(2)]).relu()
        return x


class Recurrent(nn.Module):
    """One layer, again and again on what it has made itself."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.conv, self.bn = times, nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.bn(self.conv(x)).relu() + x / 2
        return x


@pytest.mark.parametrize("build, passes", [(Siamese, 3), (Chunked, 3), (Recurrent, 40)])
def test_twelve_shared_layers_settle(build: type[nn.Module], passes: int) -> None:
    model, batches = build(12), images(6, 4, 5)
    found = population_statistics(model, batches)
    assert found.cost.passes <= passes
    assert max(self_consistency(model, found, batches)) <= 1e-6 + FLOAT32
    short = population_statistics(model, batches, memory=100_000)  # too little for forwards side by side
    for name in found:
        assert_moments(short[name], found[name], mean=4e-6, var=4e-6)


@pytest.mark.parametrize("constant", [0.0, 7.3])
def test_a_shared_layer_with_a_channel_that_is_the_same_everywhere_settles(constant: float) -> None:
    """A mask of a time series, say, or a pruned channel: its logarithm of the variance held for a difference."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = x.new_zeros(len(x), 3)
            for part in x.unbind(1):
                state = self.linear(self.bn(torch.cat((part, state), 1))).tanh()
            return state

    torch.manual_seed(0)
    model = randomized(Cell())
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(8, 4, 3, generator=generator) for _ in range(3)]
    for batch in batches:
        batch[..., 1] = constant
    found = population_statistics(model, batches)
    assert float(found["bn"].var[1]) == 0 and float(found["bn"].mean[1]) == pytest.approx(constant, rel=1e-6)
    assert found.cost.passes > 8  # the steps were extrapolated
    assert max(self_consistency(model, found, batches)) <= 1e-6 + FLOAT32


@pytest.mark.parametrize("call", [1, 2])
def test_a_nan_in_a_layer_that_is_called_twice(call: int) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            bad = x * torch.tensor([1.0, 1.0, torch.nan])[:, None, None]
            first = self.bn(bad if call == 1 else x)
            return first + self.bn(bad if call == 2 else x)

    model = Twice()
    with unchanged(model), pytest.raises(ValueError, match="layer 'bn' has NaN or infinite values"):
        population_statistics(model, images(4, 3))


def test_statistics_that_do_not_settle() -> None:
    runs: list[int] = []  # outside of the model: a forward that is different every time

    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(1)

        def forward(self, x: Tensor) -> Tensor:
            runs.append(0)
            return self.bn(self.bn(x) * (1 + len(runs) % 3))

    model = Restless()
    with unchanged(model), pytest.raises(ValueError, match=r"layers bn are called several times.*not settle in 100"):
        population_statistics(model, [torch.linspace(-1, 1, 50)[:, None]])


# -- sampling errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"standard_errors": True}, {"max_images": "auto", "tolerance": 0.1}])
@pytest.mark.parametrize("upstream", ["population", "batch"])
def test_rows_that_are_more_than_images_are_told(upstream: str, options: Any) -> None:
    """Crops of one image, say, which are not independent."""
    model = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm2d(3))
    batches = [x[:, None].expand(-1, 4, -1, -1, -1) for x in images(5, 9, 2)]
    with pytest.warns(RuntimeWarning, match="input of '1' has more rows than the batches have images"):
        population_statistics(model, batches, upstream=upstream, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        population_statistics(model, batches, upstream=upstream)
        population_statistics(model[1:], images(5, 9, 2), upstream=upstream, **options)
        arrays = [x.numpy() for x in images(5, 9, 2)]
        population_statistics(
            model[1:], arrays, forward=lambda m, x: m(torch.from_numpy(x)), upstream=upstream, **options
        )


@pytest.mark.parametrize("upstream", ["population", "batch"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("offset", [0, 1000])
def test_standard_errors_of_the_first_layer(offset: int, channels_last: bool, upstream: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    batches = [x + offset for x in images(5, 9, 2)]
    if channels_last:
        batches = [x.contiguous(memory_format=torch.channels_last) for x in batches]
    found = population_statistics(model, batches, standard_errors=True, upstream=upstream)
    assert found.standard_errors is not None
    mean, var = references.sampling_errors(torch.cat(batches))
    torch.testing.assert_close(found.standard_errors["0"][0], mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.standard_errors["0"][1], var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("errors", [False, True])
def test_a_machine_with_little_memory(errors: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are profiled under way: some have left their moments before, others are read as if they were gone."""
    model, batches = residual(), [x + 3 for x in images(2, 9, 4, 12, 7, 3, 8, 6)]
    expected = population_statistics(model, batches)
    ran = 0
    for free in range(150_000, 1_500_000, 150_000):
        monkeypatch.setattr(memory, "_free", lambda device, free=free: free)
        try:
            assert_same(population_statistics(model, batches, standard_errors=errors), expected)
        except ValueError as error:
            assert "one batch's forward needs" in str(error)
        else:
            ran += 1
    assert ran >= 4


def test_auto_goes_on_where_errors_are_not_known() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> None:
            self.bn(x.T[None])

    batches = [torch.randn(256, 3) for _ in range(3)]
    found = population_statistics(Alone(), batches, max_images="auto", tolerance=1e-6)
    assert found.cost.images == 768


def test_standard_errors_cover_the_truth() -> None:
    """z of 60 samples of 40 images around the moments of all of them: its mean square is 1 within 4.5 errors."""
    generator = torch.Generator().manual_seed(0)
    # Strongly correlated pixels: with pixels as units the errors would be far too small.
    level = torch.randn(2400, 1, 1, 1, generator=generator)
    data = level + 0.3 * torch.randn(2400, 1, 4, 4, generator=generator)
    model = nn.Sequential(nn.BatchNorm2d(1))
    truth = population_statistics(model, [data])["0"]
    z = []
    for sample in data.split(40):
        found = population_statistics(model, [sample], standard_errors=True)
        assert found.standard_errors is not None
        z.append((found["0"].mean - truth.mean) / found.standard_errors["0"][0])
    square = torch.cat(z).square().mean().item()
    assert abs(square - 1) < 4.5 * math.sqrt(2 / 60) * 1.1  # the estimated error adds a little


def test_auto_takes_as_many_images_as_it_needs() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(64, 3, 6, 6, generator=generator) for _ in range(64)]
    model = plain()
    coarse, fine = (population_statistics(model, batches, max_images="auto", tolerance=t) for t in (0.05, 0.012))
    assert coarse.cost.images < fine.cost.images <= 4096
    assert fine.standard_errors is not None
    for name, (of_mean, of_var) in fine.standard_errors.items():
        assert (of_mean / fine[name].var.sqrt()).square().mean().sqrt() <= 0.012
        assert (of_var / fine[name].var).square().mean().sqrt() <= 0.012
    # Out of reach: all there is, and the errors say how far it got.
    assert population_statistics(model, batches[:5], max_images="auto", tolerance=1e-9).cost.images == 320


# -- ranks -----------------------------------------------------------------------------------------------------------

RANKS = """
from bnlab import gap, population_statistics
from tests.helpers import images, residual
from tests.exact.test_breadth import Branching, CallsTwice

group = dist.group.WORLD
batches = images(4, 3, 5, 2, 6)
for model in (residual(), CallsTwice(False), Branching()):
    for upstream in ("population", "batch"):
        whole = population_statistics(model, batches, upstream=upstream, standard_errors=True)
        for shares in ((batches[:4], batches[4:]), (batches, []), ([], batches)):
            found = population_statistics(
                model, shares[rank], upstream=upstream, group=group, standard_errors=True
            )
            table = gap(whole, found)
            assert table[["mean_gap", "var_gap"]].to_numpy().max() < 2e-6, table
            assert all(whole[n].count == found[n].count for n in whole)
            for name, errors in whole.standard_errors.items():
                torch.testing.assert_close(found.standard_errors[name], errors, rtol=1e-4, atol=1e-9)
            both = [None, None]
            dist.all_gather_object(both, [(m.mean, m.var) for m in found.values()])
            assert all(torch.equal(a, b) for pair in zip(*both) for a, b in zip(*pair))

torch.manual_seed(0)
many = list(torch.randn(1024, 3, 6, 6).split(64))
for shares in ((many[:6], many[6:]), ([], many)):
    found = population_statistics(residual(), shares[rank], max_images="auto", tolerance=0.045, group=group)
    images_read = [None, None]
    dist.all_gather_object(images_read, found.cost.images)
    assert 256 < sum(images_read) < 1024, images_read
    whole = population_statistics(residual(), [x for s, n in zip(shares, images_read) for x in s[:n // 64]])
    assert gap(whole, found)[["mean_gap", "var_gap"]].to_numpy().max() < 2e-6
    assert all(e[0].div(whole[n].var.sqrt()).square().mean().sqrt() < 0.045 for n, e in found.standard_errors.items())

def failing(model, batch):
    if rank == 1:
        raise ArithmeticError("of rank 1's own")
    return model(batch)

for upstream in ("population", "batch"):
    try:
        population_statistics(residual(), batches, forward=failing, group=group, upstream=upstream)
    except ArithmeticError as error:
        assert rank == 1
    except ValueError as error:
        assert rank == 0 and "rank 1 failed with ArithmeticError: of rank 1's own" in str(error), error
    else:
        raise SystemExit("no error")
try:
    population_statistics(residual(), [], group=group)
except ValueError as error:
    assert "batches is empty" in str(error)
"""


def test_two_ranks_agree(tmp_path: Path) -> None:
    run_two_ranks(RANKS, tmp_path)
