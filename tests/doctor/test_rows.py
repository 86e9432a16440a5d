"""What rows of the table find, on networks with a planted mistake whose size is known."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnlab
from bnlab.doctor.average_rows import (
    leave_a_factor,
    leave_a_share_of_the_start,
    leave_dropout_or_padding,
    leave_fills,
    leave_one_batch,
    leave_the_start,
    leave_what_no_data_give,
    measure_between,
    see_small_last_batch,
    shuffle,
    trace_collapse,
    trace_momentum,
    trace_padding,
    trace_small_batches,
    trace_the_start,
    trace_unlike_batches,
)
from bnlab.doctor.cause import Cause, Left, Trial, Undo
from bnlab.doctor.causes import CAUSES
from bnlab.doctor.diagnose import diagnose, name_cause
from bnlab.doctor.fits import measure_residuals
from bnlab.doctor.other_rows import (
    see_new_weights,
    see_random_outputs,
    see_what_is_not_covered,
    trace_several_calls,
    undo_eps,
    undo_rescaling,
    undo_second_folding,
    undo_weights_of_norms,
)
from bnlab.doctor.patient import Patient
from bnlab.doctor.scores import Scores
from bnlab.statistics.moments import Moments
from tests.doctor import digits

Batches = Sequence[Any]


@pytest.fixture
def model() -> nn.Sequential:
    return digits.make_healthy(0)


def list_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def recalibrate(model: nn.Module) -> None:
    """Write the averages of the tested images, so that nothing but what is planted is off."""
    bnlab.population_statistics(model, digits.make_batches()).write_to(model)


def explain(patient: Patient, left: Callable[[Patient], Any]) -> list[tuple[float, Left]]:
    """The largest residual under each explanation of a row, with that."""
    return [(float(measure_residuals(patient, each).abs().max()), each) for each in left(patient)]


def train_on(model: nn.Module, batches: Batches, momentum: float | None) -> None:
    """Average batches as training does; no weight moves."""
    for norm in list_norms(model):
        norm.momentum = momentum
    model.train()
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    model.eval()


# -- averages that a mistake leaves ------------------------------------------------------------------------------------


def test_averages_of_a_single_training_batch_are_told(model: nn.Sequential) -> None:
    """Of the third, which a forward with a momentum of 1 has left: of few images, so that it costs something."""
    batches = make_sizes(64, 64, 8, 64)
    train_on(model, batches[2:3], momentum=1.0)
    for norm in list_norms(model):
        norm.momentum = 0.1

    diagnosis = diagnose(model, digits.make_batches(), training_batches=batches)

    assert (diagnosis.verdict, diagnosis.causes) == ("averages", ["BN112"])
    assert "averages are those of training batch 3 alone, of 8 images" in str(diagnosis)


def test_the_nearest_of_many_batches_by_chance_is_not_taken_for_the_one(model: nn.Sequential) -> None:
    patient = Patient(model, digits.make_batches(), training_batches=digits.make_training_batches())
    assert not explain(patient, leave_one_batch)


def test_a_share_of_the_start_is_known_from_momentum_and_count(model: nn.Sequential) -> None:
    """After 8 updates of momentum 0.2 from 0 and 1, 0.8⁸ of these are left."""
    recalibrate(model)
    for norm in list_norms(model):
        norm.momentum = 0.2
        norm.num_batches_tracked.fill_(8)
        norm.running_mean.mul_(1 - 0.8**8)
        norm.running_var.mul_(1 - 0.8**8).add_(0.8**8)

    patient = Patient(model, digits.make_batches())

    ((residual, left),) = explain(patient, leave_a_share_of_the_start)
    assert residual < 1e-3
    assert left.words == "17% of the averages are still the 0 and 1 that they began at"
    assert float(measure_residuals(patient, Left(patient.exact)).abs().max()) > 0.1


def test_no_share_of_the_start_is_left_of_many_updates(model: nn.Sequential) -> None:
    for norm in list_norms(model):
        norm.num_batches_tracked.fill_(51)  # .9⁵¹ is .0046
    assert not explain(Patient(model, digits.make_batches()), leave_a_share_of_the_start)
    for norm in list_norms(model):
        norm.num_batches_tracked.fill_(50)  # .9⁵⁰ is .0052
    assert explain(Patient(model, digits.make_batches()), leave_a_share_of_the_start)


@pytest.mark.parametrize(
    ("mean", "var", "words"),
    [
        (0.0, None, "means of 3 layers are 0"),
        (None, 1.0, "variances of 3 layers are 1 or 0"),
        (0.0, 0.0, "means of 3 layers are 0 and variances of 3 layers are 1 or 0"),
    ],
)
def test_what_was_never_updated_is_left_as_it_is(
    model: nn.Sequential, mean: float | None, var: float | None, words: str
) -> None:
    recalibrate(model)
    for norm in list_norms(model):
        if mean is not None:
            norm.running_mean.fill_(mean)
        if var is not None:
            norm.running_var.fill_(var)

    patient = Patient(model, digits.make_batches())

    trace = trace_the_start(patient)
    assert trace is not None
    assert (trace.share, trace.words) == (1.0, f"{words}, as before the first update")
    ((residual, _),) = explain(patient, leave_the_start)
    assert residual < 1e-3


def test_a_single_channel_of_0_is_no_start(model: nn.Sequential) -> None:
    list_norms(model)[0].running_mean[0] = 0.0
    assert trace_the_start(Patient(model, digits.make_batches())) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1.0])
def test_channels_that_no_data_give_are_counted(model: nn.Sequential, value: float) -> None:
    recalibrate(model)
    list_norms(model)[1].running_var[:20] = value

    ((residual, left),) = explain(Patient(model, digits.make_batches()), leave_what_no_data_give)

    assert left.words == "20 channels of 1 layers are not finite, or negative"
    # All of it is described, although NaN differs from itself.
    assert residual < 1e-3
    diagnosis = diagnose(model, digits.make_batches())
    assert (diagnosis.verdict, diagnosis.causes) == ("averages", ["BN001"])


def test_a_factor_describes_all_averages(model: nn.Sequential) -> None:
    recalibrate(model)
    for norm in list_norms(model):
        norm.running_mean.mul_(20)
        norm.running_var.mul_(20)
    ((residual, left),) = explain(Patient(model, digits.make_batches()), leave_a_factor)
    assert residual < 1e-2
    assert left.words == "all averages are 20 times what they should be"


def test_a_share_of_ones_is_fitted(model: nn.Sequential) -> None:
    """Three forwards of ones at a momentum of 0.2: 1 − 0.8³ of the averages."""
    recalibrate(model)
    ones = [(torch.ones(50, 3, 8, 8), None)] * 3
    train_on(model, ones, momentum=0.2)
    patient = Patient(model, digits.make_batches())

    ((residual, left),) = explain(patient, leave_fills)  # and no share of zeros or of noise explains them
    assert left.words == "49% of the averages are those of ones"
    assert residual < 0.02


# -- traces and signs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "count", "is_odd"), [(0.1, 9, False), (0.5, 9, False), (0.9, 9, True), (0.0, 9, True), (0.0, 0, False)]
)
def test_a_momentum_that_remembers_one_batch_or_none(
    model: nn.Sequential, momentum: float, count: int, is_odd: bool
) -> None:
    for norm in list_norms(model)[:2]:
        norm.momentum = momentum
        norm.num_batches_tracked.fill_(count)
    trace = trace_momentum(Patient(model, digits.make_batches()))
    assert (trace is not None) == is_odd
    if trace is not None:
        assert trace.share == 2 / 3
        assert trace.words == f"momentum is {momentum:g} in 2 layers"


@pytest.mark.parametrize(
    ("factors", "is_collapse"),
    [([1.0, 0.7, 0.5], True), ([0.5, 0.7, 1.0], False), ([0.6, 0.6, 0.6], False), ([1.0, 0.9, 0.8], False)],
)
def test_variances_that_fall_with_depth_are_a_collapse(
    model: nn.Sequential, factors: Sequence[float], is_collapse: bool
) -> None:
    recalibrate(model)
    for norm, factor in zip(list_norms(model), factors, strict=True):
        norm.running_var.div_(factor)
    assert (trace_collapse(Patient(model, digits.make_batches())) is not None) == is_collapse


def make_sizes(*sizes: int) -> Batches:
    images, labels, _, _ = digits.load_images()
    return list(zip(images[: sum(sizes)].split(sizes), labels[: sum(sizes)].split(sizes), strict=True))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((64, 64, 32), "the last training batch has 32 images, the others up to 64"),
        ((64, 64, 33), ""),
        ((4, 64), ""),
        ((3,), ""),
    ],
)
def test_a_last_batch_of_at_most_half_as_many_images(model: nn.Sequential, sizes: tuple[int, ...], words: str) -> None:
    patient = Patient(model, digits.make_batches(), training_batches=make_sizes(*sizes))
    assert see_small_last_batch(patient) == words


@pytest.mark.parametrize(("sizes", "is_small"), [((4, 4), True), ((1, 1), True), ((5, 1), False)])
def test_training_batches_of_at_most_four_images_are_small(
    model: nn.Sequential, sizes: tuple[int, ...], is_small: bool
) -> None:
    patient = Patient(model, digits.make_batches(), training_batches=make_sizes(*sizes))
    assert (trace_small_batches(patient) is not None) == is_small


def test_training_batches_of_two_domains_one_after_the_other_are_unlike(model: nn.Sequential) -> None:
    """The same images in another order are alike."""
    images, labels, _, _ = digits.load_images()
    brighter = images + (torch.arange(len(images)) < 400)[:, None, None, None]
    order = torch.randperm(len(images))
    for row in (torch.arange(len(images)), order):
        batches = list(zip(brighter[row].split(64), labels[row].split(64), strict=True))
        trace = trace_unlike_batches(Patient(model, digits.make_batches(), training_batches=batches))
        assert (trace is not None) == (row is not order)


def test_a_shuffle_keeps_images_with_their_labels_and_sizes() -> None:
    values = torch.arange(70.0)
    batches = list(zip(values[:, None].split(16), values.long().split(16), strict=True))
    shuffled = shuffle(batches)
    assert [len(labels) for _, labels in shuffled] == [16, 16, 16, 16, 6]
    assert all(torch.equal(images[:, 0].long(), labels) for images, labels in shuffled)
    joined = torch.cat([labels for _, labels in shuffled])
    assert joined.tolist() != list(range(70))
    assert sorted(joined.tolist()) == list(range(70))


def test_the_share_of_variance_between_means_is_that_of_an_analysis_of_variance() -> None:
    """Means −1 and 1, whose variance with divisor n − 1 is 2, and 3 within."""
    calls = [Moments(9, torch.tensor([mean]), torch.tensor([3.0])) for mean in (-1.0, 1.0)]
    assert measure_between(calls) == pytest.approx(2 / (2 + 3))


def test_weights_as_constructed_are_seen_where_updates_were_counted() -> None:
    fresh = digits.build(0)
    batches = digits.make_batches(images=100)
    assert see_new_weights(Patient(fresh, batches)) == ""
    for norm in list_norms(fresh):
        norm.num_batches_tracked.fill_(144)
    assert see_new_weights(Patient(fresh, batches)).endswith("and 144 updates were counted")
    list_norms(fresh)[2].bias.data[0] = 0.1
    assert see_new_weights(Patient(fresh, batches)) == ""


# -- sequences ---------------------------------------------------------------------------------------------------------


def make_sequences(pad: int, batches: int = 8) -> Batches:
    """Make sequences [32, 3, 10] of two classes, by their mean, of which the last positions are padded with 0.

    Channels have other means and deviations, so that no scale and shift of all is as good an explanation.
    """
    generator = torch.Generator().manual_seed(pad)
    means, deviations = torch.tensor([4.0, 1.0, -2.0])[:, None], torch.tensor([1.0, 2.0, 0.5])[:, None]
    made = []
    for _ in range(batches):
        labels = torch.arange(32) % 2
        values = means + deviations * (labels[:, None, None] + torch.randn(32, 3, 10, generator=generator))
        values[..., 10 - pad :] = 0
        made.append((values, labels))
    return made


class Sequences(nn.Module):
    """Tells classes by the first positions, which are never padded, after a batch norm that averages all."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.norm.bias.data += 0.01

    def forward(self, x: Tensor) -> Tensor:
        score = 4 * self.norm(x)[..., :4].mean((1, 2))
        return torch.stack((-score, score), 1)


