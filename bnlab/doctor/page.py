"""The page of a diagnosis: one file of HTML that needs nothing else, with the verdict first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

from bnlab.doctor.case import Case
from bnlab.doctor.findings import Finding, Skipped
from bnlab.doctor.picture import draw_layers
from bnlab.doctor.scores import Scores
from bnlab.doctor.verdict import ELSEWHERE, KINDS, Verdict, tell_score, tell_training
from bnlab.doctor.words import count_things, tell_number

if TYPE_CHECKING:
    import pandas as pd

_HEADLINES = {
    "averages": ("The running averages are at fault", "bad"),
    "not the averages": ("It is not the running averages", "fair"),
    "healthy": ("Healthy averages", "good"),
    "undecided": ("Undecided", "open"),
}
"""Verdict → how the page says it, and its tone."""
_TONES = {"note": "open", "warning": "fair", "error": "bad"}
_FEW = 4  # names of layers that a finding shows at once
_COLUMNS = {
    "layer": "layer",
    "codes": "findings",
    "cost": "costs alone",
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
    def judged(self) -> Verdict | None: ...
    @property
    def faults(self) -> Sequence[Finding]: ...
    @property
    def left_out(self) -> Sequence[Skipped]: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def table(self) -> pd.DataFrame: ...


def make_page(diagnosis: Report) -> str:
    """Make one self-contained page of a diagnosis: names and numbers, no images, no paths."""
    name = escape(type(diagnosis.case.model).__name__)
    style = files("bnlab.doctor").joinpath("page.css").read_text(encoding="utf-8")
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>bnlab doctor: {name}</title>",
        f"<style>\n{style}</style>",
        "</head>",
        "<body>",
        f"<h1>bnlab doctor: <code>{name}</code>, {_count_layers(diagnosis.case)}</h1>",
        *_write_verdict(diagnosis),
        *_write_scores(diagnosis.case),
        *_write_findings(diagnosis),
        *_write_picture(diagnosis),
        *_write_table(diagnosis),
        *_write_limits(diagnosis),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _count_layers(case: Case) -> str:
    counted = count_things(len(case.layers), "batch norm")
    return counted if case.evidence is None else f"{counted}, {count_things(case.evidence.images, 'image')}"


def _write_verdict(diagnosis: Report) -> Iterator[str]:
    above = [finding for finding in diagnosis.faults if finding.severity != "note"]
    counted = count_things(len(above), "finding")
    if diagnosis.judged is None:
        headline = counted if above else "Nothing above a note"
        tone = _TONES[above[0].severity] if above else "good"
        sentence = _say_why_no_verdict(diagnosis.case)
    else:
        headline, tone = _HEADLINES[diagnosis.judged.word]
        sentence = diagnosis.judged.sentence
        if diagnosis.judged.word == "healthy" and above:
            headline = f"Healthy averages, but {counted}"
            tone = _TONES[above[0].severity]
    yield f'<div class="verdict {tone}">'
    yield f'<p class="word">{headline}</p>'
    yield f"<p>{escape(sentence)}</p>"
    if diagnosis.judged is not None and diagnosis.judged.word == "healthy" and diagnosis.case.expected is None:
        yield f"<p>Is the score lower than it should be? Then look elsewhere: {ELSEWHERE}. "
        yield "With expected=, the doctor judges whether it is.</p>"
    yield "</div>"


def _say_why_no_verdict(case: Case) -> str:
    if not case.layers:
        return "No running averages: each batch is normalized by its own statistics, also in eval mode."
    if case.evidence is None:
        return "Without data. Give batches with labels to learn what it costs, and for a verdict."
    if case.evidence.misfit is not None:
        return "No verdict, because the labels do not fit the outputs. Give evaluate=."
    return "No verdict, because the batches have no labels. Give labels, or evaluate=."


def _write_scores(case: Case) -> Iterator[str]:
    """Write a table of the scores, each with its difference from that under running averages."""
    if case.evidence is None or case.evidence.scores is None:
        return
    scores = case.evidence.scores
    yield '<div class="scroll"><table>'
    gained = "gain, points [95%]" if scores.are_shares else "gain [95%]"
    yield f"<tr><th>predicting with</th>{_head(scores.metric)}{_head(gained)}</tr>"
    for kind in scores.values:
        gain = "" if kind == "running" else _tell_gain(scores, kind)
        value = tell_score(scores.mean(kind), scores)
        yield f"<tr><td>{KINDS[kind]}</td>{_number(value)}{_number(gain)}</tr>"
    yield "</table></div>"
    if scores.commonest is not None:
        always = tell_score(scores.commonest, scores)
        yield f'<p class="soft small">Always naming the commonest class would score {always}.</p>'
    if case.training_score is not None:
        yield f"<p>{escape(tell_training(case.training_score, scores))}</p>"


def _tell_gain(scores: Scores, kind: str) -> str:
    """Write how much better a kind of statistics scores than running averages, with the interval."""
    gain = scores.compare(kind, "running")
    if scores.are_shares:
        return f"{100 * gain.value:+z.1f} [{100 * gain.low:z.1f}, {100 * gain.high:z.1f}]"
    return f"{tell_number(gain.value)} [{tell_number(gain.low)}, {tell_number(gain.high)}]"


def _write_findings(diagnosis: Report) -> Iterator[str]:
    yield "<h2>Findings</h2>"
    if not diagnosis.faults:
        yield "<p>None.</p>"
        return
    yield '<p class="soft small"><code>bnlab explain CODE</code> says more of a code.</p>'
    are_shares = _are_shares(diagnosis.case)
    for finding in diagnosis.faults:
        rule = finding.rule
        yield f'<div class="finding {_TONES[finding.severity]}">'
        yield f'<h3>{escape(rule.code)} <span class="severity">{finding.severity}</span>: {escape(rule.title)}</h3>'
        yield from _write_advice(finding)
        evidence = f"Evidence: {finding.signs.evidence}.{_tell_cost(finding, are_shares)}"
        yield f'<p class="evidence soft">{escape(evidence)}</p>'
        yield _name_layers(finding.signs.layers)
        yield "</div>"


def _write_advice(finding: Finding) -> Iterator[str]:
    """Write what a finding means, and what to do or to check, the most frequent cause first."""
    meaning = escape(finding.rule.meaning)
    checks = finding.signs.checks
    if len(checks) < 2:
        yield f"<p>{meaning} <strong>{escape(finding.remedy)}</strong></p>"
        return
    yield f"<p>{meaning} The usual causes:</p>"
    items = [f"<li><strong>{escape(check)}</strong></li>" for check in checks]
    yield f"<ol>{''.join(items)}</ol>"


def _tell_cost(finding: Finding, are_shares: bool) -> str:
    if math.isnan(finding.cost):
        return ""
    return f" Costs {100 * finding.cost:.1f} points." if are_shares else f" Costs {tell_number(finding.cost)}."


def _name_layers(layers: Sequence[str]) -> str:
    names = [f"<code>{escape(name)}</code>" if name else "the model" for name in layers]
    if len(names) <= _FEW:
        return f'<p class="soft">In {", ".join(names)}.</p>'
    return f'<details><summary>In {len(names)} layers</summary><p class="small">{", ".join(names)}</p></details>'


def _write_picture(diagnosis: Report) -> Iterator[str]:
    """Draw the layers that data has reached."""
    seen = diagnosis.case.seen
    if not seen:
        return
    table = diagnosis.table
    rows = table[table["layer"].isin(seen)].to_dict("records")
    yield "<h2>Running against exact statistics, by depth</h2>"
    yield "<figure>"
    yield draw_layers(rows, _are_shares(diagnosis.case))
    yield '<figcaption class="small soft">Each row is a layer, the first one on top. '
    yield '<span class="key mean"></span> How far the running mean is from the exact mean, in standard deviations. '
    yield '<span class="key var"></span> How far the running variance is off: the logarithm of its ratio to the exact '
    yield "variance; 0.7 is a factor of 2. Both are root mean squares over channels, on a logarithmic axis. "
    if not table["cost"].isna().all():
        yield '<span class="key cost"></span> What is lost when this layer alone keeps its running statistics and all '
        yield "others have exact ones."
    yield "</figcaption></figure>"


def _are_shares(case: Case) -> bool:
    return case.evidence is not None and case.evidence.scores is not None and case.evidence.scores.are_shares


def _write_table(diagnosis: Report) -> Iterator[str]:
    table = diagnosis.table
    if table.empty:
        return
    columns = [column for column in _COLUMNS if column in table and not table[column].isna().all()]
    for column in ("training", "codes"):
        if not table[column].any():  # all in eval mode; no findings
            columns.remove(column)
    are_shares = _are_shares(diagnosis.case)
    heads = []
    for column in columns:
        title = _COLUMNS[column]
        if column == "cost" and are_shares:
            title = f"{title}, points"
        heads.append(f"<th>{title}</th>" if column in ("layer", "training", "codes") else _head(title))
    yield "<h2>Layers</h2>"
    yield '<div class="scroll"><table class="layers-table">'
    yield f"<tr>{''.join(heads)}</tr>"
    for row in table.to_dict("records"):
        cells = [_write_cell(column, row, are_shares) for column in columns]
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</table></div>"
    if "noise" in columns:
        yield (
            '<p class="small soft">Noise ratio: the gap of the mean over the noise that an average of this momentum '
            "always has, median over channels. Up to 2 it is nothing but that noise.</p>"
        )


def _write_cell(column: str, row: Mapping[Any, Any], are_shares: bool) -> str:
    """Write one cell of the table of layers."""
    value = row[column]
    if column == "layer":
        return f"<td><code>{escape(value)}</code></td>"
    if column == "codes":
        return f"<td>{escape(value)}</td>"
    if column == "training":
        return f"<td>{'train' if value else 'eval'}</td>"
    if value is None or math.isnan(value):
        return _number(_MISSING.get(column, ""))
    if column in ("channels", "updates"):
        return _number(f"{value:,.0f}")
    if column == "cost" and are_shares:
        return _number(f"{100 * value:.1f}")
    return _number(tell_number(value))


def _write_limits(diagnosis: Report) -> Iterator[str]:
    """Write what to know of the measurement, and what was not looked for, grouped by what that needs."""
    wanted: dict[str, list[Skipped]] = {}
    for skipped in diagnosis.left_out:
        wanted.setdefault(skipped.wanted, []).append(skipped)
    if wanted or diagnosis.notes:
        yield "<h2>Limits</h2>"
    for note in diagnosis.notes:
        yield f"<p>{escape(note)}</p>"
    if wanted:
        yield "<p>Not looked for:</p>"
        yield "<ul>"
    for what, group in wanted.items():
        titles = [f"{escape(each.rule.code)} {escape(each.rule.title)}" for each in group]
        yield f"<li>{'; '.join(titles)}. Needs {escape(what)}.</li>"
    if wanted:
        yield "</ul>"


def _head(title: str) -> str:
    return f'<th class="number">{escape(title)}</th>'


def _number(text: str) -> str:
    return f'<td class="number">{escape(text)}</td>'
