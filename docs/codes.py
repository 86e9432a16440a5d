"""The pages of the doctor's codes, made of what each cause says itself."""

from __future__ import annotations

import inspect
from pathlib import Path

from bnlab.doctor import Cause, causes, list_causes
from bnlab.doctor.catalogue import ALIASES, describe_needs, describe_severity, describe_signs
from bnlab.doctor.cause import NEEDS
from bnlab.doctor.gallery import FAULTS, UNSHOWN, Fault

_RECALIBRATION = {
    "repairs": "New statistics repair it.",
    "falls short": "New statistics repair a part of it at best.",
    "hides": "New statistics bring the score back, and hide it.",
    "not needed": "New statistics are not needed.",
}
"""What recalibration does to a fault, in a sentence."""


def write_codes() -> dict[str, str]:
    """Write a page for each code, and one that lists them: the name of a page → its text."""
    found = list_causes()
    pages = {"doctor/index": _write_index(found)}
    for cause in found:
        pages[f"doctor/{cause.code}"] = _write_code(cause)
    return pages


def list_code_sources() -> dict[Path, str]:
    """Map the files of the causes to their pages, and the folder's own file to the page that lists all."""
    sources = {Path(inspect.getfile(causes)): "doctor/index"}
    for cause in list_causes():
        sources[Path(inspect.getfile(type(cause)))] = f"doctor/{cause.code}"
    return sources


def _write_index(found: list[Cause]) -> str:
    lines = [
        "# Codes of the doctor",
        "",
        "What [`bnlab doctor`](../howto/doctor.md) and `bnlab.diagnose` look for. A page for each code says what it",
        "means, what to do, how it is told, and when it is a false alarm; `bnlab explain CODE` prints the same.",
        "",
        "| code | what it is | what it needs beside the model |",
        "|---|---|---|",
    ]
    for cause in found:
        title = cause.title.replace("|", "\\|")
        needs = ", ".join(NEEDS[need] for need in cause.needs)
        lines.append(f"| [{cause.code}]({cause.code}.md) | {title} | {needs} |")
    merged = [f"{code} is part of [{now}]({now}.md)." for code, now in ALIASES.items()]
    lines += ["", f"Codes of earlier versions: {' '.join(merged)}"]
    lines += ["", "```{toctree}", ":hidden:", "", *(cause.code for cause in found), "```", ""]
    return "\n".join(lines)


def _write_code(cause: Cause) -> str:
    parts = [
        f"# {cause.code}: {cause.title}",
        cause.meaning,
        f"**What to do:** {cause.remedy}",
        "## How it is told",
        describe_signs(cause),
        "## What it needs, and how severe it is",
        f"{describe_needs(cause)} {describe_severity(cause)}",
    ]
    examples = [_write_example(fault) for fault in FAULTS.values() if fault.code == cause.code]
    if examples:
        about = "Networks that were broken on purpose, by name in `bnlab.doctor.gallery.FAULTS`:"
        parts += ["## Examples", about, "\n".join(examples)]
    elif cause.code in UNSHOWN:
        parts += ["## Examples", UNSHOWN[cause.code]]
    return "\n\n".join([*parts, ""])


def _write_example(fault: Fault) -> str:
    return f"- *{fault.name}*: {fault.done} {_RECALIBRATION[fault.recalibration]}"
