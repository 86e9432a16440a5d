"""Tables from parts: fixed columns, one row for each key, the newest wins."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from bnlab.files import digest
from bnlab.harness import schema
from bnlab.harness.errors import UserError
from bnlab.harness.reporting import tables


def rows(momenta: list[float], value: float, run: str = "a/seed_0", **origin: object) -> pd.DataFrame:
    columns = {
        "version": 2,
        "source": "",
        "code": None,
        "training": "a",
        "training_set": None,
        "run": run,
        "step": 1,
        "estimator": "ema",
        "momentum": momenta,
        "statistics_split": "train",
        "layer": "1",
        **origin,
    }
    numbers = dict.fromkeys(("mean_gap", "var_gap", "kl", "tid_mean", "tid_std", "var_ratio"), value)
    return pd.DataFrame({**columns, "epoch": 0.5, "depth": 1, "channels": 4, **numbers})


def write(folder: Path, settings: str, frame: pd.DataFrame, age: int) -> Path:
    tables.write_part(folder, "gaps", str(frame["run"][0]), settings, frame)
    path = next(p for p in (folder / "parts" / "gaps").iterdir() if digest(settings, digits=10) in p.name)
    return make_older(path, "gaps", age)


def make_older(path: Path, name: str, age: int) -> Path:
    """Files copied elsewhere are new, and in any order: their own times tell nothing."""
    written = schema.read_frame(path).assign(written=15 * 10**17 - age)
    schema.write_frame(path, written, schema.part_schema(name))
    os.utime(path, ns=(10**18 + age, 10**18 + age))
    return path


def test_the_newest_row_of_a_key_wins(tmp_path: Path) -> None:
    write(tmp_path, "old", rows([0.1, 0.2, np.nan], 1.0), age=10)
    write(tmp_path, "new", rows([0.2, np.nan, 0.3], 2.0), age=5)
    found = tables.assemble(tmp_path)["gaps"]
    assert found["momentum"].tolist()[:3] == [0.1, 0.2, 0.3] and np.isnan(found["momentum"][3])
    assert found["mean_gap"].tolist() == [1.0, 2.0, 2.0, 2.0]
    write(tmp_path, "old", rows([0.1, 0.2, np.nan], 3.0), age=1)
    assert tables.assemble(tmp_path)["gaps"]["mean_gap"].tolist() == [3.0, 3.0, 2.0, 3.0]


def test_tables_as_csv_stay_those_of_the_parts(tmp_path: Path) -> None:
    """A sweep without csv=true left those of an earlier one beside the new tables."""
    write(tmp_path, "old", rows([0.1], 1.0), age=10)
    tables.write_tables(tmp_path)
    assert not list(tmp_path.rglob("*.csv"))
    tables.write_tables(tmp_path, csv=True)
    write(tmp_path, "new", rows([0.2], 2.0), age=5)
    tables.write_tables(tmp_path)
    assert pd.read_csv(tmp_path / "tables" / "gaps.csv")["momentum"].tolist() == [0.1, 0.2]


def test_rows_of_an_earlier_version_leave_the_table(tmp_path: Path) -> None:
    write(tmp_path, "old", rows([0.1, 0.2], 1.0), age=10)
    write(tmp_path, "other run", rows([0.1], 1.0, run="b/seed_0"), age=9)
    write(tmp_path, "new", rows([0.2, 0.3], 2.0, version=3), age=5)
    found = tables.assemble(tmp_path)["gaps"]
    assert found["momentum"].tolist() == [0.2, 0.3] and found["mean_gap"].tolist() == [2.0, 2.0]


def test_rows_that_leave_the_table_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Until newer ones come in their place."""
    write(tmp_path, "old", rows([0.1, 0.2], 1.0), age=10)
    write(tmp_path, "new", rows([0.2], 2.0, version=3), age=5)
    tables.assemble(tmp_path)
    assert "measured with earlier code, other images or another training (1 of gaps)" in capsys.readouterr().err
    write(tmp_path, "again", rows([0.1], 2.0, version=3), age=4)
    assert tables.assemble(tmp_path)["gaps"]["momentum"].tolist() == [0.1, 0.2] and not capsys.readouterr().err


