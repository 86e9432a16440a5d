"""Training as one watches it: what TensorBoard is given, and that the network stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnlab.harness.artifacts import producing, states
from bnlab.harness.artifacts import progress as progress_module
from bnlab.harness.artifacts.optimizers import Sgd
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.progress import Progress
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.config import check
from bnlab.harness.errors import UserError
from bnlab.harness.jobs import execute
from bnlab.harness.measurements.subjects import parse_subjects
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
    rows = Gaps().measure(run, parse_subjects(["ema"], [0.1], "train"), run.wanted).query("depth > 1")
    assert list(measured) == run.wanted

    expected_gaps = (rows["mean_gap"] ** 2).groupby(rows["step"]).mean() ** 0.5
    # Replays are the buffers up to float32 rounding.
    np.testing.assert_allclose([*measured.values()], expected_gaps[[*measured]], rtol=1e-4)


def test_another_log_is_refused() -> None:
    with pytest.raises(UserError, match="log=wandb: must be one of none, tensorboard"):
        check(Config(log="wandb"))


def read_scalars(run: Run, tag: str) -> list[tuple[int, float]]:
    written = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in written.Scalars(tag)]


def test_a_diverged_network_is_logged_up_to_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an accelerator's results are read late."""
    monkeypatch.setattr(progress_module, "_UPDATES_BETWEEN_READINGS", {"cpu": 50})
    too_fast = Sgd(lr=1e4, schedule="constant")
    job = small_config(tmp_path, log="tensorboard", optimizer=too_fast, evaluate_at=[40])

    execute(job)

    run = Run(job)
    assert run.status is not None
    assert run.status["status"] == "diverged"
    updates = [update for update, _ in read_scalars(run, "loss of the batch")]
    assert updates == list(run.read_log()["step"]) == list(range(1, run.status["step"] + 1))


def test_a_network_without_finite_exact_statistics_diverges_as_without_a_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = small_config(tmp_path, log="tensorboard", optimizer=Sgd(lr=1e30), evaluate_at=[1])

    execute(job)

    assert Run(job).status["status"] == "diverged"  # type: ignore[index]
    assert "no gap at step 1 in TensorBoard; population_statistics: the variance" in capsys.readouterr().err


@pytest.mark.parametrize("between_readings", [1, 50])
def test_updates_of_a_saved_state_are_in_the_log(
    between_readings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that is killed once its state is saved does not make them again."""
    job = small_config(tmp_path, log="tensorboard")
    monkeypatch.setattr(progress_module, "_UPDATES_BETWEEN_READINGS", {"cpu": between_readings})
    save_state = states.save_state

    def save_and_interrupt(progress: Progress, path: Path, seconds: float) -> None:
        save_state(progress, path, seconds)
        if progress.step == 25:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(producing, "STATE_SECONDS", 0.0)
        patch.setattr(states, "save_state", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            ensure_trained(Run(job))
    (killed,) = (Run(job).folder / "tensorboard").iterdir()
    killed.rename(killed.with_name("events.out.tfevents.0"))  # read first; names begin with the second of their start

    ensure_trained(Run(job))

    updates = [update for update, _ in read_scalars(Run(job), "loss of the batch")]
    assert updates == list(range(1, 41))
