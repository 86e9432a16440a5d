"""Tables as a sweep writes them, with gaps and accuracies that a test plants; and the committed ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bnlab.decomposition import TERMS
from bnlab.harness.reporting.experiment import answers
from bnlab.harness.schema import LOG, TABLES, empty
from experiments.explain import CONF
from experiments.questions import find_experiment

Value = Callable[[dict[str, Any]], float]
Setting = tuple[str, float | None] | tuple[str, float | None, str]
"""Of an estimator: name, momentum (None where there is none), and split of its statistics (left out: train)."""
EMA = ("ema", 0.1)
GAPS = ("mean_gap", "var_gap", "kl", "var_ratio", "tid_mean", "tid_std")


@dataclass(frozen=True)
class Effect:
    """What a claim is tried on: arguments of `plant`.

    Attributes:
        holds: tables in which the claim holds.
        fails: what is changed in them so that the opposite holds.
        gap, accuracy, values: what is changed so that neither does: large effects of either sign, which cancel over
            seeds.
    """

    holds: dict[str, Any]
    fails: dict[str, Any]
    gap: Value = lambda row: math.exp(sign(row))
    accuracy: Value = lambda row: 0.5 + 0.3 * sign(row)
    values: Mapping[str, Value] = field(default_factory=dict)


def alternate(row: dict[str, Any]) -> int:
    """1 for half of the seeds, -1 for the others."""
    return 1 - 2 * (row["seed"] % 2)


def sign(row: dict[str, Any]) -> int:
    """As `alternate`; 0 for `exact` and `predictive`, which others are compared with."""
    return 0 if row.get("estimator") in ("exact", "predictive") else alternate(row)


def scale(estimator: str, times: float) -> Value:
    """A gap of an estimator that is so many times that of all others, by seed a little more."""
    return lambda row: times * (1 + row["seed"] / 1000) if row["estimator"] == estimator else 1.0


def swing(estimator: str) -> Value:
    """A gap of an estimator that is far above that of all others for half of the seeds, and far below for the rest."""
    return lambda row: math.exp(alternate(row) * (row["estimator"] == estimator))


def gap_times(estimator: str, times: float, other: float, **tables: Any) -> Effect:
    """An estimator whose gap is so many times that of all others, and `other` times where the claim fails."""
    return Effect({**tables, "gap": scale(estimator, times)}, {"gap": scale(estimator, other)}, gap=swing(estimator))


def lose(estimator: str, points: float) -> Value:
    """Accuracy of an estimator so many points below all others, by seed a little more or less."""
    return lambda row: 0.9 - (points + 0.1 * row["seed"]) / 100 * (row["estimator"] == estimator)


def accuracy_lost(
    estimator: tuple[str, float | None],
    points: float,
    other: float,
    against: tuple[str, float | None] = ("exact", None),
    **networks: Any,
) -> Effect:
    """An estimator that loses so many points against another, and as many as `other` where the claim fails.

    `networks`: seeds, sizes or shares of `plant`; or more estimators.
    """
    lost = [{"accuracy": lose(estimator[0], some)} for some in (points, other)]
    unclear: Value = lambda row: 0.5 + 0.3 * alternate(row) * (row["estimator"] == estimator[0])  # noqa: E731
    return Effect({"estimators": [estimator, against], **lost[0], **networks}, lost[1], accuracy=unclear)


def decide(name: str, claim: str, **tables: Any) -> list[str]:
    """The verdicts on a claim of an experiment, on planted tables."""
    found = answers(find_experiment(name), plant(**tables))
    return found[found["claim"] == claim]["verdict"].to_list()


def score_claim(name: str, claim: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows that a claim of an experiment is decided by."""
    return next(c for c in find_experiment(name).claims if c.id == claim).score(tables)


def reference(name: str) -> dict[str, pd.DataFrame]:
    """The committed tables of an experiment."""
    folder = CONF.parent / "results" / "reference" / name
    empty = {name: empty(table.schema) for name, table in TABLES.items()}
    return empty | {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}


