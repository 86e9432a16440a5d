"""Experiments as files: their configuration does something, their figures draw from tables as a sweep writes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.answers import describe
from experiments.compose import plan_jobs, register
from experiments.explain import CONF, list_choices
from experiments.places import Place
from experiments.questions import find_experiment
from tests.experiments.commands import run, trained

EXPERIMENTS = list_choices("experiment")


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


SEEDS = ["data=digits", "data.images=null", "seed=0,1,2", "epochs=6"]
DIGITS, ONE_SIZE = [*SEEDS, "batch_size=32,256"], [*SEEDS, "batch_size=64"]
GLYPHS = ["data.images=2400", "seed=0,1", "epochs=4"]
SHORTER = {
    **dict.fromkeys(("depth", "non_iid", "renorm", "settings", "start", "weight_averaging"), ONE_SIZE),
    "ghost": [*SEEDS, "batch_size=256"],
    "quickstart": ["batch_size=32,256", "seed=0,1", "epochs=1", "evaluate_at=[0.1,1.0]"],
    # Digits have no fonts; its networks are those of one batch size.
    "shift": ["data.images=200", "seed=0,1", "epochs=1"],
    # These take statistics of 2,048 images, more than there are digits.
    "training_curve": [*GLYPHS, "batch_size=64,1024"],
    "sample_budget": [*GLYPHS, "batch_size=64,256"],
    "self_tuned": [*GLYPHS, "batch_size=256", "optimizer.schedule=onecycle,constant"],
    "self_tuned_resnet_glyphs": [*GLYPHS, "batch_size=256", "optimizer.schedule=onecycle"],
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
    question = find_experiment(name)
    for figure in question.figures:
        for suffix in ("png", "pdf"):
            path = tmp_path / name / "figures" / f"{figure.name}.{suffix}"
            assert path.stat().st_size > 5000
        assert str(tmp_path / name / "figures" / f"{figure.name}.png") in done.stdout
    lines = describe(Place(name, name, str(tmp_path)).answer())
    assert "\n".join([question.question, *lines]) in done.stdout
    done = run("answers", f"results={tmp_path}")
    assert done.stdout.startswith("\n".join([f"{name}: {question.question}", *lines, ""]))


def test_one_seed_and_one_momentum(tmp_path: Path) -> None:
    """Figures without intervals, a point for a line; what needs other seeds says so."""
    words = ("-m", "batch_size=32,256", "seed=0", "momentum=0.1", "epochs=1", "threads=1", f"results={tmp_path}")
    run("sweep", "experiment=quickstart", *words)
    done = run("figures", "experiment=quickstart", f"results={tmp_path}")
    assert done.stdout.count("n=1  one seed") == 6 and not done.stderr
    run("sweep", "experiment=optimum", "data=digits", "data.images=null", *words[1:])
    done = run("figures", "experiment=optimum", f"results={tmp_path}", expect=2)
    note, error = done.stderr.splitlines()
    assert note.startswith("note: drift has no rows after 20% of training") and "other seeds" in error
    assert error.startswith("error: ") and "seed=0,1" in error


def test_a_figure_without_rows_is_left_out(tmp_path: Path) -> None:
    """The others are drawn, as where an estimator of one's own is compared with exact statistics alone."""
    words = ("estimator=[cumulative,exact]", "batch_size=256", "seed=0", "epochs=1", "threads=1")
    run("sweep", "experiment=quickstart", *words, f"results={tmp_path}")
    done = run("figures", "experiment=quickstart", f"results={tmp_path}")
    assert done.stderr.startswith("figure gap: the tables have no row for it; it is left out\n")
    assert sorted(path.stem for path in tmp_path.glob("*/figures/*.png")) == ["accuracy", "estimators"]
    assert "not measured" in done.stdout


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
