"""Means and intervals over seeds, against plain pandas and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bnlab.harness.artifacts.settings import list_steps
from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames import average, best_on_average, interval, other_seeds
from bnlab.harness.reporting.frames.averages import MEASURES


def frame_of_seeds() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    momenta = np.repeat([0.1, 0.5, np.nan], 4)
    return pd.DataFrame({"seed": list(range(4)) * 3, "momentum": momenta, "x": rng.random(12)})


def test_average_against_plain_pandas() -> None:
    frame = frame_of_seeds().assign(layer="x")
    frame.loc[0, "x"] = np.nan
    plain = [group["x"].mean() for _, group in frame.groupby("momentum", dropna=False, sort=False)]
    found = average(frame, "x", ["momentum"])
    assert list(found) == ["momentum", "x"]
    np.testing.assert_allclose(found["x"], plain)
    roots = [stats.gmean(group["x"].dropna()) for _, group in frame.groupby("momentum", dropna=False, sort=False)]
    np.testing.assert_allclose(average(frame, "x", ["momentum"], geometric=True)["x"], roots)
    assert list(average(frame.assign(x=0.0), "x", ["layer"], geometric=True)["x"]) == [0]
    with pytest.raises(UserError, match="no column 'y'"):
        average(frame, "y", ["momentum"])


def test_the_best_momentum_is_that_of_the_highest_mean() -> None:
    """Of size 8 momentum 0.5 is best once, and 0.1 on average."""
    records = [
        (8, 0, 0.1, 0.6),
        (8, 1, 0.1, 0.8),
        (8, 0, 0.5, 0.9),
        (8, 1, 0.5, 0.1),
        (4, 0, 0.1, 0.2),
        (4, 0, 0.5, 0.3),
    ]
    frame = pd.DataFrame(records, columns=["size", "seed", "momentum", "x"])
    assert best_on_average(frame, "x", ["size"]).values.tolist() == [
        [8, 0, 0.1, 0.6],
        [8, 1, 0.1, 0.8],
        [4, 0, 0.5, 0.3],
    ]
    assert len(best_on_average(frame.replace({"size": {8: np.nan}}), "x", ["size"])) == 3


def test_interval_against_plain_pandas() -> None:
    frame = frame_of_seeds()
    found = interval(frame, "x", ["momentum"], scale=100)
    grouped = 100 * frame.groupby("momentum", dropna=False, sort=False)["x"].mean()
    error = 100 * frame.groupby("momentum", dropna=False, sort=False)["x"].sem().to_numpy()
    half = stats.t.ppf(0.975, 3) * error
    np.testing.assert_array_equal(found["momentum"], [0.1, 0.5, np.nan])
    np.testing.assert_allclose(found["mean"], grouped)
    np.testing.assert_allclose(found["low"], grouped - half)
    np.testing.assert_allclose(found["high"], grouped + half)
    np.testing.assert_allclose(found["error"], error)
    assert list(found["n"]) == [4, 4, 4] and not found["log"].any()
    assert list(frame_of_seeds()["x"]) == list(frame["x"])  # as it was


def test_geometric_interval_against_scipy() -> None:
    frame = frame_of_seeds()
    found = interval(frame, "x", ["momentum"], geometric=True).set_index("momentum").loc[0.5]
    logs = np.log(frame[frame["momentum"] == 0.5]["x"])
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    assert found[["mean", "low", "high"]].to_list() == pytest.approx(np.exp([logs.mean(), low, high]).tolist())
    assert found["error"] == pytest.approx(stats.sem(logs)) and found["log"]
    zero = interval(frame.assign(x=0.0), "x", ["momentum"], geometric=True)
    assert list(zero["mean"]) == [0, 0, 0] and zero["low"].isna().all()


def test_few_values() -> None:
    frame = pd.DataFrame({"seed": [0, 0, 1, 2], "size": [1, 2, 2, 2], "x": [2.0, 1.0, np.nan, 3.0]})
    found = interval(frame, "x", ["size"])
    assert list(found["mean"]) == [2, 2] and list(found["n"]) == [1, 2]
    assert found.loc[0, ["low", "high", "error"]].isna().all() and found.loc[1, "error"] == 1.0
    empty = interval(frame[:0], "x", ["size"])
    assert empty.empty and {"size", *MEASURES} == set(empty)


def test_the_interval_of_a_share_is_exact() -> None:
    """Of 5 out of 5 the lower bound p has p⁵ = 0.025."""
    frame = pd.DataFrame({"seed": range(5), "all": True, "most": [True, True, True, True, False]})
    every, most = (interval(frame, value, []).iloc[0] for value in ("all", "most"))
    assert (every["mean"], every["high"], every["n"]) == (1, 1, 5) and every["low"] == pytest.approx(0.025**0.2)
    assert most["mean"] == 0.8 and 0 < most["low"] < 0.8 < most["high"] < 1 and every["share"] and most["share"]
    assert 1 - most["high"] ** 5 == pytest.approx(0.025)  # of 4 or fewer
    assert interval(frame[:1], "all", [])["low"].isna().all()
    with pytest.raises(ValueError, match="interval: most is true or false, and its mean a share; leave scale at 1"):
        interval(frame, "most", [], scale=100)


def test_truth_values_that_are_averaged_within_a_seed_are_numbers() -> None:
    records = [(seed, layer, layer > seed) for seed in range(3) for layer in range(10)]
    frame = pd.DataFrame(records, columns=["seed", "layer", "better"])
    found = interval(frame, "better", [], average="layer")
    assert found.equals(interval(frame.astype({"better": float}), "better", [], average="layer"))
    assert (found["low"] < 0.8).all() and (found["high"] > 0.8).all()


def test_seeds_that_lack_some_of_what_others_are_averaged_over() -> None:
    records = [(seed, layer, momentum, 1.0) for seed in range(3) for layer in "ab" for momentum in (0.1, 0.5)]
    frame = pd.DataFrame(records, columns=["seed", "layer", "momentum", "x"])
    assert interval(frame, "x", [], average=("layer", "momentum"))["n"].item() == 3
    lacking = frame.query("seed < 2 or momentum == 0.1")
    without_value = frame.assign(x=frame["x"].where((frame["seed"] < 2) | (frame["momentum"] == 0.1)))
    for rows in (lacking, without_value):
        with pytest.raises(UserError, match="seed 2 has 1 of 2 values of momentum, and what is made of them would"):
            interval(rows, "x", [], average=("layer", "momentum"))
    assert interval(lacking[lacking["momentum"] == 0.1], "x", [], average=("layer", "momentum"))["n"].item() == 3
    assert list(interval(frame[:-1], "x", ["momentum"], average="layer")["n"]) == [3, 3]  # a layer may have no answer


def test_lines_that_are_averaged_over_other_steps_are_refused() -> None:
    """One that is measured at the last step only has no early gaps, which are larger."""
    records = [
        (f"run_{seed}", seed, estimator, 0.1 if estimator == "ema" else None, epoch, 1 / epoch)
        for seed in range(3)
        for estimator in ("ema", "kalman")
        for epoch in (1.0, 2.0, 4.0)
    ]
    frame = pd.DataFrame(records, columns=["run", "seed", "estimator", "momentum", "epoch", "gap"])
    by = ("estimator", "momentum")
    assert interval(frame, "gap", by, average="epoch")["mean"].nunique() == 1
    late = frame[(frame["estimator"] == "ema") | (frame["epoch"] == 4)]
    with pytest.raises(UserError, match="estimator kalman has 1 of 3 values of epoch at seed 0"):
        interval(late, "gap", by, average="epoch")
    assert list(interval(late, "gap", (*by, "epoch"))["n"]) == [3] * 4


def test_networks_that_are_averaged_over_other_steps_or_momenta_are_refused() -> None:
    """The steps of a training of 100 updates are as near as can be to those of 43."""
    keys = [
        (size, seed, share, m) for size in (8, 64) for seed in (0, 1) for share in (0.1, 0.5, 1) for m in (0.1, 0.5)
    ]
    frame = pd.DataFrame(keys, columns=["batch_size", "seed", "share", "momentum"]).assign(gap=1.0)
    frame["steps"] = frame["batch_size"].map({8: 100, 64: 43})
    frame["step"] = (frame["share"] * frame["steps"]).round().astype(int)
    over = ["step", "momentum"]
    assert len(interval(frame, "gap", ["batch_size"], average=over)) == 2
    late = frame[(frame["batch_size"] == 8) | (frame["share"] > 0.1)]
    for kept in (late, late.assign(epoch=late["share"])):
        with pytest.raises(UserError, match="batch size 64 has no step near 10% of training, and what is made of them"):
            interval(kept, "gap", ["batch_size"], average=["epoch" if "epoch" in kept else "step", "momentum"])
    with pytest.raises(UserError, match="batch size 64 has 1 of 2 values of momentum, and what is made of them"):
        interval(frame[(frame["batch_size"] == 8) | (frame["momentum"] > 0.1)], "gap", ["batch_size"], average=over)
    with pytest.raises(UserError, match=r"momentum 0\.1 has 2 of 3 values of step at seed 0"):
        lines = frame[(frame["batch_size"] == 8) & ((frame["share"] > 0.1) | (frame["momentum"] > 0.1))]
        interval(lines, "gap", ["momentum"], average="step")


@pytest.mark.parametrize("lengths", [(1000, 20), (300, 7), (41, 7)])
def test_steps_that_are_spaced_alike_are_of_the_same_shares(lengths: tuple[int, ...]) -> None:
    """By logarithms, or at shares that are rounded to whole steps, one at least."""
    for at in ("log", [0.03, 0.1, 0.35, 1.0], [1, 5, 7, 1.0]):
        keys = [(steps, seed, step) for steps in lengths for seed in (0, 1) for step in list_steps(at, steps)]
        frame = pd.DataFrame(keys, columns=["steps", "seed", "step"]).assign(gap=1.0)
        assert len(interval(frame, "gap", ["steps"], average="step")) == 2


def test_momenta_of_one_batch_size_alone_stand_beside_no_others() -> None:
    keys = [(size, seed, m) for size in (16, 128) for seed in (0, 1) for m in (0.1, 0.9) if size > 16 or m < 0.5]
    frame = pd.DataFrame(keys, columns=["batch_size", "seed", "momentum"]).assign(x=1.0, panel="p")
    with pytest.raises(UserError, match=r"momentum 0\.9 has 2 of 4 values of seed, batch_size at panel p"):
        best_on_average(frame, "x", ["panel"])
    with pytest.raises(UserError, match=r"momentum 0\.9 has 1 of 2 values of batch_size at seed 0"):
        interval(frame, "x", ["momentum"], average="batch_size")


def test_the_best_momentum_of_networks_that_have_one_each() -> None:
    frame = pd.DataFrame({"run": list("abcd"), "seed": [0, 1] * 2, "momentum": [0.1, 0.1, 0.5, 0.5], "panel": "p"})
    assert set(best_on_average(frame.assign(x=[1, 2, 1, 1]), "x", ["panel"])["momentum"]) == {0.1}


def test_the_best_momentum_is_chosen_from_the_same_steps_and_layers() -> None:
    keys = itertools.product("p", (0, 1), (5, 9), "ab", (0.1, 0.5))
    frame = pd.DataFrame(keys, columns=["panel", "seed", "step", "layer", "momentum"]).assign(x=1.0)
    assert len(best_on_average(frame, "x", ["panel"])) == 8
    for lacks in (frame["step"] == 5, frame["layer"] == "b"):
        with pytest.raises(UserError, match=r"momentum 0\.5 has 4 of 8 values of seed, step, layer at panel p"):
            best_on_average(frame[~lacks | (frame["momentum"] < 0.5)], "x", ["panel"])


def test_predictions_are_made_from_the_same_steps_of_other_seeds() -> None:
    frame = pd.DataFrame({"seed": [0, 0, 1], "step": [5, 9, 9], "panel": "p", "x": 1.0})
    with pytest.raises(UserError, match="seed 1 has 1 of 2 values of step at panel p"):
        other_seeds(frame, ["x"], ["panel"])


def test_the_best_momentum_is_chosen_among_those_that_all_seeds_have() -> None:
    records = [(16, seed, momentum, momentum) for seed in range(3) for momentum in (0.1, 0.5)]
    frame = pd.DataFrame(records, columns=["batch_size", "seed", "momentum", "accuracy"])
    assert set(best_on_average(frame, "accuracy", ["batch_size"])["momentum"]) == {0.5}
    with pytest.raises(UserError, match="seed 2 has 1 of 2 values of momentum at batch size 16"):
        best_on_average(frame[:-1], "accuracy", ["batch_size"])


def test_a_seed_counts_once() -> None:
    """Rows of several layers are no more seeds: an average over layers comes first."""
    layers = pd.DataFrame(
        {"seed": [0, 0, 1, 1], "momentum": np.nan, "layer": ["a", "b"] * 2, "x": [1.0, 2.0, 3.0, 4.0]}
    )
    with pytest.raises(ValueError, match=r"rows of one seed \(momentum nan, seed 0\): layer a, b; select or sweep one"):
        interval(layers, "x", ["momentum"])
    found = interval(layers, "x", ["momentum"], average="layer")
    assert found[["mean", "n"]].to_numpy().tolist() == [[2.5, 2]]
    assert list(interval(layers, "x", ["layer"])["n"]) == [2, 2]
    with pytest.raises(ValueError, match="several rows of one seed"):  # two steps of a layer
        interval(pd.concat([layers, layers]), "x", ["momentum"], average="layer")
    with pytest.raises(UserError, match="no column 'seed'"):
        interval(layers.drop(columns="seed"), "x", ["layer"])
    with pytest.raises(UserError, match="no column 'depth'"):
        interval(layers, "x", ["layer"], average="depth")


@pytest.mark.parametrize("column", ["statistics_split", "split", "shift"])
def test_seeds_of_other_images_are_not_mixed(column: str) -> None:
    """One that was measured later, with another `population=`, `evaluate_on=` or `data.test_fonts=`."""
    frame = pd.DataFrame({"seed": [0, 1, 2], "size": 4, column: ["a", "a", "b"], "x": [1.0, 2.0, 3.0]})
    for by, where in ((["size"], r"; size 4"), ([], "")):
        with pytest.raises(
            UserError, match=rf"would mix rows of several values of {column} \(a, b{where}\): select one"
        ):
            interval(frame, "x", by)
    assert list(interval(frame, "x", ["size", column])["n"]) == [2, 1]
    assert list(interval(frame[:2], "x", ["size"])["n"]) == [2]
    with pytest.raises(UserError, match=rf"seed \d has 1 of 2 values of {column} at size 4"):
        interval(frame, "x", ["size"], average=column)
    both = frame.drop(columns=column).merge(pd.Series(["a", "b"], name=column), how="cross")
    assert list(interval(both, "x", ["size"], average=column)["n"]) == [3]


def test_seeds_of_other_settings_are_not_mixed() -> None:
    """Those of another batch size, where these are not told apart; steps and learning rate follow from it."""
    frame = pd.DataFrame({"seed": [0, 1, 2, 3], "batch_size": [16, 16, 64, 64], "steps": [80, 80, 20, 20],
                          "layer": "x", "x": [1.0, 2.0, 3.0, 4.0]})  # fmt: skip
    with pytest.raises(
        UserError, match=r"would mix rows of several values of batch_size \(16, 64; layer x\): select one"
    ):
        interval(frame, "x", ["layer"])
    assert list(interval(frame, "x", ["batch_size"])["n"]) == [2, 2]
    both = frame.assign(batch_size=80 - frame["batch_size"], steps=100 - frame["steps"])
    assert list(interval(pd.concat([frame, both]), "x", ["layer"], average="batch_size")["n"]) == [4]


def test_negative_values_have_no_geometric_mean() -> None:
    """As differences, where a ratio was meant: half of them were left out."""
    frame = pd.DataFrame({"seed": [0, 0, 1, 1], "layer": ["x", "y"] * 2, "gap": [0.1, -0.1, 0.2, 0.0]})
    message = r"geometric mean of gap would leave out its negative values, such as -0\.1"
    with pytest.raises(ValueError, match=message):
        interval(frame, "gap", [], average="layer", geometric=True)
    with pytest.raises(ValueError, match=message):
        average(frame, "gap", ["seed"], geometric=True)


def test_what_other_seeds_say() -> None:
    frame = pd.DataFrame({"layer": ["x"] * 3 + ["y"] * 4, "seed": [0, 1, 2, 0, 1, 1, 2],
                          "noise": [1.0, 2.0, 4.0, 10.0, 20.0, 30.0, 90.0], "run": "a"})  # fmt: skip
    found = other_seeds(frame, ["noise"], ["layer"])
    assert found.values.tolist() == [
        ["x", 0, 3.0], ["x", 1, 2.5], ["x", 2, 1.5], ["y", 0, pytest.approx(140 / 3)], ["y", 1, 50.0], ["y", 2, 20.0],
    ]  # fmt: skip
    with pytest.raises(UserError, match="made from other seeds, and layer x has only seed 1; sweep several, such as"):
        other_seeds(frame[(frame["layer"] == "y") | (frame["seed"] == 1)], ["noise"], ["layer"])
    with pytest.raises(UserError, match="no column 'seed'"):
        other_seeds(frame.drop(columns="seed"), ["noise"], ["layer"])