def plant(
    estimators: Iterable[Setting],
    gap: Value = lambda row: 0.1,
    accuracy: Value = lambda row: 0.9,
    *,
    values: Mapping[str, Value] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3),
    sizes: Sequence[int] = (4, 256),
    steps: Sequence[int] = (1000,),
    shares: Sequence[float] = (0.1, 0.2, 0.55, 1.0),
    splits: Sequence[str] = ("test",),
    shifts: Sequence[str] = ("none",),
    settings: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables of one network for each batch size, seed and value of other settings, of 1,000 steps and three layers.

    Args:
        estimators: names and momenta (None where there is none), and splits of their statistics.
        gap: of a row with its network's settings, the value of those of `GAPS` that are not in `values`.
        accuracy: the same, a fraction.
        values: by column, the same for `GAPS`, all other tables and the log; where there is none, see `USUAL`, `far`.
        seeds, sizes, steps, shares: networks and measured shares of the training.
        splits, shifts: of the images that are predicted.
        settings: values of other columns of `runs`, such as {"model.width": (8, 32)}.
    """
    varied = {"batch_size": sizes, "seed": seeds, "steps": steps, **(settings or {})}
    named = [key for key, chosen in varied.items() if key in ("batch_size", "seed") or len(chosen) > 1]
    runs = [{"epochs": 2.0} | dict(zip(varied, chosen, strict=True))
            for chosen in itertools.product(*varied.values())]  # fmt: skip
    # A batch is normalized in one, unless `settings` say otherwise.
    runs = [{"norm_batch_size": run["batch_size"], **run} for run in runs]
    runs = [{"run": "/".join(str(run[key]) for key in named), **run} for run in runs]
    distances = {column: (values or {}).get(column, gap) for column in GAPS}
    gaps, evaluations = [], []
    for run, share in itertools.product(runs, shares):
        when = {"run": run["run"], "step": round(run["steps"] * share), "epoch": 2 * share}
        sources = [when | describe(estimator) for estimator in estimators]
        for row, layer in itertools.product(sources, AXES["layer"]):
            place = {"layer": layer, "depth": AXES["layer"].index(layer) + 1}
            gaps.append(row | place | {column: value(run | row | place) for column, value in distances.items()})
        for source, split, shift in itertools.product(sources, splits, shifts):
            row = source | {"split": split, "shift": shift}
            evaluations.append(row | {"accuracy": accuracy(run | row), "logit_gap": far(row)})
    tables = {"runs": runs, "gaps": gaps, "evaluations": evaluations}
    for name in (TABLES.keys() | {"log"}) - tables.keys():
        tables[name] = plant_table(name, runs, shares, estimators, values or {})
    return {name: pd.DataFrame(rows).astype({"momentum": float} if "estimator" in rows[0] else {})
            for name, rows in tables.items()}  # fmt: skip


def describe(estimator: Setting) -> dict[str, Any]:
    """The columns that rows of an estimator have in all tables."""
    name, momentum, *split = estimator
    return {"estimator": name, "momentum": momentum, "statistics_split": split[0] if split else "train"}


AXES: dict[str, tuple[Any, ...]] = {"layer": ("x", "y", "z"), "channel": (0, 1)}
AXES["left"] = (-4.0, 0.0)
AXES |= {"doses.layer": ("all", "x", "y", "z"), "moment": ("mean", "var"), "dose": (0.1, 0.4, 0.8, 1.6)}
AXES |= {"case": ("shuffled", "sorted", "jump_1", "jump_10", "rare", "single"), "size": (1.0, 100.0)}
AXES |= {"last": (1, 4, 16, 64)}
AXES |= {"last_batch": ("dropped", "kept"), "position": (6, 35)}
AXES |= {"statistic": ("mean", "var"), "term": TERMS}
"""What the keys of the other tables are, besides run, step and those of an estimator; in one table `<table>.<key>`."""

USUAL: dict[str, Value] = {
    "mean": lambda row: far(row) * (1 + row["epoch"]),
    "mean_level": lambda row: 1.0,
    "mean_noise": lambda row: 1e-3,
    "mean_drift": lambda row: 1e-3,
    "batches": lambda row: 35,
    "last_share": lambda row: 40 / 256 if row["last_batch"] == "kept" else 1.0,
    "images": lambda row: 9000,
    "values": lambda row: 9000 * 16,
}


def far(row: dict[str, Any]) -> float:
    """0.1 of exact statistics and where there are no estimators, else 0.2."""
    return 0.1 if row.get("estimator", "exact") == "exact" else 0.2


def plant_table(
    name: str,
    runs: Sequence[dict[str, Any]],
    shares: Sequence[float],
    estimators: Iterable[Setting],
    values: Mapping[str, Value],
) -> list[dict[str, Any]]:
    """Rows of any table: all combinations of its keys."""
    table, planted = {**TABLES, "log": LOG}[name], {**USUAL, **values}
    given = ("run", "step", "estimator", "momentum", "statistics_split")
    keys = [key for key in table.key if key not in given]
    sources = [describe(estimator) for estimator in estimators]
    rows = []
    for run, share, source, *at in itertools.product(
        runs,
        shares,
        sources if "estimator" in table.key else [{}],
        *(AXES[own if (own := f"{name}.{key}") in AXES else key] for key in keys),
    ):
        when = {"run": run["run"], "step": round(run["steps"] * share), "epoch": 2 * share}
        row = when | source | dict(zip(keys, at, strict=True))
        if "layer" in row:
            row |= {"depth": "xyz".find(row["layer"]) + 1}  # of all layers together: 0
        others = {c: planted.get(c, far)(run | row) for c in table.types if c not in row}
        rows.append({c: value for c, value in (row | others).items() if c in table.types})
    return rows
