"""The causes that come with bnlab, and what their codes mean."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from bnlab.doctor import causes
from bnlab.doctor.cause import HIDDEN, NEEDS, Cause

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


def list_causes() -> list[Cause]:
    """List the causes that come with bnlab, one of each, ordered by code.

    >>> [cause.code for cause in list_causes()][:3]
    ['BN001', 'BN002', 'BN101']
    """
    found: list[Cause] = []
    for module_info in pkgutil.iter_modules(causes.__path__):
        module = importlib.import_module(f"{causes.__name__}.{module_info.name}")
        for value in vars(module).values():
            # Classes that a module has only imported, such as Cause itself, are none of its causes.
            if isinstance(value, type) and issubclass(value, Cause) and value.__module__ == module.__name__:
                found.append(value())
    # The order counts: of causes that explain a gap equally well, the first one is named.
    return sorted(found, key=lambda cause: cause.code)


def explain(code: str) -> str:
    """Explain a code: what it is, how it is detected, what to do, and when it is a false alarm.

    Raises:
        ValueError: there is no such code.

    >>> explain("BN102").splitlines()[0]
    'BN102: momentum reversed, or 0'
    """
    by_code = {cause.code: cause for cause in list_causes()}
    given = code.upper()
    cause = by_code.get(ALIASES.get(given, given))
    if cause is None:
        raise ValueError(f"explain: {code!r} is no code; there are {', '.join(by_code)}")

    heading = f"{cause.code}: {cause.title}"
    if given != cause.code:
        heading = f"{given} is part of {cause.code}.\n\n{heading}"
    what_to_do = f"{cause.meaning}\n{cause.remedy}"
    conditions = f"{describe_needs(cause)}\n{describe_severity(cause)}"
    return "\n\n".join([heading, what_to_do, describe_signs(cause), conditions])


def describe_signs(cause: Cause) -> str:
    """Say how a cause detects its fault, and when it is a false alarm: its docstring."""
    return inspect.getdoc(type(cause)) or ""


def describe_needs(cause: Cause) -> str:
    """Say what must be given for a cause to look."""
    wanted = " and ".join(NEEDS[need] for need in cause.needs)
    return f"It needs {wanted or 'the model alone'}."


def describe_severity(cause: Cause) -> str:
    """Say how severe what a cause finds is, and whether recalibration refuses to cover it up."""
    article = "an" if cause.severity == "error" else "a"
    unknown = f"if that is unknown, it is {article} {cause.severity}"
    is_undone = type(cause).propose is not Cause.propose or cause.undone_by
    reported = f"How severe it is depends on how much undoing it gains; {unknown}."
    if not is_undone:
        reported = "Nothing is undone for it: how severe it is depends on what was seen."
    hides = cause.kind in HIDDEN and type(cause).propose is not Cause.propose
    refuses = "bnlab.recalibrate refuses if undoing it gains as much as new statistics do, because these would hide it."
    return f"{reported} {refuses}" if hides else reported
