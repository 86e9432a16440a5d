"""Training as one watches it: what TensorBoard is given, and that the network stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bnlab.harness import average_gap, load
from tests.harness.kills import assert_same, interrupted_at
from tests.helpers import find_network, sweep_small


def read_scalars(results: Path, tag: str) -> dict[int, float]:
    written = EventAccumulator(str(find_network(results) / "tensorboard")).Reload()
    events = written.Scalars(tag)
    steps = [event.step for event in events]
    assert steps == sorted(set(steps))
    return dict(zip(steps, [event.value for event in events], strict=True))


def read_log(results: Path) -> pd.DataFrame:
    return pd.read_parquet(find_network(results) / "log.parquet").set_index("step")


def test_loss_accuracy_and_gap_are_written_and_training_stays_as_it_is(tmp_path: Path) -> None:
    live, plain = tmp_path / "live", tmp_path / "plain"
    sweep_small(live, "log=tensorboard")
    sweep_small(plain)

    assert_same(find_network(live), find_network(plain))
    for tag, column in (("loss of the batch", "loss"), ("accuracy of the batch", "accuracy")):
        np.testing.assert_allclose([*read_scalars(live, tag).values()], read_log(live)[column], rtol=1e-6)
    rows = load("adhoc", live)["gaps"].query("estimator == 'ema'")
    expected = average_gap(rows).set_index("step")["mean_gap"]
    measured = read_scalars(live, "gap of running means")
    assert list(measured) == [1, 7, 20, 40]
    # Replays are the buffers up to float32 rounding.
    np.testing.assert_allclose([*measured.values()], expected[[*measured]], rtol=1e-4)


@pytest.mark.parametrize(("lr", "between_readings"), [("1e4", 50), ("1e30", 1)])
def test_a_diverged_network_is_logged_up_to_there(
    lr: str, between_readings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where an accelerator's results are read late, and where exact statistics are not finite before."""
    monkeypatch.setattr("bnlab.harness.artifacts.training._UPDATES_BETWEEN_READINGS", {"cpu": between_readings})

    sweep_small(tmp_path, "log=tensorboard", f"optimizer.lr={lr}", "optimizer.schedule=constant", "evaluate_at=[1]")

    (row,) = load("adhoc", tmp_path)["runs"].to_dict("records")
    assert row["status"] == "diverged"
    assert list(read_scalars(tmp_path, "loss of the batch")) == list(range(1, row["last_step"] + 1))
    has_no_gap = "no gap at step 1 in TensorBoard; population_statistics: the variance" in capsys.readouterr().err
    assert has_no_gap == (lr == "1e30")


def test_a_killed_training_writes_each_update_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an accelerator's results are read late."""
    monkeypatch.setattr("bnlab.harness.artifacts.training._UPDATES_BETWEEN_READINGS", {"cpu": 50})
    with interrupted_at(5):
        sweep_small(tmp_path, "log=tensorboard", expect=130)
    (killed,) = (find_network(tmp_path) / "tensorboard").iterdir()
    killed.rename(killed.with_name("events.out.tfevents.0"))  # read first; names begin with the second of their start

    sweep_small(tmp_path, "log=tensorboard")

    assert list(read_scalars(tmp_path, "loss of the batch")) == list(range(1, 41))
