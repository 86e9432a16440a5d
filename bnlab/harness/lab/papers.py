"""Papers that are redrawn: what a file of experiments/papers declares.

docs/contributing/adding.md says how one is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from bnlab.harness.errors import UserError, suggest
from bnlab.harness.lab.registry import list_papers

if TYPE_CHECKING:
    from bnlab.harness.reporting.verdicts import Lines

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number that a paper prints, or that follows from printed ones.

    Attributes:
        id: the name by which figures mark it.
        where: table, figure, section or file.
        source: what that was read in, such as "paper text" or "reading note".
        unit: of the value; in a figure the label of its axis.
        panel: task and network.
        series: what has this value there.
        x: its place on the horizontal axis.
        value, sd: the number, and its standard deviation over the paper's runs.
        span, axis: in place of a value a stretch of the horizontal axis, and what that axis shows.
        derived: how it follows from printed numbers.
    """

    id: str
    where: str
    source: str
    unit: str
    panel: str = ""
    series: str = ""
    x: float = math.nan
    value: float = math.nan
    sd: float = math.nan
    span: Sequence[float] = ()
    axis: str = ""
    derived: str = ""


@dataclass(frozen=True, kw_only=True)
class DeclaredFigure:
    """A figure as its file declares it: one of an experiment (`of`), or a new one.

    Attributes:
        of: an existing figure, as `gap.layers`; of the rest `marks` alone is read then.
        title, caption: see `experiment.Figure`; what grey means is added to the caption.
        plot: `kind`, the name of a class of `plots`, and its settings.
        marks: the printed numbers that it draws.
        experiment: whose tables it reads; by default that of the paper's name.
        score: arguments of `frames.score`; None: it draws printed numbers only.
        panels: columns that name our panels, if the score has no panel that serves.
        names: by column, words for its values, in the order in which they are drawn.
    """

    of: str = ""
    title: str = ""
    plot: Mapping[str, Any] = field(default_factory=dict)
    marks: Sequence[str] = ()
    caption: str = ""
    experiment: str = ""
    score: Mapping[str, Any] | None = None
    panels: Sequence[str] | None = None
    names: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DeclaredMargin:
    """A margin as its file declares it: bounds of which one is missing, or both as `within`; see `verdicts.Margin`."""

    above: float = -math.inf
    below: float = math.inf
    within: tuple[float, float] | None = None
    unit: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class DeclaredClaim:
    """A claim as its file declares it: one of an experiment (`of`), or a new one.

    Attributes:
        about: what of the paper it is on.
        of: an existing claim, as `gap.costs_early`.
        conditions: those of it that are meant, see `experiment.find_conditions`; none: all.
        experiment, text, score, margin, lines, post_hoc: of a new claim; see `DeclaredFigure` and `experiment.Claim`.
    """

    about: str = ""
    of: str = ""
    conditions: Sequence[str] = ()
    experiment: str = ""
    text: str = ""
    score: Mapping[str, Any] | None = None
    margin: Mapping[str, Any] | None = None
    lines: Lines | None = None
    post_hoc: str = ""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper: what it asks and prints, and what is drawn and claimed of it here.

    Attributes:
        name: of its file and of its page.
        title, authors, year, arxiv: of the paper, or of several.
        question: a sentence or two.
        read, not_read: what was read of it, with the source; what is known to be there and was not.
        setting: rows of a setting, theirs, ours.
        printed: its numbers.
        figures, claims: by short names.
        differs: sentences on what differs.
        x: words before `Number.x` where numbers are listed; empty: they go without it.
    """

    name: str
    title: str
    authors: str
    year: int
    arxiv: str
    question: str
    read: Sequence[Mapping[str, str]]
    not_read: Sequence[str]
    setting: Sequence[Sequence[str]]
    printed: Sequence[Number]
    figures: Mapping[str, DeclaredFigure]
    claims: Mapping[str, DeclaredClaim]
    differs: Sequence[str]
    x: str = ""

    def list_experiments(self) -> list[str]:
        """List the experiments whose tables figures and claims read."""
        names = [figure.experiment for figure in self.figures.values()]
        names += [claim.experiment for claim in self.claims.values()]
        return list(dict.fromkeys(names))


Part = TypeVar("Part", DeclaredFigure, DeclaredClaim)


def read_paper(name: str) -> Paper:
    """Read a paper's file; UserError where there is none, or a key is unknown or missing."""
    papers = list_papers()
    if name not in papers:
        raise UserError(f"no paper {name!r}: {suggest(name, papers)}")
    path = papers[name]
    try:
        declared = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(declared, Mapping):
        raise UserError(f"{path}: holds no settings of a paper; docs/contributing/adding.md says how one is written")
    return make_paper(declared)


def make_paper(declared: Mapping[str, Any]) -> Paper:
    """Make a paper of what its file declares."""
    name = declared.get("name", "paper")
    for sentence in (*declared.get("differs", ()), *declared.get("not_read", ())):
        if not isinstance(sentence, str):
            raise UserError(f"{name}: put quotes around {sentence}, which is no text for its colon")
    printed = [make_declared(Number, number, f"{name}, printed") for number in declared.get("printed", [])]
    figures = {}
    for key, figure in declared.get("figures", {}).items():
        figures[key] = _make_part(DeclaredFigure, figure, name, f"{name}, figure {key}")
    claims = {}
    for key, claim in declared.get("claims", {}).items():
        claims[key] = _make_part(DeclaredClaim, claim, name, f"{name}, claim {key}")
    return make_declared(Paper, {**declared, "printed": printed, "figures": figures, "claims": claims}, name)


def _make_part(kind: type[Part], declared: Any, paper: str, where: str) -> Part:
    """Make a figure or a claim, whose experiment is that of `of`, or of the paper's name."""
    made = make_declared(kind, declared, where)
    if made.experiment:
        return made
    experiment, _, _ = (made.of or paper).partition(".")
    return replace(made, experiment=experiment)


def make_declared(kind: type[T], declared: Any, where: str) -> T:
    """Make an object of a class of data; UserError for a key that it does not have, or one that is missing."""
    if not isinstance(declared, Mapping):
        raise UserError(f"{where}: {declared!r} is no mapping")
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    # Checked here, because the constructor's TypeError would name neither the place nor the closest key.
    for key in declared:
        if key not in known:
            raise UserError(f"{where}: no key {key!r}; {suggest(key, known)}")
    for key, each in known.items():
        has_default = each.default is not MISSING or each.default_factory is not MISSING
        if key not in declared and not has_default:
            raise UserError(f"{where}: {key} is missing")
    return kind(**declared)
