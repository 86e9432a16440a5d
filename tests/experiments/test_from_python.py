"""bnlab.harness.sweep: the command, called from Python."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize
from hydra.core.global_hydra import GlobalHydra
from pandas.testing import assert_frame_equal

import bnlab.harness
from bnlab.harness.errors import UserError
from tests.helpers import sweep_small

SMALL: dict[str, Any] = {
    "data.images": 400,
    "model.depth": 2,
    "model.width": 8,
    "steps": 6,
    "evaluate_at": "final",
    "device": "cpu",
}


def test_it_does_what_the_command_does(tmp_path: Path) -> None:
    """The same networks and rows: a plain list is swept, and momenta are measured together."""
    called = bnlab.harness.sweep(
        "hydra/launcher=basic", **SMALL, batch_size=[16, 32], momentum=[0.1, 0.3], results=tmp_path / "called"
    )
    words = ("steps=6", "evaluate_at=final", "batch_size=16,32", "momentum=[0.1,0.3]")
    sweep_small(tmp_path / "typed", "-m", *words)
    typed = bnlab.harness.load("adhoc", tmp_path / "typed")

    assert len(called["runs"]) == 2
    assert {*called} == {*typed}
    for table in ("gaps", "evaluations"):
        assert_frame_equal(called[table], typed[table])


def test_a_dry_run_has_no_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bnlab.harness.sweep(**SMALL, batch_size=32, dry_run=True, results=tmp_path) == {}

    assert "1 network," in capsys.readouterr().out
    assert not [*tmp_path.glob("runs/*/seed_0/status.json")]


def test_a_program_that_uses_hydra_keeps_its_own(tmp_path: Path) -> None:
    with initialize(config_path=None, version_base="1.3"):
        held = GlobalHydra.instance().hydra
        bnlab.harness.sweep(**SMALL, batch_size=32, dry_run=True, results=tmp_path)

        assert held is not None
        assert GlobalHydra.instance().hydra is held


def test_names_may_have_any_letters(tmp_path: Path) -> None:
    sweep_small(tmp_path, "name=größe.1", "steps=1", "evaluate_at=final", "measurements=log")

    assert len(bnlab.harness.load("größe.1", tmp_path)["runs"]) == 1


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^batch_size=many: "):
        bnlab.harness.sweep(batch_size="many", results=tmp_path)
    with pytest.raises(UserError, match=r"^seed=\[\]: "):
        bnlab.harness.sweep(**SMALL, seed=[], results=tmp_path)
    with pytest.raises(UserError, match=r"^momentum=7: "):
        bnlab.harness.sweep(**SMALL, batch_size=32, momentum=7, results=tmp_path)

    assert not [*tmp_path.iterdir()]


def test_a_network_that_fails_is_an_error_that_says_where_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("bnlab.harness.measurements.tables.gaps.Gaps.measure", fail)

    with pytest.raises(UserError, match=r"bnlab\.harness\.load\('adhoc', "):
        bnlab.harness.sweep("hydra/launcher=basic", **SMALL, batch_size=32, results=tmp_path)

    assert len(bnlab.harness.load("adhoc", tmp_path)["evaluations"])


class Cell(io.StringIO):
    """The output of a cell, as the kernel of a notebook has it."""

    __module__ = "ipykernel.iostream"


def test_a_notebook_shows_a_bar(tmp_path: Path) -> None:
    """Although the output of a cell is no terminal by its own account."""
    cell = Cell()

    with contextlib.redirect_stdout(cell):
        bnlab.harness.sweep("hydra/launcher=basic", **SMALL, batch_size=32, results=tmp_path)

    assert re.search(r"1/1 .*1 trained, 1 measured, 0 failed\]", cell.getvalue())
    first, *_, last = cell.getvalue().splitlines()
    assert "1 network," in first
    assert "bnlab report name=adhoc" in last
