"""The pages of the doctor's codes, made of what each rule says itself."""

from __future__ import annotations

import inspect
from pathlib import Path

from bnlab.doctor import Rule, list_rules, rules
from bnlab.doctor.catalogue import describe_needs, describe_severity, describe_signs
from bnlab.doctor.gallery import FAULTS, UNSHOWN, Fault
from bnlab.doctor.rule import NEEDS

_RECALIBRATION = {
    "repairs": "New statistics repair it.",
    "falls short": "New statistics do not repair it.",
    "hides": "New statistics would hide it.",
    "not needed": "New statistics are not needed.",
}
"""What recalibration does to a fault, in a sentence."""


def write_codes() -> dict[str, str]:
    """Write a page for each code, and one that lists them: the name of a page → its text."""
    found = list_rules()
    pages = {"doctor/index": _write_index(found)}
    for rule in found:
        pages[f"doctor/{rule.code}"] = _write_code(rule)
    return pages


def list_code_sources() -> dict[Path, str]:
    """Map the files of the rules to their pages, and the folder's own file to the page that lists all."""
    sources = {Path(inspect.getfile(rules)): "doctor/index"}
    for rule in list_rules():
        sources[Path(inspect.getfile(type(rule)))] = f"doctor/{rule.code}"
    return sources


def _write_index(found: list[Rule]) -> str:
    lines = [
        "# Codes of the doctor",
        "",
        "What [`bnlab doctor`](../howto/doctor.md) and `bnlab.diagnose` look for. A page for each code says what it",
        "means, what to do, how it is told, and when it is a false alarm; `bnlab explain CODE` prints the same.",
        "",
        "| code | what it is | what it needs beside the model |",
        "|---|---|---|",
    ]
    for rule in found:
        title = rule.title.replace("|", "\\|")
        needs = ", ".join(NEEDS[need] for need in rule.needs)
        lines.append(f"| [{rule.code}]({rule.code}.md) | {title} | {needs} |")
    lines += ["", "```{toctree}", ":hidden:", "", *(rule.code for rule in found), "```", ""]
    return "\n".join(lines)


def _write_code(rule: Rule) -> str:
    parts = [
        f"# {rule.code}: {rule.title}",
        rule.meaning,
        f"**What to do:** {rule.remedy}",
        "## How it is told",
        describe_signs(rule),
        "## What it needs, and how severe it is",
        f"{describe_needs(rule)} {describe_severity(rule)}",
    ]
    examples = [_write_example(fault) for fault in FAULTS.values() if fault.code == rule.code]
    if examples:
        about = "Networks that were broken on purpose, by name in `bnlab.doctor.gallery.FAULTS`:"
        parts += ["## Examples", about, "\n".join(examples)]
    elif rule.code in UNSHOWN:
        parts += ["## Examples", UNSHOWN[rule.code]]
    return "\n\n".join([*parts, ""])


def _write_example(fault: Fault) -> str:
    return f"- *{fault.name}*: {fault.done} {_RECALIBRATION[fault.recalibration]}"
