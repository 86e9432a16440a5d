"""The rules that come with bnlab, and what their codes mean."""

from __future__ import annotations

import importlib
import pkgutil

from bnlab.doctor import rules
from bnlab.doctor.rule import NEEDS, Rule


def list_rules() -> list[Rule]:
    """List the rules that come with bnlab, one of each, ordered by code."""
    found: list[Rule] = []
    for module_info in pkgutil.iter_modules(rules.__path__):
        module = importlib.import_module(f"{rules.__name__}.{module_info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Rule) and value.__module__ == module.__name__:
                found.append(value())
    return sorted(found, key=lambda rule: rule.code)


def explain(code: str) -> str:
    """Explain a code: what it is, how it is told, what to do, and when it is a false alarm.

    Raises:
        ValueError: there is no such code.
    """
    by_code = {rule.code: rule for rule in list_rules()}
    rule = by_code.get(code.upper())
    if rule is None:
        raise ValueError(f"explain: {code!r} is no code; there are {', '.join(by_code)}")
    lines = [f"{rule.code}: {rule.title}", "", rule.meaning, rule.remedy]
    details = type(rule).__doc__
    if details:
        lines += ["", *(line.strip() for line in details.strip().splitlines())]
    if rule.needs:
        wanted = ", ".join(NEEDS[need] for need in rule.needs)
        lines += ["", f"Needs: {wanted}."]
    return "\n".join(lines)
