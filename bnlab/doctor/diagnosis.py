"""A diagnosis: the verdict, findings, and a table of layers, to print, save and draw."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.doctor.case import Case
from bnlab.doctor.findings import Finding, Skipped
from bnlab.doctor.rule import ASKS
from bnlab.doctor.verdict import KINDS, Verdict, tell_score, tell_training
from bnlab.doctor.words import count_things

if TYPE_CHECKING:
    import pandas as pd

_WIDTH = 100
_TOO_LOW = "Too low? Check labels, their order, preprocessing, weights; or pass expected=."
_HEADLINES = {
    "averages": "The averages are at fault",
    "not the averages": "Not the averages",
    "healthy": "Healthy averages",
    "undecided": "Undecided",
}
_WHICH_SCORE = "Which score should it reach? expected= lets the doctor judge."


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a model's batch-norm statistics, and what is not. Made by `bnlab.diagnose`.

    Attributes:
        case: all that was measured.
        judged: the verdict with its reason; None without scores.
        faults: the findings, the most severe first.
        left_out: rules that could not look.
        notes: what was not looked at besides, a sentence each.
        unselected: findings that the reader did not ask for. Not shown, but used to choose which arguments to ask for.
    """

    case: Case
    judged: Verdict | None
    faults: Sequence[Finding]
    left_out: Sequence[Skipped]
    notes: Sequence[str] = ()
    unselected: Sequence[Finding] = ()

    @property
    def verdict(self) -> str | None:
        """Say "averages", "not the averages", "healthy" or "undecided"; None without labels or `evaluate`."""
        return None if self.judged is None else self.judged.word

    @property
    def is_healthy(self) -> bool:
        """Return whether there is nothing above a note, and the averages are not at fault."""
        is_clean = all(finding.severity == "note" for finding in self.faults)
        return is_clean and self.verdict in (None, "healthy", "undecided")

    @property
    def findings(self) -> pd.DataFrame:
        """Make a table of a row for each finding, the most severe first.

        Columns: code, layers (a tuple of names), severity ("note", "warning", "error"), cost (of the scores' unit; NaN
        where it was not measured), evidence, meaning, remedy.
        """
        import pandas as pd

        rows = [
            {
                "code": finding.rule.code,
                "layers": finding.signs.layers,
                "severity": finding.severity,
                "cost": finding.cost,
                "evidence": finding.signs.evidence,
                "meaning": finding.rule.meaning,
                "remedy": finding.remedy,
            }
            for finding in self.faults
        ]
        columns = ["code", "layers", "severity", "cost", "evidence", "meaning", "remedy"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def skipped(self) -> pd.DataFrame:
        """Make a table of the rules that could not look: code, title, wanted (what they need)."""
        import pandas as pd

        rows = [(skipped.rule.code, skipped.rule.title, skipped.wanted) for skipped in self.left_out]
        return pd.DataFrame(rows, columns=["code", "title", "wanted"])

    @property
    def table(self) -> pd.DataFrame:
        """Make a table of a row for each layer, in order of depth.

        Columns: layer, depth (from 1), channels, momentum, updates (batches averaged; NaN without a count), training
        (its mode), codes (of the findings that name it); with data also mean_gap (rms over channels, in σ), var_gap
        (rms of the log ratio), noise (median |T|, see `Case.noise_ratio`) and cost (what its running statistics cost
        alone; NaN where it was not measured, as where all layers together cost nothing).
        """
        import pandas as pd

        rows = []
        for depth, name in enumerate(self.case.layers, start=1):
            rows.append({"layer": name, "depth": depth, **self._describe_layer(name)})
        columns = ["layer", "depth", "channels", "momentum", "updates", "training"]
        if self.case.evidence is not None:
            columns += ["mean_gap", "var_gap", "noise", "cost"]
        return pd.DataFrame(rows, columns=[*columns, "codes"])

    def _describe_layer(self, name: str) -> dict[str, Any]:
        layer = self.case.layers[name]
        updates = self.case.count_updates(name)
        codes = [finding.rule.code for finding in self.faults if name in finding.signs.layers]
        row = {
            "channels": layer.num_features,
            "momentum": layer.momentum,
            "updates": math.nan if updates is None else updates,
            "training": layer.training,
            "codes": " ".join(codes),
        }
        evidence = self.case.evidence
        if evidence is not None and name in evidence.exact:
            mean_gap, var_gap = self.case.find_gap(name)
            noise = self.case.noise_ratio(name)
            cost = evidence.costs.get(name, math.nan)
            row |= {"mean_gap": mean_gap, "var_gap": var_gap, "noise": noise, "cost": cost}
        return row

    @property
    def scores(self) -> dict[str, float]:
        """Mean score of the images under "running", "exact" and "batch" statistics; empty without any."""
        evidence = self.case.evidence
        if evidence is None or evidence.scores is None:
            return {}
        return {kind: evidence.scores.mean(kind) for kind in evidence.scores.values}

    def __str__(self) -> str:
        parts = [self._tell_verdict()]
        if self.scores:
            parts.append(self._tell_scores())
        parts += [_tell_finding(finding) for finding in self.faults if finding.severity != "note"]
        parts.append(self._tell_rest())
        return "\n".join(filter(None, parts))

    __repr__ = __str__

    def _tell_verdict(self) -> str:
        counted = count_things(len(self.case.layers), "batch norm")
        if self.judged is not None:
            return _wrap(f"{_HEADLINES[self.judged.word]} ({counted}). {self.judged.sentence}")
        if not self.case.layers:
            without = count_things(len(self.case.without), "batch norm")
            return _wrap(f"No running averages in {without}: each batch is normalized by its own, also in eval mode.")
        above = sum(finding.severity != "note" for finding in self.faults)
        what = count_things(above, "finding") if above else "Nothing above a note"
        return f"{what} in {counted} ({self._tell_no_verdict()})."

    def _tell_no_verdict(self) -> str:
        """Say why there is no verdict."""
        if self.case.evidence is None:
            return "without data"
        if self.case.evidence.misfit is not None:
            return "labels do not fit the outputs, so no verdict"
        return "no labels and no evaluate=, so no verdict"

    def _tell_scores(self) -> str:
        assert self.case.evidence is not None and self.case.evidence.scores is not None
        scores = self.case.evidence.scores
        told = [f"{tell_score(scores.mean(kind), scores)} under {KINDS[kind]}" for kind in scores.values]
        line = f"{scores.metric}: {', '.join(told)}."
        if self.case.training_score is None:
            return line
        return _wrap(f"{line} {tell_training(self.case.training_score, scores)}")

    def _tell_rest(self) -> str:
        """Write which notes there are, and what to look at or to pass to learn more."""
        rules = [finding.rule for finding in self.faults if finding.severity == "note"]
        if self.verdict == "not the averages":  # its sentence already names the notes that may explain the score
            rules = [rule for rule in rules if rule.limits]
        codes = [rule.code for rule in rules]
        if self.verdict == "healthy" and self.case.expected is None:
            sentences = [_TOO_LOW]
            if codes:
                sentences.append(f"Notes: {', '.join(codes)}." if len(codes) < 3 else f"Notes: {len(codes)}.")
        else:
            sentences = self._ask_for_more()
            if codes:
                sentences.insert(0, f"Notes: {', '.join(codes)} (see .findings, or --html).")
        return _wrap(" ".join([*sentences, *self.notes]))

    def _ask_for_more(self) -> list[str]:
        """Ask for the one or two arguments that would tell most."""
        if not self.case.layers:
            return []
        if self.case.evidence is None:
            return ["Pass batches with labels: they tell what it costs."]
        findings = [*self.faults, *self.unselected]
        if self.verdict == "not the averages":
            is_known = self.case.is_as_constructed or any(finding.is_mended_by_eval for finding in findings)
            asked = [] if is_known else ["training"]
        elif self.verdict == "averages" and not findings:
            asked = ["before", "training"]
        elif any(finding.signs.checks and finding.severity != "note" for finding in findings):
            asked = []  # the finding that is printed says what to pass
        else:
            asked = [ask for finding in findings for ask in finding.rule.asks]

        questions = []
        if self.verdict == "undecided" and self.case.expected is None:
            questions.append(_WHICH_SCORE)
        for ask in dict.fromkeys(asked):
            if ask not in self.case.list_known():
                questions.append(ASKS[ask])
        return questions[:2]

    def to_json(self) -> str:
        """Write verdict, scores, findings, layers and skipped rules as JSON: names and numbers, no images, no paths."""
        gain = None if self.judged is None else self.judged.gain
        report = {
            "verdict": self.verdict,
            "sentence": None if self.judged is None else self.judged.sentence,
            "scores": self.scores,
            "training_score": self.case.training_score,
            "gain": None if gain is None else {"value": gain.value, "low": gain.low, "high": gain.high},
            "images": 0 if self.case.evidence is None else self.case.evidence.images,
            "findings": self.findings.to_dict("records"),
            "layers": self.table.to_dict("records"),
            "skipped": self.skipped.to_dict("records"),
            "notes": list(self.notes),
        }
        return json.dumps(_without_nan(report), indent=2, ensure_ascii=False)

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page with a picture of the layers: names and numbers, no images.

        Raises:
            OSError: the file cannot be written.
        """
        from bnlab.doctor.page import make_page

        Path(path).write_text(make_page(self), encoding="utf-8")


def _tell_finding(finding: Finding) -> str:
    """Write a finding: what and where, the evidence, what it means and what to do; a line for each thing to check."""
    where = _name_layers(finding.signs.layers)
    head = f"{finding.rule.code} {finding.severity}: {finding.rule.title}{where}"
    return "\n".join(
        [
            "",
            _wrap(head),
            _wrap(finding.signs.evidence, "  "),
            *_tell_advice(finding),
        ]
    )


def _tell_advice(finding: Finding) -> list[str]:
    """Write what a finding means, and what to do or to check, the most frequent cause first."""
    checks = finding.signs.checks
    if len(checks) < 2:
        return [_wrap(f"{finding.rule.meaning} {finding.remedy}", "  ")]
    numbered = [_wrap(f"{number}. {check}", "  ") for number, check in enumerate(checks, start=1)]
    return [_wrap(f"{finding.rule.meaning} The usual causes:", "  "), *numbered]


def _name_layers(layers: Sequence[str]) -> str:
    named = [name or "the model" for name in layers]
    if len(named) > 3:
        return f", in {len(named)} layers ({named[0]}, {named[1]}, …, {named[-1]})"
    return f", in {', '.join(named)}"


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)


def _without_nan(value: Any) -> Any:
    """Replace what JSON does not have: NaN and infinities become null, tuples lists."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
