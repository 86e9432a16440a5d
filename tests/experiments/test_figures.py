"""Experiments as files: their configuration does something, their figures draw from tables as a sweep writes them."""

from __future__ import annotations

import importlib
import itertools
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bnlab.harness import load, style
from bnlab.harness.tables import TABLES
from experiments.compose import plan_jobs, register
from experiments.explain import CONF
from tests.experiments.commands import run, trained

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def test_there_are_experiments() -> None:
    assert {"quickstart", "momentum", "training_curve"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_configuration_changes_what_is_composed(name: str) -> None:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = compose("config", return_hydra_config=True)
        changed = compose("config", [f"experiment={name}"], return_hydra_config=True)
    assert changed.name == name and plain.name == "adhoc"
    without_name = [{k: v for k, v in OmegaConf.to_container(c, resolve=False).items() if k not in ("name", "hydra")}
                    for c in (plain, changed)]  # fmt: skip
    assert without_name[0] != without_name[1]
    text = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert text[0] == "# @package _global_" and text[1].startswith(f"# python -m experiments.sweep experiment={name}")
    planned = plan_jobs([f"experiment={name}"], multirun=False).configs
    assert {config.name for config in planned} == {name}
    count = 1
    for values in (changed.hydra.sweeper.params or {}).values():
        count *= len(str(values).split(","))
    assert len(planned) == count


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_figures_need_columns_that_there_are(name: str) -> None:
    question = importlib.import_module(f"experiments.{name}")
    assert question.__doc__ and question.FIGURES
    assert len({figure.name for figure in question.FIGURES}) == len(question.FIGURES)
    for figure in question.FIGURES:
        assert figure.title and figure.caption
        for table, columns in figure.columns.items():
            assert set(columns) <= set(TABLES[table].types), (figure.name, table)


DIGITS = ["data=digits", "data.images=null", "batch_size=32,256", "seed=0,1,2", "epochs=6"]
SHORTER = {
    "quickstart": ["batch_size=32,256", "seed=0,1", "epochs=1", "evaluate_at=[0.1,1.0]"],
    # It takes precise statistics of 2,048 images, more than there are digits.
    "training_curve": ["data.images=2400", "batch_size=128,512", "seed=0,1", "epochs=4"],
}


def _costs(name: str) -> object:
    return name if name == "quickstart" else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", [_costs(name) for name in EXPERIMENTS])
def test_sweep_then_figures(name: str, tmp_path: Path) -> None:
    """With fewer and smaller networks; all else is the experiment's own."""
    words = ["-m", f"experiment={name}", *SHORTER.get(name, DIGITS)]
    done = run("sweep", *words, f"results={tmp_path}")
    assert f"next: python -m experiments.figures experiment={name} results={tmp_path}" in done.stdout
    done = run("figures", f"experiment={name}", f"results={tmp_path}")
    question = importlib.import_module(f"experiments.{name}")
    for figure in question.FIGURES:
        for suffix in ("png", "pdf"):
            path = tmp_path / name / "figures" / f"{figure.name}.{suffix}"
            assert path.stat().st_size > 5000
        assert str(tmp_path / name / "figures" / f"{figure.name}.png") in done.stdout
    tables = load(name, tmp_path)
    lines = [line.strip() for line in done.stdout.splitlines()]
    for text in question.summary(tables):
        assert text.split()[0] in " ".join(lines)
    with pytest.raises(ValueError, match="no column 'run'"):
        style.draw(question.FIGURES[0], {key: frame.drop(columns="run") for key, frame in tables.items()})


def planted_gaps(factor: float, estimator: str = "predictive") -> dict[str, pd.DataFrame]:
    """Two seeds of two batch sizes, two steps, two layers; the gap of momentum 0.1 is `factor` times the other."""
    runs = [
        {"run": f"{size}/{seed}", "seed": seed, "batch_size": size, "steps": 10} for size in (4, 32) for seed in (0, 1)
    ]
    gaps = []
    for row in runs:
        for step, layer, own in itertools.product((1, 10), ("a", "b"), (0.001, 0.1)):
            keys = {"run": row["run"], "step": step, "layer": layer}
            spread = 2.0 if (layer == "a") == (row["seed"] == 0) else 0.5  # cancels in the geometric mean
            gap = 0.01 * step * (row["seed"] + 1)
            gaps.append(
                {**keys, "estimator": "ema", "momentum": own, "mean_gap": gap * factor * spread if own == 0.1 else 9.0}
            )
        for step, layer in itertools.product((1, 10), ("a", "b")):
            keys = {"run": row["run"], "step": step, "layer": layer}
            gaps.append({**keys, "estimator": estimator, "momentum": None, "mean_gap": 0.01 * step * (row["seed"] + 1)})
    return {"runs": pd.DataFrame(runs), "gaps": pd.DataFrame(gaps)}


@pytest.mark.parametrize("factor", [3.0, 0.25])
def test_quickstart_says_what_a_chosen_momentum_gains(factor: float) -> None:
    question = importlib.import_module("experiments.quickstart")
    frame = question.score_choosing(planted_gaps(factor))
    assert frame["batch_size"].tolist() == [4, 32] and frame["n"].tolist() == [2, 2]
    assert frame["mean"].tolist() == pytest.approx([factor, factor])
    (text,) = question._choosing(planted_gaps(factor))
    times = f"{factor:.2f} [{factor:.2f}, {factor:.2f}]"
    assert text.endswith(f"by batch size: 4: {times}; 32: {times}.")
    assert question._choosing(planted_gaps(factor, "kalman")) == []


def test_one_seed_and_one_momentum(tmp_path: Path) -> None:
    """Figures without intervals, a point for a line; what needs other seeds says so."""
    words = ("-m", "batch_size=32,256", "seed=0", "momentum=0.1", "epochs=1", "threads=1", f"results={tmp_path}")
    run("sweep", "experiment=quickstart", *words)
    done = run("figures", "experiment=quickstart", f"results={tmp_path}")
    assert "One seed: no intervals." in " ".join(done.stdout.split()) and not done.stderr
    run("sweep", "experiment=momentum", "data=digits", "data.images=null", *words[1:])
    done = run("figures", "experiment=momentum", f"results={tmp_path}", expect=2)
    assert "other seeds" in done.stderr and "seed=0,1" in done.stderr and done.stderr.count("\n") == 1


def test_the_advice_on_several_networks_helps(tmp_path: Path) -> None:
    """What a second sweep has mixed into an experiment's folder goes with its parts, and the networks stay."""
    words = ("experiment=quickstart", "batch_size=32,256", "seed=0,1", "epochs=1", "evaluate_at=[0.1,1.0]", "threads=1")
    run("sweep", *words, f"results={tmp_path}")
    run("sweep", *words, "optimizer.lr=0.2", f"results={tmp_path}")
    done = run("figures", "experiment=quickstart", f"results={tmp_path}", expect=2)
    assert "lr 0.1" in done.stderr and "lr 0.2" in done.stderr and done.stderr.count("\n") == 2
    shutil.rmtree(tmp_path / "quickstart" / "parts")
    assert not trained(run("sweep", *words, f"results={tmp_path}"))
    run("figures", "experiment=quickstart", f"results={tmp_path}")
    run("sweep", *words, "optimizer.lr=0.2", "name=faster", f"results={tmp_path}")
    run("figures", "experiment=quickstart", "name=faster", f"results={tmp_path}")
