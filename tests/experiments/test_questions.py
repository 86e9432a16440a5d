"""Every question: declarations that agree with its configuration, and claims that decide what is planted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bnlab.harness.artifacts.settings import as_list, training_settings
from bnlab.harness.errors import UserError
from bnlab.harness.measurements.sources import find_sources
from bnlab.harness.reporting import drawing
from bnlab.harness.reporting.experiment import NoRows, answers, declared
from bnlab.harness.reporting.frames import share_name
from bnlab.harness.schema import LOG, TABLES
from experiments.compose import plan_jobs
from experiments.explain import list_choices
from experiments.questions import find_experiment
from tests.experiments.commands import ROOT
from tests.experiments.planted import Effect, Setting, decide, plant

EXPERIMENTS = list_choices("experiment")
FOLDER = Path(__file__).parent / "questions"


def estimators(name: str) -> list[tuple[str, float | None, str]]:
    """Names, momenta and splits that the experiment's configuration measures."""
    config = plan_jobs([f"experiment={name}"], multirun=False).configs[0]
    return [(s.estimator, s.momentum, s.split) for s in find_sources(config)]


def as_configured(name: str, sources: Sequence[Setting] = ()) -> dict[str, pd.DataFrame]:
    """Planted tables of the networks, steps, measurements and, if not others, estimators of its configuration."""
    configs = plan_jobs([f"experiment={name}"], multirun=False).configs
    sizes, seeds = {config.batch_size for config in configs}, {config.seed for config in configs}
    steps = {config.steps or 1000 for config in configs}
    described = pd.json_normalize([training_settings(config) for config in configs]).drop(
        columns=["batch_size", "steps", "freeze_at"], errors="ignore"
    )
    described = described.fillna({"freeze_with": "none"})  # as in the table `runs`
    settings = {key: values.unique().tolist() for key, values in described.items() if values.nunique() > 1}
    networks = {"sizes": sorted(sizes), "seeds": sorted(seeds), "steps": sorted(steps), "settings": settings}
    tables = plant(sources or estimators(name), lambda row: 0.1 + (row["momentum"] or 0) + row["seed"] / 100,
                   shares=configs[0].evaluate_at, splits=as_list(configs[0].evaluate_on),
                   shifts=as_list(configs[0].shifts), **networks)  # fmt: skip
    runs = tables["runs"].merge(described[[*settings]].drop_duplicates()) if settings else tables["runs"]
    measured = {"runs", "log", *as_list(configs[0].measurements)}
    return {table: frame[frame["run"].isin(runs["run"])] if table in measured else frame[:0]
            for table, frame in tables.items()}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_declarations(name: str) -> None:
    experiment = find_experiment(name)
    assert importlib.import_module(f"experiments.questions.{name}").__doc__
    assert experiment.question.endswith("?") and experiment.source
    assert experiment.figures and experiment.claims
    for figure in experiment.figures:
        assert figure.title and "seeds, bands" not in figure.caption, "the drawing says what lines and bands are"
    for claim in experiment.claims:
        assert claim.text.endswith(".") and claim.rule.unit and claim.rule.reason
    for table, columns in experiment.columns.items():
        assert set(columns) <= set({**TABLES, "log": LOG}[table].types), table


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


def effects(name: str) -> dict[str, Effect]:
    """By claim, what tests/experiments/questions/test_<name>.py plants."""
    assert (FOLDER / f"test_{name}.py").exists(), f"plant the effects of {name} in {FOLDER}/test_{name}.py"
    return importlib.import_module(f"tests.experiments.questions.test_{name}").EFFECTS


CLAIMS = [(name, claim.id) for name in EXPERIMENTS for claim in find_experiment(name).claims]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_is_planted(name: str) -> None:
    assert set(effects(name)) == {claim.id for claim in find_experiment(name).claims}


@pytest.mark.parametrize(("name", "claim"), CLAIMS)
def test_a_planted_effect_holds_and_a_reversed_one_fails(name: str, claim: str) -> None:
    effect = effects(name)[claim]
    assert set(decide(name, claim, **effect.holds)) == {"holds"}
    assert set(decide(name, claim, **effect.holds | effect.fails)) == {"fails"}


@pytest.mark.parametrize(("name", "claim"), CLAIMS)
def test_wide_noise_is_undecided(name: str, claim: str) -> None:
    effect = effects(name)[claim]
    noise = {"gap": effect.gap, "accuracy": effect.accuracy, "values": effect.values}
    assert set(decide(name, claim, **effect.holds | noise)) == {"undecided"}


@pytest.mark.parametrize(("name", "claim"), CLAIMS)
def test_one_seed_decides_nothing(name: str, claim: str) -> None:
    try:
        assert set(decide(name, claim, **effects(name)[claim].holds | {"seeds": (0,)})) == {"one seed"}
    except UserError as error:
        assert "sweep several, such as seed=0,1" in str(error)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_missing_estimators_and_tables_are_no_traceback(name: str) -> None:
    experiment = find_experiment(name)
    elsewhere = {"run": "elsewhere"}  # of networks that nobody knows
    planted = as_configured(name, [("window(k=5)", None)])
    only = {table: frame if "estimator" in frame or table == "runs" else frame.assign(**elsewhere)
            for table, frame in planted.items()}  # fmt: skip
    assert set(answers(experiment, only)["condition"]) == {"no rows"}
    for table in experiment.columns:
        with pytest.raises(NoRows, match=f"the table {table} has no rows"):
            answers(experiment, only | {table: only[table][:0]})


@pytest.fixture
def documented(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Effect]]:
    """The experiment that CONTRIBUTING.md shows, as files beside the others; its effects."""
    blocks = (ROOT / "CONTRIBUTING.md").read_text().partition("## An experiment")[2].split("```")[1::2]
    yaml, module, effects = (block.partition("\n")[2] for block in blocks)
    (conf / "experiment" / "ending.yaml").write_text(yaml)
    (tmp_path / "ending.py").write_text(module)
    monkeypatch.setattr("experiments.questions.__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "experiments.questions.ending", raising=False)
    found: dict[str, Any] = {}
    exec(effects, found)
    yield found["EFFECTS"]
    sys.modules.pop("experiments.questions.ending", None)


def test_the_experiment_in_the_documentation(documented: dict[str, Effect]) -> None:
    """It is planned, drawn and decided as it stands."""
    assert len(plan_jobs(["experiment=ending"], multirun=False).configs) == 12
    experiment, tables = find_experiment("ending"), as_configured("ending")
    for figure in experiment.figures:
        assert len(drawing.draw(figure, declared(experiment, tables)).axes) == 1
    assert len(answers(experiment, tables)) == 4 and set(documented) == {claim.id for claim in experiment.claims}
    for claim, effect in documented.items():
        assert set(decide("ending", claim, **effect.holds)) == {"holds"}
        assert set(decide("ending", claim, **effect.holds | effect.fails)) == {"fails"}
