"""The reference twins against values worked by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests import references as ref


def batch(*values: float) -> torch.Tensor:
    """A batch of one channel."""
    return torch.tensor(values, dtype=torch.float32)[:, None]


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 4, 5), (2, 3, 2, 2, 2)])
def test_moments_agree_with_numpy_on_every_layout(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(1000, 0.01, shape)
    axes = (0, *range(2, len(shape)))
    count, mean, var = ref.moments(x)

    assert count == x.size // 3
    np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-14)
    np.testing.assert_allclose(var, x.var(axes), rtol=1e-9)


def test_running_statistics_are_those_of_torch_and_debiased_ones_do_not_depend_on_the_start() -> None:
    layer = nn.BatchNorm2d(3, momentum=0.3).double()
    batches = list(torch.randn(6, 5, 3, 2, 2, dtype=torch.float64) + 2)
    ema = ref.running_ema(batches, 0.3)
    averages = ref.running_averages(batches)
    debiased = ref.running_ema_debiased(batches, 0.3)
    shifted = ref.running_ema_debiased(batches, 0.3, start_mean=torch.tensor([3.0, -1.0, 0.5]), start_var=4.0)
    for t, x in enumerate(batches):
        layer(x)
        torch.testing.assert_close((layer.running_mean, layer.running_var), ema[t])
        torch.testing.assert_close(debiased[t], shifted[t])
    layer.momentum = None
    layer.reset_running_stats()
    for t, x in enumerate(batches):
        layer(x)
        torch.testing.assert_close((layer.running_mean, layer.running_var), averages[t])


def two_layers() -> nn.Sequential:
    """BN - times 3 plus 1 - BN, the first with an eps that vanishes."""
    linear = nn.Linear(1, 1)
    nn.init.constant_(linear.weight, 3.0)
    nn.init.constant_(linear.bias, 1.0)
    return nn.Sequential(nn.BatchNorm1d(1, eps=1e-30), linear, nn.BatchNorm1d(1))


def test_full_batch_population_of_two_layers() -> None:
    model = two_layers()
    before = copy.deepcopy(model.state_dict())
    stats = ref.full_batch_population(model, batch(1, 2, 3, 6))

    # Layer 0 sees mean 3, variance 3.5. Normalized by these, then 3z+1: mean 1, variance 9.
    assert list(stats) == ["0", "2"]
    np.testing.assert_allclose([stats["0"].mean, stats["0"].var], [[3.0], [3.5]], rtol=1e-14)
    np.testing.assert_allclose([stats["2"].mean, stats["2"].var], [[1.0], [9.0]], rtol=1e-14)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_batch_upstream_population_of_two_layers() -> None:
    model = two_layers()
    model.append(nn.Dropout(0.5)).append(nn.BatchNorm1d(1))
    before = copy.deepcopy(model.state_dict())

    found = ref.batch_upstream_population(model, [batch(1, 3), batch(2, 4, 6)])

    # Layer 0 pools the values themselves; layer 2 sees batches that each have mean 1 and variance 9.
    assert found["0"].count == found["2"].count == 5
    np.testing.assert_allclose(found["0"].mean, [3.2], rtol=1e-14)
    np.testing.assert_allclose(found["0"].var, [2.96], rtol=1e-14)
    np.testing.assert_allclose(found["2"].mean, [1.0], rtol=1e-14)
    np.testing.assert_allclose(found["2"].var, [9.0], rtol=1e-14)
    dropout_is_off = 9 / (9 + 1e-5)
    np.testing.assert_allclose(found["4"].var, [dropout_is_off], rtol=1e-12)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value)


class Branches(nn.Module):
    """Residual, in-place, registered in another order than called, one layer never called."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.BatchNorm2d(4)
        self.unused = nn.BatchNorm2d(4)
        self.early = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        y = self.conv2(self.early(x).relu())
        x.relu_()  # writes into what `early` was given
        return self.late(x + y)


