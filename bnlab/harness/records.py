"""How a measured row travels, from the job that asks for it into a table.

    results/runs/<hash>/seed_<k>/rows/<table>/<any name>.parquet    measured rows, each with its `row_key`
    results/<name>/jobs/<hash>-seed_<k>.json                        the record of a network in the sweep NAME

**Rows** lie with their network, in files that are never changed. The *key* of a row digests all that it depends on but
its step: the table, the estimator with its momentum and the split of its statistics, the images that are predicted, the
training of the network, and three things that no column says: the *code* that measured it, the *images* of its data,
and on how many of them it was measured, its *sample* (`population_images`). Rows that depend on something else have
another key, so that all of them lie side by side.

**A job** computes the keys of what its settings ask for, reads which of them the network has at which steps, and
measures what is missing (`measurements.rows`). Then it writes keys and steps into the network's record, a *part* for
each table and estimator. The rows of a part agree in code, images, sample and training; momenta may be several. A new
part that agrees in these four with the one before is joined with it; another one takes its place. The record also has
the network's row of the table `runs`, and a digest of each job's settings and code, from which it is seen that the job
is done, without reading an image. When another part takes the place of one, these digests are removed: earlier jobs on
the network then count as not done, and ask for their rows again when they are swept.

**`load(NAME)`** reads the rows whose key and step stand in a record of NAME (`reporting.tables`). Which of them come
into one table, `choose_parts` decides: rows of an estimator only if all networks agree in code, images (those with the
same data) and sample, and rows of a network only if they are of one training. Where they do not agree, the part that
was written last decides, even if nothing had to be measured for it. Parts that differ from it are left out, and one
sentence counts them and names the command that measures them again; parts that another one replaced in its record are
not counted. So rows that differ in these four are never averaged, whatever the order of sweeps; the order decides which
of them are shown.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import dropwhile
from pathlib import Path
from typing import Any

from bnlab.common.files import Unreadable, digest, quarantine, reading, write_text

VERSION = 5
"""Of all measurements of bnlab's: rows, and statistics that were kept, under another one count as missing."""
SAMPLE = "population_images"
"""The key of the sample in `Part.origin`: the name of the setting that says it."""


@dataclass(frozen=True)
class Part:
    """The rows of one estimator in one table that jobs of a sweep asked for on a network.

    Attributes:
        origin: what the rows depend on and no column says: `code`, `population_images`, and `images of <digest>`, which
            are the digests of the images of each choice of data.
        training: which training of the network they are of, see `Run.losses_digest`.
        keys: the key of each subject and its steps.
        command: the sweep that asked last.
        written: when, in ns since 1970.
        is_own: whether the table is of a measurement of the user's own.
    """

    origin: Mapping[str, str]
    training: str
    keys: Mapping[str, Sequence[int]]
    command: str = ""
    written: int = 0
    is_own: bool = False

    def is_like(self, other: Part) -> bool:
        """Return whether rows of both may stand side by side on one network."""
        return self.training == other.training and self.origin == other.origin

    def join(self, newer: Part) -> Part:
        """Join with a newer part that is like this one."""
        steps = {key: {*self.keys.get(key, ()), *newer.keys.get(key, ())} for key in {**self.keys, **newer.keys}}
        keys = {key: sorted(of_key) for key, of_key in steps.items()}
        return Part(self.origin, self.training, keys, newer.command, newer.written, newer.is_own)


Parts = Mapping[str, Mapping[str, Part]]
"""Parts by table and estimator; the estimator of a table without any is ""."""


@dataclass(frozen=True)
class Record:
    """What the jobs of a sweep asked for of a network.

    Attributes:
        run: the name of the network.
        row: of this network in the table `runs`.
        asked: digests of what jobs asked for whose rows are there.
        parts: the rows.
    """

    run: str
    row: Mapping[str, Any]
    asked: Sequence[str] = ()
    parts: Parts = field(default_factory=dict)

    @property
    def newest(self) -> Part | None:
        """The part that was written last; None of a network of which nothing was measured."""
        parts = [part for of_table in self.parts.values() for part in of_table.values()]
        return max(parts, key=lambda part: part.written, default=None)


