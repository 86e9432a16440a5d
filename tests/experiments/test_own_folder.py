"""`bnlab sweep`, `report` and `runs` in a folder of the user's own, with their modules, experiments, questions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bnlab import cli
from bnlab.harness import load
from tests.experiments.commands import ROOT, Call, Called

MODEL = """
from torch import nn


def make_model(channels, image_size, classes, width=4):
    layers = [nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, classes))
"""
EXPERIMENT = """# @package _global_
# bnlab sweep experiment=widths
defaults:
  - override /model: wide.make_model

name: widths
steps: 4
evaluate_at: final
threads: 1

hydra:
  sweeper:
    params:
      model.width: 2,3
"""
QUESTION = '''"""Does width matter?"""

from bnlab.harness.reporting.frames import score
from bnlab.harness.reporting.plots import ACCURACY, Curves
from bnlab.harness.reporting.question import Claim, Figure, Question, above

SCORE = score("evaluations", "accuracy", ("panel", "model.width"), at=1.0, scale=100, estimator="exact")
QUESTION = Question(
    figures={"accuracy": Figure("By width", "Exact statistics.", SCORE, Curves("model.width", "panel", ACCURACY))},
    claims={"learns": Claim("It learns.", SCORE, above(0.0, "%"), lines="each")},
)
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, an experiment and a question of the user's own."""
    folder = tmp_path / "ein ölfass + x's"
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "questions").mkdir()
    (folder / "wide.py").write_text(MODEL, encoding="utf-8")
    (folder / "conf" / "experiment" / "widths.yaml").write_text(EXPERIMENT, encoding="utf-8")
    (folder / "questions" / "widths.py").write_text(QUESTION, encoding="utf-8")
    return folder


@pytest.fixture
def bnlab(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Calls `bnlab words...` in that folder and this process, which forgets the folder's modules afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")

    def called(*words: str) -> Called:
        monkeypatch.setattr(sys, "argv", ["bnlab", *words])
        code = cli.main()
        return Called(code, *capsys.readouterr())

    yield called
    for name in ("wide", "questions", "questions.widths", "questions.ending"):
        sys.modules.pop(name, None)


def test_sweep_report_runs_and_a_network_as_a_file(folder: Path, bnlab: Call) -> None:
    swept = bnlab("sweep", "experiment=widths", "hydra/launcher=basic")

    assert swept.code == 0, swept.err
    assert "2 jobs on 2 networks" in swept.out
    assert "next: bnlab report experiment=widths" in swept.out

    tables = load("widths", folder / "results")
    assert sorted(tables["runs"]["model.width"]) == [2, 3]

    reported = bnlab("report", "experiment=widths")
    assert "It learns." in reported.out, reported.err
    assert (folder / "results" / "widths" / "figures" / "accuracy.png").stat().st_size > 5000

    page = (folder / "results" / "widths" / "report.html").read_text(encoding="utf-8")
    assert "Does width matter?</p>" in page, "no brackets of numbers that it does not bear on"
    assert "(<em>above 0 %</em>)" in page, "no reason was given"
    assert page.count("data:image/png;base64,") == 1

    printed = [line for line in reported.out.splitlines() if line.startswith("results/")]
    assert "results/widths/report.html" in printed
    assert all((folder / path).is_file() for path in printed)

    listed = bnlab("runs", "list").out
    assert "2 networks" in listed
    assert "model.width" in listed

    run = tables["runs"].set_index("model.width")["run"][3]
    exported = bnlab("runs", "export", run, "width=3.safetensors", "statistics=exact")
    assert exported.code == 0, exported.err
    steps = tables["runs"]["last_step"].max()
    assert exported.out.startswith(f"width=3.safetensors: step {steps} of {steps} of {run} with exact statistics\n")
    weights = load_file(folder / "width=3.safetensors")
    assert weights["0.weight"].shape == (3, 1, 3, 3)

    # As of a sweep that runs now, or was killed.
    (folder / "results" / "runs" / run / "status.json").unlink()
    unfinished = bnlab("runs", "export", run, "early.safetensors")
    assert f"of {run}, whose training has not finished, with running statistics\n" in unfinished.out


def find_example(language: str) -> str:
    """Find the file of the documentation's example of an experiment that is in this language."""
    text = (ROOT / "docs/contributing/experiment.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "What is left of the gap" in block]
    return block


def test_the_example_of_an_experiment_works_for_another_setting(folder: Path, bnlab: Call) -> None:
    settings = find_example("yaml").replace("batch_size: 4,16,64,256", "optimizer.weight_decay: 0,0.01")
    question = find_example("python").replace("batch_size", "optimizer.weight_decay")
    (folder / "conf" / "experiment" / "ending.yaml").write_text(settings, encoding="utf-8")
    (folder / "questions" / "ending.py").write_text(question, encoding="utf-8")

    quick = ["steps=3", "data.images=200", "model.width=4", "device=cpu", "threads=1", "hydra/launcher=basic"]
    assert bnlab("sweep", "experiment=ending", *quick).code == 0
    reported = bnlab("report", "experiment=ending")

    assert reported.code == 0, reported.err
    assert (folder / "results" / "ending" / "figures" / "gap.png").exists()
    for value in ("0", "0.01"):
        verdict = rf"^    weight decay {value}(\.0)? .* n=3  (holds|fails|undecided)"
        assert re.search(verdict, reported.out, re.MULTILINE)


def test_an_experiment_with_the_name_of_one_of_ours_is_refused(folder: Path, bnlab: Call) -> None:
    (folder / "conf" / "experiment" / "quickstart.yaml").write_text(EXPERIMENT, encoding="utf-8")

    refused = bnlab("sweep", "experiment=quickstart")

    assert refused.code == 2
    assert "quickstart.yaml: bnlab has an experiment of this name; rename the file" in refused.err


def test_in_the_folder_of_another_clone(tmp_path: Path) -> None:
    """Commands are of the clone that is installed."""
    for name in ("bnlab/__init__.py", "experiments/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise ImportError('of the other clone')", encoding="utf-8")

    command = [sys.executable, "-P", "-m", "bnlab", "runs", "list"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", timeout=100)

    assert done.returncode == 0, done.stderr
    assert "no networks in results/runs" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_the_program_and_its_processes(launcher: str, folder: Path) -> None:
    program = str(Path(sys.executable).with_name("bnlab"))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [program, "sweep", "experiment=widths", f"hydra/launcher={launcher}"]

    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300)

    assert done.returncode == 0, done.stderr
    assert len(load("widths", folder / "results")["runs"]) == 2
