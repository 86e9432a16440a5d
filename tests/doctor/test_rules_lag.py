"""Averages that describe other weights, and those that momentum 0 has kept: found where they are, quiet elsewhere."""

from __future__ import annotations

import copy
import re
from functools import cache
from typing import Any

import pytest
from torch import nn

from bnlab import MomentTrace, diagnose, population_statistics, record
from bnlab.doctor.rules.bn108 import OtherWeights
from tests.doctor.patients import (
    get_finding,
    list_codes,
    make_batches,
    make_healthy,
    make_net,
    shift_means,
    take_steps,
    train,
)
from tests.helpers import with_momentum

TEST_BATCHES = make_batches(20, seed=7)
FARTHER = r"[\d.,]+ times farther off than chance explains"


# BN108


@cache
def _train_lagging() -> tuple[nn.Sequential, nn.Sequential, MomentTrace]:
    """Train at a constant rate with a small momentum; the end, the network 20 steps before it, and the trace."""
    model = make_net(momentum=0.02)
    with record(model) as trace:
        train(model, make_batches(230), lr=0.2, falls=False)
        before = copy.deepcopy(model)
        train(model, make_batches(20, seed=3), lr=0.2, falls=False)
    return model.eval(), before, trace


def choose_history(kind: str, before: nn.Module, trace: MomentTrace) -> dict[str, Any]:
    """Choose what `diagnose` is told of the training."""
    if kind == "trace":
        return {"trace": trace}
    return {"before": before} if kind == "before" else {}


@pytest.mark.parametrize(
    ("history", "told"),
    [
        ("nothing", FARTHER),
        ("trace", r"a lag: cosine 0\..*; " + FARTHER),
        ("before", r"a lag: cosine 0\..*; " + FARTHER),
    ],
)
def test_bn108_calls_it_a_lag_where_a_history_shows_one(history: str, told: str) -> None:
    model, before, trace = _train_lagging()

    diagnosis = diagnose(model, TEST_BATCHES, **choose_history(history, before, trace))
    finding = get_finding(diagnosis, "BN108")

    assert list_codes(diagnosis) == ["BN108", "BN201"]
    assert finding is not None
    assert finding.signs.layers == ("4",)  # layer 1 is not farther off than the mean of 20 batches may be
    assert re.fullmatch(told, finding.signs.evidence)
    assert len(finding.signs.checks) == (3 if history == "nothing" else 1)


@pytest.mark.parametrize("history", ["trace", "before"])
def test_bn108_calls_no_lag_what_is_not_along_the_drift(history: str) -> None:
    lagging, before, trace = _train_lagging()
    model = copy.deepcopy(lagging)
    shift_means(model)  # after the last step

    diagnosis = diagnose(model, TEST_BATCHES, **choose_history(history, before, trace))

    finding = get_finding(diagnosis, "BN108")

    assert finding is not None
    assert finding.signs.evidence.startswith("more than a lag: cosine ")
    assert "training_batches=" in finding.remedy
    assert "Weights still in training?" in finding.remedy or history == "trace"


def test_bn108_predicts_nothing_from_a_checkpoint_that_is_too_far() -> None:
    """Twelve memories ago weights drifted otherwise, so that nothing is predicted."""
    model = make_net(momentum=0.1)
    before = copy.deepcopy(model)
    train(model, make_batches(120), lr=0.2, falls=False)
    shift_means(model)

    finding = get_finding(diagnose(model.eval(), TEST_BATCHES, before=before), "BN108")

    assert finding is not None
    assert re.fullmatch(FARTHER, finding.signs.evidence)


@pytest.mark.parametrize(("size", "is_found"), [(320, True), (2, False)])
def test_bn108_on_a_single_batch_believes_a_large_gap_that_costs_something(size: int, is_found: bool) -> None:
    model = make_healthy()
    shift_means(model, sigmas=2)

    finding = get_finding(diagnose(model, make_batches(1, size, seed=7)), "BN108")

    assert (finding is not None) == is_found
    if finding is not None:
        assert finding.signs.evidence.endswith("too few batches to tell chance")


def test_bn108_does_not_tell_weights_from_images_without_training_batches() -> None:
    """The images are others, and the weights those of the averages: with training batches it is BN207."""
    shifted = [(inputs + 0.5, labels) for inputs, labels in TEST_BATCHES]

    alone = get_finding(diagnose(make_healthy(), shifted), "BN108")
    compared = diagnose(make_healthy(), shifted, training_batches=make_batches(40))

    assert alone is not None
    assert alone.rule.title == "averages of other images or weights"
    assert alone.signs.checks[0].endswith("Pass training_batches=.")
    assert "BN108" not in list_codes(compared)
    assert "BN207" in list_codes(compared)


