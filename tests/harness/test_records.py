"""How rows travel: sequences of sweeps, kills, edits, trainings and removals, against a slow, obvious twin."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from bnlab.common import files
from bnlab.harness.measurements.base import Measurement
from bnlab.harness.measurements.rows import complete_rows
from bnlab.harness.records import locate_record, read_records, write_record
from bnlab.harness.reporting.tables import read_tables, write_tables
from bnlab.harness.schema import Table, common, read_frame, real

SWEEPS = ("one", "two")
NETWORKS = ("a/seed_0", "a/seed_1", "b/seed_0")
ESTIMATORS = ("ema", "exact")
MOMENTA = (0.1, 0.5)
STEPS = (1, 2)
SAMPLES = (None, 200)
KEY = ["run", "step", "estimator", "momentum", "statistics_split"]


@dataclass(frozen=True)
class Subject:
    """A stub of an estimator with its code."""

    label: str
    momentum: float | None
    code: str
    split: str = "train"


@dataclass
class Ask:
    """What a job asked for and has, as the twin keeps it: `origin` and `training` are plain values."""

    run: str
    estimator: str
    momentum: float | None
    step: int
    origin: tuple[Any, ...]
    training: int


@dataclass
class Lab:
    """Networks, code and sweeps of a folder of results, and all that was asked for in the order of time."""

    results: Path
    code: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ESTIMATORS, 0))
    trainings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NETWORKS, 0))
    asks: dict[str, list[list[Ask]]] = field(default_factory=lambda: {name: [] for name in SWEEPS})

    def sweep(self, name: str, run: str, subjects: list[Subject], steps: list[int], sample: int | None) -> None:
        """Do what a job does once its network is trained."""
        network = self.make_network(run, sample)
        measurement = Planted(steps)
        parts = complete_rows(network, measurement, subjects, {})  # type: ignore[arg-type]
        write_record(self.results / name, run, {"run": run, "seed": 0}, f"sweep {name}", "", {"planted": parts})
        self.asks[name].append(
            [
                Ask(run, each.label, each.momentum, step, (each.code, sample), self.trainings[run])
                for each in subjects
                for step in steps
            ]
        )

    def make_network(self, run: str, sample: int | None) -> Any:
        """Make a stub of a network, whose rows show what they were measured from."""
        data = SimpleNamespace(identify=lambda: {"name": "digits"})
        return SimpleNamespace(
            id=run,
            losses_digest=f"training {self.trainings[run]}",
            number=self.trainings[run],
            order_of_calls=None,
            dataset=SimpleNamespace(train=SimpleNamespace(digest="images")),
            digest_of=lambda *_: "test images",
            config=SimpleNamespace(results=str(self.results), population_images=sample, data=data),
            batches=SimpleNamespace(per_epoch=1),
        )

    def expect(self, name: str) -> pd.DataFrame:
        """Find the rows of a sweep by the definition, ask by ask."""
        parts: dict[tuple[str, str], list[Ask]] = {}
        newest_training = {}
        newest_origin = {}
        for asked in self.asks[name]:
            for ask in asked:
                part = parts.setdefault((ask.run, ask.estimator), [])
                if part and (part[-1].origin, part[-1].training) != (ask.origin, ask.training):
                    part.clear()
                part.append(ask)
                newest_training[ask.run] = ask.training
                newest_origin[ask.estimator] = ask.origin

        rows = set()
        for part in parts.values():
            for ask in part:
                is_shown = ask.training == newest_training[ask.run] and ask.origin == newest_origin[ask.estimator]
                if is_shown:
                    value = compute(ask.run, ask.training, ask.origin[0], ask.origin[1], ask.momentum, ask.step)
                    rows.add((ask.run, ask.step, ask.estimator, ask.momentum, "train", value))
        frame = pd.DataFrame(sorted(rows, key=str), columns=[*KEY, "value"])
        return frame.astype({"momentum": float, "value": float}).sort_values(KEY, ignore_index=True)


def compute(run: str, training: int, code: str, sample: int | None, momentum: float | None, step: int) -> float:
    """Compute a value that no other row has."""
    return float(sum(ord(letter) for letter in f"{run}{code}") + 1e3 * training + 1e5 * (sample or 0) + step) + (
        momentum or 0.0
    )


class Planted(Measurement):
    """Rows whose values say what they were measured from."""

    name = "planted"
    table = Table("planted", common(" ".join(KEY)), {"value": real("what it was measured from")})
    predicts = False

    def __init__(self, steps: list[int]) -> None:
        self.steps = tuple(steps)

    def scope(self, run: Any, subjects: list[Any]) -> Mapping[Any, list[int]]:
        return {subject: [*self.steps] for subject in subjects}

    def measure(self, run: Any, subjects: list[Any], steps: list[int]) -> pd.DataFrame:  # type: ignore[override]
        rows = [
            {
                "step": step,
                "estimator": each.label,
                "momentum": each.momentum,
                "statistics_split": each.split,
                "value": compute(run.id, run.number, each.code, run.config.population_images, each.momentum, step),
            }
            for each in subjects
            for step in steps
        ]
        return pd.DataFrame(rows).astype({"momentum": float})


class Predicting(Planted):
    """The same of a table that predicts."""

    name = "predicting"
    predicts = True


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Kill the process before the write of a file, or before its removal, that comes after so many others."""
    left = [-1]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    write, unlink = files.os.replace, Path.unlink

    def replaced(*given: Any, **named: Any) -> None:
        count()
        write(*given, **named)

    def unlinked(path: Path, **named: Any) -> None:
        if path.suffix == ".parquet":
            count()
        unlink(path, **named)

    monkeypatch.setattr(files.os, "replace", replaced)
    monkeypatch.setattr(Path, "unlink", unlinked)

    def after(writes: int) -> None:
        left[0] = writes

    yield after
    left[0] = -1


