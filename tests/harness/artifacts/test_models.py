"""Networks: their layers, that their weights are of the seed, the scale that they keep, the images that they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnlab.harness.artifacts.models import Cnn, Mlp, Model, Resnet
from bnlab.harness.artifacts.network import build_model
from bnlab.harness.artifacts.norms import NoNorm, Norm
from bnlab.harness.settings import COMPONENTS

SMALL = [Cnn(depth=8, width=4), Mlp(depth=8, width=4), Resnet(depth=8, width=4)]


def build(config: Model, channels: int = 1, image_size: int = 16, seed: int = 0, norm: Norm | None = None) -> nn.Module:
    return build_model(config, norm, channels=channels, image_size=image_size, classes=7, seed=seed)


@pytest.mark.parametrize(
    ("config", "widths"),
    [
        (Cnn(), [32, 64, 128]),
        (Cnn(depth=4, width=8, pool_every=2), [8, 8, 16, 16]),
        # 16 → 8 → 4 → 2 pixels: too few for a fourth pool, so the width stays.
        (Cnn(depth=6, width=4), [4, 8, 16, 32, 32, 32]),
        (Mlp(width=5), [5, 5]),
        (Resnet(depth=8, width=4), [4, 4, 4, 8, 8, 16, 16]),
    ],
)
def test_widths_of_the_norm_layers(config: Model, widths: list[int]) -> None:
    norms = [module for module in build(config).modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert [norm.num_features for norm in norms] == widths
    assert not any(norm.num_batches_tracked for norm in norms), "as before any batch"


def test_resnet20_is_that_of_the_paper() -> None:
    model = build_model(Resnet(), channels=3, image_size=32, classes=10, seed=0)

    with_weights = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    parameters = sum(parameter.numel() for parameter in model.parameters())

    assert len(with_weights) == 20
    assert parameters == 269_722  # He et al. 2015, table 6: 0.27 M
    assert with_weights[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.name)
def test_weights_depend_on_the_seed_alone_and_the_caller_keeps_the_random_state(config: Model) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(config, image_size=32).state_dict()

    assert torch.equal(torch.get_rng_state(), before)

    torch.manual_seed(6)
    again = build(config, image_size=32, seed=0).state_dict()
    other = build(config, image_size=32, seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("config", "norm"),
    [
        *((config, "none") for config in (Cnn(depth=6, pool_every=9), Mlp(depth=6), Resnet(depth=56))),
        (Cnn(depth=12, pool_every=99), "gain_control"),
    ],
)
def test_the_scale_of_activations_is_kept_where_no_norm_sets_it(config: Model, norm: str) -> None:
    model = build(config, image_size=32, norm=COMPONENTS["norm"][norm])
    scales: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):  # in place: the second moment that He et al. keep at 1
            module.register_forward_hook(lambda _, __, out: scales.append(out.square().mean().item()))
    generator = torch.Generator().manual_seed(0)
    model(torch.randn(64, 1, 32, 32, generator=generator))

    assert scales
    assert all(0.3 < scale < 3 for scale in scales)


def test_a_residual_block_without_a_norm_begins_as_its_shortcut() -> None:
    block = build(Resnet(depth=8, width=8), norm=NoNorm())[3]  # type: ignore[index]
    images = torch.rand(2, 8, 16, 16)
    assert torch.equal(block(images), images)
