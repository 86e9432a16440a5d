"""The page of a diagnosis: one file of HTML that needs nothing else, with the verdict first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnlab.common.pages import fill_in
from bnlab.common.scores import describe_number
from bnlab.doctor.evidence.scores import Scores
from bnlab.doctor.verdict.labelled import find_best_score
from bnlab.doctor.verdict.verdict import ELSEWHERE
from bnlab.doctor.words import (
    KINDS,
    count_things,
    describe_difference,
    describe_ratio,
    describe_score,
    describe_training,
)

_TONES = {"healthy": "good", "undecided": "open", "mode": "fair", "note": "open", "warning": "fair"}
"""Verdict or severity → its colour; that of all others is "bad"."""
_FEW = 4  # names of layers that a finding shows at once
_MOST_TRIALS = 10  # rows of what was undone, beside what was chosen


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: as it is written.
        bar: the style of a bar before it; "" without one.
        width: of the bar, in em.
    """

    text: str
    bar: str = ""
    width: float = 0.0


@dataclass(frozen=True)
class PageTable:
    """A table, which scrolls where it is wider than the page.

    Attributes:
        style: its class.
        titles: of its columns.
        rows: their cells.
        chosen: whether each row is bold; none is where this is empty.
    """

    style: str
    titles: list[str]
    rows: list[list[Cell]]
    chosen: tuple[bool, ...] = ()


def make_page(diagnosis: Any) -> str:
    """Make one self-contained page of a `Diagnosis`: names and numbers, no images, no paths."""
    case = diagnosis.case
    counted = count_things(len(case.layers), "batch norm")
    if case.has_data:
        counted = f"{counted}, {count_things(case.images, 'image')}"
    trials = diagnosis.trials
    # What was chosen is shown even far down: a small undo may bring back a little less than many larger ones.
    is_shown = (trials.index < _MOST_TRIALS) | trials["chosen"]
    scores = case.scores
    training = None
    if case.training_score is not None and scores is not None:  # the images may have no labels
        best = find_best_score(scores, diagnosis.experiment)
        training = describe_training(case.training_score, scores, best)
    return fill_in(
        Path(__file__).with_name("page.html"),
        name=type(case.model).__name__,
        counted=counted,
        diagnosis=diagnosis,
        **_describe_verdict(diagnosis),
        scores=None if scores is None else _list_scores(scores),
        always=None if scores is None or scores.commonest is None else describe_score(scores.commonest, scores),
        training=training,
        find_tone=_find_tone,
        few=_FEW,
        trials=_list_trials(trials[is_shown], scores) if len(trials) else None,
        unshown=int((~is_shown).sum()),
        layers=_list_layers(diagnosis.table) if case.layers else None,
        wanted=_group_by_want(diagnosis),
    )


def _find_tone(word: str) -> str:
    """Find the colour of a verdict or a severity."""
    return _TONES.get(word, "bad")


def _describe_verdict(diagnosis: Any) -> dict[str, str]:
    """Describe the verdict: tone, what is said beside it, its reason, and where else to look."""
    above = [finding for finding in diagnosis.faults if finding.severity != "note"]
    is_healthy = diagnosis.verdict == "healthy"
    tone = diagnosis.verdict or "healthy"
    # Findings come with the most severe first.
    if above and tone == "healthy":
        tone = above[0].severity
    is_in_doubt = is_healthy and diagnosis.scores and diagnosis.case.expected is None
    return {
        "tone": _find_tone(tone),
        "beside": f", but {count_things(len(above), 'finding')}" if above and is_healthy else "",
        "reason": _end_sentence(diagnosis.reason[0].upper() + diagnosis.reason[1:]),
        "elsewhere": ELSEWHERE if is_in_doubt else "",
    }


def _end_sentence(sentence: str) -> str:
    return sentence if sentence.endswith((".", "?")) else f"{sentence}."


