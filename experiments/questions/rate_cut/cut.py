"""python -m experiments.questions.rate_cut.cut [KEY=VALUE ...]: cut the learning rate while networks are trained.

Trains the networks of `real` at constant rates of 0.1 and 0.4 for a fifth of its updates, goes on from there, with the
optimizer as it was, at each of several learning rates, and writes the tables `runs`, `cut` and `cut_layers` of
`rate_cut` into the folder of results. Words are those of `bnlab sweep experiment=real`, such as data.download=true,
seed=0,1 or results=FOLDER; four seeds without any.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import bnlab
from bnlab.harness.artifacts.job_settings import MOMENTUM
from bnlab.harness.artifacts.run import Run, describe_environment
from bnlab.harness.artifacts.training import TrainingState, train
from bnlab.harness.artifacts.training_runner import start_training
from bnlab.harness.jobs import prepare_process
from bnlab.harness.lab.command import run_command
from bnlab.harness.lab.compose import plan_jobs
from bnlab.harness.measurements.estimates import draw_population
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.measurements.tables.evaluations import measure_accuracy
from bnlab.harness.schema import Table, common, integer, real, text, write_frame
from bnlab.harness.statistic_kinds import Exact
from bnlab.statistics.layout import Layout
from bnlab.statistics.network import Statistics

NAME = "rate_cut"
SHARE = 0.2  # of the training of `real`, before the rate is cut: 1,123 updates
FACTORS = (1.0, 0.25, 0.0625, 0.0)  # of the rate after the cut
UPDATES = (0, 5, 10, 20, 44, 60)  # after the cut; 0.9^44 is 1%
_NETWORKS = ("experiment=real", "seed=0,1,2,3", "optimizer.schedule=constant", "optimizer.lr=0.1,0.4")
_AUGMENTED = Subject(Exact(), "train_augmented")

_PLACE = {
    **common("run"),
    "factor": real("learning rate after the cut, over that before it"),
    "updates": integer("after the cut; at 0 the rows of all factors are the same"),
}
RUNS = Table(
    about="A row for each network.",
    key=common("run"),
    others={
        "seed": integer("initialization, order and augmentation are derived from it"),
        "data": text("data set"),
        "model": text("network"),
        "model.depth": integer("layers"),
        "batch_size": integer("images in a batch of training"),
        "optimizer": text("optimizer"),
        "optimizer.lr": real("learning rate before the cut"),
        "steps": integer("updates before the cut"),
        "versions": text("JSON of the packages' versions"),
        "device": text("the name of a GPU, or CPU with its architecture"),
        "threads": integer("CPU threads of torch"),
    },
)
CUT = Table(
    about="How all test images are predicted after the learning rate was cut.",
    key=_PLACE,
    others={
        "accuracy": real("share that is predicted right under running averages (momentum 0.1)"),
        "exact_accuracy": real("the same under exact statistics of augmented training images"),
        "lost": real("that minus the former"),
    },
)
CUT_LAYERS = Table(
    about="How far running means are off after the learning rate was cut, layer by layer.",
    key={**_PLACE, **common("layer")},
    others={
        **common("depth channels"),
        "mean_gap": real("as in `gaps`, to exact statistics of augmented training images, in standard deviations"),
        "along_cut": real(
            "mean over channels of the running mean's error times that at the cut, each in standard deviations of its "
            "exact statistics; over the same at the cut, it is the share of that error that is left"
        ),
        "noise": real(
            "what of it chance alone would be at the weights of the cut, in the same unit: root mean square over "
            "channels of an average's noise, by the scatter of the next batches, and of the exact mean's standard error"
        ),
    },
)


def main() -> int:
    """Train the networks of the command line's words, and write their tables."""
    return run_command(_cut_all, sys.argv[1:], usage=str(__doc__))


def _cut_all(words: list[str]) -> int:
    given = {word.partition("=")[0] for word in words}
    usual = [word for word in _NETWORKS if word.partition("=")[0] not in given]
    configs = plan_jobs([*usual, *words], multirun=True).configs
    rows: dict[str, list[Any]] = {"runs": [], "cut": [], "cut_layers": []}
    for config in configs:
        prepare_process(config)
        # Averages of the weights would be copied with each branch, and nothing here reads them.
        run = Run(replace(config, weight_averages=None))
        rows["runs"].append(_describe_run(run))
        for lost, layers in cut_rates(run):
            rows["cut"].append(lost)
            rows["cut_layers"].append(layers)

    frames = {
        "runs": pd.DataFrame(rows["runs"]),
        "cut": pd.DataFrame(rows["cut"]),
        "cut_layers": pd.concat(rows["cut_layers"]),
    }
    for table, description in (("runs", RUNS), ("cut", CUT), ("cut_layers", CUT_LAYERS)):
        path = Path(configs[0].results, NAME, "tables", f"{table}.parquet")
        write_frame(path, frames[table][[*description.columns]], description.schema)
        print(path)
    return 0


