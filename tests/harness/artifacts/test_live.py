"""Training as one watches it: what TensorBoard and other logs are given, and that the network stays the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
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


class Kept:
    """A log of the user's own: a line of JSON for each call, behind one with what it was made with."""

    def __init__(self, name: str, settings: dict[str, Any], folder: Path) -> None:
        self.file = (folder / "kept.jsonl").open("a", encoding="utf-8")
        self.write([name, settings])

    def __call__(self, step: int, values: dict[str, float]) -> None:
        self.write([step, values])

    def close(self) -> None:
        self.write("closed")
        self.file.close()

    def write(self, line: Any) -> None:
        print(json.dumps(line), file=self.file, flush=True)


def make_plain_log(name: str, settings: dict[str, Any], folder: Path) -> Callable[[int, dict[str, float]], None]:
    """A log that cannot be closed."""

    def log(step: int, values: dict[str, float]) -> None:
        (folder / f"step_{step}").touch()

    return log


KEPT = f"log={__name__}.Kept"


def read_lines(results: Path) -> list[Any]:
    text = (find_network(results) / "kept.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def read_kept(results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What the log was given of updates, and of steps that are measured."""
    rows = [{"step": step, **values} for step, values in read_lines(results)[1:-1]]
    updates = [row for row in rows if "learning rate" in row]
    measured = [row for row in rows if "learning rate" not in row]
    return pd.DataFrame(updates).set_index("step"), pd.DataFrame(measured).set_index("step")


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
    kept: Path


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    results = tmp_path_factory.mktemp("logged")
    for name, log in (("boards", "log=tensorboard"), ("kept", KEPT)):
        sweep_small(results / name, log, f"optimizer.lr={PEAK}", "measurements=gaps")
    return Logged(results / "boards", results / "kept")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a sweep that logs nothing."""
    results = tmp_path_factory.mktemp("plain")
    sweep_small(results, f"optimizer.lr={PEAK}", "estimator=[ema,exact]", "evaluate_on=val", "accuracy_at=all")
    return results


def test_both_logs_have_what_the_tables_have_and_training_stays_as_it_is(plain: Path, logged: Logged) -> None:
    boards, kept = logged
    assert_same(find_network(boards), find_network(plain))
    assert_same(find_network(kept), find_network(plain))

    updates, measured = read_kept(kept)
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

    (name, settings), *_, last = read_lines(logged.kept)
    folder = find_network(logged.kept)
    assert name == f"{folder.parent.name}/{folder.name}"
    expected = {"seed": 0, "model": "cnn", "model.width": 8, "optimizer.lr": PEAK, "steps": 40, "norm": "batch"}
    assert {key: settings[key] for key in expected} == expected
    assert "epochs" not in settings, "is not read where steps are given"
    assert last == "closed"

    plugin = read_events(logged.boards).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert {*HParamsPluginData.FromString(plugin).session_start_info.hparams} == {*settings}


def test_steps_are_logged_in_their_order(logged: Logged) -> None:
    """Some logs take no number of an earlier step."""
    _, *calls, _ = read_lines(logged.kept)

    steps = [step for step, _ in calls]
    assert steps == sorted(steps)
    assert {*steps} == {*range(1, 41)}


def test_a_log_may_be_a_function(tmp_path: Path) -> None:
    sweep_small(tmp_path, f"log={__name__}.make_plain_log", "measurements=log", "steps=3", "evaluate_at=final")

    assert {path.name for path in find_network(tmp_path).glob("step_*")} == {"step_1", "step_2", "step_3"}


@pytest.mark.parametrize(
    ("log", "answer"),
    [
        ("tensorbord", "log=tensorbord: did you mean tensorboard?"),
        ("csv", "log=csv: must be one of none, tensorboard, package.module.make_logger"),
        (f"{__name__}.make_nothing", "log=.*make_nothing: cannot be imported"),
    ],
)
def test_there_is_no_such_log(log: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_small(tmp_path, f"log={log}", expect=2)

    assert re.match(f"error: {answer}", capsys.readouterr().err)


def test_settings_that_are_lists_are_logged_too(tmp_path: Path) -> None:
    words = ("optimizer=torch.optim.Adam", "optimizer.betas=[0.5,0.9]", "steps=2", "evaluate_at=final")

    sweep_small(tmp_path, "log=tensorboard", "measurements=log", *words)

    assert load("adhoc", tmp_path)["runs"]["status"].tolist() == ["finished"]


def test_a_norm_without_averages_is_validated_as_it_is(tmp_path: Path) -> None:
    sweep_small(tmp_path, KEPT, "norm=group", "measurements=evaluations", "steps=2", "evaluate_at=final")

    _, measured = read_kept(tmp_path)
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
