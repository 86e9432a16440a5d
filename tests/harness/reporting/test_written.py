"""Tables that have been written: what is newer is added, and what they cannot be trusted for is put together anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from bnlab.harness import schema
from bnlab.harness.reporting import tables
from bnlab.harness.reporting.written import Written, find_table, read_stamps, read_written, write_all
from tests.harness.reporting.test_tables import TABLES, rows, write


def load_anew(folder: Path) -> dict[str, pd.DataFrame]:
    """Load the tables without what was written."""
    (folder / "tables" / "made_from.json").unlink()
    return dict(tables.load(folder.name, folder.parent))


def change_nothing(folder: Path) -> None:
    """Leave the requests as they are."""


def add_network(folder: Path) -> None:
    write(folder, "job", rows([0.1, 0.3], 2.0, run="c/seed_0"))


def measure_again(folder: Path) -> None:
    write(folder, "again", rows([0.2], 3.0, origin="newer"))


def remove_request(folder: Path) -> None:
    next((folder / "requests").glob("b-*")).unlink()


@pytest.mark.parametrize("change", [change_nothing, add_network, measure_again, remove_request])
def test_they_are_as_those_that_are_put_together_anew(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "x"
    write(folder, "job", rows([0.1, 0.2], 1.0))
    write(folder, "job", rows([0.1], 1.0, run="b/seed_0"))
    tables.write_tables(folder)
    change(folder)

    found = tables.load("x", tmp_path)

    expected = load_anew(folder)
    assert found.keys() == expected.keys()
    for name, frame in expected.items():
        assert_frame_equal(found[name], frame)


def test_files_with_rows_are_read_once(tmp_path: Path) -> None:
    old = write(tmp_path / "x", "job", rows([0.1], 1.0))
    tables.write_tables(tmp_path / "x")
    old.write_bytes(b"")
    write(tmp_path / "x", "job", rows([0.1], 2.0, run="b/seed_0"))

    found = tables.load("x", tmp_path)["gaps"]

    assert found["mean_gap"].tolist() == [1.0, 2.0]
    assert old.exists()


def test_a_table_that_another_program_has_written_is_not_trusted(tmp_path: Path) -> None:
    write(tmp_path / "x", "job", rows([0.1], 1.0))
    tables.write_tables(tmp_path / "x")
    changed = rows([0.1], 5.0).drop(columns="origin")
    schema.write_frame(find_table(tmp_path / "x", "gaps"), changed, TABLES["gaps"].schema)

    found = tables.load("x", tmp_path)["gaps"]

    assert found["mean_gap"].tolist() == [1.0]


def test_columns_of_another_version_are_read_anew(tmp_path: Path) -> None:
    write(tmp_path / "x", "job", rows([0.1], 1.0))
    tables.write_tables(tmp_path / "x")
    written = read_written(tmp_path / "x", read_stamps(tmp_path / "x"))
    frame, columns = written.tables["gaps"]
    fewer = columns.remove(columns.get_field_index("kl"))
    write_all(tmp_path / "x", Written({"gaps": (frame[fewer.names], fewer)}, written.stamps))
    write(tmp_path / "x", "job", rows([0.1], 2.0, run="b/seed_0"))

    found = tables.load("x", tmp_path)["gaps"]

    assert found["kl"].tolist() == [1.0, 2.0]


def test_rows_that_are_gone_are_named_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "x", "kept", rows([0.1], 1.0))
    write(tmp_path / "x", "gone", rows([0.2], 1.0, run="b/seed_1")).unlink()
    tables.write_tables(tmp_path / "x")
    capsys.readouterr()

    tables.load("x", tmp_path)

    assert "rows of b/seed_1 are missing" in capsys.readouterr().err