def locate_record(folder: Path, run: str) -> Path:
    """Locate the record of a network in the folder of a sweep."""
    return folder / "jobs" / f"{run.replace('/', '-')}.json"


def locate_rows(results: Path, run: str, table: str) -> Path:
    """Locate the folder with the files of a network's rows of a table; there is none where nothing was measured."""
    return results.joinpath("runs", run, "rows", table)


def locate_failure(folder: Path, run: str) -> Path:
    """Locate the file that says why a job on a network failed in the last sweep, if one has."""
    return folder / "failures" / f"{run.replace('/', '-')}.txt"


def write_record(folder: Path, run: str, row: Mapping[str, Any], command: str, asked: str, parts: Parts) -> None:
    """Write what a job asked for into the record of its network, whose lock the caller holds.

    Args:
        folder: of the sweep.
        run: the name of the network.
        row: of the network in the table `runs`, which takes the place of an earlier one.
        command: the sweep that asked.
        asked: digest of what was asked for; empty of a job that failed.
        parts: the rows that are there.
    """
    before = read_record(folder, run) or Record(run, row)
    newest = before.newest
    now = max(time.time_ns(), newest.written + 1 if newest else 0)

    tables = {table: dict(of_table) for table, of_table in before.parts.items()}
    trainings = {part.training for of_table in parts.values() for part in of_table.values()}
    are_all_kept = newest is None or trainings <= {newest.training}
    for table, of_table in parts.items():
        for estimator, part in of_table.items():
            fresh = replace(part, command=command, written=now)
            known = tables.setdefault(table, {}).get(estimator)
            if known is not None and known.is_like(fresh):
                fresh = known.join(fresh)
            elif known is not None:
                are_all_kept = False
            tables[table][estimator] = fresh

    # Where the network was trained again, or a part took another one's place, jobs that had asked are done no more.
    done = [*before.asked] if are_all_kept else []
    if asked and asked not in done:
        done.append(asked)
    record = Record(run, row, done, tables)
    write_text(locate_record(folder, run), json.dumps(asdict(record), separators=(",", ":")))


def read_record(folder: Path, run: str) -> Record | None:
    """Read the record of a network; None if there is none. One that cannot be read is named and set aside."""
    path = locate_record(folder, run)
    return _read(path) if path.exists() else None


def read_records(folder: Path) -> list[Record]:
    """Read the records of a sweep, by the names of networks. Those that cannot be read are named and set aside."""
    records = [_read(path) for path in sorted((folder / "jobs").glob("*.json"))]
    return [record for record in records if record is not None]


def _read(path: Path) -> Record | None:
    try:
        with reading(path):
            values = json.loads(path.read_text(encoding="utf-8"))
            parts = {
                table: {estimator: Part(**part) for estimator, part in of_table.items()}
                for table, of_table in values["parts"].items()
            }
            return Record(values["run"], values["row"], values["asked"], parts)
    except Unreadable as error:
        quarantine(path, error, "run the sweep again to ask for its rows again")
        return None


@dataclass(frozen=True)
class Chosen:
    """The part of a network, table and estimator whose rows are shown."""

    run: str
    table: str
    estimator: str
    part: Part


