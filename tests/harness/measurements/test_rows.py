"""What has been measured is not measured again, unless what measured it has changed."""

from __future__ import annotations

import gc
import importlib
import linecache
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from bnlab import estimators
from bnlab.harness import done, load
from bnlab.harness.done import list_waiting
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import attempt, begin_sweep, execute
from bnlab.harness.measurements import estimates, find_measurement, list_tables, rows
from bnlab.harness.measurements.subjects import parse_subjects, try_estimators
from bnlab.harness.records import VERSION
from tests.helpers import Config

MODULE = """
from dataclasses import dataclass
import torch
from bnlab.estimators import EMA, Estimator

@dataclass(frozen=True)
class Half(Estimator):
    name = "{name}"
    def gains(self, stream):
        return torch.full((len(stream),), {gain}, dtype=torch.float64)

@dataclass(frozen=True)
class Unnamed(EMA):
    pass
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], list[int]]]:
    """What is measured from now on: table (split and shift, if others than test and none), estimators, steps."""
    found: list[tuple[str, list[str], list[int]]] = []

    def count(name: str, original: Callable[..., pd.DataFrame]) -> Callable[..., pd.DataFrame]:
        def measure(self: object, run: object, subjects: list[Any], steps: list[int], *images: str) -> pd.DataFrame:
            others = [each for each in images if each not in ("test", "none")]
            subjects_ = [f"{s.label} {s.momentum}" if s else "" for s in subjects]
            found.append((" on ".join([name, *others]), subjects_, steps))
            return original(self, run, subjects, steps, *images)

        return measure

    for name in list_tables():
        kind = type(find_measurement(name))
        monkeypatch.setattr(kind, "measure", count(name, kind.measure))
    return found


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Writes the user's module, which is then imported as by a new process; the name of its estimator."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(gain: str = "0.5", name: str = "halved") -> list[str]:
        forget()
        (tmp_path / "my_estimators.py").write_text(MODULE.format(gain=gain, name=name), encoding="utf-8")
        return ["my_estimators.Half"]

    yield write
    forget()


def forget() -> None:
    """Let the user's classes be no estimators any more."""
    sys.modules.pop("my_estimators", None)
    importlib.invalidate_caches()
    linecache.clearcache()
    gc.collect()


def test_only_what_is_missing_is_measured(copied: Config, calls: list[Any], tmp_path: Path) -> None:
    """What lacks the same steps is measured together, and gives the rows of one measurement of all."""
    execute(replace(copied, estimator=["ema", "cumulative"], momentum=[0.1, 0.2], measurements=["gaps", "drift"]))

    assert calls.pop(0) == ("gaps", ["ema 0.1", "ema 0.2", "cumulative None"], [1, 7, 20, 40])
    assert calls.pop(0) == ("drift", [""], [20, 40])

    wider = replace(copied, estimator=["ema", "cumulative", "exact"], momentum=[0.3, 0.1], name="wider")
    execute(wider)
    assert calls.pop(0) == ("gaps", ["ema 0.3", "exact None"], [1, 7, 20, 40])
    assert calls.pop(0) == ("evaluations", ["exact None", "ema 0.3", "ema 0.1", "cumulative None"], [40])

    execute(replace(copied, estimator="ema", accuracy_at="all", evaluate_on=["test", "val"], name="later"))
    assert calls == [("evaluations", ["exact None", "ema 0.1"], [1, 7, 20]),
                     ("evaluations on val", ["exact None", "ema 0.1"], [1, 7, 20, 40])]  # fmt: skip

    calls.clear()
    execute(replace(wider, shifts=["none", "noise:1"], name="shifted"))
    assert [name for name, *_ in calls] == ["evaluations on noise:1"]

    calls.clear()
    execute(wider)
    assert not calls

    at_once = replace(wider, results=str(tmp_path / "again"))
    execute(at_once)
    for table in ("gaps", "evaluations"):
        step_by_step = load("wider", wider.results)[table]
        assert_frame_equal(load("wider", at_once.results)[table], step_by_step, rtol=1e-12)


def is_done(job: Config) -> bool:
    return not list_waiting([job])


def test_a_job_is_done_once_its_rows_are_there(copied: Config, module: Callable[..., list[str]]) -> None:
    job = replace(copied, measurements=["gaps", "evaluations"])

    assert not is_done(job)

    execute(job)
    assert is_done(job)

    for change in ({"seed": 1}, {"momentum": 0.2}, {"shifts": "noise:1"}, {"measurements": ["gaps", "drift"]}):
        assert not is_done(replace(job, **change))
    failing = replace(job, estimator=["ema", *module("1.0 if len(stream) < 9 else float(open('nowhere').read())")])
    attempt(failing, "", "")
    assert not is_done(failing) and not is_done(job), "its row says failed"

    begin_sweep([job])
    execute(job)
    assert is_done(job)
    assert not is_done(failing)


def test_a_raised_version_measures_again(copied: Config, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    execute(replace(copied, momentum=[0.1, 0.2], measurements="gaps"))
    for module in (done, estimates, rows):
        monkeypatch.setattr(module, "VERSION", VERSION + 1)
    calls.clear()
    execute(replace(copied, momentum=[0.2], measurements="gaps"))

    assert calls == [("gaps", ["ema 0.2"], [1, 7, 20, 40])]
    assert set(load("adhoc", copied.results)["gaps"]["momentum"]) == {0.2}


def load_rows(config: Config, table: str, column: str) -> dict[str, pd.DataFrame]:
    """The rows of a table, apart by the values of a column."""
    return {str(value): frame for value, frame in load("adhoc", config.results)[table].groupby(column)}


def test_a_changed_own_estimator(copied: Config, module: Callable[..., list[str]], calls: list[Any]) -> None:
    """Is known by its code; its rows are measured again, and those of its earlier code leave."""
    digests = {s.code for gain in ("0.5", "1.0") for s in parse_subjects(module(gain), [], "train")}

    assert len(digests) == 2
    assert parse_subjects(["ema"], [0.1], "train")[0].code == ""

    execute(replace(copied, estimator=["ema", *module("0.5")], measurements="gaps"))
    before = load_rows(copied, "gaps", "estimator")
    calls.clear()
    execute(replace(copied, estimator=["ema", *module("1.0")], measurements="gaps", evaluate_at=[40]))
    assert calls == [("gaps", ["halved None"], [40])]

    after = load_rows(copied, "gaps", "estimator")
    assert after["ema"]["mean_gap"].to_list() == before["ema"]["mean_gap"].to_list()
    assert set(after["halved"]["step"]) == {40}
    assert not set(after["halved"]["mean_gap"]) & set(before["halved"]["mean_gap"])


@pytest.mark.parametrize("name", ["exact", "ema"])
def test_an_own_estimator_needs_a_name_of_its_own(name: str, module: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match=r"Half: its name .* give (it|the class) (another|one of its own)"):
        parse_subjects(module(name=name), [0.1], "train")
    with pytest.raises(UserError, match=r"Unnamed: its name 'ema' is that of another"):
        parse_subjects([module()[0].replace("Half", "Unnamed")], [0.1], "train")


def test_every_estimator_of_ours_stands_the_trial() -> None:
    ours = [name for name, cls in estimators.list_estimators().items() if cls.__module__.startswith("bnlab.")]
    try_estimators(parse_subjects(ours, [0.01, 1.0], "train"))
    assert len(ours) >= 13
