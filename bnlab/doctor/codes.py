"""The doctor's codes, and what they mean. Nothing here loads torch: `bnlab explain` need not wait for it."""

from __future__ import annotations

import json
from pathlib import Path

EXPLANATIONS = Path(__file__).with_name("codes.json")
"""What each code means, as its rows say: `python -m docs.codes` writes this file, because the table loads torch."""


def read_explanations() -> dict[str, str]:
    """Read what each code means, in the order of the codes."""
    explanations: dict[str, str] = json.loads(EXPLANATIONS.read_text(encoding="utf-8"))
    return explanations


def explain(code: str) -> str:
    """Explain a code: what it is, what it means, and what to do.

    Raises:
        ValueError: there is no such code.

    >>> explain("BN102").splitlines()[0]
    'BN102: momentum reversed, or 0'
    """
    explanations = read_explanations()
    if code.upper() not in explanations:
        raise ValueError(f"explain: {code!r} is no code; there are {', '.join(explanations)}")
    return explanations[code.upper()]
