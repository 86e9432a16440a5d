"""The rules that come with bnlab, and what their codes mean."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from bnlab.doctor import rules
from bnlab.doctor.rule import NEEDS, Rule, Severity


def list_rules() -> list[Rule]:
    """List the rules that come with bnlab, one of each, ordered by code.

    >>> [rule.code for rule in list_rules()][:3]
    ['BN001', 'BN002', 'BN003']
    """
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

    >>> explain("BN102").splitlines()[0]
    'BN102: momentum looks reversed'
    """
    by_code = {rule.code: rule for rule in list_rules()}
    rule = by_code.get(code.upper())
    if rule is None:
        known = ", ".join(by_code)
        raise ValueError(f"explain: {code!r} is no code; there are {known}")

    heading = f"{rule.code}: {rule.title}"
    what_to_do = f"{rule.meaning}\n{rule.remedy}"
    conditions = f"{describe_needs(rule)}\n{describe_severity(rule)}"
    return "\n\n".join([heading, what_to_do, describe_signs(rule), conditions])


def describe_signs(rule: Rule) -> str:
    """Say how a rule tells its fault, and when it is a false alarm: its docstring."""
    return inspect.getdoc(type(rule)) or ""


def describe_needs(rule: Rule) -> str:
    """Say what must be given for a rule to look."""
    if not rule.needs:
        return "It needs the model alone."
    wanted = " and ".join(NEEDS[need] for need in rule.needs)
    return f"It needs {wanted}."


def describe_severity(rule: Rule) -> str:
    """Say how severe what a rule finds is, and whether recalibration would hide it."""
    if rule.follows_cost:
        told = f"Its severity follows what it costs; where that is not known, it is {_name(rule.severity)}."
    else:
        told = f"It is {_name(rule.severity)}, if nothing else is said above, whatever it costs."
    return f"{told} Recalibration would hide it, and bnlab.recalibrate refuses." if rule.hides else told


def _name(severity: Severity) -> str:
    return f"an {severity}" if severity == "error" else f"a {severity}"
