"""The page of a diagnosis: one file, sound HTML, nothing from elsewhere, and the numbers of the diagnosis."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pytest
import torch
from torch import nn

import bnlab
from bnlab.doctor import Cause, Signs
from bnlab.doctor.case import Case
from bnlab.doctor.diagnosis import Diagnosis
from bnlab.doctor.page import make_page

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Odd(Cause):
    """Fires always, with signs that HTML has its own meaning for."""

    code = "BN999"
    title = "a < b"
    meaning = "Nothing & more."
    remedy = 'Say "no".'
    severity = "error"

    def look(self, case: Case) -> Signs | None:
        return Signs.of(case.layers, "|T| < 3 & <script>alert(1)</script>")


class Wanting(Odd):
    """Needs what is not there."""

    code = "BN998"
    needs = ("training",)


def parse(diagnosis: Diagnosis) -> Element:
    """Parse a page, which is XML too, so that every element is closed where it should be."""
    return fromstring(make_page(diagnosis))


def list_texts(page: Element, *elements: str) -> list[str]:
    return ["".join(element.itertext()) for element in page.iter() if element.tag in elements]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Classes are told by the sign of the first channel; the averages are exact but for the number of batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    model.train()
    for _ in range(100):
        model(torch.randn(32, 3, 8, 8))
    return model.eval()


@pytest.fixture(scope="module")
def batches(model: nn.Module) -> Batches:
    """Labels are what the model says, so that it is right always."""
    images = torch.randn(256, 3, 8, 8)
    with torch.no_grad():
        labels = model(images).argmax(1)
    return list(zip(images.split(64), labels.split(64), strict=True))


def spoil(model: nn.Module, buffer: str, value: float) -> nn.Module:
    """Copy a model, and set the first channel of a buffer."""
    broken = copy.deepcopy(model)
    broken.get_buffer(buffer)[0] = value
    return broken


@pytest.fixture(scope="module")
def spoiled(model: nn.Module, batches: Batches) -> Diagnosis:
    """The mean of the last layer's first channel is off by 5, so that the second one is named always."""
    return bnlab.diagnose(spoil(model, "4.running_mean", 5.0), batches, causes=[Odd()])


@pytest.fixture(scope="module")
def diagnoses(model: nn.Module, batches: Batches, spoiled: Diagnosis) -> dict[str, Diagnosis]:
    images = [images for images, _ in batches]
    unfit = [(images, torch.zeros(len(images), 3, 5, dtype=torch.long)) for images, _ in batches]
    untracked = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    return {
        "spoiled": spoiled,
        "healthy": bnlab.diagnose(model, batches),
        "expected": bnlab.diagnose(model, batches, expected=0.9, training_batches=batches),
        "odd": bnlab.diagnose(model, batches, causes=[Odd()]),
        "no labels": bnlab.diagnose(model, images),
        "no data": bnlab.diagnose(model, causes=[Wanting()]),
        "not finite": bnlab.diagnose(spoil(model, "1.running_var", math.nan), images),
        "unfit": bnlab.diagnose(model, unfit),
        "untracked": bnlab.diagnose(untracked, batches),
    }


def test_a_page_is_sound_and_needs_nothing_else(diagnoses: dict[str, Diagnosis]) -> None:
    for diagnosis in diagnoses.values():
        text = make_page(diagnosis)

        page = parse(diagnosis)
        assert not {"script", "img", "link", "iframe"} & {element.tag for element in page.iter()}
        assert not any({"href", "src"} & {*element.attrib} for element in page.iter())
        assert "http" not in text and "@import" not in text and "url(" not in text
        assert str(Path.cwd()) not in text


