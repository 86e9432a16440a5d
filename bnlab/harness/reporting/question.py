"""A question: what is drawn and decided of the tables of a sweep. Nothing is read or computed here.

A question of one's own is a module of one `Question`. The report of any sweep is a question that is made from its
tables (`any_sweep`), and a paper that is redrawn is one with `Paper`, whose figures and claims read the tables of
several sweeps. `outcome` decides claims, `drawing` draws figures, `page` writes both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, TypeVar

from bnlab.harness.errors import UserError, suggest
from bnlab.harness.reporting.frames import Score, Tables
from bnlab.harness.reporting.plots import Plot
from bnlab.harness.reporting.verdicts import Lines, Margin, above, below, within

__all__ = [
    "Claim",
    "Figure",
    "Headline",
    "Margin",
    "Paper",
    "Printed",
    "Question",
    "Score",
    "Tables",
    "above",
    "below",
    "cite",
    "show",
    "within",
]

T = TypeVar("T")
POST_HOC = "†"
"""A mark behind what is quoted from a claim that was asked, narrowed, extended or restored when numbers were known."""


@dataclass(frozen=True)
class Headline:
    """A title that takes the place of the figure's own where its claims hold, or fail.

    Attributes:
        text: a sentence without a full stop, the figure's title then.
        claims: by the name of a claim of the experiment, the conditions in which it has to hold, in words as in its
            table (`batch size 4, layer 2`: all of these words); none: in all.
        fails: likewise those that have to fail, so that the opposite holds.
    """

    text: str
    claims: Mapping[str, Sequence[str]]
    fails: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A number that a paper prints, or that follows from printed ones. Figures draw it in grey.

    Attributes:
        where: table, figure, section or file.
        source: what that was read in, such as "paper text" or "reading note".
        unit: of the value; in a figure the label of its axis.
        panel: task and network.
        series: what has this value there.
        x: its place on the horizontal axis.
        value, sd: the number, and its standard deviation over the paper's runs.
        span, axis: in place of a value a stretch of the horizontal axis, and what that axis shows. It is drawn in all
            panels of ours; a line where its ends agree.
        derived: how it follows from printed numbers.
    """

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


