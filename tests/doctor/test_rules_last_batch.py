"""BN110, a small last batch of each epoch: told from a trace and from training batches, and never more than a note."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bnlab import diagnose, population_statistics, record
from bnlab.recording.trace import MomentTrace
from tests.doctor.patients import Batch, get_finding, list_codes, make_batches, make_healthy, make_net, train

TEST_BATCHES = make_batches(20, seed=7)
OF_A_QUARTER = "the last batch of an epoch has 25% of the values of a full one"


def train_on(sizes: list[int]) -> tuple[nn.Sequential, MomentTrace]:
    """Train a network, in eval mode afterwards, on batches of these sizes; return also its trace."""
    model = make_net()
    batches = [make_batches(1, size, seed)[0] for seed, size in enumerate(sizes)]
    with record(model) as trace:
        train(model, batches)
    return model.eval(), trace


def make_loader(images: int, **settings: Any) -> DataLoader[Any]:
    """Make a loader of so many images in batches of 32."""
    ((inputs, labels),) = make_batches(1, images)
    return DataLoader(TensorDataset(inputs, labels), batch_size=32, **settings)


# Of a trace


@pytest.mark.parametrize(("after", "share"), [(0, "10%"), (3, "7.3%"), (10, "3.5%"), (11, None)])
def test_a_small_last_batch_of_a_trace_is_noted_with_its_share(after: int, share: str | None) -> None:
    model, trace = train_on([32] * 9 + ([8] + [32] * 11) * 3 + [8] + [32] * after)

    diagnosis = diagnose(model, trace=trace)

    finding = get_finding(diagnosis, "BN110")
    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("note", ("1", "4"))
    told = OF_A_QUARTER if share is None else f"{OF_A_QUARTER}; it makes up {share} of the averages"
    assert finding.signs.evidence == told


def test_one_epoch_is_enough() -> None:
    model, trace = train_on([32] * 7 + [8])

    finding = get_finding(diagnose(model, trace=trace), "BN110")

    assert finding is not None


@pytest.mark.parametrize(
    "sizes",
    [
        [32] * 30,
        ([32] * 7 + [20]) * 3,  # more than half
        [32, 8] * 10,  # two kinds of batches in turn
        [32] * 5 + [8] + [32] * 9 + [8] + [32] * 5 + [8],  # at uneven distances
        [32] * 5 + [8] + [32] * 24,  # once
        [8] + [32] * 29,  # a forward that finds shapes
        [32, 30, 28, 26] * 7 + [8],  # batches of many sizes
    ],
)
def test_a_trace_of_other_sizes_is_no_finding(sizes: list[int]) -> None:
    model, trace = train_on(sizes)

    assert "BN110" not in list_codes(diagnose(model, trace=trace))


def test_averages_that_were_computed_again_hold_no_share() -> None:
    model, trace = train_on([32] * 7 + [8])
    population_statistics(model, TEST_BATCHES).write_to(model)

    finding = get_finding(diagnose(model, trace=trace), "BN110")

    assert finding is not None
    assert finding.signs.evidence == OF_A_QUARTER


# Of training batches


@pytest.mark.parametrize(
    "training", [make_loader(72), make_loader(72, shuffle=True), make_batches(2) + make_batches(1, 8)]
)
def test_a_small_last_training_batch_is_noted_and_the_model_stays_healthy(training: Any) -> None:
    alone = diagnose(make_healthy(), training_batches=training)
    diagnosis = diagnose(make_healthy(), TEST_BATCHES, training_batches=training)

    for found in (alone, diagnosis):
        finding = get_finding(found, "BN110")
        assert finding is not None
        assert (finding.severity, finding.signs.layers) == ("note", ("1", "4"))
        assert finding.signs.evidence == "the last batch of an epoch has 8 images of 32"
        assert found.is_healthy
    assert diagnosis.verdict == "healthy"


@pytest.mark.parametrize(
    "training",
    [
        make_loader(64),
        make_loader(72, drop_last=True),
        make_loader(84),  # 20 are left: more than half
        make_loader(8),  # one batch, of all
        make_batches(3),
        make_batches(1, 8),
        make_batches(1) + make_batches(2, 8),  # of many sizes
    ],
)
def test_training_batches_of_one_size_are_no_finding(training: Any) -> None:
    assert "BN110" not in list_codes(diagnose(make_healthy(), training_batches=training))
    assert "BN110" not in list_codes(diagnose(make_healthy(), TEST_BATCHES, training_batches=training))


def test_batches_that_are_not_of_training_are_no_finding() -> None:
    batches: list[Batch] = [*TEST_BATCHES, *make_batches(1, 8)]

    diagnosis = diagnose(make_healthy(), batches)

    assert "BN110" not in list_codes(diagnosis)
    assert "BN110" in set(diagnosis.skipped["code"])


def test_training_batches_that_are_cut_short_do_not_tell_which_is_the_last() -> None:
    batches = [*make_batches(2), *make_batches(1, 8), *make_batches(2)]

    diagnosis = diagnose(make_healthy(), TEST_BATCHES, training_batches=iter(batches), max_images=72)

    assert "BN110" not in list_codes(diagnosis)
