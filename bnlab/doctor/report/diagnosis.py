"""A diagnosis: the verdict, findings, and a table of layers, to print, save and draw."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnlab.doctor.evidence.case import Case
from bnlab.doctor.interventions.experiment import Trial, UndoExperiment
from bnlab.doctor.undo import EXACT
from bnlab.doctor.verdict.findings import Finding, Skipped
from bnlab.doctor.verdict.labelled import find_best_score
from bnlab.doctor.verdict.verdict import Verdict
from bnlab.doctor.words import HEADLINES, KINDS, count_things, describe_score, describe_training
from bnlab.model.layers import count_channels, get_momentum

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

_WIDTH = 100
_TOO_LOW = "Too low? Check labels, their order, preprocessing, weights; or pass expected=."
_ASKS = {
    "before": "Averaged (EMA, SWA, federated), pruned or fine-tuned? Pass that network as before=.",
    "training": "Could the preprocessing differ from training? Pass training_batches= to compare.",
}
# Verdict, or what is off, and the arguments that would tell more, named as `Case.list_known` names them.
_ASKED_OF = {
    "averages": ("before", "training"),
    "averages or images": ("training", "before"),
    "images": ("training",),
    "network": ("training",),
}
_LABELS = "Pass batches with labels: they show what it costs."
_WHICH_SCORE = "Which score should it reach? expected= lets the doctor judge."


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a model's batch-norm statistics, and what is not. Made by `bnlab.diagnose`.

    Attributes:
        case: all that was measured.
        judged: the verdict with its reason; None without data, or without labels or classes.
        experiment: what was undone, and what that brought back; None where no cause saw a sign.
        faults: the findings, the most severe first.
        left_out: causes that could not be looked for.
        notes: what was not looked at besides, a sentence each.
    """

    case: Case
    judged: Verdict | None
    experiment: UndoExperiment | None
    faults: Sequence[Finding]
    left_out: Sequence[Skipped]
    notes: Sequence[str] = ()

    @property
    def verdict(self) -> str | None:
        """Say where the fault is, see `Verdict.word`; None without data, labels or classes to go by."""
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
        # Here and not above, because a diagnosis is printed without a table, and should not wait for pandas.
        import pandas as pd

        rows = [
            {
                "code": finding.cause.code,
                "layers": finding.layers,
                "severity": finding.severity,
                "cost": finding.cost,
                "evidence": finding.evidence,
                "meaning": finding.cause.meaning,
                "remedy": finding.cause.remedy,
            }
            for finding in self.faults
        ]
        columns = ["code", "layers", "severity", "cost", "evidence", "meaning", "remedy"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def trials(self) -> pd.DataFrame:
        """Make a table of a row for each undo that was tried, those that bring back most first.

        Columns: code (of the cause that it would undo), undone (in words), layers (a tuple of names), degrees (numbers
        that it was free to choose), score (mean, with it), gain (of the mean score), likelihood_gain, low, high (its
        interval, for all undos at once; without labels of the gap that is left), chosen (whether it is why the verdict
        is what it is).
        """
        import pandas as pd

        columns = ["code", "undone", "layers", "degrees", "score", "gain", "likelihood_gain", "low", "high", "chosen"]
        experiment = self.experiment
        rows = []
        if experiment is not None:
            rows = [self._describe_trial(trial, experiment) for trial in experiment.trials]
        table = pd.DataFrame(rows, columns=columns)
        return table.sort_values("likelihood_gain", ascending=False, ignore_index=True)

    def _describe_trial(self, trial: Trial, experiment: UndoExperiment) -> dict[str, Any]:
        # Of the likelihood also where undos were ranked by the score: the columns keep their meaning.
        gain = experiment.measure_likelihood(trial)
        return {
            "code": trial.cause.code,
            "undone": trial.undo.words,
            "layers": trial.undo.layers,
            "degrees": trial.undo.degrees,
            "score": float(trial.judged.scores.mean()),
            "gain": experiment.measure_score(trial).value,
            "likelihood_gain": gain.value,
            "low": gain.low,
            "high": gain.high,
            "chosen": self.judged is not None and trial in self.judged.chosen,
        }

    @property
    def skipped(self) -> pd.DataFrame:
        """Make a table of the causes that could not be looked for: code, title, wanted (what they need)."""
        import pandas as pd

        rows = [(skipped.cause.code, skipped.cause.title, skipped.wanted) for skipped in self.left_out]
        return pd.DataFrame(rows, columns=["code", "title", "wanted"])

    @property
    def table(self) -> pd.DataFrame:
        """Make a table of a row for each layer, in order of depth.

        Columns: layer, depth (from 1), channels, momentum, updates (batches averaged; NaN without a count), training
        (its mode), codes (of the findings that name it); with data also mean_gap (rms over channels, in σ), var_gap
        (rms of the log ratio) and noise (median |T|, see `Case.noise_ratio`).
        """
        import pandas as pd

        rows = []
        for depth, name in enumerate(self.case.layers, start=1):
            rows.append({"layer": name, "depth": depth, **self._describe_layer(name)})
        columns = ["layer", "depth", "channels", "momentum", "updates", "training"]
        if self.case.has_data:
            columns += ["mean_gap", "var_gap", "noise"]
        return pd.DataFrame(rows, columns=[*columns, "codes"])

    def _describe_layer(self, name: str) -> dict[str, Any]:
        layer = self.case.layers[name]
        updates = self.case.count_updates(name)
        codes = [finding.cause.code for finding in self.faults if name in finding.layers]
        row = {
            "channels": count_channels(layer),
            "momentum": get_momentum(layer),
            # NaN and not None, as a column of None alone would not be one of numbers.
            "updates": math.nan if updates is None else updates,
            "training": layer.training,
            "codes": " ".join(codes),
        }
        if name in self.case.seen:
            mean_gap, var_gap = self.case.measure_gap(name)
            noise = self.case.noise_ratio(name)
            row |= {"mean_gap": mean_gap, "var_gap": var_gap, "noise": noise}
        return row

    @property
    def scores(self) -> dict[str, float]:
        """Mean score of the images under "running", "exact" and "batch" statistics; empty without any."""
        scores = self.case.scores
        return {} if scores is None else {kind: scores.mean(kind) for kind in scores.values}

    def __str__(self) -> str:
        parts = [self._describe_verdict()]
        if self.scores:
            parts.append(self._describe_scores())
            parts.append(self._describe_beginning())
        parts += [_describe_finding(finding) for finding in self.faults if finding.severity != "note"]
        parts.append(self._describe_rest())
        return "\n".join(filter(None, parts))

    __repr__ = __str__

    @property
    def headline(self) -> str:
        """The answer in a few words."""
        if self.judged is not None:
            return HEADLINES[self.judged.word]
        if not self.case.layers:
            return "No running averages"
        above = sum(finding.severity != "note" for finding in self.faults)
        return count_things(above, "finding") if above else "No warnings or errors"

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, or, without a dot, why there is none."""
        if self.judged is not None:
            return self.judged.sentence
        if not self.case.layers:
            return "each batch is normalized by its own statistics, also in eval mode"
        if not self.case.is_measurable:
            return "by what they store: what they normalize cannot be measured"
        if not self.case.has_data:
            return "without data"
        if self.case.misfit is not None:
            return "labels do not fit the outputs, so no verdict"
        return "no labels, no evaluate=, and outputs that name no classes, so no verdict"

    def _describe_verdict(self) -> str:
        counted = count_things(len(self.case.layers), "batch norm")
        if self.judged is not None:
            return _wrap(f"{self.headline} ({counted}). {self.reason}")
        if not self.case.layers:
            without = count_things(len(self.case.without), "batch norm")
            return _wrap(f"{self.headline} in {without}: {self.reason}.")
        return f"{self.headline} in {counted} ({self.reason})."

    def _describe_scores(self) -> str:
        scores = self.case.scores
        assert scores is not None
        reported = [f"{describe_score(scores.mean(kind), scores)} under {KINDS[kind]}" for kind in scores.values]
        line = f"{scores.metric}{self._describe_images()}: {', '.join(reported)}."
        if self.case.training_score is None:
            return _wrap(line)
        best = find_best_score(scores, self.experiment)
        return _wrap(f"{line} {describe_training(self.case.training_score, scores, best)}")

    def _describe_images(self) -> str:
        """Say of how many images scores are, where the verdict tells a gain on fewer."""
        assert self.case.scores is not None
        images = len(self.case.scores.values["running"])  # a metric of the caller's may be of others than the batches
        if self.experiment is None or len(self.experiment.as_is.scores) == images:
            return ""
        return f" on all {images:,}"

    def _describe_beginning(self) -> str:
        """Say from which layer on, in order of the data, averages do not fit; "" where all do, or it is all of them."""
        names = self.case.seen
        off = [name for name in names if self.case.clearly_differs(name)]
        # If the first layer is off already, there is no layer up to which averages fit.
        if self.verdict in (None, "healthy", "undecided") or not off or off[0] == names[0]:
            return ""
        start = names.index(off[0])
        before = names[start - 1]
        later = len(names) - start
        if len(off) == later:
            where = f"not from {off[0]} on" if later > 1 else f"not in {off[0]}"
        elif len(off) == 1:
            where = f"not in {off[0]}, but after it again"
        else:
            where = f"not in {len(off)} of the {later} layers from {off[0]} on"
        between = list_between(self.case.model, before, off[0])
        reported = f"Averages fit up to {before}, and {where}"
        return _wrap(f"{reported}; between them: {', '.join(between)}." if between else f"{reported}.")

    def _describe_rest(self) -> str:
        """Write which notes there are, and what to look at or to pass to learn more."""
        notes = [
            f"{finding.cause.code} ({finding.cause.title})" for finding in self.faults if finding.severity == "note"
        ]
        # With `expected=`, the verdict says already whether the score is too low.
        if self.verdict == "healthy" and self.scores and self.case.expected is None:
            sentences = [_TOO_LOW]
            if any(EXACT in finding.cause.undone_by for finding in self.faults):  # averages that are off, if harmless
                sentences += self._ask_for("averages")
            if notes:
                sentences.append(f"Notes: {', '.join(notes)}." if len(notes) < 3 else f"Notes: {len(notes)}.")
        else:
            sentences = self._ask_for_more()
            if notes:
                sentences.insert(0, f"Notes: {', '.join(notes)} (see .findings, or --html).")
        return _wrap(" ".join([*sentences, *self.notes]))

    def _ask_for_more(self) -> list[str]:
        """Ask for the one or two arguments that would tell most."""
        if not self.case.layers or not self.case.is_measurable:
            return []
        if not self.case.has_data:
            return [_LABELS]
        if self.judged is None and any(self.case.clearly_differs(name) for name in self.case.seen):
            return self._ask_for("averages")  # nothing can be scored, but histories tell whether these are right
        if self.judged is not None and not self.scores:
            if self.verdict == "healthy":
                return []
            labels = [] if self.case.misfit is not None else [_LABELS]
            return [*labels, *self._ask_for(self.verdict or "")]
        chosen = () if self.judged is None else self.judged.chosen
        if self.verdict == "undecided" and chosen:  # something is at fault, and an expected score tells no more of it
            return self._ask_for("averages or images")
        if self.verdict == "undecided" and self.case.expected is None:
            return [_WHICH_SCORE]
        if chosen and not any(trial.undo.shared for trial in chosen):  # a cause explains it by itself
            return []
        return self._ask_for(self.verdict or "")

    def _ask_for(self, word: str) -> list[str]:
        """Ask for what tells more of a verdict, as far as it was not given."""
        known = self.case.list_known()
        return [_ASKS[ask] for ask in _ASKED_OF.get(word, ()) if ask not in known]

    def to_json(self) -> str:
        """Write all as JSON: names and numbers, no images.

        That is the verdict and the line that it is nearest to, scores, findings, undos, layers, and skipped causes.
        """
        gain = None if self.judged is None else self.judged.gain
        nearest = None if self.judged is None else self.judged.nearest
        report = {
            "verdict": self.verdict,
            "sentence": None if self.judged is None else self.judged.sentence,
            "scores": self.scores,
            "training_score": self.case.training_score,
            "gain": None if gain is None else {"value": gain.value, "low": gain.low, "high": gain.high},
            "nearest_line": None if nearest is None else {**asdict(nearest), "distance": nearest.distance},
            "images": self.case.images,
            "findings": self.findings.to_dict("records"),
            "trials": self.trials.to_dict("records"),
            "layers": self.table.to_dict("records"),
            "skipped": self.skipped.to_dict("records"),
            "notes": list(self.notes),
        }
        # `json` would write NaN, which is not JSON, and which most parsers refuse.
        return json.dumps(_without_nan(report), indent=2, ensure_ascii=False)

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page: names and numbers, no images.

        Raises:
            OSError: the file cannot be written.
        """
        # Imported late, because the page's templates need Jinja, and most diagnoses are only printed.
        from bnlab.doctor.report.page import make_page

        # Encoded before the file is opened: names may have letters that no encoding has, as of old archives.
        Path(path).write_bytes(make_page(self).encode("utf-8", "backslashreplace"))


def list_between(model: nn.Module, first: str, last: str) -> list[str]:
    """List the modules without parts that a model lists between two of them; of more than five the first ones."""
    leaves = [name for name, module in model.named_modules() if not any(module.children())]
    if first not in leaves or last not in leaves:
        return []
    between = leaves[leaves.index(first) + 1 : leaves.index(last)]
    return between if len(between) <= 5 else [*between[:5], "…"]


def _describe_finding(finding: Finding) -> str:
    """Write a finding: what and where, the evidence, what it means and what to do; a line for each thing to check."""
    where = _name_layers(finding.layers)
    head = f"{finding.cause.code} {finding.severity}: {finding.cause.title}{where}"
    advice = f"{finding.cause.meaning} {finding.cause.remedy}"
    return "\n".join(["", _wrap(head), _wrap(finding.evidence, "  "), _wrap(advice, "  ")])


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
