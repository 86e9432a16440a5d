"""What is fitted to numbers, against closed forms and slow twins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bnlab.doctor.cause import Left
from bnlab.doctor.fits import (
    FirstLayer,
    count_nats,
    fit_factor,
    fit_rescaling,
    fit_share,
    measure_gap,
    measure_noise,
    measure_residuals,
    mix,
    replay,
)
from bnlab.doctor.patient import Patient
from bnlab.statistics.moments import Moments
from tests import references

torch.manual_seed(0)
DATA = [3 * torch.randn(16, 3) + torch.tensor([1.0, 2.0, 3.0]) for _ in range(4)]


def make_patient(momentum: float = 0.1, **given: object) -> Patient:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=momentum)).eval()
    return Patient(model, [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in DATA], **given)  # type: ignore[arg-type]


def set_averages(patient: Patient, mean: Tensor, var: Tensor) -> None:
    patient.averages["0"] = Moments(math.nan, mean, var)


def test_residuals_are_in_sigma_and_in_log_ratios() -> None:
    patient = make_patient()
    exact = patient.exact["0"]
    whole = references.moments(torch.cat(DATA))
    torch.testing.assert_close(exact.mean, torch.as_tensor(whole.mean))

    eps = 1e-5
    sigma = (exact.var + eps).sqrt()
    set_averages(patient, exact.mean + 2 * sigma, (exact.var + eps) * math.exp(math.sqrt(2)) - eps)
    residuals = measure_residuals(patient, Left(patient.exact))
    torch.testing.assert_close(residuals, torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0, 1.0]).double())
    assert measure_gap(patient, "0") == pytest.approx(math.sqrt((3 * 4 + 3 * 1) / 6))


def test_residuals_below_the_noise_are_none() -> None:
    patient = make_patient()
    exact = patient.exact["0"]
    set_averages(patient, exact.mean + exact.var.sqrt(), exact.var)
    noise = {"0": torch.stack((exact.var.sqrt(), torch.zeros(3).double()))}
    assert float(measure_residuals(patient, Left(patient.exact, noise=noise)).abs().max()) < 1e-6


def test_a_number_that_is_fitted_has_to_save_half_the_logarithm_of_the_size() -> None:
    residuals = torch.full((100,), 0.5, dtype=torch.float64)
    assert count_nats(residuals, 1) - count_nats(residuals, 0) == pytest.approx(math.log(100) / 2)
    # Half of the residuals saves log 2 a value, but for the noise that is always left.
    saved = count_nats(residuals, 0) - count_nats(residuals / 2, 0)
    assert saved == pytest.approx(100 * math.log(2), rel=0.01)


@pytest.mark.parametrize("share", [-0.5, 0.0, 0.3, 1.0, 1.5])
def test_a_share_of_other_averages_is_found_from_none_to_all(share: float) -> None:
    patient = make_patient()
    other = {"0": Moments(math.nan, torch.zeros(3).double(), torch.ones(3).double())}
    patient.averages.update(mix(patient.exact, other, share))
    assert fit_share(patient, other) == pytest.approx(min(1, max(0, share)), abs=1e-9)


def test_a_factor_is_found() -> None:
    patient = make_patient()
    exact = patient.exact["0"]
    set_averages(patient, 7 * exact.mean, 7 * exact.var)
    assert fit_factor(patient) == pytest.approx(7)


def test_a_replay_averages_as_the_layer_does() -> None:
    """After a training of the averages alone, from the same start."""
    momentum = 0.3
    batches = [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in DATA]
    patient = make_patient(momentum, training_batches=batches)
    layer = nn.BatchNorm1d(3, momentum=momentum).double()
    exact = patient.exact["0"]
    layer.get_buffer("running_mean").copy_(exact.mean)
    layer.get_buffer("running_var").copy_(exact.var)
    for batch in DATA:
        layer(batch.double())

    replayed = replay(patient)["0"]
    torch.testing.assert_close(replayed.mean, layer.running_mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(replayed.var, layer.running_var, rtol=1e-6, atol=1e-6)


def test_the_noise_of_an_average_is_a_share_of_that_of_batches() -> None:
    patient = make_patient(momentum=0.4)
    calls = {"0": [Moments.of(batch) for batch in DATA]}
    means = torch.stack([batch.double().mean(0) for batch in DATA])
    noise = measure_noise(patient, calls)["0"]
    torch.testing.assert_close(noise[0], math.sqrt(0.4 / 1.6) * means.std(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.5), (0.25, -1.0)])
def test_a_scale_and_a_shift_of_images_are_found(scale: float, shift: float) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.BatchNorm2d(8)).eval()
    images = torch.rand(64, 1, 4, 4)
    labels = torch.zeros(64, dtype=torch.long)
    Patient(model, [(images, labels)])
    for name, moments in Patient(model, [(images, labels)]).exact.items():
        model.get_submodule(name).running_mean.copy_(moments.mean)  # type: ignore[union-attr, operator]
        model.get_submodule(name).running_var.copy_(moments.var)  # type: ignore[union-attr, operator]

    patient = Patient(model, [(scale * images + shift, labels)])
    # A negative scale explains moments as well: only borders of padded images would tell the two apart.
    found = next(each for each in fit_rescaling(FirstLayer(patient, "1"), colours=1) if each.scale > 0)
    assert found.explains > 0.99
    assert found.scale == pytest.approx(scale, rel=1e-3)
    assert found.shift.item() == pytest.approx(shift, abs=1e-3)
    torch.testing.assert_close(found.undo(scale * images + shift), images, rtol=1e-3, atol=1e-3)
