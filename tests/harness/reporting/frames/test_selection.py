"""Rows by the values in their columns; the lowest of a group."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames import (
    OtherThan,
    find_parameter,
    lowest,
    paired,
    put_in_order,
    select,
)


def test_select() -> None:
    frame = pd.DataFrame({"estimator": ["ema", "ema", "exact"], "momentum": [0.1, 0.2, np.nan]})
    assert list(select(frame, momentum=0.1).index) == [0]
    assert list(select(frame, momentum=None).index) == [2]
    assert list(select(frame, momentum=(0.2, None)).index) == [1, 2]
    assert list(select(frame, estimator="ema", momentum=(0.2, None)).index) == [1]
    assert select(frame, estimator="swa").empty
    assert list(select(frame, estimator=OtherThan("exact")).index) == [0, 1]
    assert list(select(frame, momentum=OtherThan(None)).index) == [0, 1]
    assert list(select(frame, momentum=OtherThan((0.1, None))).index) == [1]
    assert list(select(frame, estimator=OtherThan(("ema", "swa"))).index) == [2]
    for several in ({0.1, 0.2}, np.array([0.1, 0.2]), frame["momentum"][:2]):
        assert list(select(frame, momentum=several).index) == [0, 1]
    with pytest.raises(UserError, match="no column 'layer'; is it not declared"):
        select(frame, layer="a")


def test_an_estimator_is_wanted_by_its_whole_name() -> None:
    frame = pd.DataFrame({"estimator": ["kalman(per=layer)", "ema"], "x": [1, 2]})
    assert len(select(frame, estimator=("ema", "window"))) == 1
    assert len(select(frame, estimator="kalman(per=layer)")) == 1
    for wanted in ("kalman", ("ema", "kalman"), OtherThan("kalman")):
        with pytest.raises(UserError, match=r"no rows of estimator 'kalman'; there is 'kalman\(per=layer\)'"):
            select(frame, estimator=wanted)
    with pytest.raises(UserError, match="no rows of estimator 'kalman'"):
        paired(frame.assign(run="a", step=1), "x", against="kalman")


def test_lowest_against_plain_pandas() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"seed": np.repeat([0, 1, 2], 4), "momentum": [0.1, 0.2, 0.3, 0.4] * 3, "gap": rng.random(12)},
                         index=[0] * 12)  # fmt: skip
    frame.iloc[0, 2] = np.nan
    plain = [group.sort_values("gap").iloc[0]["momentum"] for _, group in frame.groupby("seed")]
    assert list(lowest(frame, "gap", ["seed"])["momentum"]) == plain
    assert list(lowest(frame.assign(gap=1.0), "gap", ["seed"])["momentum"]) == [0.1] * 3  # the first of several
    assert list(lowest(frame.assign(gap=np.nan), "gap", ["seed"])["momentum"]) == []
    null = pd.DataFrame({"momentum": [np.nan, np.nan, 0.1], "gap": [2.0, 1.0, 3.0]})
    assert list(lowest(null, "gap", ["momentum"])["gap"]) == [1.0, 3.0]
    with pytest.raises(UserError, match="no column 'depth'"):
        lowest(frame, "gap", ["depth"])


def test_rows_are_put_in_a_given_order() -> None:
    frame = pd.DataFrame({"kind": ["c", "x", "a", "b", "c", "a"], "value": range(6)})
    assert put_in_order(frame, "kind", ["b", "a", "c"])["value"].tolist() == [3, 2, 5, 0, 4, 1]
    with pytest.raises(UserError, match="no column 'kinds'; did you mean 'kind', or is it not declared"):
        put_in_order(frame, "kinds", [])


def test_parameters_in_the_names_of_estimators() -> None:
    names = ["window(k=20,pooled=False)", "test_batch(n=4)", "pseudo_samples(n=16, batch=2)", "ema", "blend(bn=3)",
             "example_weighing(weight=1e-2)"]  # fmt: skip
    frame = pd.DataFrame({"estimator": names})
    none = np.nan
    for name, of, expected in (
        ("n", "", [none, 4, 16, none, none, none]),
        ("n", "test_batch", [none, 4, none, none, none, none]),
        ("batch", "", [none, none, 2, none, none, none]),
        ("k", "window", [20, none, none, none, none, none]),
        ("weight", "", [none, none, none, none, none, 0.01]),
    ):
        np.testing.assert_array_equal(find_parameter(frame, name, of), expected)
    with pytest.raises(UserError, match="no column 'estimator'"):
        find_parameter(frame.rename(columns={"estimator": "name"}), "n")
    with pytest.raises(UserError, match=r"the parameter pooled of window\(k=20,pooled=False\) is no number"):
        find_parameter(frame, "pooled")
