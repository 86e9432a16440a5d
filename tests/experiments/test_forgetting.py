"""Networks, or rows on them, that are taken out of a sweep, or removed; what other sweeps have stays."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bnlab.harness import load
from bnlab.harness.lab.command import keep_command
from bnlab.harness.requests import locate_commands, read_commands
from tests.experiments.commands import EPOCH, SWEEP, Call, files, list_trained

IN_OTHER = ("batch_size=32", "seed=0", *EPOCH, "momentum=0.1", "name=other", "hydra/launcher=basic")


@pytest.fixture
def shared(results: Path, call: Call) -> Path:
    """The small sweep, and another one that has asked for one of its four networks."""
    assert call("sweep", *IN_OTHER, f"results={results}").code == 0
    return results


def list_sizes(results: Path, name: str = "adhoc") -> list[int]:
    return sorted(load(name, results)["runs"]["batch_size"])


def test_without_yes_networks_are_listed_and_nothing_changes(shared: Path, call: Call) -> None:
    before = files(shared)
    listed = call("runs rm name=adhoc batch_size=32", f"results={shared}")

    assert listed.code == 0, listed.err
    header, first, second, total, command = listed.out.splitlines()
    assert header.split()[:2] == ["run", "batch_size"]
    assert [line.split()[0][11:] for line in (first, second)] == ["seed_0", "seed_1"]
    assert first.endswith("other") and not second.endswith("other")
    assert total == "2 networks of 4 in adhoc would be forgotten"
    assert f"bnlab runs rm name=adhoc batch_size=32 results={shared} --yes " in command
    assert files(shared) == before


def test_with_yes_the_tables_of_that_sweep_have_them_no_more(shared: Path, call: Call) -> None:
    runs = sorted(shared.glob("runs/*/seed_*/status.json"))
    before = load("adhoc", shared)
    done = call("runs rm name=adhoc batch_size=32.0 --yes", f"results={shared}")

    assert done.code == 0, done.err
    assert "2 networks of adhoc forgotten, 2 networks left" in done.out
    assert list_sizes(shared) == [256, 256]
    assert list_sizes(shared, "other") == [32]
    assert sorted(shared.glob("runs/*/seed_*/status.json")) == runs
    for name, rows in load("adhoc", shared).items():
        left = before[name]["run"].isin(load("adhoc", shared)["runs"]["run"])
        assert len(rows) == left.sum() > 0

    again = call("sweep", *SWEEP, "hydra/launcher=basic", f"results={shared}")
    assert not list_trained(again.out)
    for name, rows in load("adhoc", shared).items():
        assert len(rows) == len(before[name])


def test_the_commands_of_a_sweep_do_not_bring_back_what_was_taken_out(swept: Path, results: Path, call: Call) -> None:
    """Run in their order they end with what there is; a sweep that asks for it again does."""
    folder = results / "adhoc"
    sweep = read_commands(folder)[0].replace(str(swept), str(results))
    locate_commands(folder).write_text(sweep, encoding="utf-8")
    assert call("runs rm name=adhoc batch_size=32 --yes", f"results={results}").code == 0

    taken_out = f"bnlab runs rm name=adhoc batch_size=32 results={results} --yes"
    assert read_commands(folder) == [sweep, taken_out]
    for command in read_commands(folder):
        _, *words = shlex.split(command)
        assert call(" ".join(words[:2]), *words[2:]).code == 0
    assert list_sizes(results) == [256, 256]

    _, *words = shlex.split(sweep)
    assert call(words[0], *words[1:]).code == 0
    assert [command.split()[1] for command in read_commands(folder)] == ["sweep"]
    assert list_sizes(results) == [32, 32, 256, 256]

    assert call("runs rm name=adhoc --yes", f"results={results}").code == 0
    assert not read_commands(folder)


def test_of_some_sweeps_only_what_was_taken_out_after_them_is_read(tmp_path: Path) -> None:
    """These commands measure outdated rows again."""
    first, taken_out, second = "bnlab sweep seed=0", "bnlab runs rm name=adhoc seed=0 --yes", "bnlab sweep seed=1"
    for command in (first, taken_out, second):
        keep_command(tmp_path, command)

    assert read_commands(tmp_path) == [first, taken_out, second]
    assert read_commands(tmp_path, {first}) == [first, taken_out]
    assert read_commands(tmp_path, {second}) == [second]
    assert read_commands(tmp_path, {""}) == [], "of an earlier version, which did not note the command"


def list_statistics(results: Path) -> dict[str, list[str]]:
    """List what each table that has estimators has rows of, for networks of either batch size."""
    tables = load("adhoc", results)
    sizes = tables["runs"][["run", "batch_size"]]
    names = {}
    for table in ("gaps", "evaluations"):
        rows = tables[table].merge(sizes, on="run")
        kinds = rows[["batch_size", "estimator", "momentum"]].drop_duplicates()
        names[table] = sorted(" ".join(map(str, kind)) for kind in kinds.itertuples(index=False))
    return names


@pytest.mark.parametrize(
    ("words", "forgotten"),
    [
        ("momentum=0.01", ["256 ema 0.01", "32 ema 0.01"]),
        ("estimator=ema,cumulative batch_size=32", ["32 cumulative nan", "32 ema 0.01", "32 ema 0.1"]),
    ],
)
def test_rows_of_a_momentum_or_an_estimator_are_taken_out(
    words: str, forgotten: list[str], results: Path, call: Call
) -> None:
    where = f"results={results}"
    before = list_statistics(results)
    unchanged = files(results)

    listed = call(f"runs rm name=adhoc {words}", where)
    assert listed.code == 0, listed.err
    assert len(listed.out.splitlines()) == len({name.split(maxsplit=1)[1] for name in forgotten}) + 3
    assert files(results) == unchanged

    done = call(f"runs rm name=adhoc {words} --yes", where)
    assert done.code == 0, done.err
    after = list_statistics(results)
    for table, names in before.items():
        assert after[table] == [name for name in names if name not in forgotten]
    assert len(load("adhoc", results)["runs"]) == 4

    again = call("sweep", *SWEEP, "hydra/launcher=basic", where)
    assert not list_trained(again.out)
    assert list_statistics(results) == before


def test_networks_are_removed_where_that_is_said(shared: Path, call: Call) -> None:
    """Of those that another sweep has asked for the rows stay, as its tables have them."""
    done = call("runs rm name=adhoc --networks --yes", f"results={shared}")

    assert done.code == 0, done.err
    assert done.out.count("removed ") == 4
    assert done.out.count("its measured rows stay") == 1
    assert not [*shared.glob("runs/*/seed_*/status.json")]
    assert len([*shared.glob("runs/*/seed_*/measurements")]) == 1
    assert list_sizes(shared, "other") == [32]
    assert call("runs list", f"results={shared}").out.startswith("no networks in ")
    assert "no results for 'adhoc'" in call("report", "name=adhoc", f"results={shared}").err


MISTAKES = {
    "rm name=adhoc bach_size=4": "bach_size=4: networks of adhoc have no such setting; did you mean batch_size?",
    "rm name=adhoc batch_size=33": "batch_size=33: no network of adhoc has it; there are 32, 256",
    "rm name=adhoc batch_size=x": "batch_size=x: no network of adhoc has it",
    "rm name=adhoc population=train --yes": "population=train: is measured on networks, and forgotten with these",
    "rm name=adhoc momentum=0.3 --yes": "momentum=0.3: no row of adhoc has it; there are 0.01, 0.1",
    "rm name=adhoc estimator=emma": "estimator=emma: no row of adhoc has it; there are cumulative, ema, exact",
    "rm name=adhoc momentum=0.1 --networks": "--networks: stands without momentum=",
    "rm name=adhook": "name=adhook: no sweep of this name has been run",
    "rm batch_size=32": "batch_size: settings stand beside rm name=NAME, or export",
    "rm name=adhoc seed=0 seed=1 --yes": "seed=1: seed is given twice; leave one of them out",
    "list --yes": "--yes: goes with rm name=NAME",
    "rm --all": "--all: no such option; there is --yes, --networks and --help",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(words: str, swept: Path, call: Call) -> None:
    before = files(swept)
    done = call(f"runs {words}", f"results={swept}")

    assert done.code == 2
    assert MISTAKES[words] in done.err
    assert done.err.count("\n") == 1
    assert files(swept) == before


def test_a_hash_names_all_of_its_seeds(results: Path, call: Call) -> None:
    where = f"results={results}"
    runs = load("adhoc", results)["runs"]
    first, *_ = runs["run"]
    of_hash = sorted(run for run in runs["run"] if run.startswith(first[:10]))
    assert len(of_hash) == 2

    shown = call(f"runs show {first[:5]}", where)
    assert [line.split()[0] for line in shown.out.splitlines() if "seed_" in line] == of_hash

    refused = call(f"runs export {first[:10]} network.safetensors", where)
    assert refused.code == 2 and "names 2 networks" in refused.err

    listed = call(f"runs rm {first[:10]}", where)
    *names, command = listed.out.splitlines()
    assert names == of_hash
    typed = shlex.join(["bnlab", "runs", "rm", first[:10], where, "--yes"])
    assert command == f"to remove these 2 networks: {typed}"
    assert call("runs list", where).out.splitlines()[-1].startswith("4 networks")

    removed = call(f"runs rm {first[:10]} --yes", where)
    assert [line.split()[1] for line in removed.out.splitlines()] == of_hash
    assert call("runs list", where).out.splitlines()[-1].startswith("2 networks")

    for verb in ("show", "export", "rm"):
        unclear = call(f"runs {verb} ", where)
        assert unclear.code == 2 and f"{verb}: name a network; bnlab runs list" in unclear.err


def test_a_file_that_is_there_is_not_overwritten(results: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "network.safetensors"
    file.write_text("mine", encoding="utf-8")
    run = load("adhoc", results)["runs"]["run"][0]

    refused = call(f"runs export {run}", str(file), f"results={results}")

    assert refused.code == 2
    assert f"{file}: is there already; name another file, or remove it" in refused.err
    assert file.read_text(encoding="utf-8") == "mine"
