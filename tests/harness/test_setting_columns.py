"""The columns of the table `runs`: one for each setting, made from the components."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from bnlab.harness import load
from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.components import COMPONENTS, setting
from bnlab.harness.run_table import TRAINED_WITH
from bnlab.harness.schema import boolean, integer, real, text
from bnlab.harness.setting_columns import describe_runs
from tests.helpers import plan_network, sweep_small


@dataclass(unsafe_hash=True)
class Clipped(Norm):
    """A norm of somebody else's."""

    name: str = "clipped"
    threshold: float = setting(3.0, "largest value")
    sides: int | None = setting(None, "sides that are clipped")
    way: str = setting("hard", "how", choices=("hard", "soft"))
    is_learned: bool = setting(False, "whether the threshold is a weight")


def test_a_setting_that_a_component_adds_has_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMPONENTS["norm"], "clipped", Clipped())

    columns = describe_runs().columns

    assert columns["norm.threshold"] == real("clipped: largest value")
    assert columns["norm.sides"] == integer("clipped: sides that are clipped")
    assert columns["norm.way"] == text("clipped: how (hard, soft)")
    assert columns["norm.is_learned"] == boolean("clipped: whether the threshold is a weight")
    assert ", clipped" in columns["norm"].meaning


def test_the_table_says_whose_a_setting_is_where_not_all_choices_have_it() -> None:
    columns = describe_runs().columns

    assert columns["optimizer.lr"].meaning == "learning rate at batch size 128"
    assert columns["optimizer.momentum"].meaning == "sgd: Nesterov momentum; 0: none"
    of_depth = columns["model.depth"].meaning.split("; ")
    assert {"cnn: blocks", "mlp: hidden layers", "resnet: 6n+2 layers"} <= {*of_depth}


def test_the_settings_without_a_group_are_those_that_name_a_network() -> None:
    changed = {
        "batch_size": "8",
        "epochs": "3",
        "steps": "3",
        "order": "sorted",
        "last_batch": "drop",
        "freeze_at": "0.5",
        "freeze_with": "exact",
        "precision": "bfloat16",
        "averaging": "swa",
    }
    assert {*changed} == {*TRAINED_WITH}

    frozen = {"freeze_at": "0.8"}
    names = {plan_network("freeze_at=0.8").id}
    for key, value in changed.items():
        words = [f"{word}={given}" for word, given in {**frozen, key: value}.items()]
        names.add(plan_network(*words).id)
    assert len(names) == len(changed) + 1


def test_a_sweep_writes_these_columns(tmp_path: Path) -> None:
    """Types do not depend on the values then: none of these networks reads `norm.batch_size`."""
    sweep_small(tmp_path, "steps=1", "batch_size=16", "data.images=null", "evaluate_at=final", "measurements=[log]")

    runs = load("adhoc", tmp_path)["runs"]
    assert list(runs) == list(describe_runs().columns)
    assert runs["norm.batch_size"].dtype == runs["norm.momentum"].dtype == "float64"
    assert runs["norm.batch_size"].isna().all()

    (row,) = runs.to_dict("records")
    assert row["data"] == "digits"
    assert row["optimizer.lr"] == 0.1
    assert row["optimizer.momentum"] == 0.9
    assert row["lr_effective"] == pytest.approx(0.1 * (16 / 128) ** 0.5)
    assert row["norm_batch_size"] == row["batch_size"] == 16
    assert row["data.images"] == 1438