def choose_parts(records: Iterable[Record]) -> tuple[list[Chosen], list[str]]:
    """Choose the parts whose rows are shown together.

    Returns:
        These, and a sentence on the others, if there are any.
    """
    parts: dict[tuple[str, str], list[Chosen]] = {}  # by table and estimator
    trainings = {}
    for record in records:
        if record.newest is not None:
            trainings[record.run] = record.newest.training
        for table, of_table in record.parts.items():
            for estimator, part in of_table.items():
                parts.setdefault((table, estimator), []).append(Chosen(record.run, table, estimator, part))

    chosen: list[Chosen] = []
    left_out: list[_LeftOut] = []
    for candidates in parts.values():
        shown_origin: dict[str, str] = {}
        for candidate in sorted(candidates, key=lambda each: each.part.written, reverse=True):
            part = candidate.part
            differing = {name for name, value in part.origin.items() if shown_origin.get(name, value) != value}
            if part.training != trainings[candidate.run]:
                differing.add("training")
            if differing:
                left_out.append(_LeftOut(candidate, differing, shown_origin.get(SAMPLE, "")))
            else:
                chosen.append(candidate)
                shown_origin |= part.origin
    return chosen, [_say_left_out(left_out)] if left_out else []


@dataclass(frozen=True)
class _LeftOut:
    """A part that is left out: in what it differs from those that are shown, and the sample of these."""

    chosen: Chosen
    differing: set[str]
    sample: str


def _say_left_out(parts: Sequence[_LeftOut]) -> str:
    """Say whose rows are left out, why, and how they are measured again."""
    networks = {each.chosen.run for each in parts}
    names = dict.fromkeys(each.chosen.estimator or each.chosen.table for each in parts)
    words = {"code": "by other code", SAMPLE: "on another number of images", "training": "in another training"}
    differing = set[str]().union(*(each.differing for each in parts))
    reasons = {words.get(name, "on other images") for name in differing}
    commands = dict.fromkeys(_complete(each) for each in parts if each.chosen.part.command)
    count = "1 network" if len(networks) == 1 else f"{len(networks):,} networks"
    return (
        f"rows of {', '.join(names)} on {count} are left out: they were measured {' or '.join(sorted(reasons))} than "
        f"the newest; to measure them again: {'; '.join(commands) or 'sweep again'}"
    )


def _complete(left_out: _LeftOut) -> str:
    """Write the command that measures a part again as those are that are shown."""
    words = shlex.split(left_out.chosen.part.command)
    if SAMPLE in left_out.differing:
        words = [word for word in words if not word.startswith(f"{SAMPLE}=")]
        words.append(f"{SAMPLE}={left_out.sample}")
    return shlex.join(words)


def locate_summary(folder: Path) -> Path:
    """Locate the summary of the tables that were put together."""
    return folder / "tables" / "records.json"


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read the summary of the tables: `records`, `rows` by table, `notes` and `own` ones.

    None if there is none, a table is missing, or records have changed since they were put together.
    """
    path = locate_summary(folder)
    try:
        with reading(path):
            summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            are_there = all(path.with_name(f"{name}.parquet").exists() for name in summary["rows"])
            are_current = summary["records"] == digest_records(folder)
    except Unreadable:  # or there is none
        return None
    return summary if are_there and are_current else None


def digest_records(folder: Path) -> str:
    """Digest which records there are, and when each was written."""
    if not (folder / "jobs").is_dir():
        return ""
    with os.scandir(folder / "jobs") as entries:
        stamps = sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries if entry.name.endswith(".json"))
    return digest(json.dumps(stamps))


def locate_commands(folder: Path) -> Path:
    """Locate the file with the commands that have made the tables of a sweep."""
    return folder / "command.txt"


def read_commands(folder: Path) -> list[str]:
    """Read the commands that have made the tables of a sweep, the latest last; none of committed tables.

    What was taken out of the tables is among them, so that it does not come back with them.
    """
    path = locate_commands(folder)
    commands = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    # Before the first sweep there is nothing that could be taken out.
    return list(dropwhile(lambda command: command.startswith("bnlab runs rm "), commands))


def list_sweeps_with(results: Path, run: str) -> Iterator[str]:
    """List the sweeps that have a record of a network."""
    for path in sorted(results.glob("*/jobs")):
        if locate_record(path.parent, run).exists():
            yield path.parent.name
