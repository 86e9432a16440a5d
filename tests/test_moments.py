"""Moments against closed forms and the float64 twin; merging and re-splitting."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bnlab import Moments, population_statistics
from bnlab.model.reading import DeviceReader
from tests import references
from tests.helpers import assert_moments

EPS = torch.finfo(torch.float64).eps


def sample(*shape: int, mean: float = 0.5, std: float = 2.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (mean + std * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def test_closed_form() -> None:
    first_image = [[1.0, 3.0], [0.0, 0.0]]
    second_image = [[5.0, 7.0], [0.0, 4.0]]

    moments = Moments.of(torch.tensor([first_image, second_image]))

    assert moments.count == 4
    assert moments.mean.tolist() == [4.0, 1.0]
    # A float32 root of a sum of squares: 1.2e-7 of E[x²] = 21 against a variance of 5.
    tolerance = 1.2e-7 * 21 / 5
    assert moments.var.tolist() == pytest.approx([5.0, 3.0], rel=tolerance)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "strided": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "part of the channels": lambda x: torch.cat((x, x), dim=1)[:, x.shape[1] :],
    "mirrored": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [
        (1021, 3),
        (7, 3000),
        (5, 3, 7),
        (37, 16, 7, 7),
        (3, 1, 5, 9),
        (4, 3, 1, 1),
        (2, 5, 3, 3, 3),
        (61, 3, 31, 31),
        (1, 2, 600, 600),
    ],
)
def test_every_layout_and_shape(shape: tuple[int, ...], layout: str) -> None:
    x = LAYOUTS[layout](sample(*shape))
    assert_moments(Moments.of(x), references.moments(x), 1e-6)


def measure_together(parts: Sequence[Tensor]) -> Moments:
    """The moments of all parts, as `population_statistics` pools them."""
    kinds = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    layer = kinds[parts[0].dim()](parts[0].shape[1]).to(parts[0].dtype)
    return population_statistics(nn.Sequential(layer), parts)["0"]


def measure_on_device(parts: Sequence[Tensor]) -> Any:
    """The moments of all parts, as they are read where they are on an accelerator."""
    reader = DeviceReader()
    return reader.pool([reader.measure(part) for part in parts])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1021, 3), (37, 16, 7, 7), (2, 3, 80, 80)])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_what_stays_on_a_device_is_as_exact(offset: float, shape: tuple[int, ...], layout: str) -> None:
    x = LAYOUTS[layout](sample(*shape)) + offset
    expected = references.moments(x)

    assert_moments(DeviceReader().measure(x), expected)
    assert_moments(measure_on_device(x.split(max(1, len(x) // 3))), expected)


@pytest.mark.parametrize("measure", [measure_together, measure_on_device])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0, 8, 16, 100, 10_000])
def test_a_mean_of_many_sigma_costs_no_digits(
    mean: float, dtype: torch.dtype, layout: str, measure: Callable[[Sequence[Tensor]], Any]
) -> None:
    """A hundred-thousandth of σ, and of the variance. Values are taken as they are stored.

    Each of these means is that of some channels, beside channels with a mean of 0.
    """
    x = sample(48, 6, 14, 14, mean=0, std=1)
    x[:, ::2] += mean
    x = LAYOUTS[layout](x.to(dtype))

    assert_moments(measure(x.split(16)), references.moments(x), 1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2000, 5), (256, 512), (33, 130, 9, 7), (4, 3, 100, 100)])
@pytest.mark.parametrize(
    ("mean", "std", "tolerance"),
    [(1000, 0.01, 1e-5), (-1000, 0.1, 1e-5), (1e4, 1, 1e-5), (1.9, 1, 2e-6), (4, 1, 2e-6), (15.5, 1, 2e-6)],
)
def test_mean_far_from_zero(mean: float, std: float, tolerance: float, shape: tuple[int, ...], layout: str) -> None:
    """Against float64 of the same float32 values: their differences from a value near them are exact."""
    x = LAYOUTS[layout](sample(*shape, mean=mean, std=std))
    expected = references.moments(x)

    assert_moments(Moments.of(x), expected, tolerance)
    assert_moments(measure_together(x.split(len(x) // 4)), expected, tolerance)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_values_whose_squares_are_beyond_float32(layout: str) -> None:
    x = LAYOUTS[layout](sample(8, 3, 4, 4) * 1e25)
    assert_moments(Moments.of(x), references.moments(x), 1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_one_image_far_from_the_others(layout: str) -> None:
    x = sample(300, 4, 6, 6, mean=10, std=0.1)
    x[0] = 0
    assert_moments(Moments.of(LAYOUTS[layout](x)), references.moments(x), 1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_constant_and_dead_channels(layout: str) -> None:
    x = sample(9, 4, 5, 5)
    x[:, 1] = 0
    x[:, 2] = 1000.1
    x = LAYOUTS[layout](x)

    moments = Moments.of(x)

    in_float32 = torch.tensor(1000.1).item()

    assert moments.mean[1:3].tolist() == [0, in_float32]
    assert moments.var[1:3].tolist() == [0, 0]


def test_nan_stays_in_its_channel() -> None:
    x = sample(8, 3, 4, 4)
    x[3, 1, 2, 2] = torch.nan
    for layout in ("contiguous", "channels_last"):
        moments = Moments.of(LAYOUTS[layout](x))

        assert moments.mean.isnan().tolist() == [False, True, False]
        assert moments.var.isnan().tolist() == [False, True, False]


batches_of_data = st.builds(
    lambda sizes, side, mean, seed: [
        mean + torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed + i), dtype=torch.float64)
        for i, n in enumerate(sizes)
    ],
    sizes=st.lists(st.integers(1, 9), min_size=3, max_size=6),
    side=st.integers(1, 4),
    mean=st.sampled_from([0.0, 1.0, 1000.0]),
    seed=st.integers(0, 1000),
)


def assert_equal(a: Moments, b: Moments, mean: float) -> None:
    """To rounding: a mean is off by some eps·|mean|, and so the squared difference of two of them by as much."""
    tolerance = 50 * EPS * (1 + abs(mean))
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=tolerance)
    torch.testing.assert_close(a.var, b.var, rtol=0, atol=tolerance * (1 + a.var.max().item()))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(batches_of_data, st.integers(1, 20))
def test_another_split_changes_nothing(batches: list[Tensor], size: int) -> None:
    mean = batches[0].mean().item()
    data = torch.cat(batches)
    parts = data.split(size)

    whole = Moments.of(data)
    of_batches = reduce(Moments.merge, map(Moments.of, batches))
    of_parts = reduce(Moments.merge, map(Moments.of, parts))

    assert_equal(of_batches, whole, mean)
    assert_equal(of_parts, whole, mean)
    assert_equal(measure_together(parts), whole, mean)


def test_empty_is_neutral() -> None:
    some = Moments.of(sample(4, 3))
    empty = Moments.empty(3)

    assert empty.count == 0
    assert empty.mean.isnan().all()
    assert empty.var.isnan().all()
    assert some.merge(empty) is some
    assert empty.merge(some) is some
    assert empty.merge(empty).count == 0


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.zeros(3), r"torch\.float32 .*\(3,\)"),
        (torch.zeros(0, 3, 2), r"\(0, 3, 2\)"),
        (torch.zeros(3, 2, dtype=torch.int64), r"torch\.int64"),
    ],
)
def test_refused_inputs(x: Tensor, found: str) -> None:
    with pytest.raises(ValueError, match=rf"Moments\.of: .*{found}"):
        Moments.of(x)


def test_refused_merges() -> None:
    some = Moments.of(sample(4, 3))
    with pytest.raises(ValueError, match=r"merge: 3 .*\b2\b"):
        some.merge(Moments.of(sample(4, 2)))
    running = Moments(float("nan"), some.mean, some.var)
    for a, b in ((some, running), (running, some)):
        with pytest.raises(ValueError, match="no count"):
            a.merge(b)
