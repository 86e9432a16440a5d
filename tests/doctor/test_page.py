"""The page of a diagnosis: one file, sound HTML, nothing from elsewhere, and the numbers of the diagnosis."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pytest
import torch
from torch import nn

import bnlab
from bnlab.doctor import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.report.diagnosis import Diagnosis
from bnlab.doctor.report.page import make_page
from tests.doctor.digits import draw_batches, make_healthy


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


def spoil(buffer: str, value: float) -> nn.Module:
    """Make a healthy network, and set the first sixteen channels of a buffer."""
    broken = make_healthy()
    broken.get_buffer(buffer)[:16] = value
    return broken


@pytest.fixture(scope="module")
def diagnoses() -> dict[str, Diagnosis]:
    """Diagnoses of all kinds; in "spoiled" half of the second layer's means are off."""
    batches = draw_batches(8)
    images = [images for images, _ in batches]
    unfit = [(images, torch.zeros(len(images), 3, 5, dtype=torch.long)) for images, _ in batches]
    untracked = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))
    return {
        "spoiled": bnlab.diagnose(spoil("4.running_mean", 9.0), batches, causes=[Odd()]),
        "healthy": bnlab.diagnose(make_healthy(), batches),
        "expected": bnlab.diagnose(make_healthy(), batches, expected=0.5, training_batches=batches),
        "odd": bnlab.diagnose(make_healthy(), batches, causes=[Odd()]),
        "no labels": bnlab.diagnose(make_healthy(), images),
        "no data": bnlab.diagnose(make_healthy(), causes=[Wanting()]),
        "not finite": bnlab.diagnose(spoil("1.running_var", math.nan), images),
        "unfit": bnlab.diagnose(make_healthy(), unfit),
        "untracked": bnlab.diagnose(untracked, batches),
    }


@pytest.fixture
def spoiled(diagnoses: dict[str, Diagnosis]) -> Diagnosis:
    return diagnoses["spoiled"]


def test_a_page_is_sound_and_needs_nothing_else(diagnoses: dict[str, Diagnosis]) -> None:
    for diagnosis in diagnoses.values():
        text = make_page(diagnosis)

        elements = [*parse(diagnosis).iter()]
        assert not {"script", "img", "link", "iframe"} & {element.tag for element in elements}
        assert not any({"href", "src"} & {*element.attrib} for element in elements)
        assert "http" not in text and "@import" not in text and "url(" not in text
        assert str(Path.cwd()) not in text


PAGES = {
    "spoiled": ("bad", "The averages are at fault", "Undoing "),
    "healthy": ("good", "Healthy averages", "Exact statistics of 256 images "),
    "odd": ("bad", "Healthy averages, but 1 finding", "Exact statistics of 256 images "),
    "no labels": ("good", "Healthy averages", "Without labels: exact statistics change "),
    "no data": ("good", "No warnings or errors", "Without data."),
    "not finite": ("bad", "The averages are at fault", "Some of them are not finite"),
    "unfit": ("good", "Healthy averages", "Without labels: exact statistics change "),
    "untracked": ("good", "No running averages", "Each batch is normalized by its own statistics, also in eval mode."),
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
    assert list_texts(page, "td").count("<b>&") == 1


def test_numbers_of_the_table_are_on_the_page(spoiled: Diagnosis, diagnoses: dict[str, Diagnosis]) -> None:
    expected = []
    for row in spoiled.table.to_dict("records"):
        gaps = [f"{row[name]:.3g}" for name in ("mean_gap", "var_gap", "noise")]
        expected += [row["layer"], row["codes"], *gaps, "144", "0.1", str(row["channels"])]
    assert list_texts(parse(spoiled), "td")[-len(expected) :] == expected

    without_data = parse(diagnoses["no data"])
    assert list_texts(without_data, "th") == ["layer", "updates", "momentum", "channels"]


def test_the_table_says_what_has_no_number_and_which_layers_train() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=None), nn.BatchNorm1d(2).eval())
    model[1].register_buffer("num_batches_tracked", None)

    cells = list_texts(parse(bnlab.diagnose(model)), "td")

    assert cells[2:6] == ["0", "cumulative", "2", "train"]
    assert cells[8:] == ["not counted", "0.1", "2", "eval"]


def list_bars(diagnosis: Diagnosis, style: str) -> list[float]:
    """List the lengths of bars, in em."""
    widths = re.findall(rf'class="bar {style}" style="width:([\d.]+)em"', make_page(diagnosis))
    return [float(width) for width in widths]


def test_bars_are_as_long_as_the_logarithm_of_the_gap(diagnoses: dict[str, Diagnosis]) -> None:
    spoiled = diagnoses["spoiled"]

    for column, style in (("mean_gap", "mean"), ("var_gap", "var")):
        gaps = spoiled.table[column].clip(1e-3, 10)
        expected = [math.log10(gap) + 3 for gap in gaps]
        assert list_bars(spoiled, style) == pytest.approx(expected, abs=0.01)
    assert len(list_bars(diagnoses["not finite"], "var")) == 2


def test_causes_that_could_not_be_looked_for_are_listed_with_what_they_need(diagnoses: dict[str, Diagnosis]) -> None:
    (item,) = [item for item in list_texts(parse(diagnoses["no data"]), "li") if "BN998" in item]

    assert item.endswith("BN998 a < b. Needs training_batches=.")


def test_to_html_writes_the_page(tmp_path: Path, spoiled: Diagnosis) -> None:
    spoiled.to_html(tmp_path / "page.html")

    assert (tmp_path / "page.html").read_text(encoding="utf-8") == make_page(spoiled)
