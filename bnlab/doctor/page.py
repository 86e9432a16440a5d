"""The page of a diagnosis: one file of HTML that needs nothing else, with the verdict first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, Protocol

from bnlab.doctor.case import Case
from bnlab.doctor.findings import Finding, Skipped
from bnlab.doctor.picture import draw_layers
from bnlab.doctor.scores import Scores
from bnlab.doctor.verdict import ELSEWHERE, KINDS, tell, tell_score, tell_training
from bnlab.doctor.words import count_things, tell_number

if TYPE_CHECKING:
    import pandas as pd

_TONES = {"healthy": "good", "undecided": "open", "mode": "fair", "note": "open", "warning": "fair"}
"""Verdict or severity → its colour; that of all others is "bad"."""
_FEW = 4  # names of layers that a finding shows at once
_MOST_TRIALS = 10  # rows of what was undone, beside what was chosen
_COLUMNS = {
    "layer": "layer",
    "codes": "findings",
    "mean_gap": "mean off, σ",
    "var_gap": "variance off, |log ratio|",
    "noise": "noise ratio",
    "updates": "updates",
    "momentum": "momentum",
    "channels": "channels",
    "training": "mode",
}
"""Columns of the table of layers, as the page calls them; what matters most is seen first on a telephone."""
_MISSING = {"momentum": "cumulative", "updates": "not counted"}
"""What stands in the place of a missing number."""


class Report(Protocol):
    """What a page shows of a `Diagnosis`, which says what each of these is."""

    @property
    def case(self) -> Case: ...
    @property
    def verdict(self) -> str | None: ...
    @property
    def headline(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def faults(self) -> Sequence[Finding]: ...
    @property
    def left_out(self) -> Sequence[Skipped]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def trials(self) -> pd.DataFrame: ...
    @property
    def table(self) -> pd.DataFrame: ...


def make_page(diagnosis: Report) -> str:
    """Make one self-contained page of a diagnosis: names and numbers, no images, no paths."""
    name = escape(type(diagnosis.case.model).__name__)
    parts = [
        f"<h1>bnlab doctor: <code>{name}</code>, {_count_layers(diagnosis.case)}</h1>",
        *_write_verdict(diagnosis),
        *_write_scores(diagnosis.case),
        *_write_findings(diagnosis.faults),
        *_write_trials(diagnosis.trials, _find_scores(diagnosis.case)),
        *_write_picture(diagnosis),
        *_write_layers(diagnosis.table),
        *_write_limits(diagnosis),
    ]
    template = files("bnlab.doctor").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(name=name, body="\n".join(parts))


def _find_scores(case: Case) -> Scores | None:
    return None if case.evidence is None else case.evidence.scores


def _count_layers(case: Case) -> str:
    counted = count_things(len(case.layers), "batch norm")
    return counted if case.evidence is None else f"{counted}, {count_things(case.evidence.images, 'image')}"


def _write_verdict(diagnosis: Report) -> Iterator[str]:
    above = [finding for finding in diagnosis.faults if finding.severity != "note"]
    is_healthy = diagnosis.verdict == "healthy"
    tone = _TONES.get(diagnosis.verdict or "healthy", "bad")
    if above and (is_healthy or diagnosis.verdict is None):
        tone = _TONES.get(above[0].severity, "bad")
    beside = f", but {count_things(len(above), 'finding')}" if above and is_healthy else ""
    reason = diagnosis.reason[0].upper() + diagnosis.reason[1:].removesuffix(".")

    yield f'<div class="verdict {tone}">'
    yield f'<p class="word">{diagnosis.headline}{beside}</p>'
    yield f"<p>{escape(reason)}.</p>"
    if is_healthy and diagnosis.case.expected is None:
        yield f"<p>Is the score lower than it should be? Then look elsewhere: {ELSEWHERE}. "
        yield "With expected=, the doctor judges whether it is.</p>"
    yield "</div>"


def _write_scores(case: Case) -> Iterator[str]:
    """Write a table of the scores, each with its difference from that under running averages."""
    scores = _find_scores(case)
    if scores is None:
        return
    rows = []
    for kind in scores.values:
        gain = "" if kind == "running" else tell(scores.compare(kind, "running"), scores)
        rows.append([KINDS[kind], tell_score(scores.mean(kind), scores), gain])
    yield _make_table(["predicting with", scores.metric, "gain [95%]"], rows, "scores")
    if scores.commonest is not None:
        always = tell_score(scores.commonest, scores)
        yield f'<p class="soft small">Always naming the commonest class would score {always}.</p>'
    if case.training_score is not None:
        yield f"<p>{escape(tell_training(case.training_score, scores))}</p>"


def _write_findings(findings: Sequence[Finding]) -> Iterator[str]:
    yield "<h2>Findings</h2>"
    more = '<span class="soft small"><code>bnlab explain CODE</code> says more of a code.</span>'
    yield f"<p>{more if findings else 'None.'}</p>"
    for finding in findings:
        cause = finding.cause
        severity = f'<span class="severity">{finding.severity}</span>'
        yield f'<div class="finding {_TONES.get(finding.severity, "bad")}">'
        yield f"<h3>{escape(cause.code)} {severity}: {escape(cause.title)}</h3>"
        yield f"<p>{escape(cause.meaning)} <strong>{escape(cause.remedy)}</strong></p>"
        yield f'<p class="evidence soft">Evidence: {escape(finding.evidence)}.</p>'
        yield _name_layers(finding.layers)
        yield "</div>"


def _name_layers(layers: Sequence[str]) -> str:
    names = [f"<code>{escape(name)}</code>" if name else "the model" for name in layers]
    if len(names) <= _FEW:
        return f'<p class="soft">In {", ".join(names)}.</p>'
    return f'<details><summary>In {len(names)} layers</summary><p class="small">{", ".join(names)}</p></details>'


def _write_trials(table: pd.DataFrame, scores: Scores | None) -> Iterator[str]:
    """Write a table of what was undone, what brings back most first."""
    if table.empty:
        return
    titles = ["undone", f"{_name_judge(table, scores)} [95%]", "free numbers"]
    if scores is not None:
        titles.insert(1, scores.metric)
    shown = table[(table.index < _MOST_TRIALS) | table["chosen"]]
    unshown = len(table) - len(shown)
    rows = [_tell_trial(row, scores) for row in shown.to_dict("records")]
    yield "<h2>What was undone, and what that brought back</h2>"
    yield _make_table(titles, rows, "trials", shown["chosen"].tolist())
    yield '<p class="small soft">Bold: why the verdict is what it is; of what brings back as much as the best, it has '
    yield "the fewest free numbers. Intervals hold for all at once."
    yield f" Not shown: {unshown} that brought back less.</p>" if unshown else "</p>"


def _name_judge(table: pd.DataFrame, scores: Scores | None) -> str:
    """Name what undos are ranked by."""
    if scores is None:
        return "gap taken away"
    is_score = bool((table["gain"] == table["likelihood_gain"]).all())
    return "gain" if is_score else "gain of the log likelihood"


def _tell_trial(row: Mapping[Any, Any], scores: Scores | None) -> list[str]:
    """Tell the cells of a row of the table of what was undone."""
    low, gain, high = (tell_number(row[column], 2) for column in ("low", "likelihood_gain", "high"))
    cells = [row["undone"], f"{gain} [{low}, {high}]", tell_number(row["degrees"])]
    if scores is not None:
        cells.insert(1, tell_score(row["score"], scores))
    return cells


def _write_picture(diagnosis: Report) -> Iterator[str]:
    """Draw the layers that data has reached."""
    table = diagnosis.table
    rows = table[table["layer"].isin(diagnosis.case.seen)].to_dict("records")
    if not rows:
        return
    yield "<h2>Running against exact statistics, by depth</h2>"
    yield "<figure>"
    yield draw_layers(rows)
    yield '<figcaption class="small soft">Each row is a layer, the first one on top. '
    yield '<span class="key mean"></span> How far the running mean is from the exact mean, in standard deviations. '
    yield '<span class="key var"></span> How far the running variance is off: the logarithm of its ratio to the exact '
    yield "variance; 0.7 is a factor of 2. Both are root mean squares over channels, on a logarithmic axis. "
    yield "</figcaption></figure>"


def _write_layers(table: pd.DataFrame) -> Iterator[str]:
    if table.empty:
        return
    columns = [column for column in _COLUMNS if column in table and not table[column].isna().all()]
    for column in ("training", "codes"):
        if not table[column].any():  # all in eval mode; no findings
            columns.remove(column)
    rows = []
    for row in table.to_dict("records"):
        rows.append([_tell_cell(column, row[column]) for column in columns])
    yield "<h2>Layers</h2>"
    yield _make_table([_COLUMNS[column] for column in columns], rows, "layers-table")
    if "noise" in columns:
        yield '<p class="small soft">Noise ratio: the gap of the mean over the noise that an average of this momentum '
        yield "always has, median over channels. Up to 2 it is nothing but that noise.</p>"


def _tell_cell(column: str, value: Any) -> str:
    """Tell one cell of the table of layers."""
    if column in ("layer", "codes"):
        return str(value)
    if column == "training":
        return "train" if value else "eval"
    if value is None or math.isnan(value):
        return _MISSING.get(column, "")
    return f"{value:,.0f}" if column in ("channels", "updates") else tell_number(value)


def _write_limits(diagnosis: Report) -> Iterator[str]:
    """Write what to know of the measurement, and what was not looked for, grouped by what that needs."""
    wanted: dict[str, list[str]] = {}
    for skipped in diagnosis.left_out:
        title = f"{skipped.cause.code} {skipped.cause.title}"
        wanted.setdefault(skipped.wanted, []).append(title)
    if wanted or diagnosis.notes:
        yield "<h2>Limits</h2>"
    for note in diagnosis.notes:
        yield f"<p>{escape(note)}</p>"
    if wanted:
        items = [f"<li>{escape('; '.join(titles))}. Needs {escape(what)}.</li>" for what, titles in wanted.items()]
        yield f"<p>Not looked for:</p><ul>{''.join(items)}</ul>"


def _make_table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], style: str, chosen: Sequence[bool] | None = None
) -> str:
    """Make a table that scrolls where it is wider than the page; the chosen rows are bold."""
    heads = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = [f'<div class="scroll"><table class="{style}">', f"<tr>{heads}</tr>"]
    are_chosen = chosen or [False] * len(rows)
    for row, is_chosen in zip(rows, are_chosen, strict=True):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        start = '<tr class="chosen">' if is_chosen else "<tr>"
        lines.append(f"{start}{cells}</tr>")
    lines.append("</table></div>")
    return "\n".join(lines)
