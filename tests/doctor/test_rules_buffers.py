"""Rules that need no history: each fires on a planted fault, and stays quiet on what is no fault."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import diagnose, population_statistics
from bnlab.doctor.rules.bn004 import find_stall
from bnlab.nn import SelfTuned
from tests.doctor.patients import (
    FEATURES,
    get_buffers,
    get_finding,
    list_codes,
    make_batches,
    make_healthy,
    make_net,
    set_counts,
    train,
)
from tests.helpers import with_momentum

TEST_BATCHES = make_batches(20, seed=7)


# Models without a fault


def test_a_healthy_model_has_no_finding_without_data() -> None:
    assert list_codes(diagnose(make_healthy())) == []


def test_a_healthy_model_has_notes_at_most_with_data() -> None:
    diagnosis = diagnose(make_healthy(), TEST_BATCHES)

    assert {finding.severity for finding in diagnosis.faults} <= {"note"}
    assert set(list_codes(diagnosis)) <= {"BN201"}  # the noise of averages of 32 points


def test_a_healthy_model_in_train_mode_has_one_note() -> None:
    diagnosis = diagnose(make_healthy().train())

    assert [(finding.rule.code, finding.severity) for finding in diagnosis.faults] == [("BN402", "note")]


@pytest.mark.parametrize("training", [True, False])
def test_a_new_model_was_never_updated_and_nothing_else(training: bool) -> None:
    diagnosis = diagnose(make_net().train(training))

    assert list_codes(diagnosis) == ["BN002"]


def test_published_weights_whose_count_began_again_have_no_finding() -> None:
    """As those of torchvision: trained by hundreds of thousands of batches, of which none is counted."""
    model = make_healthy()
    set_counts(model, 0)

    assert list_codes(diagnose(model)) == []


# BN001


@pytest.mark.parametrize(
    ("moment", "value", "told"),
    [
        ("running_mean", math.nan, "not finite in 1 of 16"),
        ("running_var", math.inf, "not finite in 1 of 16"),
        ("running_var", -0.1, "negative in 1 of 16"),
    ],
)
def test_bn001_names_the_first_layer_with_a_bad_value(moment: str, value: float, told: str) -> None:
    model = make_healthy()
    for name in ("1", "4"):
        getattr(model.get_submodule(name), moment)[3] = value

    finding = get_finding(diagnose(model), "BN001")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("error", ("1", "4"))
    assert finding.signs.evidence == f"{told} channels of '1', the first in depth"


def test_bn001_knows_the_depth_from_the_data() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.BatchNorm1d(FEATURES)
            self.first = nn.BatchNorm1d(FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    model = Reversed().eval()
    for name in ("first", "last"):
        get_buffers(model, name)[0].fill_(math.nan)

    finding = get_finding(diagnose(model, [torch.randn(8, FEATURES)]), "BN001")

    assert finding is not None
    assert finding.signs.layers == ("first", "last")


# BN003


def test_bn003_finds_variances_of_zero() -> None:
    model = make_healthy()
    get_buffers(model, "4")[1].zero_()

    finding = get_finding(diagnose(model), "BN003")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("warning", ("4",))


def test_bn003_passes_over_a_layer_that_the_data_shows_to_be_dead() -> None:
    model = make_healthy()
    model[3].weight.data.zero_()  # type: ignore[union-attr, operator]
    for buffer in get_buffers(model, "4"):
        buffer.zero_()

    assert "BN003" in list_codes(diagnose(model))
    assert "BN003" not in list_codes(diagnose(model, TEST_BATCHES))


# BN004


def test_bn004_warns_of_bfloat16_in_train_mode_and_notes_it_in_eval_mode() -> None:
    model = make_healthy().bfloat16()

    in_eval = get_finding(diagnose(model), "BN004")
    in_train = get_finding(diagnose(model.train()), "BN004")

    assert in_eval is not None and in_train is not None
    assert in_eval.severity == "note"
    assert in_train.severity == "warning"
    assert in_train.signs.evidence == "bfloat16: an average may stop 3.9% short of its goal"  # 2⁻⁸ / .1


def test_bn004_is_quiet_in_double_precision() -> None:
    assert list_codes(diagnose(make_healthy().double().train())) == ["BN402"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_in_low_precision_stop_as_far_from_their_goal_as_is_said(dtype: torch.dtype) -> None:
    layer = nn.BatchNorm1d(64, momentum=0.1).to(dtype)
    goal = torch.linspace(1, 2, 64, dtype=dtype)
    average = torch.zeros(64, dtype=dtype)

    for _ in range(300):
        average.lerp_(goal, 0.1)

    short = ((goal - average) / goal).double().max()
    assert 0.5 * find_stall(layer) < short <= find_stall(layer)


# BN101


@pytest.mark.parametrize(
    ("momentum", "steps", "way"),
    [
        (0.1, 10, 65),  # 1 − .9¹⁰: too few updates
        (0.001, 200, 18),  # 1 − .999²⁰⁰: too small a momentum
    ],
)
def test_bn101_finds_averages_on_their_way_without_and_with_data(momentum: float, steps: int, way: int) -> None:
    model = make_net(momentum)
    train(model, make_batches(steps))
    told = f"{steps} updates of momentum {momentum:g}: {way}% of the way"

    without = get_finding(diagnose(model.eval()), "BN101")
    within = get_finding(diagnose(model, TEST_BATCHES), "BN101")

    assert without is not None and within is not None
    assert (without.severity, without.signs.layers, without.signs.evidence) == ("warning", ("1", "4"), told)
    assert within.severity == "error"
    assert within.signs.evidence.startswith(f"{told}, ")
    measured = int(within.signs.evidence.removeprefix(f"{told}, ").removesuffix("% as measured"))
    assert measured == pytest.approx(way, abs=5)


def test_bn101_is_quiet_where_variances_are_smaller_than_the_start_would_leave_them() -> None:
    """A count of 10 on averages of a longer training: .9¹⁰ = .35 of the variance would still be the start's."""
    model = make_healthy()
    set_counts(model, 10)
    smallest = [float(get_buffers(model, name)[1].min()) for name in ("1", "4")]
    assert smallest[0] < 0.35 < smallest[1]  # one layer shows that all counts are wrong

    assert list_codes(diagnose(model)) == []


