"""Every question: declarations that agree with its configuration, and claims that decide what is planted."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.measurements.sources import settings
from bnlab.harness.reporting.experiment import NoRows, answers, declared
from bnlab.harness.reporting.frames import share_name
from bnlab.harness.tables import TABLES, empty
from experiments.compose import plan_jobs
from experiments.explain import CONF, choices
from experiments.questions import find_experiment
from tests.experiments.planted import Value, planted

EXPERIMENTS = choices("experiment")
REFERENCE = CONF.parent / "results" / "reference"


def estimators(name: str) -> list[tuple[str, float | None]]:
    """Names and momenta that the experiment's configuration measures."""
    config = plan_jobs([f"experiment={name}"], multirun=False).configs[0]
    momenta = config.momentum if isinstance(config.momentum, list) else [config.momentum]
    return [(s.estimator, s.momentum) for s in settings(config.estimator, momenta, config.population)]


def as_configured(name: str) -> dict[str, pd.DataFrame]:
    """Planted tables of the networks, steps, estimators and measurements of the experiment's configuration."""
    configs = plan_jobs([f"experiment={name}"], multirun=False).configs
    sizes, seeds = {config.batch_size for config in configs}, {config.seed for config in configs}
    tables = planted(estimators(name), lambda row: 0.1 + (row["momentum"] or 0) + row["seed"] / 100,
                     sizes=sorted(sizes), seeds=sorted(seeds), shares=configs[0].evaluate_at)  # fmt: skip
    measured = {"runs", *configs[0].measurements}
    return {table: frame if table in measured else empty(table) for table, frame in tables.items()}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_declarations(name: str) -> None:
    experiment = find_experiment(name)
    assert importlib.import_module(f"experiments.questions.{name}").__doc__
    assert experiment.question.endswith("?") and experiment.answers and experiment.source
    assert experiment.figures and experiment.claims
    for things in ([f.name for f in experiment.figures], [c.id for c in experiment.claims]):
        assert len(set(things)) == len(things)
    for figure in experiment.figures:
        assert figure.title and "seeds, bands" not in figure.caption, "the drawing says what lines and bands are"
    for claim in experiment.claims:
        assert claim.text.endswith(".") and claim.unit and claim.reason
    for table, columns in experiment.columns.items():
        assert set(columns) <= set(TABLES[table].types), table


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_constants_agree_with_the_configuration(name: str) -> None:
    """Tables of exactly what the configuration measures hold every row that figures and claims select."""
    experiment, module = find_experiment(name), importlib.import_module(f"experiments.questions.{name}")
    config = plan_jobs([f"experiment={name}"], multirun=False).configs[0]
    shares = getattr(module, "SHARES", ())
    assert set(shares) <= set(config.evaluate_at)
    tables = declared(experiment, as_configured(name))
    names = {share_name(share) for share in shares}
    for figure in experiment.figures:
        frame = figure.score(tables)
        assert len(frame) and frame["panel"].notna().all(), figure.name
        shown = set(frame["panel"])
        assert shown == names or not shown & names, figure.name
        assert "n" not in frame or frame["n"].dropna().gt(1).all(), figure.name
    found = answers(experiment, as_configured(name))
    assert (found["n"] > 1).all() and not (found["condition"] == "no rows").any()


# Of each claim, by experiment and id: gaps and accuracies with an effect of this size, in its favour where positive.
EMA = ("ema", 0.1)


def _loses(estimator: str, points: float) -> Value:
    """Accuracy of an estimator so many points below all others, by seed a little more or less."""
    return lambda row: 0.9 - (points + 0.1 * row["seed"]) / 100 * (row["estimator"] == estimator)


def _farther(factor: float) -> Value:
    return lambda row: 0.1 * (factor * (1 + row["seed"] / 50) if row["estimator"] == "ema" else 1)


def _optimum(momentum: float) -> Value:
    """A gap with its minimum there. Theory puts it at 0.62 for as much drift as noise, once the start is forgotten."""
    return lambda row: 0.1 + abs(math.log((row["momentum"] or 1) * (1 + row["seed"] / 50) / momentum))


