"""No traceback for what a user's own code raises, nor for Ctrl-C while a command starts: the line of that code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bnlab.harness import load
from bnlab.harness.errors import where_raised
from tests.experiments.commands import Call, run

MODULE = """
import pandas as pd
from bnlab.harness.reporting.experiment import Claim, Experiment, Figure, above
def score(tables):
    return pd.DataFrame({"panel": ["all"], "mean": [1.0], "n": [1], "low": 0, "high": 2, "error": 1, "log": False})
def plot(frame, *, ax):
    ax.plot([0, 1], [0, 1])
    return ax
def decide(tables):
    return score(tables)
EXPERIMENT = Experiment(name="mine", question="q", answers=(), source="s", columns={"gaps": ("mean_gap",)},
    figures=(Figure("one", "t", "c", score, plot),), claims=(Claim("c", "t", decide, above(0, "u", "r")),))
"""
# The module experiments/questions/mine.py (None: there is none), and what the message says
MODULES = {
    "missing": (None, r"experiments/questions/mine.py: is missing; it has the figures"),
    "syntax": ("x = [\n", r"mine.py: cannot be imported, .*mine.py:1: SyntaxError"),
    "import": ("\nimport nowhere_to_be_found\n", r"cannot be imported, .*mine.py:2: ModuleNotFoundError: .*nowhere"),
    "no experiment": ("def score(tables): return []\n", r"mine.py: needs EXPERIMENT"),
    "name": (MODULE.replace('"mine"', '"yours"'), r"mine.py: its EXPERIMENT has the name 'yours'; give it"),
    "table": (MODULE.replace('"gaps"', '"gap"'), r"columns.*: there is no table 'gap'; choose from runs, gaps"),
    "column": (MODULE.replace("mean_gap", "gap"), r"columns.*: table gaps has no column 'gap'"),
    "score": (
        MODULE.replace("[1.0]", "[1.0, 2.0]"),
        r"figure one failed: .*mine.py:5: ValueError.*\n.*run: ",
    ),
    "plot": (MODULE.replace("[0, 1], [0, 1]", "frame.x"), r"figure one failed: .*mine.py:7: AttributeError"),
    "claim": (
        MODULE.replace("return score(", "1 / 0, score("),
        r"the claims \(claim \w+\) failed: .*mine.py:10: ZeroDivisionError",
    ),
    "figure's name": (MODULE.replace('"one"', '"../../one"'), r"cannot be imported, .*a figure is called '../../one'"),
    "empty": (
        MODULE.replace('"gaps": ("mean_gap",)', '"drift": ("run",)'),
        r"columns, from .*tables: the table drift has no rows\nrun: .*results=",
    ),
}


@pytest.mark.parametrize("case", list(MODULES))
def test_a_mistake_in_a_module_of_figures(
    case: str, conf: Path, results: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = MODULES[case]
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\nname: mine\n")
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    monkeypatch.setattr("experiments.questions.__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "experiments.questions.mine", raising=False)
    (results / "adhoc").rename(results / "mine")
    code, out, err = call("figures experiment=mine", f"results={results}")
    sys.modules.pop("experiments.questions.mine", None)
    assert code == 2 and not out and not list(tmp_path.rglob("*.png"))
    assert err.startswith("error: ") and err.count("\n") <= 2 and "Traceback" not in err
    assert re.search(message, err), err


def test_the_last_line_of_the_users_own_code() -> None:
    with pytest.raises(ValueError, match="no results") as caught:
        load("nothing", "nowhere")
    assert re.fullmatch(r".*test_own_code.py:\d+: UserError: no results for .*", where_raised(caught.value))
    assert where_raised(RuntimeError("a\n  b")) == "RuntimeError: a b"


@pytest.mark.parametrize("command", ["sweep experiment=quickstart", "figures experiment=quickstart", "runs list"])
def test_ctrl_c_while_a_command_starts(command: str, tmp_path: Path) -> None:
    """Importing torch takes most of that time."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    done = run(*command.split(), path=tmp_path, expect=130)
    assert not done.stdout and done.stderr.strip() == "stopped; the same command continues"


LEAVING = """
from dataclasses import dataclass
from typing import ClassVar
import sys
from bnlab.estimators import Estimator

@dataclass(frozen=True)
class Leaving(Estimator):
    name: ClassVar[str] = "leaving"
    def gains(self, stream):
        sys.exit("enough")
"""


OTHERWISE = "        return stream.counts[:, 0] * 0 + 1"


def test_an_estimator_that_leaves(tmp_path: Path) -> None:
    (tmp_path / "leaver.py").write_text(LEAVING)
    (tmp_path / "gone.py").write_text("import sys\nsys.exit(0)\n")
    words = ("steps=3", "batch_size=256", f"results={tmp_path}/results")
    done = run("sweep", *words, "estimator=gone.Gone", path=tmp_path, expect=2)
    assert "gone.py:2: SystemExit: 0" in done.stderr and done.stderr.count("\n") == 1
    done = run("sweep", "-m", "seed=0,1", *words, "estimator=leaver.Leaving", path=tmp_path, expect=2)
    assert "leaver.py:11: SystemExit: enough" in done.stderr and done.stderr.count("\n") == 1
    (tmp_path / "later.py").write_text(LEAVING.replace("sys.exit", "if len(stream) > 8: sys.exit") + OTHERWISE)
    words = ("steps=9", *words[1:])
    done = run("sweep", "-m", "seed=0,1", *words, "estimator=later.Leaving", path=tmp_path, expect=1)
    assert done.stderr.count("later.py:11: SystemExit: enough") == 2 and "Traceback" not in done.stderr
    assert set(load("adhoc", tmp_path / "results")["runs"]["status"]) == {"failed"}
