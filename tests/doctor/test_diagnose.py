"""The choice on tables with a planted effect, and whole diagnoses of small networks."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.doctor.cause import Cause, Trial, Undo
from bnlab.doctor.diagnose import choose, compute_worth, diagnose, read_some
from bnlab.doctor.patient import Patient
from bnlab.doctor.scores import Scores
from tests.doctor import digits
from tests.helpers import unchanged

IMAGES = 1000


def try_it(accuracy: float, degrees: float = 0, kind: Any = "averages") -> Trial:
    """Plant a score: the first images are named, the same ones for each accuracy."""
    values = (torch.arange(IMAGES) < round(accuracy * IMAGES)).double()
    return Trial(kind, None, Undo("", degrees), Scores(values, values - 1))


def test_what_brings_back_nearly_as_much_with_fewer_numbers_is_chosen() -> None:
    as_is, two, many = try_it(0.5), try_it(0.87, 2), try_it(0.9, 200)
    assert choose([as_is, two, many]) is two
    assert choose([as_is, try_it(0.7, 2), many]) is many  # which leaves half of the gain


def test_what_can_fit_anything_is_chosen_where_nothing_else_gets_half() -> None:
    as_is, by_batch = try_it(0.5), try_it(0.9, math.inf, "batches")
    exact = try_it(0.75, 200)
    assert choose([as_is, by_batch, exact]) is exact
    assert choose([as_is, by_batch, try_it(0.65, 200)]) is by_batch


def test_what_may_be_chance_is_not_chosen() -> None:
    assert choose([try_it(0.9), try_it(0.904, 2)]) is None  # surely better, by less than what matters
    assert choose([try_it(0.9), try_it(0.906, 2)]) is not None
    torch.manual_seed(0)
    values = torch.randn(IMAGES).double()
    noise = [Scores(values + each, values + each) for each in torch.randn(8, IMAGES).double()]
    trials = [Trial("averages", None, Undo(""), scores) for scores in noise]
    assert choose([Trial("averages", None, Undo(""), Scores(values, values)), *trials]) is None


def test_what_is_behind_by_chance_alone_does_not_fall_short() -> None:
    """A tenth of the best gain may be left: four points. 60 images that are lost, and none that is won, are 6 ± 1.5."""
    as_is, many = try_it(0.5), try_it(0.9, 200)
    assert choose([as_is, try_it(0.84, 2), many]) is many
    # 75 images that are lost, and 25 that are won, are 5 ± 1.9.
    right = ((torch.arange(IMAGES) < 825) | (torch.arange(IMAGES) >= 975)).double()
    behind = Trial("averages", None, Undo("", 2), Scores(right, right - 1))
    assert choose([as_is, behind, many]) is behind


def test_the_best_of_many_has_to_be_surer_than_one_alone() -> None:
    """Likelihoods gain 2.5 standard errors: more than 1.96, which one alone has to, less than 3.0 of twenty."""
    as_is, better = try_it(0.5), try_it(0.6)
    signs = torch.tensor([1.0, -1.0]).double().repeat(IMAGES // 2)
    likelihoods = as_is.scores.likelihoods + 2.5 / math.sqrt(IMAGES) + signs
    trial = Trial("averages", None, Undo(""), Scores(better.scores.values, likelihoods))
    assert choose([as_is, trial]) is trial
    assert choose([as_is, trial, *[try_it(0.5)] * 19]) is None


def test_what_a_batch_alone_brings_back_has_to_be_twice_as_much() -> None:
    as_is = try_it(0.5)
    for accuracy, is_enough in ((0.508, False), (0.516, True)):
        by_batch = try_it(accuracy, math.inf, "batches")
        assert (choose([as_is, by_batch]) is by_batch) == is_enough
        of_averages = try_it(accuracy, 2)
        assert choose([as_is, of_averages]) is of_averages


def test_what_matters_is_half_a_point_or_a_hundredth_of_the_spread() -> None:
    """From the 5 to the 95% quantile: of 0 to 1,000 these are 900 apart."""
    assert compute_worth(try_it(0.5).scores) == 0.005
    values = torch.linspace(0, 1000, 1001).double()
    assert compute_worth(Scores(values, values)) == pytest.approx(9)


@pytest.fixture
def model() -> nn.Module:
    return digits.make_healthy(0)


def reset(model: nn.Module) -> nn.Module:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
    return model


def test_a_healthy_network_is_healthy_and_comes_back_as_it_was(model: nn.Module) -> None:
    with unchanged(model):
        diagnosis = diagnose(model, digits.make_batches())
    assert diagnosis.verdict == "healthy"
    assert not diagnosis.causes


def test_averages_that_were_never_updated_take_four_passes(model: nn.Module) -> None:
    diagnosis = diagnose(reset(model), digits.make_batches())
    assert (diagnosis.verdict, diagnosis.causes) == ("averages", ["BN002"])
    assert diagnosis.passes <= 4
    assert not diagnosis.asks


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "scaled": (lambda images: 3 * images + 1, "·x +1, where x are those"),
    "reversed": (lambda images: images.flip(1), "reversed order"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_images_that_differ_are_named_by_what_brings_the_score_back(model: nn.Module, fault: str) -> None:
    change, words = FAULTS[fault]
    diagnosis = diagnose(model, digits.make_batches(change))
    assert diagnosis.causes[:1] == ["BN209"]
    assert words in str(diagnosis)


def test_a_model_in_train_mode_is_told(model: nn.Module) -> None:
    diagnosis = diagnose(model.train(), digits.make_batches(size=1, images=300))
    assert (diagnosis.verdict, diagnosis.causes) == ("mode", ["BN402"])


def test_a_metric_and_a_whole_evaluation_say_the_same_as_labels(model: nn.Module) -> None:
    batches = digits.make_batches()
    reset(model)
    found = [
        diagnose(model, batches),
        diagnose(model, batches, metric=lambda output, batch: (output.argmax(1) == batch[1]).float()),
        diagnose(model, batches, evaluate=lambda model: torch.cat([model(x).argmax(1) == y for x, y in batches])),
    ]
    for diagnosis in found:
        assert (diagnosis.verdict, diagnosis.causes) == ("averages", ["BN002"])
        assert diagnosis.table["score"].tolist() == found[0].table["score"].tolist()


@pytest.mark.parametrize("function", ["metric", "evaluate"])
def test_one_number_in_the_place_of_a_value_for_each_image_is_refused(model: nn.Module, function: str) -> None:
    given: Any = {function: lambda *_: 0.9}
    with unchanged(model), pytest.raises(TypeError, match=f"diagnose: {function} returned one number, 0.9; return a v"):
        diagnose(model, digits.make_batches(images=100), **given)


def test_json_has_no_infinity(model: nn.Module) -> None:
    """Of one image an interval of scores that are no shares has no ends."""
    batches = digits.make_batches(size=1, images=1)
    diagnosis = diagnose(reset(model), batches, metric=lambda output, batch: 1 + output[:, 0].abs())
    assert diagnosis.table["low"].min() == -math.inf
    assert "Infinity" not in diagnosis.to_json()


def test_without_labels_predictions_are_compared(model: nn.Module) -> None:
    diagnosis = diagnose(reset(model), [images for images, _ in digits.make_batches()])
    assert (diagnosis.verdict, diagnosis.causes) == ("averages", ["BN002"])


def test_without_images_what_no_data_give_is_found(model: nn.Module) -> None:
    assert not diagnose(model).causes
    diagnosis = diagnose(reset(model))
    assert (diagnosis.verdict, diagnosis.causes) == (None, ["BN002"])


def test_too_few_images_are_not_called_healthy(model: nn.Module) -> None:
    """The averages lie a little off, and twelve images may or may not show it."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.get_buffer("running_mean").add_(0.4 * norm.get_buffer("running_var").sqrt())
    images, labels = zip(*digits.make_batches(), strict=True)
    wrong = model(torch.cat(images)).argmax(1) != torch.cat(labels)
    some = torch.cat([wrong.nonzero()[:2, 0], (~wrong).nonzero()[:10, 0]])
    diagnosis = diagnose(model, [(torch.cat(images)[some], torch.cat(labels)[some])])
    assert diagnosis.verdict == "undecided"