GRID = [("ema", 0.9 * 1.3**-k) for k in range(12)]
COSTS = {"estimators": [EMA, ("exact", None)]}
HOLDS: dict[tuple[str, str], dict[str, Any]] = {
    ("quickstart", "default_costs_early"): COSTS | {"accuracy": _loses("ema", 5)},
    ("quickstart", "default_is_harmless_late"): COSTS | {"accuracy": _loses("ema", 0.1)},
    ("quickstart", "predictive_is_nearer"): {"estimators": [EMA, ("predictive", None)], "gap": _farther(2)},
    ("momentum", "theory_knows_momentum"): {"estimators": GRID, "gap": _optimum(0.6)},
    ("training_curve", "ema_costs"): COSTS | {"accuracy": _loses("ema", 3)},
    **{
        ("training_curve", f"{name}_costs"): {
            "estimators": [(name, None), ("exact", None)],
            "accuracy": _loses(name, 3),
        }
        for name in ("cumulative", "last_batch")
    },
    ("training_curve", "precise_is_exact"): {
        "estimators": [("precise(images=2048)", None), ("exact", None)],
        "accuracy": _loses("precise(images=2048)", 0.1),
    },
}
REVERSED: dict[tuple[str, str], dict[str, Any]] = {
    ("quickstart", "default_costs_early"): {"accuracy": _loses("ema", -5)},
    ("quickstart", "default_is_harmless_late"): {"accuracy": _loses("ema", 5)},
    ("quickstart", "predictive_is_nearer"): {"gap": _farther(0.5)},
    ("momentum", "theory_knows_momentum"): {"gap": _optimum(0.06)},
    ("training_curve", "ema_costs"): {"accuracy": _loses("ema", -3)},
    ("training_curve", "cumulative_costs"): {"accuracy": _loses("cumulative", -3)},
    ("training_curve", "last_batch_costs"): {"accuracy": _loses("last_batch", -3)},
    ("training_curve", "precise_is_exact"): {"accuracy": _loses("precise(images=2048)", 3)},
}
CLAIMS = [(name, claim.id) for name in EXPERIMENTS for claim in find_experiment(name).claims]


def decide(which: tuple[str, str], **changes: Any) -> list[str]:
    """The claim's verdicts on tables with its effect planted."""
    name, claim = which
    found = answers(find_experiment(name), planted(**HOLDS[which] | changes))
    return found[found["claim"] == claim]["verdict"].to_list()


def test_every_claim_is_planted() -> None:
    assert set(HOLDS) == set(REVERSED) == set(CLAIMS)


@pytest.mark.parametrize("which", CLAIMS, ids=":".join)
def test_a_planted_effect_holds_and_a_reversed_one_fails(which: tuple[str, str]) -> None:
    assert set(decide(which)) == {"holds"}
    assert set(decide(which, **REVERSED[which])) == {"fails"}


def _sign(row: dict[str, Any]) -> int:
    """1 for half of the seeds, -1 for the others, of all estimators but the references."""
    return 0 if row["estimator"] in ("exact", "predictive") else 1 - 2 * (row["seed"] % 2)


@pytest.mark.parametrize("which", CLAIMS, ids=":".join)
def test_wide_noise_is_undecided(which: tuple[str, str]) -> None:
    """Large effects of either sign, which cancel in the mean over seeds."""
    if which[0] == "momentum":
        noise: Value = lambda row: _optimum(0.6 if _sign(row) > 0 else 0.1)(row)  # noqa: E731
    else:
        noise = lambda row: math.exp(_sign(row))  # noqa: E731
    found = decide(which, gap=noise, accuracy=lambda row: 0.5 + 0.3 * _sign(row))
    assert set(found) == {"undecided"}


@pytest.mark.parametrize("which", [w for w in CLAIMS if w[0] != "momentum"], ids=":".join)
def test_one_seed_decides_nothing(which: tuple[str, str]) -> None:
    assert set(decide(which, seeds=(0,))) == {"one seed"}


