"""A measurement of the user's own, by import path: measured, kept with the network, told apart by its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnlab.harness import load, load_model
from tests.experiments.commands import Call, Write

MODULE = """
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from bnlab.harness.measurements import Measurement
from bnlab.harness.schema import Table, common, real


@dataclass
class Largest(Measurement):
    name: str = "largest_weights"
    table: ClassVar[Table] = Table("The largest weights.", common("run step"), {"largest": real("of all weights")})

    def scope(self, run, sources):
        return {None: run.wanted}

    def measure(self, run, sources, steps):
        rows = []
        for step in steps:
            largest = max(weight.abs().max().item() for weight in run.model_at(step).parameters())
            rows.append({"run": run.id, "step": step, "largest": largest})
        return pd.DataFrame(rows)


@dataclass
class SameTable(Largest):
    pass


@dataclass
class Gaps(Largest):
    name: str = "gaps"


@dataclass
class Runs(Largest):
    name: str = "runs"


@dataclass
class Unnamed(Measurement):
    name = "unnamed"
"""
# In this process: others would keep the module that they have imported.
WORDS = ("batch_size=256", "steps=4", "evaluate_at=[2,4]", "hydra/launcher=basic", "-m")


def sweep(call: Call, results: Path, seeds: str = "seed=0,1") -> str:
    """Sweep networks, and return what the command has printed."""
    code, out, err = call("sweep", *WORDS, "measurements=[gaps,mine.Largest]", seeds, f"results={results}")
    assert code == 0, err
    return out


def test_a_table_of_the_users_own(write: Write, call: Call, tmp_path: Path) -> None:
    write(MODULE)
    sweep(call, tmp_path / "r")

    tables = load("adhoc", tmp_path / "r")
    assert sorted(tables) == ["gaps", "largest_weights", "runs"]
    table = tables["largest_weights"]
    assert list(table) == ["run", "step", "largest"]
    assert list(table["step"]) == [2, 4, 2, 4]
    for run, step, largest in table.itertuples(index=False):
        model = load_model("adhoc", run, step=step, results=tmp_path / "r")
        assert largest == max(weight.abs().max().item() for weight in model.parameters())


def test_another_source_is_measured_again(write: Write, call: Call, tmp_path: Path) -> None:
    """With a column more, then with one less; networks are not trained again."""
    write(MODULE)
    sweep(call, tmp_path)
    first = load("adhoc", tmp_path)["largest_weights"]

    wider = MODULE.replace('{"largest":', '{"half": real("half of it"), "largest":')
    write(wider.replace('"largest": largest}', '"largest": largest, "half": largest / 2}'))
    assert "trained in" not in sweep(call, tmp_path, "seed=0")
    some = load("adhoc", tmp_path)["largest_weights"]
    assert list(some["largest"]) == list(first["largest"])
    is_new = some["half"].notna()
    assert is_new.sum() == 2, "the other network has the rows of the earlier code"
    assert list(some["half"][is_new]) == list(some["largest"][is_new] / 2)

    write(MODULE.replace("item()", "item() + 1"))
    sweep(call, tmp_path)
    last = load("adhoc", tmp_path)["largest_weights"]
    assert list(last) == list(first)
    assert list(last["largest"]) == list(first["largest"] + 1)


def test_a_measurement_that_fails(write: Write, call: Call, tmp_path: Path) -> None:
    """Its line is named, and the other tables are there."""
    write(MODULE.replace("rows = []", "rows = [1 / 0]"))
    words = ("batch_size=256", "steps=4", "measurements=[gaps,mine.Largest]", f"results={tmp_path}")

    code, out, err = call("sweep", *words)

    assert code == 1
    assert "largest_weights: " in out + err
    assert "mine.py:20: ZeroDivisionError" in out + err
    assert "Traceback" not in out + err
    assert sorted(load("adhoc", tmp_path)) == ["gaps", "runs"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("largest", "measurements=largest: must be one of "),
        ("nowhere.Largest", "nowhere.Largest: cannot be imported, ModuleNotFoundError"),
        ("mine.Smallest", "mine.Smallest: cannot be imported, AttributeError"),
        ("mine.Table", "measurements=mine.Table: is no class below bnlab.harness.measurements.Measurement"),
        ("mine.Gaps", "measurements=mine.Gaps: its table needs a name of its own, found 'gaps'; write `name: str"),
        ("mine.Runs", "measurements=mine.Runs: its table needs a name of its own, found 'runs'; write `name: str"),
        ("mine.Unnamed", "measurements=mine.Unnamed: its table needs a name of its own, found '???'; write `name: str"),
        ("[mine.Largest,mine.SameTable]", "measurements=mine.SameTable: there is another table largest_weights"),
    ],
)
def test_mistakes(value: str, message: str, write: Write, call: Call, tmp_path: Path) -> None:
    write(MODULE)

    code, _, err = call("sweep", f"measurements={value}", f"results={tmp_path / 'r'}")

    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "r").exists()
