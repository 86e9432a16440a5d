"""Short answers: sentences that quote cells of the answers' tables, and are left out where they would not be true."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from bnlab.harness.reporting.answer import Answer, round_numbers
from bnlab.harness.reporting.frames import NUMBERS

_QUOTE = re.compile(r"\{(if )?(\w+)\.(\w+):(?: ([^{}]+?):)? ([\w ]+)\}")


def fill_sentence(text: str, answers: Sequence[Answer]) -> str:
    """The sentence with what it quotes; empty where a quoted cell is missing, or has another verdict than is quoted.

    A quote is `{experiment.claim: condition: verdict}`. A condition is named by some of its words, separated by commas,
    as in `batch size 4, at the end of training`; `|` stands between several; without one all of the claim are meant.
    Their means are quoted, a range where they differ; `{if experiment.claim: verdict}` asks for the verdict alone.

    Raises:
        ValueError: braces that are no quote.
    """
    if "{" in _QUOTE.sub("", text):
        raise ValueError(f"no quote like {{experiment.claim: condition: verdict}}: {_QUOTE.sub('', text)}")
    known = {answer.experiment.name: answer for answer in answers}
    quotes = [_quote(known.get(match[2]), *match.group(3, 4, 5)) for match in _QUOTE.finditer(text)]
    if "" in quotes:
        return ""
    numbers = iter(quotes)
    filled = _QUOTE.sub(lambda match: next(numbers) if match[1] is None else next(numbers)[:0], text)
    return " ".join(filled.split())


def _quote(answer: Answer | None, claim: str, condition: str | None, verdict: str) -> str:
    """The means of the claim's cells; empty where there is none, or one has another verdict."""
    if answer is None:
        return ""
    cells = answer.frame[answer.frame["claim"] == claim]
    if condition:
        wanted = [{*one.strip().split(", ")} for one in condition.split("|")]
        cells = cells[[any(words <= {*where} for words in wanted) for where in cells["where"]]]
    if cells.empty or set(cells["verdict"]) != {verdict}:
        return ""
    unit = answer.experiment.claims[claim].rule.unit
    return quote_means(cells, unit)


def quote_means(cells: pd.DataFrame, unit: str) -> str:
    """The mean of one cell, the range of several, with their unit; shares in percent."""
    means = [round_numbers(*row)[0] for row in cells[[*NUMBERS]].itertuples(index=False)]
    if unit == "share":
        means, unit = [f"{mean:.0%}" for mean in cells["mean"]], ""
    ordered = sorted(means, key=lambda mean: float(mean.rstrip("%")))
    return f"{' to '.join(dict.fromkeys((ordered[0], ordered[-1])))} {unit}".rstrip()