def test_padding_that_the_averages_count_is_told() -> None:
    """Half of each training sequence is padding, which the averages are of, too."""
    model = Sequences()
    model.norm.momentum = None
    training = make_sequences(pad=5)
    for images, _ in training:
        model(images)
    model.norm.momentum = 0.1
    patient = Patient(model.eval(), make_sequences(pad=0), training_batches=training)

    trace = trace_padding(patient)
    assert trace is not None
    assert trace.words == "50% of training batches is padding, and 0% of these"
    ((residual, _),) = explain(patient, leave_dropout_or_padding)
    assert residual < 0.01
    diagnosis = diagnose(model, make_sequences(pad=0), training_batches=training)
    assert (diagnosis.verdict, diagnosis.causes) == ("averages", ["BN205"])


# -- the network -------------------------------------------------------------------------------------------------------


class TwoDomains(nn.Module):
    """One batch norm is called twice a forward, with inputs of other means."""

    def __init__(self, inner: nn.Sequential, shift: float) -> None:
        super().__init__()
        self.inner = inner
        self.shift = shift

    def forward(self, x: Tensor) -> Any:
        return self.inner(x) + 0 * self.inner(x + self.shift)


@pytest.mark.parametrize(("shift", "is_told"), [(4.0, True), (0.0, False)])
def test_a_layer_that_is_called_twice_with_inputs_that_differ(
    model: nn.Sequential, shift: float, is_told: bool
) -> None:
    trace = trace_several_calls(Patient(TwoDomains(model, shift).eval(), digits.make_batches(images=200)))
    assert (trace is not None) == is_told
    if trace is not None:
        assert trace.words == "3 layers are called 2 times a forward, with inputs that differ"


