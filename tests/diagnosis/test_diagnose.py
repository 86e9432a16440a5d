"""The choice on tables with a planted effect, and whole diagnoses of small networks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.diagnosis.cause import Cause, Undo
from bnlab.diagnosis.diagnose import choose, diagnose
from bnlab.diagnosis.patient import Patient
from bnlab.diagnosis.report import Trial
from bnlab.diagnosis.scores import Scores
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
    assert choose([try_it(0.9), try_it(0.9), try_it(0.904, 2)]) is None  # below what matters
    torch.manual_seed(0)
    values = torch.randn(IMAGES).double()
    noise = [Scores(values + each, values + each) for each in torch.randn(8, IMAGES).double()]
    trials = [Trial("averages", None, Undo(""), scores) for scores in noise]
    assert choose([Trial("averages", None, Undo(""), Scores(values, values)), *trials]) is None


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


def test_the_first_screen_is_short_and_every_form_says_the_same(model: nn.Module, tmp_path: Path) -> None:
    diagnosis = diagnose(reset(model), digits.make_batches())
    assert len(str(diagnosis).splitlines()) < 12
    read = json.loads(diagnosis.to_json())
    assert read["verdict"] == "averages"
    assert [each["code"] for each in read["findings"]] == diagnosis.findings["code"].tolist()
    diagnosis.to_html(tmp_path / "page.html")
    assert "never updated" in (tmp_path / "page.html").read_text(encoding="utf-8")