def test_rows_of_an_estimators_earlier_code_leave_the_table(tmp_path: Path) -> None:
    """Those of all its networks and momenta; other estimators' stay."""
    own = {"estimator": "own", "source": "a"}
    write(tmp_path, "others", rows([0.1], 1.0), age=10)
    write(tmp_path, "old", rows([0.1, 0.2], 1.0, **own), age=9)
    write(tmp_path, "old, other run", rows([0.1], 1.0, run="b/seed_0", **own), age=8)
    write(tmp_path, "new", rows([0.2], 2.0, **{**own, "source": "b"}), age=5)
    found = tables.assemble(tmp_path)["gaps"]
    assert list(zip(found["estimator"], found["momentum"], found["mean_gap"], strict=True)) == [
        ("ema", 0.1, 1.0),
        ("own", 0.2, 2.0),
    ]


def test_rows_of_earlier_code_leave_with_all_parameters(tmp_path: Path) -> None:
    """One formula with another parameter would stand beside another formula."""
    for age, (power, code) in enumerate([(0.5, "new"), (0.7, "old"), (0.5, "old"), (0.9, None)]):
        own = {"estimator": f"own(power={power})", "source": f"{power} {code}", "code": code}
        write(tmp_path, str(age), rows([np.nan], 1.0, **own), age=age)
    write(tmp_path, "other", rows([np.nan], 1.0, estimator="owner", code="old"), age=9)
    assert tables.assemble(tmp_path)["gaps"]["estimator"].tolist() == ["own(power=0.5)", "own(power=0.9)", "owner"]


def test_rows_on_earlier_test_images_leave_the_table(tmp_path: Path) -> None:
    """Those of the same network, split and shift; what was measured before the images were noted stays."""
    test, val = ("test", "none"), ("val", "none")
    for age, (momentum, images, where) in enumerate(
        [(0.1, "b", test), (0.2, "a", test), (0.3, None, test), (0.4, "c", ("test", "fonts:x")), (0.5, "d", val)]
    ):
        write_evaluation(tmp_path, age, momentum, *where, test_images=images)
    assert tables.assemble(tmp_path)["evaluations"]["momentum"].tolist() == [0.1, 0.3, 0.4, 0.5]


def test_doses_on_earlier_test_images_leave_the_table(tmp_path: Path) -> None:
    for seed, images in [(2, "old"), (0, "new"), (1, "new")]:
        run = f"a/seed_{seed}"
        row = dict.fromkeys(schema.part_schema("doses").names) | {"run": run, "step": 1, "layer": "all", "dose": 0.1}
        row |= {"moment": "mean", "test_images": images}
        tables.write_part(tmp_path, "doses", run, "", pd.DataFrame([row]))
        settings = dict.fromkeys(schema.TABLES["runs"].types) | {"run": run, "settings": json.dumps({"data": {}})}
        tables.write_part(
            tmp_path, "runs", run, "", pd.DataFrame([settings | {"training": None, "training_set": None}])
        )
    assert tables.assemble(tmp_path)["doses"]["run"].tolist() == ["a/seed_0", "a/seed_1"]


def test_rows_on_earlier_test_images_leave_the_table_for_all_networks_on_this_data(tmp_path: Path) -> None:
    """A mean over seeds would be of accuracies on different images."""
    folder = {"name": "image_folder", "files": "x"}
    networks = {"a/seed_0": folder, "a/seed_1": folder, "b/seed_0": {**folder, "shift": 2}, "c/seed_0": {}}
    for age, (run, data) in enumerate(networks.items()):
        write_evaluation(tmp_path, age, 0.1, run=run, test_images="new" if age == 0 else "old")
        settings = dict.fromkeys(schema.TABLES["runs"].types) | {"run": run, "settings": json.dumps({"data": data})}
        tables.write_part(
            tmp_path, "runs", run, "", pd.DataFrame([settings | {"training": None, "training_set": None}])
        )
    assert tables.assemble(tmp_path)["evaluations"]["run"].tolist() == ["a/seed_0", "c/seed_0"]


