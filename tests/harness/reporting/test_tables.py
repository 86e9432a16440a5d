"""Tables from the records of networks: fixed columns, one row for each key, and which rows form a line."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from bnlab.common.files import Unreadable
from bnlab.harness import schema
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.lab.registry import list_measurements
from bnlab.harness.measurements.rows import compact
from bnlab.harness.records import Part, locate_record, locate_rows, write_record
from bnlab.harness.reporting import tables
from bnlab.harness.run_table import RUNS


@cache
def list_tables() -> dict[str, schema.Table]:
    """Every table by its name."""
    return {"runs": RUNS, **{each.name: each.table for each in list_measurements().values()}}


def rows(momenta: list[float], value: float, **changes: object) -> pd.DataFrame:
    columns = {"run": "a/seed_0", "step": 1, "estimator": "ema", "momentum": momenta, "statistics_split": "train"}
    numbers = dict.fromkeys(("mean_gap", "var_gap", "kl", "output_gap", "tid_mean", "tid_std", "var_ratio"), value)
    places = {"layer": "1", "epoch": 0.5, "depth": 1, "channels": 4}
    return pd.DataFrame({**columns, **numbers, **places, **changes})


def write(
    folder: Path, frame: pd.DataFrame, name: str = "gaps", code: str = "A", training: str = "T", command: str = ""
) -> Path:
    """Write rows of one network and estimator, and that a job has asked for them; the file with the rows."""
    run, estimator = str(frame["run"][0]), str(frame["estimator"][0])
    keys = [f"{code} {training} {estimator} {momentum}" for momentum in frame["momentum"]]
    path = locate_rows(folder.parent, run, name) / f"{len(list(folder.parent.rglob('*.parquet')))}.parquet"
    schema.write_rows(path, list_tables()[name], frame.assign(row_key=keys))

    steps = {key: [int(step)] for key, step in zip(keys, frame["step"], strict=True)}
    part = Part({"code": code, "population_images": "null"}, training, steps)
    write_record(folder, run, {"run": run}, command, "asked", {name: {estimator: part}})
    return path


def assemble(folder: Path) -> dict[str, pd.DataFrame]:
    return dict(tables.load(folder.name, folder.parent))


def test_what_several_jobs_asked_for_stands_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "x", rows([0.1, np.nan], 1.0))
    write(tmp_path / "x", rows([0.2], 2.0))
    write(tmp_path / "x", rows([0.2], 3.0, run="b/seed_0"))
    write(tmp_path / "other", rows([0.7], 4.0))

    found = assemble(tmp_path / "x")["gaps"]

    assert found["mean_gap"].tolist() == [1.0, 2.0, 1.0, 3.0]


def test_rows_of_other_code_or_of_an_earlier_training_are_in_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "x"
    write(folder, rows([0.1], 1.0, run="b/seed_0"), command="bnlab sweep seed=0,1")
    write(folder, rows([0.1], 1.0, estimator="exact"), training="T0", command="bnlab sweep estimator=exact")
    write(folder, rows([0.1], 2.0), code="B")

    found = assemble(folder)["gaps"]

    assert found[["run", "estimator", "mean_gap"]].values.tolist() == [["a/seed_0", "ema", 2.0]]
    (note,) = capsys.readouterr().err.splitlines()
    assert "ema" in note and "exact" in note and "2 networks" in note
    _, _, commands = note.partition("again: ")
    assert {*commands.split("; ")} == {"bnlab sweep seed=0,1", "bnlab sweep estimator=exact"}


def test_files_say_what_their_columns_mean(tmp_path: Path) -> None:
    for name, table in list_tables().items():
        path = tmp_path / f"{name}.parquet"

        schema.write_frame(path, schema.empty(table.schema), table.schema)

        written = pq.read_schema(path)
        assert written.names == list(table.columns)
        assert written.remove_metadata() == table.schema.remove_metadata()
        assert schema.read_key(written) == [*table.key]
        meanings = {field.name: field.metadata[b"meaning"].decode() for field in written}
        assert meanings == {column: each.meaning for column, each in table.columns.items()}


def test_each_network_has_its_newest_row_in_runs(tmp_path: Path) -> None:
    for status in ("finished", "failed"):
        row = {"run": "a/seed_0", "seed": 0, "status": status, "model.own": [1, 2], "final_loss": float("nan")}
        write_record(tmp_path / "x", "a/seed_0", row, "", "", {})

    runs = tables.load("x", tmp_path)["runs"]

    assert list(runs["status"]) == ["failed"]
    assert list(runs["model.own"]) == ["[1, 2]"]
    assert runs["final_loss"].isna().all()
    assert runs["norm_batch_size"].isna().all()


def test_types_are_fixed_whatever_the_values(tmp_path: Path) -> None:
    whole_numbers = rows([1], 0).astype({"mean_gap": "int64", "momentum": "int64"})
    write(tmp_path / "x", whole_numbers)
    found = assemble(tmp_path / "x")["gaps"]
    assert found["mean_gap"].dtype == found["momentum"].dtype == "float64" and found["step"].dtype == "int64"
    with pytest.raises(KeyError):
        write(tmp_path / "x", whole_numbers.drop(columns="kl"))


def test_a_file_that_cannot_be_read_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "x", rows([0.1], 1.0))
    bad, foreign = (write(tmp_path / "x", rows([momentum], 1.0)) for momentum in (0.2, 0.3))
    bad.write_bytes(bad.read_bytes()[:-20])
    pd.DataFrame({"x": [1]}).to_parquet(foreign)
    assert len(assemble(tmp_path / "x")["gaps"]) == 1
    assert str(bad) in caplog.text and str(foreign) in caplog.text
    assert len(list(tmp_path.rglob("*.damaged-1"))) == 2
    assemble(tmp_path / "x")
    assert "a/seed_0" in capsys.readouterr().err
    with pytest.raises(Unreadable, match=r"nothing.parquet: cannot be read"):
        schema.read_frame(tmp_path / "nothing.parquet")


def test_load(tmp_path: Path) -> None:
    """From parts, from tables without networks, or not at all."""
    with pytest.raises(UserError, match=r"'x' in .*: bnlab sweep name=x .*results="):
        tables.load("x", tmp_path)
    write(tmp_path / "x", rows([0.1], 1.0))
    assert len(tables.load("x", tmp_path)["gaps"]) == 1
    written = tables.write_tables(tmp_path / "x")
    (tmp_path / "x" / "jobs").rename(tmp_path / "jobs")
    reference = tables.load("x", tmp_path)
    assert reference.keys() == written.keys() == {"runs", "gaps"}
    with pytest.raises(NoRows, match=r"drift .* gaps, runs"):
        reference["drift"]
    for name in written:
        assert_frame_equal(reference[name], written[name])


def add_network(folder: Path) -> None:
    write(folder, rows([0.1, 0.3], 2.0, run="c/seed_0"))


def remove_record(folder: Path) -> None:
    locate_record(folder, "b/seed_0").unlink()


def damage_table(folder: Path) -> None:
    (folder / "tables" / "gaps.parquet").write_bytes(b"")


@pytest.mark.parametrize("change", [add_network, remove_record, damage_table])
def test_they_are_as_those_that_are_put_together(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "x"
    write(folder, rows([0.1, 0.2], 1.0))
    write(folder, rows([0.1], 1.0, run="b/seed_0"))
    tables.write_tables(folder)
    change(folder)

    found = assemble(folder)

    (folder / "tables" / "records.json").unlink()
    expected = assemble(folder)
    assert found.keys() == expected.keys()
    for name, frame in expected.items():
        assert_frame_equal(found[name], frame)


def test_written_tables_are_read_unless_rows_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x", rows([0.1], 1.0))
    tables.write_tables(tmp_path / "x")
    path.unlink()
    assert assemble(tmp_path / "x")["gaps"]["mean_gap"].tolist() == [1.0]

    write(tmp_path / "x", rows([0.1], 2.0, run="b/seed_0"))
    for _ in range(2):
        tables.write_tables(tmp_path / "x")
        assert "a/seed_0" in capsys.readouterr().err


def test_files_that_another_sweep_puts_together_meanwhile_are_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "x"
    paths = [write(folder, rows([momentum], momentum)) for momentum in (0.1, 0.2, 0.3)]
    read_rows = tables.read_rows

    def compact_first(path: Path, columns: Any) -> Any:
        if path == paths[0]:
            compact(path.parent, list_tables()["gaps"])
        return read_rows(path, columns)

    monkeypatch.setattr(tables, "read_rows", compact_first)

    assert assemble(folder)["gaps"]["mean_gap"].tolist() == [0.1, 0.2, 0.3]
    assert not any(path.exists() for path in paths)
    assert not capsys.readouterr().err
