"""BN215: averages that are the right ones times one factor, and what looks like it in part."""

from __future__ import annotations

import pytest
from torch import nn

from bnlab import diagnose
from tests.doctor.patients import get_buffers, get_finding, list_codes, make_batches, make_healthy, make_net, train

TEST_BATCHES = make_batches(20, seed=7)
LAYERS = ("1", "4")


def multiply(model: nn.Module, of_means: float, of_variances: float, layers: tuple[str, ...] = LAYERS) -> None:
    """Multiply the averages of layers in place."""
    for name in layers:
        mean, var = get_buffers(model, name)
        mean *= of_means
        var *= of_variances


@pytest.mark.parametrize("factor", [313.0, 2.0, 0.5])
def test_bn215_averages_times_one_factor(factor: float) -> None:
    model = make_healthy()
    multiply(model, factor, factor)

    diagnosis = diagnose(model, TEST_BATCHES)
    finding = get_finding(diagnosis, "BN215")

    assert finding is not None
    assert finding.signs.layers == LAYERS
    told = finding.signs.evidence.removeprefix("means and variances are ").removesuffix(" times those of these images")
    assert float(told) == pytest.approx(factor, rel=0.1)  # variances of 640 images differ by some percent
    assert "BN108" not in list_codes(diagnosis)


def test_bn215_compares_with_the_training_batches_where_these_are_given() -> None:
    model = make_healthy()
    multiply(model, 2.0, 2.0)

    finding = get_finding(diagnose(model, TEST_BATCHES, training_batches=make_batches(20, seed=8)), "BN215")

    assert finding is not None
    assert finding.signs.evidence.endswith(" times those of the training batches")


def test_bn215_is_quiet_below_its_least_factor() -> None:
    model = make_healthy()
    multiply(model, 1.3, 1.3)

    assert "BN215" not in list_codes(diagnose(model, TEST_BATCHES))


@pytest.mark.parametrize(
    ("of_means", "of_variances"),
    [
        (100.0, 10000.0),  # as of other units: variances by the square
        (1.0, 2.0),  # n/(n−1) of two values
        (313.0, 1.0),
    ],
)
def test_bn215_is_quiet_where_means_and_variances_have_other_factors(of_means: float, of_variances: float) -> None:
    model = make_healthy()
    multiply(model, of_means, of_variances)

    assert "BN215" not in list_codes(diagnose(model, TEST_BATCHES))


def test_bn215_is_quiet_where_one_layer_has_no_factor() -> None:
    model = make_healthy()
    multiply(model, 313.0, 313.0, LAYERS[:1])

    assert "BN215" not in list_codes(diagnose(model, TEST_BATCHES))


def test_bn215_is_quiet_on_averages_of_other_weights() -> None:
    other = make_net(seed=1)
    train(other, make_batches(200))
    model = make_healthy()
    for name in LAYERS:
        for buffer, others in zip(get_buffers(model, name), get_buffers(other, name), strict=True):
            buffer.copy_(313 * others)

    assert "BN215" not in list_codes(diagnose(model, TEST_BATCHES))