def test_rows_on_an_earlier_test_folder_leave_the_table_under_any_shift(tmp_path: Path) -> None:
    """And whatever the number of training images and the size, which are no matter of the files."""
    networks = {"a/seed_0": {"images": 30}, "b/seed_0": {"images": 50}, "c/seed_0": {"image_size": 16}}
    for age, (run, data) in enumerate(networks.items()):
        where = {"split": "test", "shift": "none" if age == 0 else "noise:1"}
        write_evaluation(
            tmp_path, age, 0.1, run=run, **where, test_images=str(age), test_set="new" if age == 0 else "old"
        )
        write_evaluation(tmp_path, age + 10, 0.2, run=run, split="val", test_images="same", test_set="")
        settings = dict.fromkeys(schema.TABLES["runs"].types) | {"run": run, "training": None, "training_set": None}
        settings["settings"] = json.dumps({"data": {"name": "image_folder", **data}})
        tables.write_part(tmp_path, "runs", run, "", pd.DataFrame([settings]))
    found = tables.assemble(tmp_path)["evaluations"]
    assert found["run"][found["split"] == "test"].tolist() == ["a/seed_0"]
    assert found["run"][found["split"] == "val"].tolist() == [*networks]


def test_networks_that_were_trained_on_earlier_images_leave_all_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mean over seeds would be of networks that have learned from other labels; of earlier ones nothing is known."""
    networks = {"a/seed_3": None, "c/seed_0": "other", "b/seed_2": "old", "a/seed_1": "old", "a/seed_0": "new"}
    for number, (run, images) in enumerate(networks.items()):  # the newest is last
        write(tmp_path, run, rows([0.1], 1.0, run=run, training_set=images), age=-number)
        data = {"name": "mnist", "images": 50 if run == "c/seed_0" else 60, "shift": number}
        settings = dict.fromkeys(schema.TABLES["runs"].types) | {"run": run, "settings": json.dumps({"data": data})}
        row = pd.DataFrame([settings | {"training": "a", "training_set": images}])
        tables.write_part(tmp_path, "runs", run, "", row)
    found = tables.assemble(tmp_path)
    for name in ("runs", "gaps"):
        assert found[name]["run"].tolist() == ["a/seed_0", "a/seed_3", "c/seed_0"]
    assert "other images or another training (2 of runs, 2 of gaps)" in " ".join(capsys.readouterr().err.split())


def test_the_row_of_a_network_that_was_trained_elsewhere_leaves_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where another machine's parts are copied over: what was measured last is of this one's training."""
    settings = dict.fromkeys(schema.TABLES["runs"].types) | {"run": "a/seed_0", "settings": "{}"}
    row = pd.DataFrame([settings | {"training": "theirs", "training_set": None}])
    tables.write_part(tmp_path, "runs", "a/seed_0", "", row)
    (path,) = (tmp_path / "parts" / "runs").iterdir()
    make_older(path, "runs", age=10)
    write(tmp_path, "new", rows([0.1], 1.0, training="ours"), age=5)
    found = tables.assemble(tmp_path)
    assert found["runs"].empty and len(found["gaps"]) == 1
    assert "another training (1 of runs)" in " ".join(capsys.readouterr().err.split())


def write_evaluation(
    folder: Path, age: int, momentum: float, split: str = "test", shift: str = "none", **origin: object
) -> None:
    common = {"statistics_split": "train", "epoch": 1.0, "images": 9, "stat_images": 9}
    scores = dict.fromkeys(("loss", "accuracy", "ece", "disagreement", "logit_gap"), 0.5)
    frame = rows([momentum], 1.0, **{"split": split, "shift": shift, "test_set": None, **origin}).assign(
        **common, **scores
    )
    run = str(frame["run"][0])
    tables.write_part(folder, "evaluations", run, str(age), frame)
    name = f"{tables.begin_file_name(run)}{digest(str(age), digits=10)}.parquet"
    make_older(folder / "parts" / "evaluations" / name, "evaluations", age)


