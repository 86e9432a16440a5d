"""Short answers: sentences that quote cells of the answers' tables, and are left out where they would not be true."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bnlab.harness.reporting.answer import Answer, round_numbers

_QUOTE = re.compile(r"\{(if )?(\w+)\.(\w+):(?: ([^{}]+?):)? ([\w ]+)\}")


def fill_sentence(text: str, answers: Sequence[Answer]) -> str:
    """The sentence with what it quotes; empty where a quoted cell is missing, or has another verdict than is quoted.

    A quote is `{experiment.claim: condition: verdict}`. A condition is named by some of its words, separated by commas,
    as in `batch size 4, at the end of training`; `|` stands between several; without one all of the claim are meant.
    Their means are quoted, a range where they differ; `{if experiment.claim: verdict}` asks for the verdict alone.
    """
    known = {answer.experiment.name: answer for answer in answers}
    filled = text
    for match in _QUOTE.finditer(text):
        means = _quote(known.get(match[2]), *match.group(3, 4, 5))
        if not means:
            return ""
        filled = filled.replace(match[0], "" if match[1] else means)
    return " ".join(filled.split())


def _quote(answer: Answer | None, claim: str, condition: str | None, verdict: str) -> str:
    """The mean of the claim's cell, the range of several, shares in percent; empty where one has another verdict."""
    if answer is None:
        return ""
    cells = answer.frame[answer.frame["claim"] == claim].sort_values("mean")
    if condition:
        wanted = [{*one.strip().split(", ")} for one in condition.split("|")]
        cells = cells[[any(words <= {*where} for words in wanted) for where in cells["where"]]]
    if set(cells["verdict"]) != {verdict}:
        return ""
    means = [round_numbers(*row)[0] for row in cells[["mean", "low", "high"]].itertuples(index=False)]
    unit = answer.experiment.claims[claim].rule.unit
    if unit == "share":
        means, unit = [f"{mean:.0%}" for mean in cells["mean"]], ""
    return f"{' to '.join(dict.fromkeys((means[0], means[-1])))} {unit}".rstrip()