def test_population_follows_calls_and_is_self_consistent() -> None:
    torch.manual_seed(0)
    model = Branches()
    x = torch.randn(6, 3, 5, 5)
    stats = ref.full_batch_population(model, x)

    assert list(stats) == ["early", "late"]

    twin = copy.deepcopy(model).double().eval()
    torch.testing.assert_close(stats["early"].mean, twin.conv1(x.double()).mean((0, 2, 3)).detach())
    for name, (_, mean, var) in stats.items():
        twin.get_buffer(f"{name}.running_mean").copy_(mean)
        twin.get_buffer(f"{name}.running_var").copy_(var)
    out = twin(x.double())  # with its own population statistics every BN output has mean 0 and variance 1
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4).double())
    torch.testing.assert_close(out.var((0, 2, 3), correction=0), stats["late"].var / (stats["late"].var + 1e-5))


def test_gap_by_hand() -> None:
    mean, var = torch.tensor([0.0, 1.0]), torch.tensor([3.0, 0.0])
    other_mean, other_var = torch.tensor([4.0, 1.0]), torch.tensor([3.0, 3.0])

    found = ref.gap((mean, var), (other_mean, other_var), eps=1.0)

    # In units of var + 1: the first mean is off by 2, the second variance is 4 times as large.
    first_kl = 2**2 / 2
    second_kl = (math.log(4) + 1 / 4 - 1) / 2
    assert found["mean_gap"] == pytest.approx(math.sqrt(2**2 / 2))
    assert found["var_gap"] == pytest.approx(math.log(4) / math.sqrt(2))
    assert found["kl"] == pytest.approx((first_kl + second_kl) / 2)


def draw() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# The image of 4 × 4 pixels that is corrupted by hand. What is drawn is drawn again.
IMAGE = torch.arange(16.0).view(1, 4, 4) / 16


def test_noise_and_contrast_by_hand() -> None:
    noise = torch.randn(1, 4, 4, generator=draw()).double()

    noisy = ref.noisy(IMAGE, 0.5, draw())
    faint = ref.low_contrast(IMAGE, 0.5, draw())

    assert torch.equal(noisy - IMAGE, 0.5 * noise)
    torch.testing.assert_close(faint, 15 / 64 + IMAGE.double() / 2)


def test_blur_by_hand() -> None:
    flat = torch.full((1, 4, 4), 0.25).double()
    line = torch.tensor([0.0, 0, 1, 0, 0, 0])

    blurred = ref.blurred(line.repeat(1, 6, 1), 0.05, draw())  # reaches one pixel

    side = math.exp(-0.5 / 0.3**2)
    row = torch.tensor([0, side, 1, side, 0, 0]).double()
    row /= 1 + 2 * side
    torch.testing.assert_close(blurred, row.repeat(1, 6, 1))
    still_flat = ref.blurred(flat, 0.25, draw())
    torch.testing.assert_close(still_flat, flat)


def test_translation_by_hand() -> None:
    up = 2
    assert int(torch.randint(4, (), generator=draw())) == up

    moved = ref.translated(IMAGE, 0.25, draw())

    empty = torch.zeros(1, 1, 4)
    expected = torch.cat((IMAGE[:, 1:], empty), dim=1)
    torch.testing.assert_close(moved, expected.double())


def test_occlusion_by_hand() -> None:
    place = torch.rand(2, generator=draw()).tolist()
    top = int(3 * place[0])
    left = int(3 * place[1])

    hidden = ref.occluded(IMAGE, 0.5, draw())

    expected = IMAGE.double()
    expected[0, top : top + 2, left : left + 2] = 0
    torch.testing.assert_close(hidden, expected)


def test_chance_that_none_of_two_images_changes() -> None:
    assert ref.chance_of_no_change(0.5, 2) == 0.25
    assert ref.chance_of_no_change(0.0, 2) == 1.0
