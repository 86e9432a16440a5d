"""Training as one watches it: what TensorBoard and CSV files are given, and that the network stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from bnlab.harness import average_gap, load
from tests.harness.kills import assert_same, interrupted_at
from tests.helpers import find_network, rise_and_fall, sweep_small


def read_events(results: Path) -> Any:
    """What TensorBoard reads of the only network."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # which takes long to import

    return EventAccumulator(str(find_network(results) / "tensorboard")).Reload()


def read_scalars(written: Any, tag: str) -> dict[int, float]:
    events = written.Scalars(tag)
    steps = [event.step for event in events]
    assert steps == sorted(set(steps))
    return dict(zip(steps, [event.value for event in events], strict=True))


def read_log(results: Path) -> pd.DataFrame:
    return pd.read_parquet(find_network(results) / "log.parquet").set_index("step")


def read_csv(results: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(find_network(results) / "csv" / f"{name}.csv").set_index("step")


VALIDATED = {
    f"validation {score}, {words}": (score, estimator)
    for score in ("loss", "accuracy")
    for words, estimator in (("running averages", "ema"), ("exact statistics", "exact"))
}
"""What is logged, and where the tables have it."""


PEAK = 0.05


class Logged(NamedTuple):
    """Results of the same sweep, with one log each."""

    boards: Path
    files: Path


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    results = tmp_path_factory.mktemp("logged")
    for log in ("tensorboard", "csv"):
        sweep_small(results / log, f"log={log}", f"optimizer.lr={PEAK}", "measurements=gaps")
    return Logged(results / "tensorboard", results / "csv")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a sweep that logs nothing."""
    results = tmp_path_factory.mktemp("plain")
    sweep_small(results, f"optimizer.lr={PEAK}", "estimator=[ema,exact]", "evaluate_on=val", "accuracy_at=all")
    return results


def test_both_logs_have_what_the_tables_have_and_training_stays_as_it_is(plain: Path, logged: Logged) -> None:
    boards, files = logged
    assert_same(find_network(boards), find_network(plain))
    assert_same(find_network(files), find_network(plain))

    updates, measured = read_csv(files, "updates"), read_csv(files, "measured")
    for column, tag in (("loss", "loss of the batch"), ("accuracy", "accuracy of the batch")):
        np.testing.assert_allclose(updates[tag], read_log(plain)[column], rtol=1e-12)
    peak = PEAK * (32 / 128) ** 0.5
    np.testing.assert_allclose(
        updates["learning rate"], [peak * rise_and_fall(step, 40) for step in range(40)], rtol=1e-12
    )

    assert list(measured.index) == [1, 7, 20, 40]
    tables = load("adhoc", plain)
    gaps = average_gap(tables["gaps"].query("estimator == 'ema'")).set_index("step")["mean_gap"]
    # Replays are the buffers up to float32 rounding.
    np.testing.assert_allclose(measured["gap of running means"], gaps, rtol=1e-4)
    predicted = tables["evaluations"].set_index("step")
    for tag, (score, estimator) in VALIDATED.items():
        rows = predicted[predicted["estimator"] == estimator]
        np.testing.assert_allclose(measured[tag], rows[score], rtol=1e-4)

    written = read_events(boards)
    for frame in (updates, measured):
        for name in map(str, frame):
            scalars = read_scalars(written, name)
            assert list(scalars) == list(frame.index)
            np.testing.assert_allclose([*scalars.values()], frame[name], rtol=1e-6)  # TensorBoard has float32


def test_both_logs_have_the_settings(logged: Logged) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    path = find_network(logged.files) / "csv" / "settings.csv"
    settings = pd.read_csv(path, dtype=str).set_index("setting")["value"]
    expected = {
        "seed": "0",
        "model": "cnn",
        "model.width": "8",
        "optimizer.lr": str(PEAK),
        "steps": "40",
        "norm": "batch",
    }
    assert settings[[*expected]].to_dict() == expected
    assert "epochs" not in settings, "is not read where steps are given"

    plugin = read_events(logged.boards).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert {*HParamsPluginData.FromString(plugin).session_start_info.hparams} == {*settings.index}


def test_settings_that_are_lists_are_logged_too(tmp_path: Path) -> None:
    words = ("optimizer=torch.optim.Adam", "optimizer.betas=[0.5,0.9]", "steps=2", "evaluate_at=final")

    sweep_small(tmp_path, "log=tensorboard", "measurements=log", *words)

    assert load("adhoc", tmp_path)["runs"]["status"].tolist() == ["finished"]


def test_a_norm_without_averages_is_validated_as_it_is(tmp_path: Path) -> None:
    sweep_small(tmp_path, "log=csv", "norm=group", "measurements=evaluations", "steps=2", "evaluate_at=final")

    measured = read_csv(tmp_path, "measured")
    assert [*measured] == ["validation loss, running averages", "validation accuracy, running averages"]


@pytest.mark.parametrize(("lr", "between_readings"), [("1e4", 50), ("1e30", 1)])
def test_a_diverged_network_is_logged_up_to_there(
    lr: str, between_readings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where an accelerator's results are read late, and where exact statistics are not finite before."""
    monkeypatch.setattr("bnlab.harness.artifacts.training._UPDATES_BETWEEN_READINGS", {"cpu": between_readings})

    sweep_small(tmp_path, "log=tensorboard", f"optimizer.lr={lr}", "optimizer.schedule=constant", "evaluate_at=[1]")

    (row,) = load("adhoc", tmp_path)["runs"].to_dict("records")
    assert row["status"] == "diverged"
    assert list(read_scalars(read_events(tmp_path), "loss of the batch")) == list(range(1, row["last_step"] + 1))
    has_no_gap = "step 1" in capsys.readouterr().err
    assert has_no_gap == (lr == "1e30")


def test_a_killed_training_writes_each_update_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an accelerator's results are read late."""
    monkeypatch.setattr("bnlab.harness.artifacts.training._UPDATES_BETWEEN_READINGS", {"cpu": 50})
    with interrupted_at(5):
        sweep_small(tmp_path, "log=tensorboard", "measurements=log", expect=130)
    (killed,) = (find_network(tmp_path) / "tensorboard").iterdir()
    killed.rename(killed.with_name("events.out.tfevents.0"))  # read first; names begin with the second of their start

    sweep_small(tmp_path, "log=tensorboard", "measurements=log")

    assert list(read_scalars(read_events(tmp_path), "loss of the batch")) == list(range(1, 41))


def test_files_of_a_killed_training_have_each_step_once(tmp_path: Path) -> None:
    with interrupted_at(5):
        sweep_small(tmp_path, "log=csv", "measurements=log", expect=130)
    sweep_small(tmp_path, "log=csv", "measurements=log")

    assert list(read_csv(tmp_path, "updates").index) == list(range(1, 41))
    assert list(read_csv(tmp_path, "measured").index) == [1, 7, 20, 40]