def test_rows_of_a_network_that_was_trained_again_leave_the_table(tmp_path: Path) -> None:
    """Those of the same network, by whatever they were measured; other networks' stay."""
    write(tmp_path, "old", rows([0.1], 1.0, training="a"), age=10)
    write(tmp_path, "other run", rows([0.1], 1.0, run="b/seed_0", training="c"), age=9)
    write(tmp_path, "new", rows([np.nan], 2.0, training="b", estimator="exact"), age=5)
    found = tables.assemble(tmp_path)["gaps"]
    assert list(zip(found["run"], found["estimator"], strict=True)) == [("a/seed_0", "exact"), ("b/seed_0", "ema")]


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ({"version": 2}, {"version": 3}, []),
        ({"source": "a"}, {"source": "b"}, []),
        ({"training": "a"}, {"training": "b"}, []),
        ({"training": None}, {"training": "b"}, [0.1]),
    ],
)
def test_rows_leave_all_tables(
    old: dict[str, object], new: dict[str, object], kept: list[float], tmp_path: Path
) -> None:
    """Where only some are measured again, the others would be of another network beside them."""
    traces = rows([0.1], 1.0, **old).assign(channel=0, mean=0.0, var=1.0)
    tables.write_part(tmp_path, "traces", "a/seed_0", "old", traces)
    make_older(next((tmp_path / "parts" / "traces").iterdir()), "traces", 10)
    write(tmp_path, "new", rows([0.2], 2.0, **new), age=5)
    found = tables.assemble(tmp_path)
    assert found["traces"]["momentum"].tolist() == kept and found["gaps"]["momentum"].tolist() == [0.2]
    assert found["traces"].dtypes.equals(schema.conform("traces", schema.empty_part("traces")).dtypes)


def test_parts_from_before_origins_were_noted_are_read(tmp_path: Path) -> None:
    frame = schema.conform("gaps", rows([0.1], 1.0))
    schema.write_frame(tmp_path / "parts" / "gaps" / "a-seed_0-0123456789.parquet", frame)
    write(tmp_path, "new", rows([0.2], 2.0), age=5)
    assert tables.assemble(tmp_path)["gaps"]["momentum"].tolist() == [0.1, 0.2]


@pytest.mark.parametrize("name", list(schema.TABLES))
def test_empty_tables_have_their_columns_and_types(name: str, tmp_path: Path) -> None:
    frame = schema.conform(name, schema.empty_part(name))
    assert list(frame) == list(schema.TABLES[name].types) and set(schema.TABLES[name].key) <= set(frame)
    path = tmp_path / "x.parquet"
    schema.write_frame(path, frame, schema.TABLES[name].schema)
    assert pq.read_schema(path).remove_metadata() == schema.TABLES[name].schema
    assert_frame_equal(schema.conform(name, schema.read_part(name, path)), frame)


def test_types_are_fixed_whatever_the_values(tmp_path: Path) -> None:
    whole_numbers = rows([1], 0).astype({"mean_gap": "int64", "momentum": "int64"})
    write(tmp_path, "x", whole_numbers, 1)
    found = tables.assemble(tmp_path)["gaps"]
    assert found["mean_gap"].dtype == found["momentum"].dtype == "float64" and found["step"].dtype == "int64"
    with pytest.raises(KeyError):
        schema.conform("gaps", whole_numbers.drop(columns="kl"))


def test_a_damaged_part_is_named_and_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "good", rows([0.1], 1.0), 1)
    bad = write(tmp_path, "bad", rows([0.2], 1.0), 2)
    bad.write_bytes(bad.read_bytes()[:-20])
    foreign = tmp_path / "parts" / "gaps" / "b-seed_0-0123456789.parquet"
    pd.DataFrame({"x": [1]}).to_parquet(foreign)
    assert len(tables.assemble(tmp_path)["gaps"]) == 1
    err = capsys.readouterr().err
    assert str(bad) in err and str(foreign) in err and "run the sweep again" in err
    assert not bad.exists() and len(list(tmp_path.rglob("*.damaged"))) == 1
    assert foreign.exists()  # of another version, for which it is sound
    tables.assemble(tmp_path)["gaps"]
    assert str(bad) not in capsys.readouterr().err


