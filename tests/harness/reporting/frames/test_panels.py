"""What the panels of a figure are called, and what each shows."""

from __future__ import annotations

import pandas as pd
import pytest

from bnlab.harness.errors import UserError
from bnlab.harness.reporting.frames import name_panels, overlay, share_name


def test_a_share_keeps_its_digits() -> None:
    shares = {0.55: "55%", 0.125: "12.5%", 1 / 3: "33.3%", 0.004: "0.4%", 0.07: "7%"}
    assert [share_name(share) for share in shares] == [f"after {words} of training" for words in shares.values()]


def test_panels_are_named_and_in_the_order_of_their_numbers() -> None:
    frame = pd.DataFrame({"batch_size": [256, 4, 256, 4], "last": ["kept", "kept", "dropped", "dropped"]})
    found = name_panels(frame, "batch size {batch_size}, last {last}")
    assert found["panel"].tolist() == [f"batch size {n}, last {last}" for n in (4, 256) for last in ("kept", "dropped")]
    assert name_panels(frame, "last {last}")["panel"].tolist() == ["last " + last for last in frame["last"]]
    assert name_panels(frame[:0], "batch size {batch_size}").empty
    dotted = frame.assign(**{"optimizer.lr": 0.25})
    assert set(name_panels(dotted, "rate {optimizer.lr:.1f}")["panel"]) == {"rate 0.2"}
    with pytest.raises(UserError, match="no column 'lats'; did you mean 'last'"):
        name_panels(frame, "last {lats}")


def test_frames_upon_each_other() -> None:
    found = overlay(measured=pd.DataFrame({"x": [1, 2], "low": 0.0}), star=pd.DataFrame({"x": [3]}, index=[1]))
    assert found[["x", "kind"]].values.tolist() == [[1, "measured"], [2, "measured"], [3, "star"]]
    assert found.index.is_unique and found["low"].isna().tolist() == [False, False, True]
