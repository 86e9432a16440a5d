"""The page of a diagnosis: one file of HTML that needs nothing else, with the verdict first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from bnlab.doctor.evidence.scores import Scores
from bnlab.doctor.verdict.findings import Finding
from bnlab.doctor.verdict.verdict import ELSEWHERE
from bnlab.doctor.words import KINDS, count_things, describe_number, describe_score, describe_training, tell

_TONES = {"healthy": "good", "undecided": "open", "mode": "fair", "note": "open", "warning": "fair"}
"""Verdict or severity → its colour; that of all others is "bad"."""
_FEW = 4  # names of layers that a finding shows at once
_MOST_TRIALS = 10  # rows of what was undone, beside what was chosen


def make_page(diagnosis: Any) -> str:
    """Make one self-contained page of a `Diagnosis`: names and numbers, no images, no paths."""
    case = diagnosis.case
    scores = case.scores
    counted = count_things(len(case.layers), "batch norm")
    if case.has_data:
        counted = f"{counted}, {count_things(case.images, 'image')}"

    name = escape(type(case.model).__name__)
    parts = [f"<h1>bnlab doctor: <code>{name}</code>, {counted}</h1>", *_write_verdict(diagnosis)]
    if scores is not None:
        parts += _write_scores(scores, case.training_score)
    parts += _write_findings(diagnosis.faults)
    if len(diagnosis.trials):
        parts += _write_trials(diagnosis.trials, scores)
    if case.layers:
        parts += _write_layers(diagnosis.table)
    parts += _write_limits(diagnosis)
    template = files("bnlab.doctor.report").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(name=name, body="\n".join(parts))


def _write_verdict(diagnosis: Any) -> Iterator[str]:
    above = [finding for finding in diagnosis.faults if finding.severity != "note"]
    is_healthy = diagnosis.verdict == "healthy"
    tone = diagnosis.verdict or "healthy"
    if above and tone == "healthy":
        tone = above[0].severity
    beside = f", but {count_things(len(above), 'finding')}" if above and is_healthy else ""
    reason = diagnosis.reason[0].upper() + diagnosis.reason[1:].removesuffix(".")

    yield f'<div class="verdict {_TONES.get(tone, "bad")}">'
    yield f'<p class="word">{diagnosis.headline}{beside}</p>'
    yield f"<p>{escape(reason)}.</p>"
    if is_healthy and diagnosis.scores and diagnosis.case.expected is None:
        yield f"<p>Is the score lower than it should be? Then look elsewhere: {ELSEWHERE}. "
        yield "With expected=, the doctor judges whether it is.</p>"
    yield "</div>"


def _write_scores(scores: Scores, training_score: float | None) -> Iterator[str]:
    """Write a table of the scores, each with its difference from that under running averages."""
    rows = []
    for kind in scores.values:
        gain = "" if kind == "running" else tell(scores.compare(kind, "running"), scores)
        rows.append([KINDS[kind], describe_score(scores.mean(kind), scores), gain])
    yield _make_table(["predicting with", scores.metric, "gain [95%]"], rows, "scores")
    if scores.commonest is not None:
        always = describe_score(scores.commonest, scores)
        yield f'<p class="soft small">Always naming the commonest class would score {always}.</p>'
    if training_score is not None:
        yield f"<p>{escape(describe_training(training_score, scores))}</p>"


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
        yield f'<p class="soft">Evidence: {escape(finding.evidence)}.</p>'
        yield _name_layers(finding.layers)
        yield "</div>"


def _name_layers(layers: Sequence[str]) -> str:
    names = [f"<code>{escape(name)}</code>" if name else "the model" for name in layers]
    if len(names) <= _FEW:
        return f'<p class="soft">In {", ".join(names)}.</p>'
    return f'<details><summary>In {len(names)} layers</summary><p class="small">{", ".join(names)}</p></details>'


def _write_trials(table: Any, scores: Scores | None) -> Iterator[str]:
    """Write a table of what was undone, what brings back most first."""
    shown = table[(table.index < _MOST_TRIALS) | table["chosen"]]
    rows = []
    for row in shown.to_dict("records"):
        low, gain, high = (describe_number(row[column], 2) for column in ("low", "likelihood_gain", "high"))
        cells = [escape(row["undone"]), f"{gain} [{low}, {high}]", describe_number(row["degrees"])]
        rows.append(cells if scores is None else [cells[0], describe_score(row["score"], scores), *cells[1:]])

    titles = ["undone", "gap taken away [95%]", "free numbers"]
    if scores is not None:
        is_score = (table["gain"] == table["likelihood_gain"]).all()
        titles = ["undone", scores.metric, "gain [95%]" if is_score else "gain of the log likelihood [95%]", titles[-1]]
    yield "<h2>What was undone, and what that brought back</h2>"
    yield _make_table(titles, rows, "trials", chosen=[*shown["chosen"]])
    yield '<p class="small soft">Bold: why the verdict is what it is; of what brings back as much as the best, it has '
    yield "the fewest free numbers. Intervals hold for all at once."
    unshown = len(table) - len(shown)
    yield f" Not shown: {unshown} that brought back less.</p>" if unshown else "</p>"


def _write_layers(table: Any) -> Iterator[str]:
    """Write a table of the layers, with a bar for each gap, and without columns that are empty or say "eval" only."""
    columns = {}
    for name, (title, describe_cell) in _COLUMNS.items():
        values = [*table[name]] if name in table else []
        cells = [escape(describe_cell(value)) for value in values]
        if not {*cells} - {"", "eval"}:
            continue
        if name in _BARS:
            cells = [_draw_bar(value, _BARS[name]) + cell for value, cell in zip(values, cells, strict=True)]
        columns[title] = cells
    yield "<h2>Layers</h2>"
    yield _make_table([*columns], [*zip(*columns.values(), strict=True)], "layers-table")
    if "noise ratio" in columns:
        yield '<p class="small soft">Noise ratio: the gap of the mean over the noise that an average of this momentum '
        yield "always has, median over channels. Up to 2 it is nothing but that noise. Bars are on a logarithmic "
        yield "scale, from 0.001 to 10; a variance whose log ratio is 0.7 is off by a factor of 2.</p>"


def _draw_bar(gap: float, style: str) -> str:
    """Draw a bar as long as the logarithm of a gap says, from 0.001 to 10; none where it is not known."""
    if math.isnan(gap):
        return ""
    decades = math.log10(min(max(gap, 1e-3), 10.0)) + 3
    return f'<span class="bar {style}" style="width:{decades:.2f}em"></span>'


def _describe_name(name: str) -> str:
    return name or "the model"


def _describe_gap(gap: float) -> str:
    return "" if math.isnan(gap) else describe_number(gap)


def _describe_updates(updates: float) -> str:
    return "not counted" if math.isnan(updates) else f"{updates:,.0f}"


def _describe_momentum(momentum: float | None) -> str:
    return "cumulative" if momentum is None or math.isnan(momentum) else describe_number(momentum)


def _describe_mode(is_training: bool) -> str:
    return "train" if is_training else "eval"


_COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "layer": ("layer", _describe_name),
    "codes": ("findings", str),
    "mean_gap": ("mean off, σ", _describe_gap),
    "var_gap": ("variance off, |log ratio|", _describe_gap),
    "noise": ("noise ratio", _describe_gap),
    "updates": ("updates", _describe_updates),
    "momentum": ("momentum", _describe_momentum),
    "channels": ("channels", "{:,}".format),
    "training": ("mode", _describe_mode),
}
"""Columns of the table of layers, as the page calls and writes them; on a telephone the first ones are seen."""
_BARS = {"mean_gap": "mean", "var_gap": "var"}
"""Columns with bars, and the style of these."""


def _write_limits(diagnosis: Any) -> Iterator[str]:
    """Write what to know of the measurement, and what was not looked for, grouped by what that needs."""
    wanted: dict[str, list[str]] = {}
    for skipped in diagnosis.left_out:
        wanted.setdefault(skipped.wanted, []).append(f"{skipped.cause.code} {skipped.cause.title}")
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
    """Make a table of cells in HTML, which scrolls where it is wider than the page; the chosen rows are bold."""
    heads = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = [f'<div class="scroll"><table class="{style}">', f"<tr>{heads}</tr>"]
    for number, row in enumerate(rows):
        cells = "".join(f"<td>{cell}</td>" for cell in row)
        start = '<tr class="chosen">' if chosen and chosen[number] else "<tr>"
        lines.append(f"{start}{cells}</tr>")
    return "\n".join([*lines, "</table></div>"])
