"""What is said about mistakes in configuration files; which configurations words stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bnlab.harness.errors import UserError
from bnlab.lab import compose
from bnlab.lab.compose import plan_jobs

HEADER = "# @package _global_\n"
# What an experiment's file mine.yaml has, and what the message says of it
FILES = {
    "unknown key": ("bath_size: 3\n", "there is no setting bath_size; did you mean batch_size?"),
    "unknown key of a group": ("norm:\n  batch_size: 3\n", "this norm has no batch_size; norm=ghost has"),
    "wrong type": ("optimizer:\n  lr: high\n", "Value 'high'"),
    "bracket": ("momentum: [0.1\nname: mine\n", 'mine.yaml", line 3'),
    "choice": ("defaults:\n  - override /data: cifra\n", "there is no data 'cifra'; choose from cifar10"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file(case: str, tmp_path: Path) -> None:
    text, message = FILES[case]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(HEADER + text)
    with pytest.raises(UserError) as caught:
        plan_jobs([f"--config-dir={tmp_path}", "experiment=mine"])

    assert message in str(caught.value)
    assert str(caught.value).count("\n") <= 1


def test_a_file_that_does_not_begin_as_it_has_to(tmp_path: Path) -> None:
    """Hydra puts its settings below a key of the name of its folder."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("batch_size: 32\n")

    with pytest.raises(UserError, match=r"experiment/mine.*\n.* begins with the line # @package _global_"):
        plan_jobs([f"--config-dir={tmp_path}", "experiment=mine"])


def test_jobs_come_in_hydras_order() -> None:
    configs = plan_jobs(["data=digits,glyphs", "seed=range(0,20)", "momentum=0.1,[0.1,0.2]"], multirun=True).configs
    described = [(config.data.name, config.seed, config.momentum) for config in configs]

    assert len(described) == 80
    assert described[:2] == [("digits", 0, 0.1), ("digits", 0, [0.1, 0.2])]
    assert described[-1] == ("glyphs", 19, [0.1, 0.2])


def test_values_are_those_that_hydra_composes() -> None:
    """Every way to write a value gives what Hydra makes of the same words by itself."""
    words = ["experiment=momentum", "data=glyphs", "optimizer=adamw", "optimizer.lr=1e-2", "batch_size=16", "seed=3"]
    words += ["estimator=[ema,'window(k=20)']", "evaluate_at=[1,0.5]", "name=other", "steps=null", "data.shift=1"]
    words += ["measurements=[gaps]", "data.fonts='dejavu'", "data.images=200"]
    (found,) = plan_jobs(words).configs
    with compose.initialize_config_dir(str(compose.CONF), version_base="1.3"):
        assert found == compose.OmegaConf.to_object(compose.compose("config", words))


def test_what_an_experiment_sweeps_gives_way_to_the_command_line() -> None:
    assert len(plan_jobs(["experiment=quickstart"]).configs) > 1

    (config,) = plan_jobs(["experiment=quickstart", "batch_size=4", "seed=7"]).configs

    assert config.batch_size == 4
    assert config.seed == 7


@pytest.mark.parametrize("experiment", ["weight_averaging", "model_selection"])
def test_a_variation_is_of_what_an_experiment_sets(experiment: str) -> None:
    words = [f"experiment={experiment}", "variation=base,step", "batch_size=64", "seed=0"]
    found = plan_jobs(words, multirun=True).configs
    assert {config.optimizer.schedule for config in found} == {"constant", "step"}