def test_a_part_of_another_run_is_named_and_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("a/seed_1", "a/seed_10"):
        write(tmp_path, run, rows([0.1], 1.0, run=run), 1)
    first, tenth = (next(tmp_path.rglob(f"a-{seed}-*.parquet")) for seed in ("seed_1", "seed_10"))
    assert len(tables.assemble(tmp_path)["gaps"]) == 2
    shutil.copy(tenth, first)
    assert set(tables.assemble(tmp_path)["gaps"]["run"]) == {"a/seed_10"}
    assert f"{first}: holds rows of run a/seed_10\n  set aside; run the sweep again" in capsys.readouterr().err


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Wherever it is (in every third byte one, by turns): an error, or the very same rows."""
    path = tmp_path / "gaps.parquet"
    frame = schema.conform("gaps", rows([0.1, 0.2], 1.5))
    schema.write_frame(path, frame, schema.TABLES["gaps"].schema)
    whole, noticed = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place * 5 % 8)
        path.write_bytes(flipped)
        try:
            found = schema.conform("gaps", schema.read_part("gaps", path))
        except ValueError as error:
            noticed += str(path) in str(error)
        else:
            assert_frame_equal(found, frame)
    assert noticed > len(whole) / 6


def test_nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no results for 'momentum' in .*; run: .* experiment=momentum"):
        tables.load("momentum", tmp_path)
    with pytest.raises(UserError, match=r"run: python -m experiments.sweep 'results=\S*/my results'$"):
        tables.load("adhoc", tmp_path / "my results")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run: python -m experiments.sweep$"):
        tables.load("adhoc")


def test_tables_are_written_with_csv(tmp_path: Path) -> None:
    write(tmp_path, "x", rows([0.1, np.nan], 1.0), 1)
    found = tables.write_tables(tmp_path, csv=True)
    assert set(found) == set(schema.TABLES)
    assert_frame_equal(schema.read_frame(tmp_path / "tables" / "gaps.parquet"), found["gaps"])
    assert pd.read_csv(tmp_path / "tables" / "gaps.csv")["momentum"].isna().tolist() == [False, True]


def test_columns_of_a_later_version_are_null_in_older_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference results were written before `runs` had a column for each setting."""
    path = tmp_path / "parts" / "runs" / "x-0123456789.parquet"
    values = {pa.string(): "x", pa.int64(): 1, pa.float64(): 1.0, pa.bool_(): True}
    row = {name: values[kind] for name, kind in schema.TABLES["runs"].types.items()} | {"settings": "{}"}
    older = {name: value for name, value in row.items() if name not in schema.TABLES["runs"].later}
    assert 0 < len(older) < len(row)
    schema.write_frame(path, pd.DataFrame([older]))
    (found,) = tables.assemble(tmp_path)["runs"].to_dict("records")
    assert all(found[name] == value for name, value in older.items())
    assert (found["norm.name"], found["optimizer.momentum"]) == (row["norm"], row["sgd_momentum"])
    unknown = set(schema.TABLES["runs"].later) - set(schema.EARLIER_NAMES)
    assert all(pd.isna(found[name]) for name in unknown)
    assert path.exists() and not capsys.readouterr().err


def test_the_document_describes_every_column() -> None:
    text = (Path(__file__).parents[3] / "results" / "README.md").read_text()
    kinds = {"text": pa.string(), "int": pa.int64(), "real": pa.float64(), "bool": pa.bool_()}
    described = {}
    for section in text.split("\n## ")[1:]:
        name, _, body = section.partition("\n")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line[:1] == "|"][
            2:
        ]
        assert all(len(row) == 3 and len(row[2]) > 3 for row in rows), name
        keys = tuple(row[0].strip("*") for row in rows if row[0].startswith("**"))
        described[name] = (keys, {row[0].strip("*"): kinds[row[1]] for row in rows})
    expected = {name: (table.key, table.types) for name, table in {**schema.TABLES, "log": schema.LOG}.items()}
    assert described == expected
    assert [list(types) for _, types in described.values()] == [list(types) for _, types in expected.values()]


def test_rows_from_the_future_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a clock that was ahead: what is measured after it would be older than what it replaces."""
    path = write(tmp_path, "a", rows([0.1], 1.0), age=5)
    tables.assemble(tmp_path)
    assert not capsys.readouterr().err
    frame = schema.read_frame(path).assign(written=time.time_ns() + 3600 * 10**9)
    schema.write_frame(path, frame, schema.part_schema("gaps"))
    assert len(tables.assemble(tmp_path)["gaps"]) == 1
    err = capsys.readouterr().err
    assert f"{tmp_path}/parts: has rows that were written at 20" in err and "run the sweep again" in err
