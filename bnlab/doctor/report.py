"""The answer: what, how sure, what it costs, what to do; as text, tables, JSON and a page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.common.pages import fill_in
from bnlab.common.scores import Difference, compare_scores, describe_number, estimate_mean
from bnlab.doctor.cause import Finding, Trial
from bnlab.doctor.patient import Patient
from bnlab.doctor.repair import Repair, write_repair
from bnlab.doctor.scores import Scores
from bnlab.gaps.gap import gap
from bnlab.statistics.network import running_statistics

if TYPE_CHECKING:
    import pandas as pd

_FIRST_LINES = {
    "healthy": "Healthy: nothing that was tried surely brings back what matters",
    "averages": "The averages are at fault",
    "images": "The images are at fault",
    "averages or images": "The averages are at fault, or the images are others than in training",
    "labels": "The labels do not mean what the outputs mean",
    "batches": "One set of averages does not do for these batches",
    "network": "It is not the averages: the network is at fault",
    "mode": "Layers are in the wrong mode",
    "undecided": "Undecided: these are too few images to tell",
    None: "No images were looked at",
}

_TONES = {"healthy": "#1b7f3b", "undecided": "#777777", None: "#777777"}
"""Colours of answers that are not about a fault."""


@dataclass
class Diagnosis:
    """What was found; print it.

    Attributes:
        patient: the model, with what was measured.
        verdict: where the fault is: "healthy", "averages", "images", "averages or images", "labels", "batches",
            "network", "mode" or "undecided"; None where nothing could be scored.
        found: the cause first, then notes.
        trials: all changes that were tried, with their scores; the model as it is first.
        chosen: the change that brings back most with the fewest numbers; None where nothing does.
        asks: arguments of `diagnose` that would tell more.
    """

    patient: Patient
    verdict: str | None
    found: list[Finding] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    chosen: Trial | None = None
    asks: list[str] = field(default_factory=list)

    @property
    def passes(self) -> float:
        """How many passes over the images were taken."""
        return self.patient.passes

    @property
    def is_healthy(self) -> bool:
        """Whether nothing that costs anything was found; what is undecided is not healthy."""
        return self.verdict in ("healthy", None) and not self.causes

    def repair(self, *, force: bool = False) -> Repair:
        """Write the exact statistics that were tried, if the averages are at fault.

        Args:
            force: write in any case.

        Raises:
            ValueError: they could not be measured, or the buffers cannot hold them; nothing is written then.
        """
        statistics = self.patient.statistics if self.patient.batches else None
        if statistics is None:
            raise ValueError("repair: there are no exact statistics; pass batches that reach the batch norms")
        named = [finding.cause for finding in self.found if not finding.is_note]
        title = f", {named[0].title} ({named[0].code})" if named else ""
        exact = next((trial for trial in self.trials if trial.is_exact), None)
        if self.verdict == "averages" and (exact is None or self._compare(exact).value > 0):
            return write_repair(self.patient.model, statistics, f"the averages were at fault{title}")
        if self.verdict == "averages or images" and named[0].kind == "averages":
            reason = (
                "the averages were at fault, unless these images are others than in training; training_batches= tells"
            )
            return write_repair(self.patient.model, statistics, reason)
        first = _FIRST_LINES[self.verdict].partition(": ")[2] or _FIRST_LINES[self.verdict]
        reason = f"{first[0].lower()}{first[1:]}{title}"
        if self.verdict == "averages":
            reason = f"exact statistics of these images bring nothing back{title}"
        if force:
            return write_repair(self.patient.model, statistics, f"force=True, although {reason}")
        return Repair(False, f"{reason}; force=True writes anyway", statistics)

    @property
    def causes(self) -> list[str]:
        """Codes of the causes that were named."""
        return [finding.cause.code for finding in self.found if not finding.is_note]

    @property
    def notes(self) -> list[str]:
        """Codes of what is mentioned, and costs nothing that was measured."""
        return [finding.cause.code for finding in self.found if finding.is_note]

    @property
    def findings(self) -> pd.DataFrame:
        """A row for each finding: code, kind, severity, title, found, meaning, remedy."""
        import pandas as pd

        columns = ["code", "kind", "severity", "title", "found", "meaning", "remedy"]
        rows = [
            [
                each.cause.code,
                each.cause.kind,
                "note" if each.is_note else "warning",
                each.cause.title,
                each.words,
                each.cause.meaning,
                each.cause.remedy,
            ]
            for each in self.found
        ]
        return pd.DataFrame(rows, columns=columns)

    @property
    def table(self) -> pd.DataFrame:
        """A row for each change: what it is, its cause, the score, the gain over the model as it is, an interval."""
        import pandas as pd

        columns = ["undone", "code", "score", "gain", "low", "high", "degrees"]
        rows: list[list[Any]] = []
        for trial in self.trials:
            gain = self._compare(trial)
            code = trial.cause.code if trial.cause is not None else ""
            score = float(trial.scores.values.mean())
            rows.append([trial.undo.words, code, score, gain.value, gain.low, gain.high, trial.undo.degrees])
        return pd.DataFrame(rows, columns=columns)

    def _compare(self, trial: Trial) -> Difference:
        as_is = self.trials[0].scores
        return compare_scores(trial.scores.values, as_is.values, as_is.are_shares)

    def __str__(self) -> str:
        return "\n".join(self._write_lines())

    def _write_lines(self) -> list[str]:
        lines = []
        named = [finding for finding in self.found if not finding.is_note]
        first = _FIRST_LINES[self.verdict]
        lines.append(f"{first}: {named[0].cause.title} ({named[0].cause.code})." if named else f"{first}.")
        for finding in named:
            lines.append(f"  Found: {finding.words}.")
            lines.append(f"  {finding.cause.meaning}")
        lines += [f"  {line}" for line in self._write_scores()]
        for finding in named[:1]:
            lines.append(f"  To do: {finding.cause.remedy}")
        notes = [finding for finding in self.found if finding.is_note]
        for finding in notes[:2]:
            lines.append(f"Also: {finding.words} ({finding.cause.code}, {finding.cause.title}).")
        if self.verdict == "healthy" and self.patient.expected is None and self.patient.is_scored:
            lines.append("Should it be higher? Pass expected=.")
        elif self.asks and self.verdict != "healthy":
            lines.append(f"To tell more, pass {' and '.join(f'{name}=' for name in self.asks)}.")
        return lines

    def _write_scores(self) -> list[str]:
        """Write the score as it is, under exact statistics, and with the mistake undone."""
        if not self.trials:
            return []
        as_is = self.trials[0]
        images = len(as_is.scores.values)
        written = [f"As it is {_write_score(as_is.scores)}, of {images:,} images."]
        if not self.patient.is_scored:
            written = [
                "There are no labels: predictions are compared with those under exact statistics.",
                f"As it is they agree to {_write_score(as_is.scores)}, of {images:,} images.",
            ]
        written += [self._write_gain("Under exact statistics", trial) for trial in self.trials[1:] if trial.is_exact]
        if self.chosen is not None and not self.chosen.is_exact:
            written.append(self._write_gain("With that undone", self.chosen))
        near = self._find_near()
        if near is not None and near.cause is not None:
            written.append(f"Undoing another mistake brings back as much: {near.undo.words} ({near.cause.code}).")
        return written

    def _find_near(self) -> Trial | None:
        """Find the best change of another row that brings back as much as the chosen one, up to chance."""
        if self.chosen is None:
            return None
        causes = (None, self.chosen.cause, *(each.cause for each in self.found))
        others = [trial for trial in self.trials if trial.cause not in causes and self._compare(trial).low > 0]
        best = max(others, key=lambda trial: float(trial.scores.likelihoods.mean()), default=None)
        if best is None or estimate_mean(self.chosen.scores.likelihoods - best.scores.likelihoods).low > 0:
            return None
        return best

    def _write_gain(self, words: str, trial: Trial) -> str:
        are_shares = self.trials[0].scores.are_shares
        gain = self._compare(trial)
        low, value, high = (
            describe_number((100 if are_shares else 1) * each, 2) for each in (gain.low, gain.value, gain.high)
        )
        unit = " points" if are_shares else ""
        sign = "+" if gain.value > 0 else ""
        return f"{words} {_write_score(trial.scores)}: {sign}{value}{unit} [{low}, {high}]."

    def to_json(self) -> str:
        """Write verdict, findings and table as JSON."""
        return json.dumps(
            {
                "verdict": self.verdict,
                "findings": self.findings.to_dict("records"),
                "table": self.table.replace({float("inf"): None, float("-inf"): None}).to_dict("records"),
                "passes": self.passes,
                "asks": self.asks,
            }
        )

    @property
    def layers(self) -> pd.DataFrame | None:
        """How far each layer's averages are from exact statistics, see `bnlab.gap`; None where these are not known."""
        statistics = self.patient.statistics if self.patient.batches else None
        return None if statistics is None else gap(statistics, running_statistics(self.patient.model))

    def to_html(self, path: str | Path) -> None:
        """Write a page with the answer, what was tried, and the layers: one file that needs nothing else."""
        page = fill_in(
            Path(__file__).with_name("page.html"),
            name=type(self.patient.model).__name__,
            tone=_TONES.get(self.verdict, "#b3261e"),
            lines=[line.strip() for line in self._write_lines()],
            tried=_round(self.table.sort_values("gain", ascending=False)),
            layers=_round(self.layers),
        )
        Path(path).write_text(page, encoding="utf-8")


def _round(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """Write numbers with three digits."""
    if frame is None:
        return None
    return frame.map(lambda value: describe_number(value) if isinstance(value, float) else value)


def _write_score(scores: Scores) -> str:
    mean = float(scores.values.mean())
    return f"{mean:.1%}" if scores.are_shares else describe_number(mean)
