"""Tables from what jobs asked for: fixed columns, one row for each key, the newest origin wins."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from bnlab.common.files import Unreadable
from bnlab.harness import schema
from bnlab.harness.errors import NoRows, UserError
from bnlab.harness.lab.registry import list_measurements
from bnlab.harness.reporting import tables
from bnlab.harness.requests import Request, Selection, locate_request, locate_rows, write_request
from bnlab.harness.run_table import RUNS

SUBJECT = ("origin", "estimator", "momentum", "statistics_split", "split", "shift")


@cache
def list_tables() -> dict[str, schema.Table]:
    """Every table by its name."""
    return {"runs": RUNS, **{each.name: each.table for each in list_measurements().values()}}


def rows(momenta: list[float], value: float, **changes: object) -> pd.DataFrame:
    columns = {"run": "a/seed_0", "step": 1, "estimator": "ema", "momentum": momenta, "statistics_split": "train"}
    numbers = dict.fromkeys(("mean_gap", "var_gap", "kl", "output_gap", "tid_mean", "tid_std", "var_ratio"), value)
    places = {"layer": "1", "epoch": 0.5, "depth": 1, "channels": 4, "origin": "o"}
    return pd.DataFrame({**columns, **numbers, **places, **changes})


def write(folder: Path, job: str, frame: pd.DataFrame, name: str = "gaps", written: int = 0) -> Path:
    """Write rows of one network, and the request of a job for them; the file with the rows."""
    run = str(frame["run"][0])
    path = locate_rows(folder.parent, run, name) / f"{folder.name}-{job}.parquet"
    schema.write_rows(path, list_tables()[name], frame)

    columns = [column for column in SUBJECT if column in frame]
    subjects = frame[[*columns, "step"]].astype(object)
    subjects = subjects.where(subjects.notna(), None)
    rows = [(dict(zip(columns, row[:-1], strict=True)), [row[-1]]) for row in subjects.itertuples(index=False)]
    request = Request(run, {"run": run}, {name: Selection([path.name], rows)}, written)
    write_request(locate_request(folder, run, job + name), request)
    return path


def assemble(folder: Path) -> dict[str, pd.DataFrame]:
    return dict(tables.load(folder.name, folder.parent))


def test_the_newest_row_of_a_key_wins(tmp_path: Path) -> None:
    write(tmp_path, "old", rows([0.1, 0.2, np.nan], 1.0))
    write(tmp_path, "new", rows([0.2, np.nan, 0.3], 2.0))
    found = assemble(tmp_path)["gaps"]
    assert found["momentum"].tolist()[:3] == [0.1, 0.2, 0.3] and np.isnan(found["momentum"][3])
    assert found["mean_gap"].tolist() == [1.0, 2.0, 2.0, 2.0]
    write(tmp_path, "old", rows([0.1, 0.2, np.nan], 3.0))
    assert assemble(tmp_path)["gaps"]["mean_gap"].tolist() == [3.0, 3.0, 2.0, 3.0]


def test_rows_of_an_earlier_origin_leave_the_table(tmp_path: Path) -> None:
    """Those of the same network and estimator; a missing momentum is no reason to keep them."""
    write(tmp_path, "old", rows([0.1, np.nan], 1.0))
    write(tmp_path, "other run", rows([0.1], 1.0, run="b/seed_0"))
    write(tmp_path, "other estimator", rows([0.1], 1.0, estimator="own"))
    write(tmp_path, "new", rows([0.2], 2.0, origin="p"))
    found = assemble(tmp_path)["gaps"]
    kept = zip(found["run"], found["estimator"], found["momentum"], strict=True)
    assert set(kept) == {("a/seed_0", "ema", 0.2), ("a/seed_0", "own", 0.1), ("b/seed_0", "ema", 0.1)}


def test_rows_of_other_splits_and_shifts_stay(tmp_path: Path) -> None:
    scores = dict.fromkeys(("images", "stat_images", "loss", "accuracy", "ece", "disagreement", "logit_gap"), 1)
    for number, (split, shift) in enumerate([("test", "none"), ("val", "none"), ("test", "noise:1"), ("test", "none")]):
        frame = rows([0.1], 1.0, split=split, shift=shift, origin=str(number)).assign(**scores)
        write(tmp_path, str(number), frame, "evaluations")
    found = assemble(tmp_path)["evaluations"]
    assert sorted(zip(found["split"], found["shift"], strict=True)) == [
        ("test", "noise:1"), ("test", "none"), ("val", "none"),
    ]  # fmt: skip


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
    for written, status in ((2, "failed"), (1, "finished")):
        row = {"run": "a/seed_0", "seed": 0, "status": status, "model.own": [1, 2], "final_loss": float("nan")}
        write_request(locate_request(tmp_path / "x", "a/seed_0", status), Request("a/seed_0", row, {}, written))

    runs = tables.load("x", tmp_path)["runs"]

    assert list(runs["status"]) == ["failed"]
    assert list(runs["model.own"]) == ["[1, 2]"]
    assert runs["final_loss"].isna().all()
    assert runs["norm_batch_size"].isna().all()


def test_types_are_fixed_whatever_the_values(tmp_path: Path) -> None:
    whole_numbers = rows([1], 0).astype({"mean_gap": "int64", "momentum": "int64"})
    write(tmp_path, "x", whole_numbers)
    found = assemble(tmp_path)["gaps"]
    assert found["mean_gap"].dtype == found["momentum"].dtype == "float64" and found["step"].dtype == "int64"
    with pytest.raises(KeyError):
        write(tmp_path, "x", whole_numbers.drop(columns="kl"))


def test_a_file_that_cannot_be_read_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "x", "good", rows([0.1], 1.0))
    bad, foreign = (write(tmp_path / "x", name, rows([0.2], 1.0)) for name in ("bad", "foreign"))
    bad.write_bytes(bad.read_bytes()[:-20])
    pd.DataFrame({"x": [1]}).to_parquet(foreign)
    assert len(assemble(tmp_path / "x")["gaps"]) == 1
    err = capsys.readouterr().err
    assert str(bad) in err and str(foreign) in err and "run the sweep again" in err
    assert len(list(tmp_path.rglob("*.damaged-1"))) == 2
    assemble(tmp_path / "x")
    assert "rows of a/seed_0 are missing" in capsys.readouterr().err
    with pytest.raises(Unreadable, match=r"nothing.parquet: cannot be read"):
        schema.read_frame(tmp_path / "nothing.parquet")


def test_load(tmp_path: Path) -> None:
    """From parts, from tables without networks, or not at all."""
    with pytest.raises(UserError, match=r"no results for 'x' in .*; run: bnlab sweep name=x .*results=.*experiment=x"):
        tables.load("x", tmp_path)
    write(tmp_path / "x", "old", rows([0.1], 1.0))
    assert len(tables.load("x", tmp_path)["gaps"]) == 1
    written = tables.write_tables(tmp_path / "x")
    (tmp_path / "x" / "requests").rename(tmp_path / "requests")
    reference = tables.load("x", tmp_path)
    assert reference.keys() == written.keys() == {"runs", "gaps"}
    with pytest.raises(NoRows, match="the table drift has not been measured; there are "):
        reference["drift"]
    for name in written:
        assert_frame_equal(reference[name], written[name])


def add_network(folder: Path) -> None:
    write(folder, "job", rows([0.1, 0.3], 2.0, run="c/seed_0"))


def remove_request(folder: Path) -> None:
    next((folder / "requests").glob("b-*")).unlink()


def damage_table(folder: Path) -> None:
    (folder / "tables" / "gaps.parquet").write_bytes(b"")


@pytest.mark.parametrize("change", [add_network, remove_request, damage_table])
def test_they_are_as_those_that_are_put_together(change: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "x"
    write(folder, "job", rows([0.1, 0.2], 1.0))
    write(folder, "job", rows([0.1], 1.0, run="b/seed_0"))
    tables.write_tables(folder)
    change(folder)

    found = assemble(folder)

    (folder / "tables" / "made_from.json").unlink()
    expected = assemble(folder)
    assert found.keys() == expected.keys()
    for name, frame in expected.items():
        assert_frame_equal(found[name], frame)


def test_written_tables_are_read_unless_rows_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x", "job", rows([0.1], 1.0))
    tables.write_tables(tmp_path / "x")
    path.unlink()
    assert assemble(tmp_path / "x")["gaps"]["mean_gap"].tolist() == [1.0]

    write(tmp_path / "x", "job", rows([0.1], 2.0, run="b/seed_0"))
    for _ in range(2):
        tables.write_tables(tmp_path / "x")
        assert "rows of a/seed_0 are missing" in capsys.readouterr().err
