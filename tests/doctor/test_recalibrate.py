"""`recalibrate`: what is written, what is refused, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import bnlab
from bnlab.doctor import Undo
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.undo import Kind, change_images
from bnlab.model.layers import get_running_buffers
from tests.doctor import digits
from tests.doctor.causes import Planted
from tests.doctor.two_values import draw, make_classifier, make_two_layers, score_images
from tests.helpers import AddsItsCalls, assert_equal_statistics, images, plain, train, unchanged, with_momentum


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_buffers_hold_the_population_statistics(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = make_two_layers()
    batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])]
    expected = bnlab.population_statistics(model, batches)

    recalibration = bnlab.recalibrate(wrap(model), batches)

    assert recalibration.written
    assert_equal_statistics(bnlab.running_statistics(model), expected)
    assert [layer.running_mean.item() for layer in (model[0], model[2])] == pytest.approx([3, 1])
    assert [layer.running_var.item() for layer in (model[0], model[2])] == pytest.approx([8 / 3, 9])
    assert model[0].num_batches_tracked.item() == 0


def test_precise_statistics_are_those_under_each_batch() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(1, eps=1e-12), nn.ReLU(), nn.BatchNorm1d(1))
    batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [9.0]])]  # -1 and 1 in their batches

    bnlab.recalibrate(model, batches, statistic="precise")

    assert model[2].running_mean.item() == pytest.approx(0.5)  # of 0, 1, 0, 1
    assert model[2].running_var.item() == pytest.approx(0.25)


@pytest.mark.parametrize("arguments", [{}, {"evaluate": score_images}])
def test_a_network_with_initial_statistics_comes_back(arguments: dict[str, Any]) -> None:
    model = make_classifier()

    recalibration = bnlab.recalibrate(model, draw(100), **arguments)

    assert recalibration.written
    assert (recalibration.before, recalibration.after) == (0.5, 1)
    # Half of the differences are 1; of 102 with one of each sign 51 are 1, one is -1: mean 0.49, sd 0.522.
    assert recalibration.gain is not None and recalibration.gain.value == 0.5
    assert recalibration.gain.low == pytest.approx(0.389, abs=1e-3)
    assert recalibration.gain.high == pytest.approx(0.592, abs=1e-3)
    assert score_images(model).all()
    assert str(recalibration).splitlines() == [
        "Recalibrated 1 batch-norm layer: the images score better.",
        f"{'Score' if arguments else 'Accuracy'}: 50.0% before, 100.0% after. New statistics gain 50.0 points "
        "[38.9, 59.1] on 100 images.",
    ]


def test_nothing_is_written_where_nothing_is_gained() -> None:
    model = make_classifier()
    bnlab.recalibrate(model, draw(100))
    model[0].running_mean += 0.5  # still between the two values

    with unchanged(model):
        recalibration = bnlab.recalibrate(model, draw(100))
        recalibration.undo()

    assert not recalibration.written
    assert str(recalibration).startswith("Not recalibrated: nothing is gained.\nAccuracy: 100.0% before, 100.0% after")

    forced = bnlab.recalibrate(model, draw(100), force=True)
    assert forced.written
    assert forced.reason == "force=True, although nothing is gained"
    assert model[0].running_mean.item() == pytest.approx(100)


@pytest.mark.filterwarnings("ignore:population_statistics")
def test_statistics_that_are_not_exact_are_written_only_where_the_images_score_better() -> None:
    model: Any = nn.Sequential(AddsItsCalls(), make_two_layers()).eval()
    # Only some of ten batches are checked, after other numbers of calls than when they were measured.
    batches = [part for batch, _ in draw(100) for part in batch.split(10)]
    calls = chain([1.0], repeat(0.0))  # under the new statistics, then under the old ones
    inexact = "the new statistics are not exact: an ordinary evaluation gives layer '1.0' another input"

    with unchanged(model):
        refused = bnlab.recalibrate(model, batches)
        given = bnlab.recalibrate(model, batches, statistic=bnlab.population_statistics(model, batches))
        with bnlab.recalibrate(model, batches, force=True) as forced:
            assert forced.written
        with bnlab.recalibrate(model, batches, evaluate=lambda model: [next(calls)] * 100) as better:
            assert better.reason.startswith(f"the images score better, although {inexact}")
        model[1][0].running_var.fill_(torch.nan)
        with bnlab.recalibrate(model, batches) as better_than_none:
            assert better_than_none.reason.startswith("not judged, as the old statistics are not finite")
        model[1][0].running_var.fill_(1.0)

    assert not given.written and not refused.written
    assert refused.reason.startswith(inexact)
    assert "not judged" in refused.reason


def test_labels_that_do_not_fit_are_not_called_missing() -> None:
    labelled = [(batch, torch.zeros(len(batch), 7, 3, dtype=torch.int64)) for batch, _ in draw(10)]

    recalibration = bnlab.recalibrate(make_two_layers(), labelled)

    assert recalibration.reason == "not judged, as labels cannot be compared with the outputs and there is no evaluate="


def test_few_images_do_not_show_a_gain() -> None:
    recalibration = bnlab.recalibrate(make_classifier(), draw(2))

    # Differences 0 and 1, and one of each sign: mean 0.25, sd 0.957.
    assert recalibration.gain is not None and recalibration.gain.value == 0.5
    assert recalibration.gain.low == pytest.approx(-0.688, abs=1e-3)
    assert not recalibration.written
    assert recalibration.reason == "too few images to be sure of a gain"


class Firing(Planted):
    """Proposes to divide the images by 100, which explains a classifier at 100 as well as a mean of 0 does."""

    code = "BN998"
    title = "a wrong scale"
    kind: ClassVar[Kind] = "images"

    def propose(self, case: Case) -> Iterator[Undo]:
        yield Undo("shifted by 100", ("0",), 0, change_images(lambda images: images - 100))


class Harmless(Firing):
    kind: ClassVar[Kind] = "averages"


def test_a_mistake_is_not_hidden_as_wrong_averages_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnlab.doctor.recalibrate.list_causes", lambda: [Firing()])
    model = make_classifier()

    with unchanged(model):
        recalibration = bnlab.recalibrate(model, draw(100))

    assert not recalibration.written
    assert recalibration.gain is not None and recalibration.gain.low > 0
    assert recalibration.reason.startswith("it would hide a mistake: BN998, a wrong scale (shifted by 100)")
    assert "training_batches= shows that images are prepared as in training, and force=True" in recalibration.reason
    assert bnlab.recalibrate(model, draw(100), force=True).written

    monkeypatch.setattr("bnlab.doctor.recalibrate.list_causes", lambda: [Harmless()])
    assert bnlab.recalibrate(make_classifier(), draw(100)).written


@pytest.mark.parametrize("fault", ["images", "averages"])
def test_training_batches_show_whether_it_is_the_averages_scale_or_that_of_the_images(fault: str) -> None:
    """Without these, both are undone as well by new statistics, which is said. Only a mistake that is certain is not
    hidden: of the images, as their averages fit the training batches."""
    model = digits.make_healthy()
    batches = digits.draw_batches(8)
    if fault == "averages":
        mean, var = get_running_buffers(digits.get_norm(model, "1"))
        mean.mul_(10)
        var.mul_(100)
    else:
        batches = [(4 * images, labels) for images, labels in batches]

    recalibration = bnlab.recalibrate(model, batches)
    recalibration.undo()
    compared = bnlab.recalibrate(model, batches, training_batches=digits.draw_batches(8, seed=-1))

    assert recalibration.written
    assert recalibration.reason.startswith("the images score better, as they would without BN209, ")
    assert recalibration.reason.endswith("training_batches= tells whether images or averages are at fault")
    assert compared.written == (fault == "averages")
    says = "the images score better" if fault == "averages" else "it would hide a mistake: BN209, "
    assert compared.reason.startswith(says)


def test_without_labels_a_mistake_that_may_be_hidden_is_said_as_such() -> None:
    batches = [4 * images for images, _ in digits.draw_batches(8)]

    recalibration = bnlab.recalibrate(digits.make_healthy(), batches)

    unlabelled = "not judged, as the batches have no labels and there is no evaluate="
    assert recalibration.reason.startswith(f"{unlabelled}; this may hide BN209, ")


def test_auto_reads_as_many_images_as_the_standard_errors_ask_for() -> None:
    batches = digits.draw_batches(24)
    training_batches = iter(digits.draw_batches(24, seed=-1))
    expected = bnlab.population_statistics(digits.make_healthy(), batches, max_images="auto", tolerance=0.2)
    assert expected.cost is not None and expected.cost.images == 256
    read = iter(batches)

    recalibration = bnlab.recalibrate(
        digits.make_healthy(), read, training_batches=training_batches, max_images="auto", tolerance=0.2
    )

    assert recalibration.statistics is not None
    assert_equal_statistics(recalibration.statistics, expected)
    assert recalibration.gain is not None and recalibration.gain.images == 256
    assert len(list(read)) == len(list(training_batches)) == 16  # batches of 32 images


def test_undo_is_bit_for_bit_also_after_an_exception() -> None:
    model: Any = plain()
    model[1].running_mean[0] = torch.nan

    with unchanged(model):
        recalibration = bnlab.recalibrate(model, images(8, 4))
        assert model[1].running_mean.isfinite().all()
        assert "the old statistics are not finite or negative" in recalibration.reason
        recalibration.undo()
        recalibration.undo()
        with pytest.raises(KeyError), bnlab.recalibrate(model, images(8, 4)) as recalibration:
            assert recalibration.written
            raise KeyError


def test_undo_is_refused_once_something_else_has_written() -> None:
    model: Any = plain()
    recalibration = bnlab.recalibrate(model, images(8, 4))
    model[1].train()(torch.randn(4, 6, 2, 2))

    with unchanged(model), pytest.raises(RuntimeError, match="running statistics of '1' have been written since"):
        recalibration.undo()


def test_an_error_of_the_block_is_not_replaced_by_that_of_the_undo() -> None:
    model: Any = plain()
    with pytest.raises(KeyError) as caught, bnlab.recalibrate(model, images(8, 4)):
        model[1].train()(torch.randn(4, 6, 2, 2))
        raise KeyError("user")

    (note,) = caught.value.__notes__
    assert "have been written since" in note


def test_self_tuned_layers_go_on_with_what_they_have_averaged() -> None:
    model: Any = bnlab.nn.SelfTuned.convert(plain())
    train(model, images(8, 8, 8, 8, 8))
    averages = model[1].averages

    with bnlab.recalibrate(model, images(8, 4), force=True):
        model.eval()(images(2)[0])
        assert model[1].averages is None  # the buffers are not what it has averaged

    assert averages is not None
    assert model[1].averages is averages


def test_frozen_layers_stay_unless_they_are_named() -> None:
    model: Any = plain().train()
    model[1].eval()

    with unchanged(model[1]):
        held = bnlab.recalibrate(model, images(8, 4))

    assert held.layers == ("4",)
    assert str(held).endswith("\nLeft as they were: '1' (frozen).")

    model.eval()
    model[4].weight.requires_grad_(False)
    assert bnlab.recalibrate(model, images(8, 4)).layers == ("1",)
    assert bnlab.recalibrate(model, images(8, 4), layers=["4"]).layers == ("4",)


def test_layers_above_frozen_ones_are_given_what_these_return() -> None:
    model: Any = make_two_layers().train()
    model[0].eval()  # mean 0 and variance 1: the identity

    bnlab.recalibrate(model, [torch.tensor([[1.0], [3.0]])])

    assert (model[2].running_mean.item(), model[2].running_var.item()) == pytest.approx((7, 9))  # of 4 and 10

    model[2].eval()
    recalibration = bnlab.recalibrate(model, [torch.tensor([[1.0], [3.0]])])
    assert not recalibration.written
    assert recalibration.statistics is None
    assert "all layers are frozen" in recalibration.reason
    assert str(recalibration).endswith("name them in layers=.\nLeft as they were: '0', '2' (frozen).")


def test_layers_that_no_batch_reaches_stay() -> None:
    model = make_classifier()
    model.add_module("unused", nn.BatchNorm1d(1))

    def forward(model: Any, batch: Any) -> Any:
        return model[:2](batch[0])

    recalibration = bnlab.recalibrate(model, draw(100), forward=forward)

    assert recalibration.layers == ("0",)
    assert str(recalibration).endswith("Left as they were: 'unused' (no statistics).")


def test_values_beyond_the_buffers_type_leave_all_as_it_was() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1)).half()
    bnlab.recalibrate(model, [torch.tensor([[1.0], [2.0], [2.0]]).half()])
    assert model[0].running_mean.item() == torch.tensor(5 / 3).half()

    ones = torch.ones(1, dtype=torch.float64)
    moments = {"0": bnlab.Moments(2, ones, ones), "1": bnlab.Moments(2, ones, 1e5 * ones)}
    statistics = bnlab.Statistics(moments, {"0": 1e-5, "1": 1e-5})
    batches = [torch.tensor([[1.0], [3.0]]).half()]

    with unchanged(model), pytest.raises(ValueError, match=r"recalibrate: layer '1' has a value beyond torch\.float16"):
        bnlab.recalibrate(model, batches, statistic=statistics, force=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batches": torch.zeros(2, 3, 8, 8)}, TypeError, "batches is a Tensor"),
        ({"batches": []}, ValueError, "recalibrate: batches is empty"),
        ({"statistic": "median"}, ValueError, "statistic='median'; choose 'exact' or 'precise'"),
        ({"layers": ["2"]}, ValueError, "recalibrate: layers has '2', which is no BatchNorm layer"),
        ({"evaluate": 1}, TypeError, "recalibrate: evaluate is a int"),
        ({"evaluate": lambda model: 0.5}, TypeError, "recalibrate: evaluate returned one number, 0.5"),
        ({"forward": 1}, TypeError, "recalibrate: forward is a int"),
        ({"max_images": 0}, ValueError, "recalibrate: max_images=0"),
        ({"max_images": "auto"}, ValueError, "recalibrate: tolerance=None"),
        ({"tolerance": 0.1}, ValueError, 'recalibrate: tolerance=0.1; it is for max_images="auto" only'),
        ({"training_batches": torch.zeros(2, 3, 8, 8)}, TypeError, "recalibrate: training_batches is a Tensor"),
        ({"group": 3}, TypeError, "recalibrate: group is a int; pass a process group"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model: Any = plain()

    with unchanged(model), pytest.raises(error, match=message):
        bnlab.recalibrate(model, **{"batches": images(8), **arguments})


def test_a_tolerance_is_for_statistics_that_are_measured() -> None:
    model = plain()
    own = bnlab.running_statistics(model)

    with unchanged(model), pytest.raises(ValueError, match="is for statistics that are measured"):
        bnlab.recalibrate(model, images(8), statistic=own, max_images="auto", tolerance=0.1)


def test_statistics_of_ones_own_are_of_the_models_layers() -> None:
    model: Any = plain()
    of_another = bnlab.running_statistics(nn.Sequential(nn.BatchNorm2d(6)))
    of_both = bnlab.population_statistics(nn.DataParallel(model), images(8, 4))
    of_one = bnlab.population_statistics(model, images(8), layers=["1"])

    with unchanged(model):
        with pytest.raises(ValueError, match="recalibrate: the model has no batch-norm layer '0'"):
            bnlab.recalibrate(model, images(8), statistic=of_another)
        with pytest.raises(ValueError, match="statistic has no layer '4'; there are '1'"):
            bnlab.recalibrate(model, images(8), statistic=of_one, layers=["1", "4"])
    assert bnlab.recalibrate(model, images(8), statistic=of_one).layers == ("1",)
    assert bnlab.recalibrate(model, images(8), statistic=of_both, layers=["4"]).layers == ("4",)
    assert torch.equal(model[4].running_mean.double(), of_both["module.4"].mean.float().double())


def test_five_forwards_do_where_the_averages_fit() -> None:
    """One of them checks the statistics: all of so few batches are evaluated again."""
    model = with_momentum(make_classifier(), None)
    bnlab.recalibrate(model, draw(1000))
    seen = 0

    def count_images(module: nn.Module, args: tuple[Tensor]) -> None:
        nonlocal seen
        seen += len(args[0])

    model.register_forward_pre_hook(count_images)
    bnlab.recalibrate(model, draw(1000))

    assert seen <= 5 * 1000 + 16  # a probe of eight images