class OwnNorm(nn.Module):
    """Keeps averages of its own, which bnlab does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.get_buffer("running_mean").view(3, 1, 1)


@pytest.mark.filterwarnings("ignore:.*are no batch norm of torch's:RuntimeWarning")
def test_what_was_not_examined_is_named(model: nn.Sequential) -> None:
    model.append(nn.Identity())
    unused = nn.Sequential(OwnNorm(), *model)
    unused.add_module("unused", nn.Sequential())
    unused.get_submodule("unused").add_module("norm", nn.BatchNorm2d(3))
    unused.forward = lambda x: nn.Sequential(*list(unused)[:-1])(x)  # type: ignore[method-assign]

    words = see_what_is_not_covered(Patient(unused.eval(), digits.make_batches(images=200)))

    assert words == "unused.norm, 0 were not examined"


class Drawing(nn.Module):
    """Adds noise, in eval mode too; returns the logits as they are, or as models of Transformers do."""

    def __init__(self, inner: nn.Module, size: float, in_dictionary: bool) -> None:
        super().__init__()
        self.inner = inner
        self.size = size
        self.in_dictionary = in_dictionary

    def forward(self, x: Tensor) -> Any:
        y = self.inner(x)
        logits = y + self.size * y.std() * torch.randn_like(y)
        return {"logits": logits} if self.in_dictionary else logits


@pytest.mark.parametrize("in_dictionary", [False, True])
@pytest.mark.parametrize(("size", "is_told"), [(0.1, True), (0.001, False)])
def test_outputs_that_are_drawn_anew_are_told(
    model: nn.Sequential, size: float, is_told: bool, in_dictionary: bool
) -> None:
    patient = Patient(Drawing(model, size, in_dictionary).eval(), digits.make_batches(images=200))
    assert bool(see_random_outputs(patient)) == is_told


def test_another_eps_is_that_of_training(model: nn.Sequential) -> None:
    """Under the change a model with an eps of 10⁻⁵ predicts what one with 10⁻³ predicts."""
    batches = digits.make_batches(images=200)
    for norm in list_norms(model):
        norm.running_var.mul_(1e-4)  # where the two differ
    trained = copy.deepcopy(model)
    for norm in list_norms(trained):
        norm.eps = 1e-3

    (undo,) = undo_eps(Patient(model, batches))

    assert "0.001" in undo.words
    ran = undo.run(Patient(model, batches))
    expected = torch.cat([trained(images) for images, _ in batches]).detach()
    # Float32 sums of some hundred products, each of the size of the largest output at most.
    size = float(expected.abs().max())
    torch.testing.assert_close(torch.cat([*ran.outputs]), expected, rtol=0, atol=1e-5 * size)


def test_weights_that_training_took_otherwise(model: nn.Sequential) -> None:
    batches = digits.make_batches(images=200)
    list_norms(model)[0].weight.data[0] = -0.5
    goals = []
    for change in (torch.ones_like, torch.abs):
        goal = copy.deepcopy(model)
        for norm in list_norms(goal):
            norm.weight.data = change(norm.weight.data)
        goals.append(torch.cat([goal(images) for images, _ in batches]).detach())
    patient = Patient(model, batches)

    undone = [*undo_weights_of_norms(patient)]

    assert [undo.degrees for undo in undone] == [0, 0]
    for undo, expected in zip(undone, goals, strict=True):
        torch.testing.assert_close(torch.cat([*undo.run(patient).outputs]), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_are_applied_twice_are_passed_through(model: nn.Sequential) -> None:
    """Each layer is folded into the convolution before it, and kept."""
    batches = digits.make_batches(images=500)
    for norm in list_norms(model):
        norm.weight.data.mul_(torch.linspace(0.5, 3, len(norm.weight)))  # other numbers in each channel
    recalibrate(model)
    expected = torch.cat([model(images) for images, _ in batches]).detach()
    folded = copy.deepcopy(model)
    for place in (0, 3, 6):
        conv, norm = copy.deepcopy(model[place]), model[place + 1]
        folded[place] = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)  # type: ignore[type-var, arg-type]
    patient = Patient(folded.eval(), batches)

    (undo,) = undo_second_folding(patient)

    assert undo.words.startswith("3 layers")
    torch.testing.assert_close(torch.cat([*undo.run(patient).outputs]), expected, rtol=1e-3, atol=1e-3)


def test_images_are_not_blamed_where_training_batches_do_not_fit_the_averages_either(model: nn.Sequential) -> None:
    """Averages times 9 look like images divided by 3, unless images of training look the same."""
    for norm in list_norms(model)[:1]:
        norm.running_mean.mul_(3)
        norm.running_var.mul_(9)
    patient = Patient(model, digits.make_batches())
    assert [*undo_rescaling(patient)]
    told = Patient(model, digits.make_batches(), training_batches=digits.make_training_batches())
    assert not [*undo_rescaling(told)]


def test_a_change_of_one_layer_keeps_the_others(model: nn.Sequential) -> None:
    """A row's change that answers for one layer alone leaves all others as they are."""
    batches = digits.make_batches(images=200)
    patient = Patient(model, batches)

    def double(call: Any) -> Any:
        if call.name != "4":
            return None
        return replace(call.normalize_by(call.mean, call.var), weight=2 * call.weight)

    changed = copy.deepcopy(model)
    norm: Any = changed[4]
    norm.weight.data.mul_(2)
    expected = torch.cat([changed(images) for images, _ in batches]).detach()
    torch.testing.assert_close(torch.cat([*patient.run(double).outputs]), expected, rtol=1e-4, atol=1e-4)


def test_what_each_batch_alone_brings_back_is_their_size_where_they_are_alike(model: nn.Sequential) -> None:
    trial = Trial("batches", None, Undo("each batch by its own statistics"), Scores.empty())
    finds_nothing = Cause("MINE1", "batches", "mine", "It finds nothing.", "Do nothing.")
    alike, words = name_cause(Patient(model, digits.make_batches()), (finds_nothing, *CAUSES), trial)
    assert (alike.code, words) == ("BN203", "each batch is predicted better by its own statistics")

    two_kinds = [(x + number % 2, labels) for number, (x, labels) in enumerate(digits.make_batches())]
    assert name_cause(Patient(model, two_kinds), CAUSES, trial)[0].code == "BN202"
