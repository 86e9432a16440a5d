"""python -m docs.codes: write what each cause of the doctor says itself, for readers and for `bnlab.doctor.explain`.

docs/codes.md is committed, so that links to a code lead to something to read wherever the repository is shown;
bnlab/doctor/codes.json, so that explaining a code does not load torch, as the table does.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.gallery import FAULTS
from bnlab.doctor import CAUSES, Cause
from bnlab.doctor.cause import find_nothing
from bnlab.doctor.codes import EXPLANATIONS

PAGE = Path(__file__).with_name("codes.md")

_FIRST = """\
# Codes of the doctor

What [`bnlab doctor`](howto/doctor.md) and `bnlab.diagnose` look for: what each code means, what to do, and how the
doctor finds it. `bnlab explain CODE` prints the same. The lists show networks of ours that were broken in this way on
purpose, by their names in `benchmarks.gallery.FAULTS`.

| code | what it is | where the fault is |
|---|---|---|
"""
_RECALIBRATION = {
    "repairs": "New statistics repair it.",
    "falls short": "New statistics repair a part of it at best.",
    "hides": "New statistics bring the score back, and hide it.",
    "not needed": "New statistics are not needed.",
}
"""What recalibration does to a fault, in a sentence."""
_DEEDS = {"Leave": "The mistake leaves", "See": "The doctor looks for", "Undo": "The doctor undoes"}
"""How a reader would say what the docstring of a cause's function begins with."""


def main() -> None:
    """Write the page, and the explanations."""
    for path, text in ((PAGE, write_codes()), (EXPLANATIONS, write_explanations())):
        path.write_text(text, encoding="utf-8")
        print(path)


def _group_rows() -> Mapping[str, Sequence[Cause]]:
    """Group the rows by their code: a mistake that shows in two places has two."""
    return {code: [each for each in CAUSES if each.code == code] for code in sorted({each.code for each in CAUSES})}


def write_codes() -> str:
    """Write the page: a table of all codes, then a section for each.

    A heading is the code alone, so that links to it stay when a title changes.
    """
    groups = _group_rows()
    rows = [
        f"| [{code}](#{code.lower()}) | {rows[0].title} | {', '.join(dict.fromkeys(row.kind for row in rows))} |"
        for code, rows in groups.items()
    ]
    sections = [_write_section(code, rows) for code, rows in groups.items()]
    return _FIRST + "\n".join(rows) + "\n\n" + "\n".join(sections)


def _write_section(code: str, rows: Sequence[Cause]) -> str:
    parts = [f"## {code}", f"**{rows[0].title.capitalize()}.**", *_write_rows(rows)]
    examples = [fault for fault in FAULTS.values() if fault.code == code]
    if examples:
        lines = [f"- *{fault.name}*: {fault.done} {_RECALIBRATION[fault.recalibration]}" for fault in examples]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, ""])


def _write_rows(rows: Sequence[Cause]) -> list[str]:
    """Write the paragraphs of a code's rows, which may share some."""
    paragraphs = []
    for row in rows:
        paragraphs += [row.meaning, f"**What to do:** {row.remedy}"]
        for function in (row.undo, row.left, row.trace, row.sign):
            if function is not find_nothing:
                verb, _, rest = (inspect.getdoc(function) or "").partition(" ")
                paragraphs.append(f"**How it is found:** {_DEEDS[verb]} {' '.join(rest.split())}")
    return list(dict.fromkeys(paragraphs))


def write_explanations() -> str:
    """Write what `bnlab.doctor.explain` says of each code, as JSON."""
    explanations = {
        code: "\n\n".join([f"{code}: {rows[0].title}", *_write_rows(rows)]).replace("**", "")
        for code, rows in _group_rows().items()
    }
    return json.dumps(explanations, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
