"""The page of a diagnosis: one file, sound HTML, nothing from elsewhere, and the numbers of the table."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import bnlab
from bnlab.doctor import Cause, Signs
from bnlab.doctor.case import Case
from bnlab.doctor.diagnosis import Diagnosis
from bnlab.doctor.page import make_page

VOID = {"meta"}
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


class Page(HTMLParser):
    """What a page holds: texts by element, addresses, and whether each element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.mistakes: list[str] = []
        self.addresses: list[str] = []
        self.elements: list[str] = []
        self.words: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.mistakes.append(f"</{tag}> in {self.open[-3:]}")

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data.strip()))

    def list_texts(self, *elements: str) -> list[str]:
        return [text for element, text in self.words if element in elements and text]

    @property
    def text(self) -> str:
        words = [text for element, text in self.words if element != "style"]
        return " ".join(filter(None, words))


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


@pytest.fixture(scope="module")
def spoiled(model: nn.Module, batches: Batches) -> Diagnosis:
    """The mean of the last layer's first channel is off by 5, so that the second one is named always."""
    broken = copy.deepcopy(model)
    broken.get_submodule("4").get_buffer("running_mean")[0] += 5
    return bnlab.diagnose(broken, batches, causes=[Odd()])


@pytest.fixture(params=["spoiled", "healthy", "no labels", "no data", "not finite"])
def diagnosis(request: pytest.FixtureRequest, model: nn.Module, batches: Batches, spoiled: Diagnosis) -> Diagnosis:
    images = [images for images, _ in batches]
    if request.param == "spoiled":
        return spoiled
    if request.param == "healthy":
        return bnlab.diagnose(model, batches)
    if request.param == "no labels":
        return bnlab.diagnose(model, images)
    if request.param == "no data":
        return bnlab.diagnose(model)
    broken = copy.deepcopy(model)
    broken.get_submodule("1").get_buffer("running_var")[0] = torch.nan
    return bnlab.diagnose(broken, images)


def test_the_page_is_sound_and_needs_nothing_else(diagnosis: Diagnosis) -> None:
    text = make_page(diagnosis)

    page = Page(text)
    assert page.open == []
    assert page.mistakes == []
    assert page.addresses == []
    assert not {"script", "img", "link", "iframe"} & set(page.elements)
    assert "http" not in text and "@import" not in text and "url(" not in text
    assert str(Path.cwd()) not in text


def test_the_verdict_stands_first_with_its_reason(spoiled: Diagnosis) -> None:
    page = Page(make_page(spoiled))

    assert spoiled.judged is not None and spoiled.verdict == "averages"
    paragraphs = page.list_texts("p")
    assert (
        paragraphs[:2] == [spoiled.headline, spoiled.judged.sentence] == ["The averages are at fault", spoiled.reason]
    )


def test_what_was_tried_stands_with_what_it_brought_back(spoiled: Diagnosis) -> None:
    page = Page(make_page(spoiled))

    cells = page.list_texts("td")
    for row in spoiled.trials.head(10).to_dict("records"):
        place = cells.index(row["undone"])
        assert cells[place + 1] == f"{100 * row['score']:.1f}%"
    assert "What was undone, and what that brought back" in page.list_texts("h2")


def test_a_healthy_model_with_a_finding_is_not_green(model: nn.Module, batches: Batches) -> None:
    text = make_page(bnlab.diagnose(model, batches, causes=[Odd()]))

    assert Page(text).list_texts("p")[0] == "Healthy averages, but 1 finding"
    assert '<div class="verdict bad">' in text
    assert '<div class="verdict good">' in make_page(bnlab.diagnose(model, batches))


def test_a_healthy_page_says_where_else_to_look(model: nn.Module, batches: Batches) -> None:
    text = "Is the score lower than it should be? Then look elsewhere: labels, their order, preprocessing"

    assert text in Page(make_page(bnlab.diagnose(model, batches))).text
    assert text not in Page(make_page(bnlab.diagnose(model, batches, expected=0.9))).text


def test_scores_stand_with_what_is_gained(spoiled: Diagnosis) -> None:
    page = Page(make_page(spoiled))

    cells = page.list_texts("td")
    gain = spoiled.judged.gain if spoiled.judged is not None else None
    assert gain is not None
    assert cells[:2] == ["running averages", f"{100 * spoiled.scores['running']:.1f}%"]
    assert cells[2:4] == ["exact statistics", f"{100 * spoiled.scores['exact']:.1f}%"]
    assert cells[4] == f"{100 * gain.value:.1f} points [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"