def test_bn108_blames_the_weights_where_the_averages_do_not_fit_the_training_batches() -> None:
    model = make_healthy()
    shift_means(model)

    finding = get_finding(diagnose(model, TEST_BATCHES, training_batches=make_batches(40)), "BN108")

    assert finding is not None
    assert re.fullmatch(FARTHER, finding.signs.evidence)
    assert "training_batches=" not in finding.remedy


def test_bn108_is_quiet_where_the_averages_agree_with_a_single_training_batch() -> None:
    model = make_healthy()
    training = make_batches(1, 256, seed=7)
    shifted = [(inputs + 2, labels) for inputs, labels in training]

    case = diagnose(model, shifted, training_batches=training).case

    assert case.is_costly
    assert OtherWeights().look(case) is None


def test_bn108_is_a_note_where_no_cost_was_measured() -> None:
    model, _, _ = _train_lagging()
    unlabelled = [inputs for inputs, _ in TEST_BATCHES]

    finding = get_finding(diagnose(model, unlabelled), "BN108")

    assert finding is not None
    assert finding.severity == "note"


def test_bn108_gives_way_to_a_rule_that_knows_better() -> None:
    model = make_net()
    train(model, make_batches(10))

    assert list_codes(diagnose(model.eval(), TEST_BATCHES)) == ["BN101"]


def freeze_norms(model: nn.Module) -> None:
    """Keep the weights and averages of the batch norms as they are."""
    for name in ("1", "4"):
        model.get_submodule(name).requires_grad_(False)
        model.get_submodule(name).eval()


def test_bn108_is_quiet_about_frozen_layers_whose_network_has_learnt_with_them() -> None:
    model = make_healthy()
    shift_means(model)
    freeze_norms(model)
    take_steps(model, make_batches(200))

    diagnosis = diagnose(model, TEST_BATCHES)

    assert diagnosis.table["noise"].min() > 3
    assert not diagnosis.case.is_costly
    assert not {"BN104", "BN108"} & set(list_codes(diagnosis))


def test_bn108_names_frozen_layers_that_cost_something_behind_weights_that_are_trained() -> None:
    model = make_healthy()
    freeze_norms(model)
    shift_means(model)

    finding = get_finding(diagnose(model, TEST_BATCHES), "BN108")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("error", ("1", "4"))


def test_bn108_lists_the_usual_causes_once_in_a_line_each() -> None:
    model = make_healthy()
    shift_means(model)

    text = str(diagnose(model, TEST_BATCHES))

    last = text.splitlines()[-4:]
    assert last[0].endswith("The usual causes:")
    assert [line[:5] for line in last[1:]] == ["  1. ", "  2. ", "  3. "]
    assert text.count("training_batches=") == text.count("before=") == 1


# BN109


def _make_still() -> tuple[nn.Sequential, nn.Sequential]:
    """Train on with momentum 0; the end, and the network before it."""
    model = make_healthy()
    with_momentum(model, 0.0)
    before = copy.deepcopy(model)
    train(model, make_batches(100, seed=3), lr=0.3)
    return model.eval(), before


@pytest.mark.parametrize("gives_batches", [False, True])
@pytest.mark.parametrize("gives_before", [False, True])
def test_bn109_finds_averages_that_momentum_0_has_kept(gives_batches: bool, gives_before: bool) -> None:
    model, before = _make_still()
    batches = TEST_BATCHES if gives_batches else None

    diagnosis = diagnose(model, batches, before=before if gives_before else None)

    finding = get_finding(diagnosis, "BN109")
    assert list_codes(diagnosis) == ["BN109"]
    assert finding is not None
    assert finding.signs.evidence == "300 updates of momentum 0"


def test_bn109_takes_the_place_of_never_updated() -> None:
    model = make_net(momentum=0.0)
    train(model, make_batches(20))

    assert list_codes(diagnose(model.eval())) == ["BN109"]
    assert list_codes(diagnose(model, TEST_BATCHES)) == ["BN109"]


def test_bn109_is_quiet_where_momentum_0_keeps_averages_that_are_right() -> None:
    model = make_healthy()
    population_statistics(model, TEST_BATCHES, progress=False).write_to(model)
    with_momentum(model, 0.0)

    assert list_codes(diagnose(model, TEST_BATCHES)) == []


def test_bn109_is_quiet_about_frozen_layers_and_other_momenta() -> None:
    model, _ = _make_still()
    for name in ("1", "4"):
        model.get_submodule(name).requires_grad_(False)
    assert "BN109" not in list_codes(diagnose(model))

    assert "BN109" not in list_codes(diagnose(make_healthy()))
