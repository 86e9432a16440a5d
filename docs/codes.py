"""python -m docs.codes: write what each cause of the doctor says itself, for readers and for `bnlab.doctor.explain`.

docs/codes.md is committed, so that links to a code lead to something to read wherever the repository is shown;
bnlab/doctor/codes.json, so that explaining a code does not load torch, as all causes do.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from benchmarks.gallery import FAULTS, Fault
from bnlab.doctor import Cause, list_causes
from bnlab.doctor.cause import HIDDEN, NEEDS
from bnlab.doctor.codes import ALIASES, EXPLANATIONS

PAGE = Path(__file__).with_name("codes.md")

_RECALIBRATION = {
    "repairs": "New statistics repair it.",
    "falls short": "New statistics repair a part of it at best.",
    "hides": "New statistics bring the score back, and hide it.",
    "not needed": "New statistics are not needed.",
}
"""What recalibration does to a fault, in a sentence."""


def main() -> None:
    """Write the page, and the explanations."""
    for path, text in ((PAGE, write_codes()), (EXPLANATIONS, write_explanations())):
        path.write_text(text, encoding="utf-8")
        print(path)


def write_codes() -> str:
    """Write the page: a table of all codes, then a section for each.

    A heading is the code alone, so that links to it stay when a title changes.
    """
    causes = list_causes()
    lines = [
        "# Codes of the doctor",
        "",
        "What [`bnlab doctor`](howto/doctor.md) and `bnlab.diagnose` look for. Each code says what it means, what to",
        "do, how it is detected, and when it is a false alarm; `bnlab explain CODE` prints the same.",
        "",
        "| code | what it is | what it needs beside the model |",
        "|---|---|---|",
    ]
    for cause in causes:
        # A bar would end the cell of the table.
        title = cause.title.replace("|", "\\|")
        needs = ", ".join(NEEDS[need] for need in cause.needs)
        lines.append(f"| [{cause.code}](#{cause.code.lower()}) | {title} | {needs} |")
    merged = [f"{code} is part of [{now}](#{now.lower()})." for code, now in ALIASES.items()]
    lines += ["", f"Codes of earlier versions: {' '.join(merged)}", ""]
    return "\n".join([*lines, *(_write_code(cause) for cause in causes)])


def _write_code(cause: Cause) -> str:
    title = cause.title[0].upper() + cause.title[1:]
    parts = [
        f"## {cause.code}",
        f"**{title}.** {cause.meaning}",
        f"**What to do.** {cause.remedy}",
        f"**How it is detected.** {_describe_signs(cause)}",
        f"**What it needs.** {_describe_needs(cause)} {_describe_severity(cause)}",
    ]
    examples = [_write_example(fault) for fault in FAULTS.values() if fault.code == cause.code]
    if examples:
        about = "Networks that were broken on purpose, by name in `benchmarks.gallery.FAULTS`:"
        parts += [about, "\n".join(examples)]
    return "\n\n".join([*parts, ""])


def _write_example(fault: Fault) -> str:
    return f"- *{fault.name}*: {fault.done} {_RECALIBRATION[fault.recalibration]}"


def write_explanations() -> str:
    """Write what `bnlab.doctor.explain` says of each code, as JSON."""
    explanations = {cause.code: _write_explanation(cause) for cause in list_causes()}
    return json.dumps(explanations, indent=2, ensure_ascii=False) + "\n"


def _write_explanation(cause: Cause) -> str:
    heading = f"{cause.code}: {cause.title}"
    what_to_do = f"{cause.meaning}\n{cause.remedy}"
    conditions = f"{_describe_needs(cause)}\n{_describe_severity(cause)}"
    return "\n\n".join([heading, what_to_do, _describe_signs(cause), conditions])


def _describe_signs(cause: Cause) -> str:
    """Say how a cause detects its fault, and when it is a false alarm: its docstring."""
    return inspect.getdoc(type(cause)) or ""


def _describe_needs(cause: Cause) -> str:
    """Say what must be given for a cause to look."""
    wanted = " and ".join(NEEDS[need] for need in cause.needs)
    return f"It needs {wanted or 'the model alone'}."


def _describe_severity(cause: Cause) -> str:
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


if __name__ == "__main__":
    main()
