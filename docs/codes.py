"""python -m docs.codes: write docs/codes.md, the page of the doctor's codes, of what each cause says itself.

The page is committed, so that links to a code lead to something to read wherever the repository is shown.
"""

from __future__ import annotations

from pathlib import Path

from bnlab.doctor import Cause, list_causes
from bnlab.doctor.catalogue import ALIASES, describe_needs, describe_severity, describe_signs
from bnlab.doctor.cause import NEEDS
from bnlab.doctor.gallery import FAULTS, UNSHOWN, Fault

PAGE = Path(__file__).with_name("codes.md")

_RECALIBRATION = {
    "repairs": "New statistics repair it.",
    "falls short": "New statistics repair a part of it at best.",
    "hides": "New statistics bring the score back, and hide it.",
    "not needed": "New statistics are not needed.",
}
"""What recalibration does to a fault, in a sentence."""


def main() -> None:
    """Write the page."""
    PAGE.write_text(write_codes(), encoding="utf-8")
    print(PAGE)


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
        f"**How it is detected.** {describe_signs(cause)}",
        f"**What it needs.** {describe_needs(cause)} {describe_severity(cause)}",
    ]
    examples = [_write_example(fault) for fault in FAULTS.values() if fault.code == cause.code]
    if examples:
        about = "Networks that were broken on purpose, by name in `bnlab.doctor.gallery.FAULTS`:"
        parts += [about, "\n".join(examples)]
    elif cause.code in UNSHOWN:
        parts.append(UNSHOWN[cause.code])
    return "\n\n".join([*parts, ""])


def _write_example(fault: Fault) -> str:
    return f"- *{fault.name}*: {fault.done} {_RECALIBRATION[fault.recalibration]}"


if __name__ == "__main__":
    main()