def cut_rates(run: Run) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Train a network, and go on from there at each rate: a row of `cut` and those of `cut_layers` for each place."""
    state = start_training(run)
    _train_until(run, state, round(SHARE * run.steps))
    noise = estimate_noise(run, state)
    for factor in FACTORS:
        branch = copy.deepcopy(state)  # at once, so that the copied optimizer updates the copied network
        for group in branch.optimizer.param_groups:
            group["peak_lr"] *= factor
        errors = []
        for updates in UPDATES:
            _train_until(run, branch, state.step + updates)
            place: dict[str, Any] = {"run": run.id, "factor": factor, "updates": updates}
            lost, gaps, error = _measure(run, branch)
            errors.append(error)
            along_cut = [(now * at_cut).mean().item() for now, at_cut in zip(error, errors[0], strict=True)]
            yield {**place, **lost}, gaps.assign(**place, along_cut=along_cut, noise=noise)


def _train_until(run: Run, state: TrainingState, step: int) -> None:
    for _ in train(state, run.batches, run.config.optimizer, run.steps, until=step):
        pass


def _draw_shown(run: Run, state: TrainingState) -> list[Tensor]:
    """Draw the augmented training images that exact statistics are of, the same at all places."""
    return draw_population(run, state.step, _AUGMENTED, batch_size=256)


def _measure(run: Run, state: TrainingState) -> tuple[dict[str, float], pd.DataFrame, list[Tensor]]:
    """Measure how the network predicts under either kind of statistics, and how far they are apart.

    Returns:
        numbers for a row of `cut`; a row for each layer; and of each layer the errors of running means, [C] in σ.
    """
    exact = bnlab.population_statistics(state.model, _draw_shown(run, state))
    running = bnlab.running_statistics(state.model)

    images = run.images_of("test", "none")
    accuracy = measure_accuracy(state.model, images, running)
    exact_accuracy = measure_accuracy(state.model, images, exact)
    scores = {"accuracy": accuracy, "exact_accuracy": exact_accuracy, "lost": exact_accuracy - accuracy}
    gaps = bnlab.gap(exact, running)[["layer", "depth", "channels", "mean_gap"]]
    errors = []
    for name, expected in exact.items():
        deviation = (expected.var + exact.eps[name]).sqrt()
        errors.append((running[name].mean - expected.mean) / deviation)
    return scores, gaps, errors


def estimate_noise(run: Run, state: TrainingState) -> Any:
    """Estimate how far a running mean would be off by chance alone, on these weights: σ, a number for each layer."""
    shown = _draw_shown(run, state)
    exact = bnlab.population_statistics(state.model, shown, standard_errors=True)
    # These are the batches that all branches go on with; at rate 0 they are all that is in the end averaged.
    following = [images for images, _ in islice(run.batches.from_step(state.step), UPDATES[-1])]
    trace = bnlab.record_frozen(state.model, following)
    return compute_noise(exact, [layer.moments[:, 0].double() for layer in trace.layers.values()])


def compute_noise(exact: Statistics, batch_means: list[Tensor]) -> Any:
    """Compute the noise of running means and of what they are compared with, in σ, root mean square over channels.

    Args:
        exact: with standard errors.
        batch_means: of each layer [batches, C], of batches of the same weights.
    """
    assert exact.standard_errors is not None
    layout = Layout.of(exact)
    # The variance of an average of independent batches, long after its start.
    share = MOMENTUM / (2 - MOMENTUM)
    squares = []
    for name, means in zip(layout.names, batch_means, strict=True):
        error, _ = exact.standard_errors[name]
        squares.append(share * means.var(0) + error.square())
    _, variances = layout.flatten(exact)
    relative = torch.cat(squares) / (variances + layout.channel_eps)
    return layout.layer_means(relative).sqrt().numpy()


def _describe_run(run: Run) -> dict[str, Any]:
    """Describe a network in a row of `runs`."""
    config = run.config
    environment = describe_environment(run.device)
    return {
        "run": run.id,
        "seed": config.seed,
        "data": config.data.name,
        "model": config.model.name,
        "model.depth": getattr(config.model, "depth", None),
        "batch_size": config.batch_size,
        "optimizer": config.optimizer.name,
        "optimizer.lr": config.optimizer.lr,
        "steps": round(SHARE * run.steps),
        "versions": json.dumps(environment["versions"], sort_keys=True),
        "device": environment["device"],
        "threads": environment["threads"],
    }


if __name__ == "__main__":
    sys.exit(main())
