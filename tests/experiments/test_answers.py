"""The commands `answers` and `report`, in this process, and what they write."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.errors import Note
from bnlab.harness.reporting.answer import Answer, compose_answer, format_number
from bnlab.harness.reporting.experiment import Claim, Experiment, above
from bnlab.harness.reporting.page import write_markdown
from bnlab.harness.reporting.short import fill_sentence
from experiments import answers, report
from experiments.catalogue import CATALOGUE, FIGURES, HYPOTHESES, QUESTIONS, SHORT
from experiments.places import REFERENCE, Place, find_places
from experiments.questions import find_experiment, list_questions
from tests.experiments.commands import Call
from tests.experiments.planted import lose, plant, reference


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--help"], 0, "usage: python -m experiments.answers"),
        (
            ["results={}"],
            2,
            "error: no results in {0}/; run: python -m experiments.sweep experiment=quickstart results={0}; for those "
            "with a name of their own, name both: experiment=NAME name=NAME\n",
        ),
        (
            ["experiment=momentum", "name=mine", "results={}"],
            2,
            "error: no results for 'mine' in {0}/; run: python -m experiments.sweep experiment=momentum name=mine "
            "results={0}\n",
        ),
        (["name=mine"], 2, "error: name=mine: the results of which experiment? experiment=NAME name=mine"),
        (["momentum=0.1"], 2, "error: momentum: not an option here"),
        (["experiment=nothing"], 2, "error: experiment=nothing: there is no such experiment; choose from "),
    ],
)
@pytest.mark.parametrize("command", ["answers", "report"])
def test_what_is_said_without_results(
    command: str, words: list[str], code: int, message: str, call: Call, tmp_path: Path
) -> None:
    returned, out, err = call(command, *(word.format(tmp_path) for word in words))
    expected = message.format(tmp_path).replace("experiments.answers", f"experiments.{command}")
    assert returned == code and (err if code else out).startswith(expected) and err.count("\n") <= 2


def test_the_reference_results_are_answered_from_by_their_folder(call: Call) -> None:
    for folder in ("results/reference", "results/reference/", str(Path("results/reference").resolve())):
        code, out, err = call("answers", "experiment=quickstart", f"results={folder}")
        assert (code, err) == (0, "") and out.startswith("quickstart: What do running averages cost")
    code, _, err = call("figures", "experiment=quickstart", "results=results/reference")
    assert code == 2 and re.fullmatch(
        r"error: results/reference/quickstart/ has tables without the networks; read them one by one: "
        r"pandas\.read_parquet\('\S+\.parquet'\), or make them again: python -m experiments\.sweep "
        r"experiment=quickstart\n",
        err,
    )


@pytest.mark.parametrize("command", ["answers", "report"])
def test_without_reference_results_nothing_is_written(
    command: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(command)
    assert code == 2 and err == "error: no reference results in results/reference/; for your own: results=results\n"
    assert not [*tmp_path.iterdir()]


def test_lines_are_aligned_and_numbers_have_the_digits_of_their_interval() -> None:
    claim = Claim("c", "It is large.", lambda tables: tables["x"], above(1.0, "points", "none"))
    experiment = Experiment(name="e", question="?", answers=(), source="", columns={}, figures=(), claims=(claim,))
    found = pd.DataFrame({"claim": "c", "condition": ["a", "longer", "no rows", "exact"],
                          "mean": [-1e-16, 33.444, np.nan, 2.0], "low": [-0.49, np.nan, np.nan, 2.0],
                          "high": [0.49, np.nan, np.nan, 2.0], "n": [5, 1, 0, 3],
                          "verdict": ["fails", "one seed", "not measured", "holds"]})  # fmt: skip
    assert answers.describe(Answer(experiment, found, "", "", "Predictions are of other images: split val.")) == [
        "  Predictions are of other images: split val.",
        "  It is large. (points: above 1)",
        "    a        0.00 [-0.49, 0.49]                 n=5  fails",
        "    longer   33.4                               n=1  one seed",
        "    no rows  no row for it                      n=0  not measured",
        "    exact    2.000, the same in all 3 networks  n=3  holds",
    ]
    assert format_number(56.2, 45.1, 67.3, 4) == "56 [45, 67]"


def test_other_tables_give_other_words() -> None:
    experiment, estimators = find_experiment("final_gap"), [("ema", 0.1), ("predictive", None), ("exact", None)]
    lost, same = (
        compose_answer(experiment, plant(estimators, accuracy=lose("ema", points), sizes=(4, 64, 1024)))
        for points in (5, 0)
    )
    said = lost.list_sentences()
    tiny = "At a tiny batch PyTorch's momentum costs accuracy. (above 0 points) Holds — at the end of training, batch "
    assert said[1] == f"{tiny}size 4: 5.15 [4.94, 5.36] points." and said[1] != same.list_sentences()[1]
    assert lost.list_sentences("Q16") == [said[0], said[2]]
    assert lost.networks.startswith("12 networks, 4 seeds: batch size 4, 64, 1024, 2 epochs.")


def test_networks_that_diverged_are_told() -> None:
    """Means over seeds are of the others, and nothing but n said so."""
    tables = plant([("ema", 0.1), ("predictive", None), ("exact", None)], sizes=(4, 64, 1024))
    runs = tables["runs"].assign(status=["finished", "diverged", "diverged", "failed", *["finished"] * 8])
    with pytest.warns(Note, match="final_gap: of 12 networks 2 diverged and 1 failed: means are of the rows that"):
        answer = compose_answer(find_experiment("final_gap"), tables | {"runs": runs})
    assert "Note: of 12 networks 2 diverged" in answer.networks
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compose_answer(find_experiment("final_gap"), tables | {"runs": runs.assign(status="finished")})


def test_short_answers_follow_the_tables() -> None:
    """Other numbers are quoted; with another verdict the sentence is left out."""
    sentence, tables = "It costs {final_gap.lag_costs_when_huge: batch size 1024: holds}.", reference("final_gap")
    rows = tables["evaluations"]
    huge = rows["run"].isin(tables["runs"].query("batch_size == 1024")["run"]) & (rows["momentum"] == 0.1)

    def fill(points: float) -> str:
        changed = rows.assign(accuracy=rows["accuracy"] + huge * points / 100)
        answer = compose_answer(find_experiment("final_gap"), tables | {"evaluations": changed})
        return fill_sentence(sentence, [answer])

    (now,) = [float(fill(0).split()[2])]
    assert fill(-20) == f"It costs {now + 20:.1f} points." and fill(20) == ""
    assert fill_sentence(sentence, []) == "" and fill_sentence("No.", []) == "No."


def test_short_answers_quote_claims_that_stand_below_them() -> None:
    for number, text in SHORT.items():
        for name, claim in set(re.findall(r"\{(?:if )?(\w+)\.(\w+)", text)):
            experiment = find_experiment(name)
            (found,) = [c for c in experiment.claims if c.id == claim]
            assert number in (found.answers or experiment.answers), (number, name, claim)


def test_every_question_that_is_answered_has_a_short_answer() -> None:
    found = [place.answer() for place in find_places([])]
    assert [number for number, text in SHORT.items() if not fill_sentence(text, found)] == []
    assert set(SHORT) == {number for answer in found for number in answer.experiment.answers} & {*QUESTIONS}
    page = write_markdown(CATALOGUE, found)
    assert page.count("\nIn short: ") == len(SHORT)


def test_the_committed_answers_come_from_the_committed_tables() -> None:
    found = [place.answer() for place in find_places([])]
    committed = (REFERENCE / "ANSWERS.md").read_text()
    assert write_markdown(CATALOGUE, found) == committed
    for answer in found:
        for claim, conditions in answer.claims:
            assert claim.text in committed
            assert all(f"| {row['condition']} | {row['number']} | {row['n']} |" in committed for row in conditions)


def test_every_question_is_answered() -> None:
    answered = {number for name in list_questions() for number in find_experiment(name).answers}
    assert answered == {*QUESTIONS, *HYPOTHESES, *FIGURES}


def test_the_page_holds_all_figures_and_no_address(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "PAGE", tmp_path / "report.html")
    assert call("report").code == 0
    page = (tmp_path / "report.html").read_text()
    figures = sum(len(place.answer().experiment.figures) for place in find_places([]))
    assert page.count("data:image/png;base64,") == figures and '="http' not in page
    text = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "<code>bnlab.population_statistics(model, loader)</code>" in text and "`" not in text
    assert "<b>Holds</b> — " in text and "<b>Undecided</b> — " in text
    assert not re.search("&lt;/?[a-z]+&gt;", text)  # a tag that is shown


def test_the_page_has_no_figures_of_earlier_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They were shown beside the numbers of later ones."""
    place = Place("quickstart", "mine", str(tmp_path))
    part, gap, accuracy = (
        tmp_path / "mine" / name for name in ("parts/gaps/a.parquet", "figures/gap.png", "figures/accuracy.png")
    )
    for time, path in enumerate((gap, part, accuracy), start=1):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time, time))
    assert place.find_images(["accuracy"]) == {"accuracy": accuracy} and not capsys.readouterr().err
    assert place.find_images(["gap", "accuracy", "none"]) == {"accuracy": accuracy}
    said = "older than the tables are left out; draw those that the tables have rows for: "
    command = f"python -m experiments.figures experiment=quickstart name=mine results={tmp_path}"
    assert said + command in capsys.readouterr().err