def test_bn101_is_quiet_where_the_start_hardly_matters() -> None:
    """Averages of standardized inputs begin near their goal."""
    layer = nn.BatchNorm1d(4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        layer(torch.randn(256, 4, generator=generator))

    assert list_codes(diagnose(nn.Sequential(layer).eval())) == []


def test_bn101_is_quiet_with_data_where_the_gap_is_not_towards_the_start() -> None:
    model = make_net()
    train(model, make_batches(10))
    exact = population_statistics(model, TEST_BATCHES)
    for name, moments in exact.items():
        mean, var = get_buffers(model, name)
        mean.copy_(moments.mean + 0.5 * moments.var.sqrt())
        var.copy_(moments.var)

    codes = list_codes(diagnose(model.eval(), TEST_BATCHES))

    assert "BN101" not in codes


def test_bn101_is_quiet_about_cumulative_and_self_tuned_averages() -> None:
    cumulative = make_net(None)
    tuned = SelfTuned.convert(make_net())
    for model in (cumulative, tuned):
        train(model, make_batches(10))

        assert "BN101" not in list_codes(diagnose(model.eval()))


# BN102


def test_bn102_warns_of_a_reversed_momentum_and_lets_the_cost_decide() -> None:
    model = make_net(0.99)
    train(model, make_batches(200))
    population_statistics(model, TEST_BATCHES).write_to(model)

    without = get_finding(diagnose(model.eval()), "BN102")
    within = get_finding(diagnose(model, TEST_BATCHES), "BN102")

    assert without is not None and within is not None
    assert without.severity == "warning"
    assert without.signs.evidence == "momentum 0.99, a memory of 1.0 batches"
    assert (within.severity, within.cost) == ("note", 0.0)


@pytest.mark.parametrize("momentum", [0.5, None])
def test_bn102_is_quiet_up_to_half_and_about_cumulative_averages(momentum: float | None) -> None:
    assert list_codes(diagnose(with_momentum(make_healthy(), momentum))) == []


# BN104


def test_bn104_warns_of_frozen_layers_in_train_mode() -> None:
    model = make_healthy()
    for parameter in model[:3].parameters():
        parameter.requires_grad_(False)

    assert list_codes(diagnose(model)) == []
    finding = get_finding(diagnose(model.train()), "BN104")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("warning", ("1",))
    assert finding.signs.evidence == "1 frozen layer in train mode"


def test_bn104_is_quiet_where_nothing_is_trained_or_only_batch_norm_is() -> None:
    model = make_healthy().train()
    model.requires_grad_(False)
    assert "BN104" not in list_codes(diagnose(model))

    for name in ("1", "4"):
        model.get_submodule(name).requires_grad_(True)
    assert "BN104" not in list_codes(diagnose(model))


# BN402


def test_bn402_warns_of_a_layer_in_train_mode_in_a_model_in_eval_mode() -> None:
    model = make_healthy()
    model[4].train()

    finding = get_finding(diagnose(model), "BN402")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("warning", ("4",))
    assert finding.signs.evidence == "1 of 2 in train mode, in a model in eval mode"


def test_bn402_notes_layers_without_running_statistics() -> None:
    model = nn.Sequential(*make_healthy(), nn.BatchNorm1d(4, track_running_stats=False)).eval()

    finding = get_finding(diagnose(model), "BN402")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("note", ("7",))


def test_bn402_is_quiet_where_some_layers_are_kept_in_eval_mode_while_training() -> None:
    model = make_healthy().train()
    model[1].eval()

    finding = get_finding(diagnose(model), "BN402")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("note", ("4",))


# BN901


class OwnNorm(nn.Module):
    """A norm of another class, which keeps statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_avg_mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_bn901_notes_norms_of_other_classes_and_layers_that_no_batch_reaches() -> None:
    model = nn.Sequential(*make_healthy(), OwnNorm())
    model[6].register_module("unused", nn.BatchNorm1d(4))
    model.eval()

    with pytest.warns(RuntimeWarning, match="no batch norm of torch's"):
        finding = get_finding(diagnose(model, TEST_BATCHES), "BN901")

    assert finding is not None
    assert (finding.severity, finding.signs.layers) == ("note", ("7", "6.unused"))
    assert finding.signs.evidence == "1 of another class than torch's; 1 reached by no batch"


def test_bn901_repeats_a_warning_of_functional_batch_norm() -> None:
    class Functional(nn.Module):
        means: Tensor
        vars: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(FEATURES)
            self.register_buffer("means", torch.zeros(FEATURES))
            self.register_buffer("vars", torch.ones(FEATURES))

        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(self.norm(x), self.means, self.vars)

    with pytest.warns(RuntimeWarning, match="F.batch_norm is called on 'means'"):
        finding = get_finding(diagnose(Functional().eval(), [torch.randn(8, FEATURES)]), "BN901")

    assert finding is not None
    assert finding.signs.layers == ("",)
    assert "F.batch_norm is called on 'means'" in finding.signs.evidence