def _list_scores(scores: Scores) -> PageTable:
    """List the scores, each with its difference from that under running averages."""
    rows = []
    for kind in scores.values:
        gain = ""
        if kind != "running":
            gain = describe_difference(scores.compare(kind, "running"), scores)
        rows.append([Cell(KINDS[kind]), Cell(describe_score(scores.mean(kind), scores)), Cell(gain)])
    return PageTable("scores", ["predicting with", scores.metric, "gain [95%]"], rows)


def _list_trials(shown: Any, scores: Scores | None) -> PageTable:
    """List what was undone, what brings back most first."""
    # Without likelihoods, as with `evaluate=`, the scores stand in their place.
    is_score = (shown["gain"] == shown["likelihood_gain"]).all()
    titles = ["undone", "gap taken away [95%]", "free numbers"]
    if scores is not None:
        titles = ["undone", scores.metric, "gain [95%]" if is_score else "gain of the log likelihood [95%]", titles[-1]]
    rows = []
    for row in shown.to_dict("records"):
        low, gain, high = (describe_number(row[column], 2) for column in ("low", "likelihood_gain", "high"))
        cells = [row["undone"]]
        if scores is not None:
            cells.append(describe_score(row["score"], scores))
        cells += [f"{gain} [{low}, {high}]", describe_number(row["degrees"])]
        rows.append([Cell(text) for text in cells])
    return PageTable("trials", titles, rows, tuple(shown["chosen"]))


def _list_layers(table: Any) -> PageTable:
    """List the layers, with a bar for each gap, and without columns that are empty or say "eval" only."""
    columns = {}
    for name, (title, describe_cell) in _COLUMNS.items():
        values = [*table[name]] if name in table else []
        texts = [describe_cell(value) for value in values]
        if not {*texts} - {"", "eval"}:
            continue
        columns[title] = [_add_bar(name, value, text) for value, text in zip(values, texts, strict=True)]
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return PageTable("layers-table", [*columns], rows)


def _add_bar(column: str, gap: Any, text: str) -> Cell:
    """Add a bar to a gap, as long as its logarithm says, from 0.001 to 10; none where it is not known."""
    if column not in _BARS or math.isnan(gap):
        return Cell(text)
    # The bar of 0.001 has no length, and that of 10 or more has 4 em.
    return Cell(text, _BARS[column], math.log10(min(max(gap, 1e-3), 10.0)) + 3)


def _group_by_want(diagnosis: Any) -> dict[str, str]:
    """Group what was not looked for by what that needs."""
    wanted: dict[str, list[str]] = {}
    for skipped in diagnosis.left_out:
        wanted.setdefault(skipped.wanted, []).append(f"{skipped.cause.code} {skipped.cause.title}")
    return {what: "; ".join(titles) for what, titles in wanted.items()}


def _describe_name(name: str) -> str:
    return name or "the model"


def _describe_gap(gap: float) -> str:
    return "" if math.isnan(gap) else describe_number(gap)


def _describe_noise(ratio: float) -> str:
    return "" if math.isnan(ratio) else describe_ratio(ratio, 3)


def _describe_updates(updates: float) -> str:
    return "not counted" if math.isnan(updates) else f"{updates:,.0f}"


def _describe_momentum(momentum: float | None) -> str:
    # Beside numbers, pandas turns None into NaN.
    return "cumulative" if momentum is None or math.isnan(momentum) else describe_number(momentum)


def _describe_mode(is_training: bool) -> str:
    return "train" if is_training else "eval"


_COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "layer": ("layer", _describe_name),
    "codes": ("findings", str),
    "mean_gap": ("mean off, σ", _describe_gap),
    "var_gap": ("variance off, |log ratio|", _describe_gap),
    "noise": ("noise ratio", _describe_noise),
    "updates": ("updates", _describe_updates),
    "momentum": ("momentum", _describe_momentum),
    "channels": ("channels", "{:,}".format),
    "training": ("mode", _describe_mode),
}
"""Columns of the table of layers, as the page calls and writes them; on a telephone the first ones are seen."""
_BARS = {"mean_gap": "mean", "var_gap": "var"}
"""Columns with bars, and the style of these."""