def test_a_row_of_ones_own_is_tried_as_the_others_are(model: nn.Module) -> None:
    """Outputs of this network are negated; no other row undoes that."""

    class Negated(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.sign = nn.Parameter(torch.tensor(-1.0))

        def forward(self, x: Tensor) -> Any:
            return self.inner(x) * self.sign

    def turn(patient: Patient) -> list[Undo]:
        return [Undo("with the sign turned", change=lambda call: None, images=None, within=Turned)]

    class Turned:
        def __init__(self, model: Any) -> None:
            self.sign = model.sign

        def __enter__(self) -> None:
            self.sign.data.neg_()

        def __exit__(self, *_: object) -> None:
            self.sign.data.neg_()

    mine = Cause("MINE1", "network", "negated", "Outputs are negated.", "Turn the sign.", undo=turn)  # type: ignore[arg-type]
    diagnosis = diagnose(Negated(model).eval(), digits.make_batches(), causes=[mine])
    assert (diagnosis.verdict, diagnosis.causes) == ("network", ["MINE1"])


def test_gains_are_over_the_model_as_it_is(model: nn.Module) -> None:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.get_buffer("running_mean").add_(2 * norm.get_buffer("running_var").sqrt())
    diagnosis = diagnose(model, digits.make_batches())

    table = diagnosis.table.set_index("undone")
    as_is, exact = table.loc["as it is"], table.loc["under exact statistics"]
    assert (table["gain"] - (table["score"] - as_is["score"])).abs().max() < 1e-12
    assert (table["low"] <= table["gain"]).all()
    assert (table["gain"] <= table["high"]).all()
    assert exact["gain"] > 0.1
    assert f"As it is {as_is['score']:.1%}, of 1,000 images." in str(diagnosis)
    assert f"Under exact statistics {exact['score']:.1%}: +{100 * exact['gain']:.2g} points [" in str(diagnosis)


def test_the_first_screen_is_short_and_every_form_says_the_same(model: nn.Module, tmp_path: Path) -> None:
    diagnosis = diagnose(reset(model), digits.make_batches())
    assert len(str(diagnosis).splitlines()) < 12
    read = json.loads(diagnosis.to_json())
    assert read["verdict"] == "averages"
    assert [each["code"] for each in read["findings"]] == diagnosis.findings["code"].tolist()
    diagnosis.to_html(tmp_path / "page.html")
    assert "never updated" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_of_a_loader_batches_are_kept_that_are_spread_over_all_of_it() -> None:
    read = read_some(torch.full((64, 1), float(number)) for number in range(1000))
    numbers = [int(batch[0]) for batch in read]
    assert 16 <= len(numbers) <= 32
    assert {later - earlier for earlier, later in itertools.pairwise(numbers)} == {numbers[1]}
    assert numbers[-1] + numbers[1] >= 1000


def test_a_metric_of_mostly_one_value_has_a_range(model: nn.Module) -> None:
    percent = diagnose(
        model, digits.make_batches(), metric=lambda output, batch: 100.0 * (output.argmax(1) == batch[1])
    )
    assert percent.verdict == "healthy"
