"""Optimizers of a user's own by import path: trained with, named by their code, continued after a kill; mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bnlab.harness import load
from bnlab.harness.artifacts.optimizers import AdamW, Sgd
from bnlab.harness.own import make_own
from tests.experiments.commands import Call, Write
from tests.harness.kills import assert_same, interrupted_at
from tests.helpers import find_network

MODULE = """
import torch


def make_sgd(params, lr: float, decay: float = 5e-4):
    return torch.optim.SGD(params, lr, momentum=0.9, nesterov=True, weight_decay=decay)


def make_in_groups(params, lr=0.02, schedule="none"):
    return make_sgd(params, lr)


def make_without_rate(params):
    return make_sgd(params, 0.1)


class Counting(torch.optim.Optimizer):
    \"\"\"The rate falls with the updates, which are counted by a number of each weight and by one of the group.\"\"\"

    def __init__(self, weights, lr=0.01):
        super().__init__(weights, {"lr": lr, "total": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["total"] += 1.0
            for weight in group["params"]:
                state = self.state[weight]
                state["updates"] = state.get("updates", 0) + 1
                weight.sub_(weight.grad, alpha=group["lr"] / (state["updates"] + group["total"]))
"""
SMALL = ("steps=12", "batch_size=64", "data.images=400", "model.width=8", "model.depth=2", "evaluate_at=[5,12]",
         "threads=1", "measurements=log")  # fmt: skip


def sweep(call: Call, results: Path, *words: str, expect: int = 0) -> str:
    """Sweep a small network, and return what the command has printed."""
    code, out, err = call("sweep", *SMALL, *words, f"results={results}")
    assert code == expect, err
    return err if expect else out


def test_it_trains_as_the_same_optimizer_of_bnlab_does(write: Write, call: Call, tmp_path: Path) -> None:
    """With the schedule, and with the learning rate scaled to the batch size; its settings are columns."""
    write(MODULE, "steps")
    sweep(call, tmp_path / "own", "optimizer=steps.make_sgd", "optimizer.lr=0.05", "optimizer.decay=1e-3")
    sweep(call, tmp_path / "sgd", "optimizer.lr=0.05", "optimizer.weight_decay=1e-3")

    assert_same(find_network(tmp_path / "own"), find_network(tmp_path / "sgd"))
    (row,) = load("adhoc", tmp_path / "own")["runs"].to_dict("records")
    assert (row["optimizer"], row["optimizer.lr"], row["optimizer.decay"]) == ("steps.make_sgd", 0.05, 1e-3)
    assert row["lr_effective"] == pytest.approx(0.05 * 0.5**0.5)
    assert row["optimizer.source"]


def test_a_class_of_torch(call: Call, tmp_path: Path) -> None:
    """Its import path is enough; its own default of the learning rate is that of the setting."""
    sweep(call, tmp_path, "optimizer=torch.optim.RMSprop", "optimizer.alpha=0.9", "optimizer.weight_decay=1e-3")

    (row,) = load("adhoc", tmp_path)["runs"].to_dict("records")
    assert (row["optimizer.lr"], row["optimizer.alpha"], row["status"]) == (0.01, 0.9, "finished")


def test_other_code_is_another_network(write: Write, call: Call, tmp_path: Path) -> None:
    for text, networks in ((MODULE, 1), (f"# another comment\n{MODULE}", 1), (f"{MODULE}CHANGED = True\n", 2)):
        write(text, "steps")
        sweep(call, tmp_path, "optimizer=steps.Counting")
        assert len(load("adhoc", tmp_path)["runs"]) == networks


COUNTS = {
    "a tensor": MODULE.replace('"total": 0.0', '"total": torch.zeros(())').replace(
        'group["total"])', 'group["total"].item())'
    ),
    "a list": MODULE.replace(
        "state = self.state[weight]", 'state = self.state[weight]; state.setdefault("seen", []).append(1)'
    ).replace('state.get("updates", 0) + 1', 'len(state["seen"])'),
}


assert len({*COUNTS.values()}) == len(COUNTS)


@pytest.mark.parametrize("kind", COUNTS)
def test_killed_and_continued_with_what_it_counts(kind: str, write: Write, call: Call, tmp_path: Path) -> None:
    """Whatever plain values its state dict holds."""
    write(COUNTS[kind], "steps")
    words = "optimizer=steps.Counting"
    sweep(call, tmp_path / "whole", words)

    for kill in (4, 9):
        with interrupted_at(kill):
            sweep(call, tmp_path / "killed", words, expect=130)
    last = call("sweep", *SMALL, words, f"results={tmp_path / 'killed'}")

    assert last.code == 0
    assert "continuing from step 8" in last.out
    assert_same(find_network(tmp_path / "killed"), find_network(tmp_path / "whole"))


# The optimizer, what is changed in the module, and what the message says
MISTAKES = {
    "none": ("other", "", "", r"optimizer=steps\.other: cannot be imported, AttributeError"),
    "no rate": ("make_sgd", "", "", r"optimizer\.lr: has no value.*add optimizer\.lr=VALUE"),
    "rate out of range": ("Counting optimizer.lr=0", "", "", r"optimizer\.lr=0"),
    "takes no rate": ("make_without_rate", "", "", "make_without_rate: has no argument lr, by which"),
    "clash": ("make_in_groups", "", "", "its argument schedule has a name that bnlab needs itself; rename it"),
    "fails": ("make_sgd optimizer.lr=0.1", "return torch", "assert 0; return torch", r"make_sgd: .*steps\.py:6: "),
    "no optimizer": ("make_sgd optimizer.lr=0.1", "torch.optim.SGD(params, lr", "dict(lr=lr", "found a dict"),
    "closure": ("Counting", "step(self)", "step(self, closure)", "Counting: cannot be trained, .*closure"),
    "update": ("Counting", 'group["total"] +=', 'group["all"] +=', r"Counting: .*steps\.py:\d+: KeyError: 'all'"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named_before_anything_is_trained(case: str, write: Write, call: Call, tmp_path: Path) -> None:
    words, old, new, message = MISTAKES[case]
    write(MODULE.replace(old, new, 1), "steps")

    first, *others = words.split()
    err = sweep(call, tmp_path / "r", f"optimizer=steps.{first}", *others, expect=2)

    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert not (tmp_path / "r").exists()


def test_a_dry_run_tries_each_optimizer_too(write: Write, call: Call, tmp_path: Path) -> None:
    """Its updates take a time of their own, and may fail where those of another one do not."""
    write(MODULE.replace('group["total"] +=', 'group["all"] +='), "steps")
    words = ("-m", "optimizer=torch.optim.RMSprop,steps.Counting", "dry_run=true")

    assert "optimizer=steps.Counting: cannot be trained" in sweep(call, tmp_path, *words, expect=2)


def test_the_numbers_that_are_kept_of_each_weight() -> None:
    optimizers: list[Any] = [Sgd(), Sgd(momentum=0.0), AdamW(), make_own("optimizer", "torch.optim.Rprop")]
    assert [each.count_moments() for each in optimizers] == [1, 0, 2, 2]
