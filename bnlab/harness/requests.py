"""Requests of jobs: the network's row of the table `runs`, and which measured rows a job asked for.

    results/<experiment>/requests/<run>-<digest>.json         what one job asked for; never written by two
    results/<experiment>/columns.parquet                      the columns of `runs`, without rows
    results/<experiment>/command.txt                          the commands that made its tables, the latest last
    results/runs/<run>/measurements/<table>/<digest>.parquet  the rows themselves, which live with their network

Tables are put together from the requests of an experiment when they are read.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field
from itertools import dropwhile
from pathlib import Path
from typing import Any

from bnlab.common.files import Unreadable, digest, quarantine, reading, write_text
from bnlab.harness.source_code import Code

# Their values are part of a request's name: with another setting here, each job counts as not done, and asks
# for its rows again.
MEASURED_WITH = (
    "measurements",
    "estimator",
    "momentum",
    "population",
    "population_images",
    "evaluate_at",
    "accuracy_at",
    "evaluate_on",
    "shifts",
)
"""The settings that say what is measured on a network."""


NOT_NOTED = "not noted"


@dataclass(frozen=True)
class Selection:
    """Rows of one table.

    Attributes:
        files: that hold them.
        rows: of each subject the columns in which they agree, and steps.
        code: the user's code that measured them, by estimator without its parameters, which is "" for a table without
            estimators. What only bnlab's code measures is left out.
        is_own: whether the table is of a measurement of the user's own.
    """

    files: list[str] = field(default_factory=list)
    rows: list[tuple[dict[str, Any], list[int]]] = field(default_factory=list)
    code: dict[str, Code] = field(default_factory=dict)
    is_own: bool = False


@dataclass(frozen=True)
class Request:
    """Request of a job.

    Attributes:
        run: the name of its network.
        row: of this network in the table `runs`.
        selections: the measured rows that it is about, by table.
        written: when, in ns since 1970.
        command: that ran the job; empty without a sweep.
        population_images: on how many images the network was measured before its last step, None for all of them; not
            noted by earlier versions.
        training: of the network that was measured, see `Run.training`; empty of a job that failed, and in requests of
            earlier versions.
    """

    run: str
    row: dict[str, Any]
    selections: Mapping[str, Selection]
    written: int = 0
    command: str = ""
    population_images: int | str | None = NOT_NOTED
    training: str = ""

    def is_of(self, training: str) -> bool:
        """Return whether it is about this training of its network, as far as both are known."""
        return not self.training or not training or self.training == training


def locate_request(folder: Path, run: str, settings: str) -> Path:
    """Where a job leaves its request: the name tells the run and the settings of what is measured."""
    return folder.joinpath("requests", f"{run.replace('/', '-')}-{digest(settings, digits=10)}.json")


def list_requests(folder: Path, run: str) -> list[Path]:
    """List what jobs of a sweep have asked for of a network."""
    # The dash behind the name keeps seed_1 from finding the requests of seed_10.
    return sorted(folder.glob(f"requests/{run.replace('/', '-')}-*.json"))


def locate_failure(folder: Path, run: str) -> Path:
    """Where it says why a job on a network failed in the last sweep, if one has."""
    return folder / "failures" / f"{run.replace('/', '-')}.txt"


def locate_columns(folder: Path) -> Path:
    """Where a sweep leaves what the columns of the table `runs` are."""
    return folder / "columns.parquet"


def locate_commands(folder: Path) -> Path:
    """Where sweeps leave their commands."""
    return folder / "command.txt"


def read_commands(folder: Path, sweeps: Container[str] | None = None) -> list[str]:
    """Read the commands that have made the tables of an experiment, the latest last; none of committed tables.

    Given some of its sweeps, these alone. What was taken out of their tables is among the commands, so that it does not
    come back with them.
    """
    path = locate_commands(folder)
    commands = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    chosen = [each for each in commands if sweeps is None or each in sweeps or _takes_out(each)]
    # Before the first sweep there is nothing that could be taken out.
    return list(dropwhile(_takes_out, chosen))


def _takes_out(command: str) -> bool:
    return command.startswith("bnlab runs rm ")


def locate_rows(results: Path, run: str, table: str) -> Path:
    """The folder with the files of a network's rows of a table; there is none where nothing was measured."""
    return results.joinpath("runs", run, "measurements", table)


def write_request(path: Path, request: Request) -> None:
    """Write a request, as of now unless it says when."""
    written = request.written or _find_now(path.parent.parent, request.run)
    write_text(path, json.dumps({**asdict(request), "written": written}, indent=0))


def _find_now(folder: Path, run: str) -> int:
    """Find the time, in ns since 1970; after that of all requests for this network, whatever clocks wrote them."""
    now = time.time_ns()
    for path in list_requests(folder, run):
        with contextlib.suppress(Unreadable):  # it is set aside where requests are read
            now = max(now, read_request(path).written + 1)
    return now


def read_request(path: Path) -> Request:
    """Read a request; Unreadable if that cannot be."""
    with reading(path):
        values = json.loads(path.read_text(encoding="utf-8"))
        selections = {}
        for table, selection in values["selections"].items():
            rows = [(subject, steps) for subject, steps in selection["rows"]]
            is_own = selection.get("is_own", False)  # earlier versions did not note it
            selections[table] = Selection(selection["files"], rows, selection.get("code", {}), is_own)
        return Request(
            values["run"],
            values["row"],
            selections,
            values["written"],
            values.get("command", ""),
            values.get("population_images", NOT_NOTED),
            values.get("training", ""),
        )


def read_requests(folder: Path) -> list[Request]:
    """The requests of an experiment, the newest last. Files that cannot be read are named and set aside."""
    requests = []
    for path in sorted((folder / "requests").glob("*.json")):
        try:
            requests.append(read_request(path))
        except Unreadable as error:
            quarantine(path, error, "run the sweep again to ask for its rows again")
    return sorted(requests, key=lambda request: request.written)


def has_all_rows(path: Path, results: Path, training: str) -> bool:
    """Return whether a request can be read, is about this training of its network, and has all files with its rows."""
    if not path.exists():
        return False
    try:
        request = read_request(path)
    except Unreadable:  # it is written again
        return False
    if not request.is_of(training):
        return False
    for table, selection in request.selections.items():
        folder = locate_rows(results, request.run, table)
        if not all((folder / name).exists() for name in selection.files):
            return False
    return True
