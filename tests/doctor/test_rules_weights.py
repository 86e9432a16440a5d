"""Rules about weights that do not belong to their averages, on networks that show the fault and that do not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from bnlab import population_statistics, recalibrate
from bnlab.layers import get_running_buffers
from tests.doctor.networks import (
    NORMS,
    build_cnn,
    find,
    get_conv,
    get_norm,
    list_images,
    make_batches,
    make_healthy,
    reset,
)


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return list_images(make_batches(24))


# BN208


def average_networks() -> nn.Sequential:
    """Average weights and buffers of two networks that were trained from different weights."""
    model = make_healthy(0)
    other = make_healthy(1).state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.add_(other[name]).div_(2)
    return model


def test_bn208_variance_collapses_where_networks_are_averaged(images: list[Tensor]) -> None:
    finding = find("BN208", average_networks(), images)

    assert finding is not None
    assert finding.signs.layers[-1] == "9"


def test_bn208_is_quiet_after_recalibration(images: list[Tensor]) -> None:
    model = average_networks()
    population_statistics(model, images, progress=False).write_to(model)

    assert find("BN208", model, images) is None


@pytest.mark.parametrize(
    "make",
    [
        make_healthy,
        lambda: make_healthy(dropout=0.5),
        lambda: reset(make_healthy()),
        build_cnn,
    ],
    ids=["healthy", "dropout", "reset", "initial"],
)
def test_bn208_is_quiet_where_something_else_explains_it(make: Callable[[], nn.Module], images: list[Tensor]) -> None:
    assert find("BN208", make().eval(), images) is None


# BN302


def fold_twice(model: nn.Sequential, *numbers: int) -> nn.Sequential:
    """Fold batch norms into the convolutions before them, and leave them in their place."""
    for number in numbers:
        conv = get_conv(model, str(number - 1))
        model[number - 1] = fuse_conv_bn_eval(conv, get_norm(model, str(number)))
    return model


def test_bn302_layers_that_were_folded_still_normalize(images: list[Tensor]) -> None:
    finding = find("BN302", fold_twice(make_healthy(), 1, 9), images)

    assert finding is not None
    assert finding.rule.hides
    assert finding.signs.layers == ("1", "9")
    assert finding.signs.evidence.startswith("exact means and variances are the layer's own")
    assert finding.severity == "warning"


def test_bn302_stops_a_recalibration_that_would_hide_it(images: list[Tensor]) -> None:
    recalibration = recalibrate(fold_twice(make_healthy(), 1, 5, 9), images)

    assert not recalibration.written
    assert recalibration.reason.startswith("it would hide a mistake: BN302")


def test_bn302_is_quiet_where_the_folded_layer_is_gone(images: list[Tensor]) -> None:
    model = fold_twice(make_healthy(), 5)
    model[5] = nn.Identity()

    assert find("BN302", model, images) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_bn302_averages_do_not_know_of_a_bias(sign: int, images: list[Tensor]) -> None:
    model = make_healthy(bias=True)
    bias = get_conv(model, "4").bias
    assert bias is not None
    mean, _ = get_running_buffers(get_norm(model, "5"))
    mean.add_(sign * bias.detach())

    finding = find("BN302", model, images)

    assert finding is not None
    assert finding.signs.layers == ("5",)
    assert finding.signs.evidence.startswith("running means are off by the bias")


@pytest.mark.parametrize("bias", [False, True])
def test_bn302_is_quiet_on_healthy_networks_and_wrong_averages(bias: bool, images: list[Tensor]) -> None:
    model = make_healthy(bias=bias)
    moved = copy.deepcopy(model)
    for name in NORMS:
        mean, var = get_running_buffers(get_norm(moved, name))
        mean.add_(0.5 * var.sqrt())
    unset = reset(copy.deepcopy(model))

    assert find("BN302", model, images) is None
    assert find("BN302", moved, images) is None
    assert find("BN302", unset, images) is None