@dataclass(frozen=True)
class Figure:
    """One figure of a question.

    Attributes:
        title: what is drawn.
        caption: how to read it; a sentence on means, intervals and n is added, for {schedule} one on the learning rate
            where all networks have the same schedule, and for {batch_size} their batch sizes.
        score: tables to the frame that is drawn.
        plot: what draws its panels.
        headline: what is seen, its title in place of the other where the claims hold.
        panels: the name of a panel, such as `batch size {batch_size}`, of columns that tell the panels apart; empty:
            there is one panel; None: the frame's column `panel` names them.
        names: by column, words for its values, in the order in which they are drawn.
        printed: a paper's numbers: stretches of the horizontal axis in its panels, others in a panel of their own.
        networks: data sets and networks, where not those of the whole sweep are drawn.
        reads: the sweep whose tables it reads; empty: the one of the question's name.
    """

    title: str
    caption: str
    score: Score
    plot: Plot
    headline: Headline | None = None
    panels: str | None = None
    names: Mapping[str, Mapping[Any, str]] = field(default_factory=dict)
    printed: Sequence[Printed] = ()
    networks: str = ""
    reads: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement with direction and margin, written down before the numbers are known, or *post hoc*.

    Attributes:
        text: a sentence.
        score: tables to the rows of `frames.interval`; each row is a condition.
        margin: `above(b, unit, reason)`, `below(b, ...)` or `within(a, b, ...)`.
        lines: what the text says of the rows: that `each` of them is so, or that `some` are.
        post_hoc: what was done to it when numbers were known: `asked`, or how it was narrowed, extended or restored;
            empty if nothing was.
        reads: the sweep whose tables it reads; empty: the one of the question's name.
        is_cited: whether it is a claim of another question, see `cite`.
        conditions: those that are meant, as words of its table (see `outcome.find_conditions`); none: all.
        about: the part of the paper that it tests, such as `section 3`.
    """

    text: str
    score: Score
    margin: Margin
    lines: Lines = field(kw_only=True)
    post_hoc: str = field(default="", kw_only=True)
    reads: str = field(default="", kw_only=True)
    is_cited: bool = field(default=False, kw_only=True)
    conditions: Sequence[str] = field(default=(), kw_only=True)
    about: str = field(default="", kw_only=True)

    def state(self) -> str:
        """State the claim, and whether it is post hoc.

        >>> Claim("It is large.", None, None, lines="each", post_hoc="asked").state()
        'It is large (post hoc).'
        >>> Claim("It is large.", None, None, lines="each", post_hoc="layers after the first only").state()
        'It is large (post hoc: layers after the first only).'
        """
        if not self.post_hoc:
            return self.text
        how = "" if self.post_hoc == "asked" else f": {self.post_hoc}"
        return f"{self.text.removesuffix('.')} (post hoc{how})."


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper that is redrawn, or several: what it says, and what differs here. See `lab.registry.read_paper`.

    Attributes:
        title, authors, year, arxiv: of the paper.
        read, not_read: what was read of it, each with its source; what is known to be there and was not.
        setting: rows of a setting, theirs, ours.
        printed: its numbers, by the names by which figures pick them.
        differs: sentences on what differs.
        x: words before `Printed.x` where numbers are listed; empty: they go without it.
    """

    title: str
    authors: str
    year: int
    arxiv: str
    read: Sequence[Mapping[str, str]]
    not_read: Sequence[str] = ()
    setting: Sequence[Sequence[str]]
    printed: Mapping[str, Printed] = field(default_factory=dict)
    differs: Sequence[str]
    x: str = ""

    def pick(self, *names: str) -> list[Printed]:
        """Pick printed numbers for a figure."""
        return [_find("printed number", name, self.printed) for name in names]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, and what is drawn and decided on it.

    Attributes:
        figures: what is drawn, by the names of the files.
        claims: what is decided, by short names.
        bears_on: numbers of questions and hypotheses.
        sweeps: the files in conf/experiment that measure it; without any the one of its name.
        columns: measured values that its figures and claims read; committed tables have no others.
        command: what makes its results, a line each; empty: its sweeps.
        remarks: paragraphs behind its claims, on how the committed networks were made: which seeds were added when
            verdicts were known, and what they say alone; which devices trained them.
        paper: the paper that it redraws; None: it redraws none.
        name: of its module, of its file in conf/experiment and of its results.
        asks, source: the first paragraph of its module's docstring, and the others: where the question comes from.
            `lab.registry.find_question` fills in these three.
    """

    figures: Mapping[str, Figure]
    claims: Mapping[str, Claim] = field(default_factory=dict)
    bears_on: tuple[str, ...] = ()
    sweeps: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    command: str = ""
    remarks: Sequence[str] = ()
    paper: Paper | None = None
    name: str = ""
    asks: str = ""
    source: str = ""

    def list_reads(self) -> list[str]:
        """List the sweeps whose tables figures and claims read."""
        reads = [figure.reads for figure in self.figures.values()]
        reads += [claim.reads for claim in self.claims.values()]
        return list(dict.fromkeys(name or self.name for name in reads))


def cite(question: ModuleType, claim: str, about: str, *conditions: str) -> Claim:
    """Take a claim of another question, by its module, in some of its conditions or in all.

    Args:
        question: the module, such as `experiments.questions.gap`.
        claim: the name of the claim there.
        about: the part of the paper that it tests, such as `section 3`.
        conditions: those that are meant, as words of its table: `batch size 4`.
    """
    found: Claim = _find("claim", claim, question.QUESTION.claims)
    reads = found.reads or _name(question)
    return replace(found, reads=reads, is_cited=True, about=about, conditions=conditions)


def show(question: ModuleType, figure: str, printed: Sequence[Printed] = ()) -> Figure:
    """Take a figure of another question, by its module, beside a paper's numbers."""
    found: Figure = _find("figure", figure, question.QUESTION.figures)
    return replace(found, reads=found.reads or _name(question), printed=printed)


def _name(question: ModuleType) -> str:
    return question.__name__.rpartition(".")[2]


def _find(kind: str, name: str, known: Mapping[str, T]) -> T:
    if name not in known:
        raise UserError(f"no {kind} {name!r}: {suggest(name, known)}")
    return known[name]