PAGES = {
    "spoiled": ("bad", "The averages are at fault", "Undoing "),
    "healthy": ("good", "Healthy averages", "Exact statistics of 256 images "),
    "odd": ("bad", "Healthy averages, but 1 finding", "Exact statistics of 256 images "),
    "no labels": ("good", "Nothing above a note", "No labels and no evaluate=, so no verdict."),
    "no data": ("good", "Nothing above a note", "Without data."),
    "not finite": ("bad", "1 finding", "No labels and no evaluate=, so no verdict."),
    "unfit": ("good", "Nothing above a note", "Labels do not fit the outputs, so no verdict."),
    "untracked": ("good", "No running averages", "Each batch is normalized by its own, also in eval mode."),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_verdict_stands_first_with_its_colour_and_reason(name: str, diagnoses: dict[str, Diagnosis]) -> None:
    tone, headline, reason = PAGES[name]
    page = parse(diagnoses[name])

    assert page.find("body/div").attrib["class"] == f"verdict {tone}"  # type: ignore[union-attr]
    paragraphs = list_texts(page, "p")
    assert paragraphs[0] == headline
    assert paragraphs[1].startswith(reason)


def test_a_healthy_page_says_where_else_to_look_unless_a_score_is_expected(diagnoses: dict[str, Diagnosis]) -> None:
    text = "Is the score lower than it should be? Then look elsewhere: labels, their order, preprocessing"

    assert text in make_page(diagnoses["healthy"])
    assert text not in make_page(diagnoses["expected"])
    assert "On the training batches " in make_page(diagnoses["expected"])


def test_scores_and_what_was_tried_stand_with_what_is_gained(spoiled: Diagnosis) -> None:
    cells = list_texts(parse(spoiled), "td")

    assert spoiled.judged is not None
    gain = spoiled.judged.gain
    running = f"{100 * spoiled.scores['running']:.1f}%"
    exact = f"{100 * spoiled.scores['exact']:.1f}%"
    gained = f"{100 * gain.value:.1f} points [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"
    assert cells[:6] == ["running averages", running, "", "exact statistics", exact, gained]
    for row in spoiled.trials.head(10).to_dict("records"):
        place = cells.index(row["undone"])
        assert cells[place + 1] == f"{100 * row['score']:.1f}%"
    assert list_texts(parse(spoiled), "h2")[1] == "What was undone, and what that brought back"


def test_what_others_wrote_is_shown_as_they_wrote_it(spoiled: Diagnosis) -> None:
    page = parse(spoiled)

    assert "BN999 error: a < b" in list_texts(page, "h3")
    assert 'Nothing & more. Say "no".' in list_texts(page, "p")
    assert "Evidence: |T| < 3 & <script>alert(1)</script>." in list_texts(page, "p")


def test_names_of_layers_are_escaped_everywhere() -> None:
    model = nn.Sequential()
    model.add_module("<b>&", nn.BatchNorm1d(2))

    page = parse(bnlab.diagnose(model, [torch.randn(8, 2)]))

    assert "b" not in {element.tag for element in page.iter()}
    assert list_texts(page, "code")[-1] == "<b>&"
    assert list_texts(page, "text").count("<b>&") == list_texts(page, "td").count("<b>&") == 1
    assert list_texts(page, "title")[-1].startswith("<b>&: mean off by ")


def test_numbers_of_the_table_are_on_the_page(spoiled: Diagnosis, diagnoses: dict[str, Diagnosis]) -> None:
    expected = []
    for row in spoiled.table.to_dict("records"):
        gaps = [f"{row[name]:.3g}" for name in ("mean_gap", "var_gap", "noise")]
        expected += [row["layer"], row["codes"], *gaps, "100", "0.1", str(row["channels"])]
    assert list_texts(parse(spoiled), "td")[-len(expected) :] == expected

    without_data = parse(diagnoses["no data"])
    assert list_texts(without_data, "th") == ["layer", "updates", "momentum", "channels"]
    assert list_texts(without_data, "svg") == []


def test_the_table_says_what_has_no_number_and_which_layers_train() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=None), nn.BatchNorm1d(2).eval())
    model[1].num_batches_tracked = None

    cells = list_texts(parse(bnlab.diagnose(model)), "td")

    assert cells[2:6] == ["0", "cumulative", "2", "train"]
    assert cells[8:] == ["not counted", "0.1", "2", "eval"]


def test_the_picture_has_a_row_for_each_layer_that_the_data_reached(diagnoses: dict[str, Diagnosis]) -> None:
    page = parse(diagnoses["spoiled"])
    broken = parse(diagnoses["not finite"])

    labels = list_texts(page, "text")
    assert [label for label in labels if label in ("1", "4")] == ["1", "1", "4"]  # a number of the axis, two names
    assert len([*page.iter("circle")]) == 4
    assert list_texts(broken, "text").count("not finite") == 1
    assert len([*broken.iter("circle")]) == 3


def test_causes_that_could_not_be_looked_for_are_listed_with_what_they_need(diagnoses: dict[str, Diagnosis]) -> None:
    (item,) = [item for item in list_texts(parse(diagnoses["no data"]), "li") if "BN998" in item]

    assert item.endswith("BN998 a < b. Needs training_batches=.")


def test_to_html_writes_the_page(tmp_path: Path, spoiled: Diagnosis) -> None:
    spoiled.to_html(tmp_path / "page.html")

    assert (tmp_path / "page.html").read_text(encoding="utf-8") == make_page(spoiled)
