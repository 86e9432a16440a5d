"""The configurations that the words of a command line stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bnlab.harness import load
from bnlab.harness.artifacts.job_settings import read_config
from bnlab.harness.checks import check_device
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import execute
from tests.experiments.commands import ROOT, Call
from tests.helpers import plan_jobs


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
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        values: Any = OmegaConf.to_container(compose("config", words))
        assert found == read_config(values)


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


def test_a_value_is_of_one_command() -> None:
    values = [plan_jobs(words).configs[0].batch_size for words in ([], ["batch_size=4"], [])]

    assert values == [128, 4, 128]


def test_a_device_is_looked_for_where_jobs_run() -> None:
    words = ["device=cuda:77", "hydra/launcher=submitit_slurm"]

    (config,) = plan_jobs(words).configs

    assert config.device == "cuda:77"
    with pytest.raises(UserError, match="device=cuda:77: "):
        plan_jobs([*words, "dry_run=true"])
    with pytest.raises(UserError, match="device=cuda:77: "):
        execute(config)


def test_a_device_without_float64_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a Mac, here by what its torch raises."""

    def make(*sizes: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        assert (dtype, device) == (torch.float64, "mps")
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr(torch, "empty", make)
    with pytest.raises(UserError, match=r"device=mps: .*float64.*\bauto\b.*\bcpu\b"):
        check_device("mps")


def test_each_source_of_statistics_once(call: Call, tmp_path: Path) -> None:
    """Running averages with each momentum, statistics of frozen weights with each population."""
    estimators = ["ema", "cumulative", "exact", "ema", '"precise(images=10)"', '"ema(momentum=0.3)"', "test_batch"]
    words = [f"estimator=[{','.join(estimators)}]", "momentum=[0.1,0.2,0.1]", "population=[train,val]"]

    small = ("data.images=200", "batch_size=32", "model.width=4", "model.depth=1")

    done = call("sweep", *words, "steps=1", *small, f"results={tmp_path}")

    assert done.code == 0, done.err
    rows = load("adhoc", tmp_path)["evaluations"]
    described = rows[["estimator", "momentum", "statistics_split"]].astype(object).fillna("").itertuples(index=False)
    assert sorted(tuple(row) for row in described) == [
        ("cumulative", "", "train"),
        ("ema", 0.1, "train"),
        ("ema", 0.2, "train"),
        ("ema", 0.3, "train"),
        ("exact", "", "train"),
        ("exact", "", "val"),
        ("precise(images=10)", "", "train"),
        ("precise(images=10)", "", "val"),
        ("test_batch(n=64)", "", "test"),
    ]
