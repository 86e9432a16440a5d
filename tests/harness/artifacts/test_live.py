"""Training as one watches it: what TensorBoard is given, and that the network stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.config import check
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import execute
from bnlab.harness.measurements.sources import parse_sources
from bnlab.harness.measurements.tables.gaps import Gaps
from tests.conftest import small_config


def test_loss_accuracy_and_gap_are_written_and_training_stays_as_it_is(trained: Run, tmp_path: Path) -> None:
    run = Run(small_config(tmp_path, log="tensorboard"))

    ensure_trained(run)

    assert run.id == trained.id

    last = run.load_checkpoint(40)
    expected = trained.load_checkpoint(40)
    assert all(torch.equal(last[key], expected[key]) for key in expected)

    written = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    losses = [event.value for event in written.Scalars("loss of the batch")]
    np.testing.assert_allclose(losses, trained.read_log()["loss"], rtol=1e-6)
    accuracies = [event.value for event in written.Scalars("accuracy of the batch")]
    np.testing.assert_allclose(accuracies, trained.read_log()["accuracy"], rtol=1e-6)

    measured = {event.step: event.value for event in written.Scalars("gap of running means")}
    rows = Gaps().measure(run, parse_sources(["ema"], [0.1], "train"), run.wanted).query("depth > 1")
    assert list(measured) == run.wanted

    expected_gaps = (rows["mean_gap"] ** 2).groupby(rows["step"]).mean() ** 0.5
    # Replays are the buffers up to float32 rounding.
    np.testing.assert_allclose([*measured.values()], expected_gaps[[*measured]], rtol=1e-4)


def test_another_log_is_refused() -> None:
    with pytest.raises(UserError, match="log=wandb: must be one of none, tensorboard"):
        check(Config(log="wandb"))


def test_a_diverged_network_is_logged_up_to_there(tmp_path: Path) -> None:
    from bnlab.harness.artifacts.optimizers.sgd import Sgd

    job = small_config(tmp_path, log="tensorboard", optimizer=Sgd(lr=1e30), steps=8, evaluate_at="final")
    execute(job)

    assert Run(job).status["status"] == "diverged"  # type: ignore[index]
