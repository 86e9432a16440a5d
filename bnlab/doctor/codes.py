"""The doctor's codes, and what they mean. Nothing here loads torch: `bnlab explain` need not wait for it."""

from __future__ import annotations

import json
from pathlib import Path

EXPLANATIONS = Path(__file__).with_name("codes.json")
"""What each code means, as its cause says: `python -m docs.codes` writes this file, because all causes load torch."""

ALIASES = {
    "BN003": "BN002",
    "BN004": "BN001",
    "BN105": "BN104",
    "BN107": "BN106",
    "BN109": "BN102",
    "BN206": "BN205",
    "BN208": "BN106",
    "BN210": "BN201",
    "BN212": "BN211",
    "BN213": "BN209",
    "BN214": "BN002",
    "BN216": "BN211",
}
"""Codes of earlier versions, and those that they are part of."""


def read_explanations() -> dict[str, str]:
    """Read what each code means, in the order of the codes."""
    explanations: dict[str, str] = json.loads(EXPLANATIONS.read_text(encoding="utf-8"))
    return explanations


def explain(code: str) -> str:
    """Explain a code: what it is, how it is detected, what to do, and when it is a false alarm.

    Raises:
        ValueError: there is no such code.

    >>> explain("BN102").splitlines()[0]
    'BN102: momentum reversed, or 0'
    """
    explanations = read_explanations()
    given = code.upper()
    current = ALIASES.get(given, given)
    if current not in explanations:
        raise ValueError(f"explain: {code!r} is no code; there are {', '.join(explanations)}")
    if given == current:
        return explanations[current]
    return f"{given} is part of {current}.\n\n{explanations[current]}"