@pytest.mark.parametrize("command", ["answers", "report"])
def test_half_a_sweep_hides_no_other_answers(
    command: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plant([("ema", 0.1), ("predictive", None), ("exact", None)], sizes=(4, 64, 1024))
    half = {name: frame[:0] for name, frame in whole.items()} | {"runs": whole["runs"]}
    monkeypatch.setattr(Place, "load", lambda place: half if place.name == "momentum" else whole)
    monkeypatch.setattr(report, "PAGE", tmp_path / "report.html")
    for name in ("final_gap", "momentum"):
        (tmp_path / name / "parts").mkdir(parents=True)
    code, out, err = call(command, f"results={tmp_path}")
    assert code == 0 and ("final_gap: " in out or "(1 experiment," in out)
    assert f"left out: answers of momentum, from {tmp_path}/momentum/tables: the table gaps has no rows" in err
    assert call(command, "experiment=momentum", f"results={tmp_path}").code == 2
    (tmp_path / "final_gap" / "parts").rmdir()
    assert "none of the results in" in call(command, f"results={tmp_path}").err


def test_own_results_are_made_by_their_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page advised the command that replaces the reference results."""
    tables = plant([("ema", 0.1), ("predictive", None), ("exact", None)], sizes=(4, 64, 1024))
    monkeypatch.setattr(Place, "load", lambda _: tables)
    answer = Place("final_gap", "mine", str(tmp_path)).answer()
    assert answer.command == f"python -m experiments.sweep experiment=final_gap name=mine results={tmp_path}"
    assert (
        Place("final_gap", "final_gap", None).answer().command == "python -m experiments.results experiment=final_gap"
    )