def test_a_prediction_from_other_seeds_needs_them() -> None:
    with pytest.raises(UserError, match="batch size 4 has seed 0; sweep several, such as seed=0,1"):
        decide(("momentum", "theory_knows_momentum"), seeds=(0,))
    tables = planted(GRID)
    lonely = {name: frame[frame["run"] != "256/3"] for name, frame in tables.items()}  # a missing network
    assert set(answers(find_experiment("momentum"), lonely)["n"]) == {3, 4}
    assert len(answers(find_experiment("momentum"), planted(GRID[:1]))) > 0  # a single momentum


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_missing_estimators_and_tables_are_no_traceback(name: str) -> None:
    experiment = find_experiment(name)
    only = planted([("window(k=5)", None)])
    if name != "momentum":
        assert set(answers(experiment, only)["condition"]) == {"no rows"}
    for table in experiment.columns:
        with pytest.raises(NoRows, match=f"the table {table} has no rows"):
            answers(experiment, only | {table: empty(table)})


def test_predictive_is_compared_by_step_and_layer() -> None:
    """What steps and layers differ in cancels: of 2 and 8 times at two layers, 4 remains, at any step."""
    times = {"x": 2.0, "y": 8.0}
    tables = planted([EMA, ("ema", 0.01), ("predictive", None)],
                     lambda row: row["step"] * (times[row["layer"]] if row["momentum"] == 0.1 else 1.0))  # fmt: skip
    tables["gaps"].loc[tables["gaps"]["momentum"] == 0.01, "mean_gap"] = 99
    frame = importlib.import_module("experiments.questions.quickstart").score_choosing(tables)
    assert frame[["batch_size", "n"]].values.tolist() == [[4, 4], [256, 4]]
    np.testing.assert_allclose(frame[["mean", "low", "high"]], 4)


def reference(name: str) -> dict[str, pd.DataFrame]:
    return {table: pd.read_parquet(path) if (path := REFERENCE / name / f"{table}.parquet").exists() else empty(table)
            for table in TABLES}  # fmt: skip


def test_quickstart_against_plain_pandas_on_the_reference_tables() -> None:
    tables = reference("quickstart")
    available = declared(find_experiment("quickstart"), tables)
    module = importlib.import_module("experiments.questions.quickstart")
    late = tables["evaluations"].merge(tables["runs"], on="run", suffixes=("", "_run"))
    late = late[(late["step"] == late["steps"]) & (late["batch_size"] == 256)]
    exact = late[late["estimator"] == "exact"].set_index("run")["accuracy"]
    default = late[(late["estimator"] == "ema") & (late["momentum"] == 0.1)].set_index("run")["accuracy"]
    found = module.score_cost(available, 1.0).set_index("batch_size").loc[256]
    assert found["mean"] == pytest.approx(100 * (exact - default).mean()) and found["n"] == len(exact) == 5
    gaps = tables["gaps"].merge(tables["runs"], on="run", suffixes=("", "_run"))
    gaps = gaps[(gaps["step"] == gaps["steps"]) & (gaps["batch_size"] == 4) & (gaps["momentum"] == 0.05)]
    means = gaps[gaps["estimator"] == "ema"].groupby("run")["mean_gap"].mean()
    row = (
        module.score_gap(available)
        .set_index(["panel", "batch_size", "momentum"])
        .loc["at the end of training", 4, 0.05]
    )
    assert row["mean"] == pytest.approx(np.exp(np.log(means).mean()))


def test_training_curve_against_plain_pandas_on_the_reference_tables() -> None:
    tables = reference("training_curve")
    found = importlib.import_module("experiments.questions.training_curve").score_cost(
        declared(find_experiment("training_curve"), tables)
    )
    pivot = tables["evaluations"].pivot(index=["run", "epoch"], columns="estimator", values="accuracy")
    plain = 100 * (pivot["ema"] - pivot["exact"]).groupby("epoch").mean()
    assert not set(found["estimator"]) & {"exact"} and (found["n"] == 5).all()
    ema = found[found["estimator"] == "ema"].set_index("epoch")["mean"]
    shared = ema.index.intersection(plain.index)
    weights = tables["runs"].groupby("batch_size").size()
    single = [epoch for epoch in shared if (pivot.index.get_level_values("epoch") == epoch).sum() == weights.min()]
    assert len(single) > 5
    np.testing.assert_allclose(ema[single], plain[single])
