"""Where an experiment's tables and figures lie: in a folder of results, or among the reference results."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

    from bnlab.harness.reporting.answer import Answer

RESULTS = Path("results")
REFERENCE = Path(os.path.relpath(Path(__file__).parents[1] / "results/reference"))  # as short as messages want it


class Place(NamedTuple):
    """An experiment's results.

    Attributes:
        experiment: the name of the experiment.
        name: that of their folder.
        results: the folder in which that lies; None: they are reference results.
    """

    experiment: str
    name: str
    results: str | None

    @property
    def folder(self) -> Path:
        """Of tables and figures."""
        return (REFERENCE if self.results is None else Path(self.results)) / self.name

    @property
    def is_reference(self) -> bool:
        """Whether they are reference results, by whatever name of the folder."""
        return self.results is None or Path(self.results).resolve() == REFERENCE.resolve()

    @property
    def is_there(self) -> bool:
        """Whether it has tables."""
        return (self.folder / ("runs.parquet" if self.results is None else "parts")).exists()

    @property
    def command(self) -> str:
        """The sweep that makes them."""
        return f"python -m experiments.sweep {self.words}"

    @property
    def words(self) -> str:
        """What names them on a command line, quoted."""
        words = {"experiment": self.experiment, "name": self.name, "results": self.results or str(RESULTS)}
        usual = {"name": self.experiment, "results": str(RESULTS)}
        return shlex.join(f"{key}={word}" for key, word in words.items() if word != usual.get(key))

    @property
    def figures(self) -> Path:
        """The folder of the PNGs."""
        return self.folder if self.results is None else self.folder / "figures"

    def find_images(self, figures: Iterable[str]) -> dict[str, Path]:
        """The PNGs of these figures; without those of own results that are older than the tables, which are named."""
        paths = {name: self.figures / f"{name}.png" for name in figures}
        if self.results is None:
            return paths
        written = max((path.stat().st_mtime for path in self.folder.glob("parts/*/*")), default=0.0)
        found = {name: path for name, path in paths.items() if path.exists() and path.stat().st_mtime >= written}
        if len(found) < len(paths):
            print(
                f"{self.name}: figures that are not there or older than the tables are left out; draw those that the "
                f"tables have rows for: python -m experiments.figures {self.words}",
                file=sys.stderr,
            )
        return found

    def load(self) -> dict[str, pd.DataFrame]:
        """The tables; UserError where there are none."""
        from bnlab.harness import load
        from bnlab.harness.errors import UserError

        if not any((self.folder / entry).exists() for entry in ("parts", "runs.parquet")):
            raise UserError(f"no results for {self.name!r} in {self.results or REFERENCE}/; run: {self.command}")
        if self.results is not None:
            return load(self.name, self.results)
        import pandas as pd

        return {path.stem: pd.read_parquet(path) for path in sorted(self.folder.glob("*.parquet"))}

    def describe_changes(self, tables: Mapping[str, pd.DataFrame]) -> str:
        """In which settings these tables differ from the reference ones, in a sentence; empty if in none."""
        from experiments.changes import describe_changes

        own = Place(self.experiment, self.experiment, None)
        return describe_changes(tables, own.load()) if own.is_there and not self.is_reference else ""

    def answer(self) -> Answer:
        """What the tables say; UserError with the line of the experiment's code that failed."""
        from bnlab.harness.reporting.answer import compose_answer
        from experiments.questions import find_experiment

        question, tables = find_experiment(self.experiment), self.load()
        if self.results is not None:
            question = replace(question, command=question.command or self.command)
        with self.explain_errors(f"answers of {self.experiment}"):
            answer = compose_answer(question, tables)
        return replace(answer, changes=self.describe_changes(tables))

    def explain_errors(self, what: str) -> AbstractContextManager[None]:
        """In the block, errors of the experiment's code become UserErrors that name the tables and the line."""
        from experiments.questions import own_code

        return own_code(what, self.folder, self.command)


def names_experiment(words: list[str]) -> bool:
    """Whether one of the words of a command is `experiment=NAME`."""
    return any(word.startswith("experiment=") for word in words)


def repeat_for_experiments(words: list[str]) -> list[list[str]]:
    """The words of a command with each experiment that can be swept, if they do not name one."""
    from experiments.explain import list_choices

    if names_experiment(words):
        return [words]
    return [[f"experiment={name}", *words] for name in list_choices("experiment")]


def find_places(words: list[str]) -> list[Place]:
    """Those that the words of a command mean: without words the reference results, otherwise own ones.

    Raises:
        UserError: a word is wrong, or there are no results.
    """
    from bnlab.harness.errors import UserError
    from experiments.questions import list_questions

    if not words:
        known = [place for name in list_questions() if (place := Place(name, name, None)).is_there]
        if not known:
            raise UserError(f"no reference results in {REFERENCE}/; for your own: results={RESULTS}")
        return known
    from experiments.compose import find_results

    own = [word for word in words if word.startswith("name=")]
    if own and not names_experiment(words):
        raise UserError(f"{own[0]}: the results of which experiment? experiment=NAME {own[0]}")
    places = [Place(*find_results(command)) for command in repeat_for_experiments(words)]
    places = [place._replace(results=None) if place.is_reference else place for place in places]
    there = [place for place in places if place.is_there or names_experiment(words)]
    if not there:
        usual = places[0]._replace(experiment="quickstart", name="quickstart")
        raise UserError(
            f"no results in {usual.results or REFERENCE}/; run: {usual.command}; for those with a name of their own, "
            "name both: experiment=NAME name=NAME"
        )
    return there


def answer_all(words: list[str]) -> list[tuple[Place, Answer]]:
    """What the tables say, of each place that the words of a command mean.

    Where these name no experiment, one whose tables do not suffice, as those of half a sweep, is named and left out.

    Raises:
        UserError: as `find_places` and `Place.answer`; nothing can be answered.
    """
    from bnlab.harness.errors import UserError

    places, found = find_places(words), []
    if not words or names_experiment(words):
        return [(place, place.answer()) for place in places]
    for place in places:
        try:
            found.append((place, place.answer()))
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not found:
        raise UserError(f"none of the results in {places[0].results or REFERENCE}/ can be answered")
    return found
