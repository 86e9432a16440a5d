"""`bnlab runs`: networks that are listed, taken out of a sweep, or removed; what other sweeps have stays."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bnlab.harness import load
from bnlab.harness.records import locate_commands, read_commands
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
    assert total.startswith("2 networks of 4 in adhoc")
    assert f"bnlab runs rm name=adhoc batch_size=32 results={shared} --yes " in command
    assert files(shared) == before


def test_with_yes_the_tables_of_that_sweep_have_them_no_more(shared: Path, call: Call) -> None:
    runs = sorted(shared.glob("runs/*/seed_*/status.json"))
    before = load("adhoc", shared)
    done = call("runs rm name=adhoc batch_size=32.0 --yes", f"results={shared}")

    assert done.code == 0, done.err
    assert "2 networks of adhoc" in done.out
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


def test_lists_and_removals_take_the_same_filters(shared: Path, call: Call) -> None:
    where = f"results={shared}"

    def list_runs(line: str) -> list[str]:
        done = call(line, where)
        assert done.code == 0, done.err
        return [line.split()[0] for line in done.out.splitlines() if "/seed_" in line.split(" ")[0]]

    of_large = list_runs("runs list batch_size=256")
    assert len(of_large) == 2
    assert list_runs("runs list name=adhoc batch_size=256.0 seed=0,1") == of_large
    (of_other,) = list_runs("runs list name=other")
    assert list_runs("runs list batch_size=32 seed=0") == [of_other]

    assert list_runs("runs rm batch_size=256") == of_large
    assert len(list_runs("runs list")) == 4
    assert call("runs rm batch_size=256 --yes", where).code == 0
    assert list_runs("runs list batch_size=32") == list_runs("runs list")
    assert list_sizes(shared) == [32, 32, 256, 256]
    assert len([*shared.glob("runs/*/seed_*/rows/gaps/*.parquet")]) == 4, "their rows stay"


def test_networks_are_removed_where_that_is_said(shared: Path, call: Call) -> None:
    """Of those that another sweep has asked for the rows stay, as its tables have them."""
    done = call("runs rm name=adhoc --networks --yes", f"results={shared}")

    assert done.code == 0, done.err
    assert done.out.count("removed ") == 4
    assert done.out.count("its measured rows stay") == 1
    assert not [*shared.glob("runs/*/seed_*/status.json")]
    assert len([*shared.glob("runs/*/seed_*/rows")]) == 1
    assert list_sizes(shared, "other") == [32]
    assert call("runs list", f"results={shared}").out.startswith("no networks in ")
    assert "'adhoc'" in call("report", "name=adhoc", f"results={shared}").err


MISTAKES = {
    "rm name=adhoc bach_size=4": "bach_size=4: .* batch_size",
    "rm name=adhoc batch_size=33": "batch_size=33: .* 256, 32",
    "list batch_size=x": "batch_size=x: ",
    "rm name=adhoc momentum=0.3 --yes": "momentum=0.3: ",
    "rm name=adhook": "name=adhook: ",
    "rm name=adhoc seed=0 seed=1 --yes": "seed=1: seed ",
    "list --yes": "list --yes",
    "rm batch_size=32 --networks": "rm: ",
    "rm --all": "--all: .* --yes, --networks ",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(words: str, swept: Path, call: Call) -> None:
    before = files(swept)
    done = call(f"runs {words}", f"results={swept}")

    assert done.code == 2
    assert re.search(MISTAKES[words], done.err)
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
    assert refused.code == 2 and "2 networks" in refused.err

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
        assert unclear.code == 2 and "bnlab runs list" in unclear.err


def test_a_file_that_is_there_is_not_overwritten(results: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "network.safetensors"
    file.write_text("mine", encoding="utf-8")
    run = load("adhoc", results)["runs"]["run"][0]

    refused = call(f"runs export {run}", str(file), f"results={results}")

    assert refused.code == 2
    assert f"{file}: " in refused.err
    assert file.read_text(encoding="utf-8") == "mine"