def test_the_score_of_the_training_batches_stands_below_the_others(model: nn.Module, batches: Batches) -> None:
    page = make_page(bnlab.diagnose(model, batches, training_batches=batches, progress=False))

    assert "On the training batches " in page


def test_labels_that_do_not_fit_are_not_said_to_be_missing(model: nn.Module, batches: Batches) -> None:
    unfit = [(images, torch.zeros(len(images), 3, 5, dtype=torch.long)) for images, _ in batches]

    page = make_page(bnlab.diagnose(model, unfit, progress=False))

    assert "abels do not fit the outputs, so no verdict" in page
    assert "no labels" not in page


def test_a_model_without_running_averages_is_not_said_to_lack_data(batches: Batches) -> None:
    channels = batches[0][0].shape[1]
    model = nn.Sequential(nn.BatchNorm2d(channels, track_running_stats=False))

    page = make_page(bnlab.diagnose(model, batches, progress=False))

    assert "No running averages" in page
    assert "Without data" not in page


def test_what_others_wrote_is_escaped(spoiled: Diagnosis) -> None:
    text = make_page(spoiled)

    assert "<script" not in text
    assert "BN999 error : a < b" in Page(text).text
    assert "|T| < 3 & <script>alert(1)</script>." in Page(text).text
    assert 'Nothing & more. Say "no".' in Page(text).text


def test_names_of_layers_are_escaped_everywhere() -> None:
    model = nn.Sequential()
    model.add_module("<b>&", nn.BatchNorm1d(2))

    text = make_page(bnlab.diagnose(model, [torch.randn(8, 2)]))

    page = Page(text)
    assert "b" not in page.elements
    assert page.list_texts("code")[-1] == "<b>&"
    assert page.list_texts("text").count("<b>&") == 1
    assert page.list_texts("title")[-1].startswith("<b>&: mean off by ")


def test_numbers_of_the_table_are_on_the_page(spoiled: Diagnosis) -> None:
    page = Page(make_page(spoiled))

    cells = page.list_texts("td", "code")
    expected = []
    for row in spoiled.table.to_dict("records"):
        expected += [row["layer"], row["codes"]]
        expected += [f"{row[name]:.3g}" for name in ("mean_gap", "var_gap", "noise")]
        expected += ["100", "0.1", str(row["channels"])]
    assert cells[-len(expected) :] == expected


def test_the_picture_has_a_row_for_each_layer_that_the_data_reached(spoiled: Diagnosis) -> None:
    page = Page(make_page(spoiled))

    labels = page.list_texts("text")
    assert [label for label in labels if label in ("1", "4")] == ["1", "1", "4"]  # a number of the axis, two names
    assert any("off" in label for label in labels)
    assert page.elements.count("circle") == 4


def test_a_gap_that_is_not_finite_is_named_in_the_picture(model: nn.Module, batches: Batches) -> None:
    broken = copy.deepcopy(model)
    broken.get_submodule("1").get_buffer("running_var")[0] = torch.nan

    page = Page(make_page(bnlab.diagnose(broken, [images for images, _ in batches])))

    assert page.list_texts("text").count("not finite") == 1
    assert page.elements.count("circle") == 3


def test_without_data_there_is_a_table_and_no_picture(model: nn.Module) -> None:
    diagnosis = bnlab.diagnose(model)

    page = Page(make_page(diagnosis))

    assert "svg" not in page.elements
    assert "Without data." in page.text
    assert page.list_texts("th") == ["layer", "updates", "momentum", "channels"]


def test_rules_that_could_not_look_are_listed_with_what_they_need(model: nn.Module) -> None:
    class Wanting(Odd):
        """Needs what is not there."""

        code = "BN998"
        needs = ("training",)

    page = Page(make_page(bnlab.diagnose(model, causes=[Wanting()])))

    (item,) = [item for item in page.list_texts("li") if "BN998 a < b" in item]
    assert item.endswith("Needs training_batches=.")


def test_to_html_writes_the_page(tmp_path: Path, spoiled: Diagnosis) -> None:
    spoiled.to_html(tmp_path / "page.html")

    assert (tmp_path / "page.html").read_text(encoding="utf-8") == make_page(spoiled)