def draw_subjects(draw: random.Random, lab: Lab) -> list[Subject]:
    """Draw what a job asks for."""
    subjects = []
    for estimator in draw.sample(ESTIMATORS, draw.randint(1, 2)):
        code = f"{estimator}{lab.code[estimator]}"
        momenta = draw.sample(MOMENTA, draw.randint(1, 2)) if estimator == "ema" else [None]
        subjects += [Subject(estimator, momentum, code) for momentum in momenta]
    return subjects


def play(draw: random.Random, lab: Lab, kill: Any) -> None:
    """Play one random event."""
    event = draw.choice(["sweep"] * 6 + ["kill", "edit", "train", "rm", "write"])
    name = draw.choice(SWEEPS)
    if event == "edit":
        lab.code[draw.choice(ESTIMATORS)] += 1
    elif event == "train":
        lab.trainings[draw.choice(NETWORKS)] += 1
    elif event == "write":
        write_tables(lab.results / name)
    elif event == "rm":
        run = draw.choice(NETWORKS)
        locate_record(lab.results / name, run).unlink(missing_ok=True)
        lab.asks[name] = [asked for asked in lab.asks[name] if asked[0].run != run]
    else:
        if event == "kill":
            kill(draw.randint(1, 4))
        steps = draw.sample(STEPS, draw.randint(1, 2))
        with contextlib.suppress(Killed):
            lab.sweep(name, draw.choice(NETWORKS), draw_subjects(draw, lab), steps, draw.choice(SAMPLES))
        kill(-1)


def check(lab: Lab, name: str) -> None:
    """Compare the tables of a sweep with what the twin expects, row for row."""
    expected = lab.expect(name)
    if not read_records(lab.results / name):
        assert expected.empty
        return
    tables = read_tables(name, lab.results)
    found = tables["planted"] if "planted" in tables else expected[:0]
    pd.testing.assert_frame_equal(found[[*KEY, "value"]].reset_index(drop=True), expected, check_dtype=False)

    shown = {*expected["run"]} if len(expected) else set()
    asked = {ask.run for asked in lab.asks[name] for ask in asked}
    assert bool(tables.notes) or shown == asked, "what is left out is said"


@pytest.mark.parametrize(
    "change",
    [
        {"losses_digest": "other"},
        {"dataset": SimpleNamespace(train=SimpleNamespace(digest="other"))},
        {"order_of_calls": ["2", "1"]},
        {"digest_of": lambda *_: "other"},
    ],
    ids=["training", "training images", "order of layers", "predicted images"],
)
def test_rows_that_depend_on_something_else_have_other_keys(change: dict[str, Any], tmp_path: Path) -> None:
    """Other images that are predicted matter to tables of predictions alone."""
    lab = Lab(tmp_path)
    network = lab.make_network("a/seed_0", None)
    subjects: list[Any] = [Subject("ema", 0.1, "code")]
    of_gaps = complete_rows(network, Planted([1]), subjects, {})["ema"].keys
    of_predictions = complete_rows(network, Predicting([1]), subjects, {})["ema"].keys

    vars(network).update(change)

    predicts = "digest_of" in change
    assert (complete_rows(network, Planted([1]), subjects, {})["ema"].keys == of_gaps) is predicts
    assert complete_rows(network, Predicting([1]), subjects, {})["ema"].keys != of_predictions


def test_a_job_that_asked_for_rows_that_others_took_the_place_of_is_done_no_more(tmp_path: Path) -> None:
    """And is done again once it has asked again, for which nothing is measured."""
    lab = Lab(tmp_path)
    subjects: list[Any] = [Subject("ema", 0.1, "code")]
    for asked, sample, done in (("all", None, ["all"]), ("some", 200, ["some"]), ("all", None, ["all"])):
        parts = complete_rows(lab.make_network("a/seed_0", sample), Planted([1]), subjects, {})
        write_record(tmp_path / "one", "a/seed_0", {"run": "a/seed_0"}, "", asked, {"planted": parts})

        (record,) = read_records(tmp_path / "one")
        assert record.asked == done
    assert len(read_frame(next(tmp_path.rglob("planted/*.parquet")))) == 2


@pytest.mark.parametrize("seed", range(50))
def test_tables_are_what_the_definition_says_after_any_sequence(seed: int, tmp_path: Path, kill: Any) -> None:
    draw = random.Random(seed)
    lab = Lab(tmp_path)
    for _ in range(draw.randint(2, 12)):
        play(draw, lab, kill)
    for name in SWEEPS:
        check(lab, name)
