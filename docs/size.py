"""python -m docs.size: write docs/contributing/size.md, how much the code does, room by room.

`make test` calls it with --check, which fails where the page and the code disagree. A room that has become smaller is
written by the command alone. One that has become larger needs a reason, which stays on the page:

    python -m docs.size --reason "#104: averages over steps"
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "contributing" / "size.md"
_FOLDERS = ("bnlab", "experiments", "benchmarks", "conf")
_FIRST = """\
# How much the code does

*Nodes* are those of Python's syntax trees, without docstrings and contexts: lines can be saved by squeezing them, nodes
only by an idea. There is no ceiling. A room that grows needs a reason, the issue that asks for it or a link to somebody
outside who met what it is for, and the question is which idea would do without. `python -m docs.size` writes this page.

| room | files | nodes of Python | lines of YAML |
|---|--:|--:|--:|
"""
_REASONS = "\n## What made a room larger\n\n"
_ROW = re.compile(r"^\| `(.+)` \| (\d+) \| (\d+) \| (\d+) \|$", re.MULTILINE)


class Size(NamedTuple):
    """Size of a room.

    Attributes:
        files: Python and YAML.
        nodes: of the syntax trees of its Python.
        lines: of its YAML.
    """

    files: int = 0
    nodes: int = 0
    lines: int = 0


def main() -> int:
    """Write or check the page; 1 where the code does more than the page says, without a reason, or `--check` fails."""
    parser = argparse.ArgumentParser(description="how much the code does, room by room")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--reason", help="why a room has become larger: the issue, or a link")
    arguments = parser.parse_args()

    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    known = read_sizes(text)
    sizes = measure_rooms(ROOT)
    grown = list_grown(known, sizes)
    if arguments.check:
        if sizes == known:
            return 0
        hint = ' --reason "#ISSUE: WHY"' if grown else ""
        print(f"{PAGE.relative_to(ROOT)}: is of other code; run: python -m docs.size{hint}", *grown, sep="\n  ")
        return 1
    if known and grown and not arguments.reason:
        print("larger than before; give the reason, --reason:", *grown, sep="\n  ")
        return 1

    _, _, reasons = text.partition(_REASONS)
    if arguments.reason and grown:
        reasons += f"- {arguments.reason} ({'; '.join(grown)})\n"
    PAGE.write_text(write_page(sizes, reasons), encoding="utf-8")
    print(PAGE)
    return 0


def measure_rooms(root: Path) -> dict[str, Size]:
    """Measure each room: a folder of bnlab's, or one of the other folders of code as a whole."""
    sizes: dict[str, Size] = {}
    for folder in _FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".py", ".yaml"):
                continue
            parts = path.relative_to(root).parts
            is_deep = folder == "bnlab" and len(parts) > 2
            room = "/".join(parts[:2]) if is_deep else folder
            text = path.read_text(encoding="utf-8")
            before = sizes.get(room, Size())
            nodes = count_nodes(text) if path.suffix == ".py" else 0
            lines = len(text.splitlines()) if path.suffix == ".yaml" else 0
            sizes[room] = Size(before.files + 1, before.nodes + nodes, before.lines + lines)
    return sizes


def count_nodes(text: str) -> int:
    """Count the nodes of a program's syntax tree, without docstrings and without the contexts of names.

    >>> count_nodes("x = 1"), count_nodes('"What it does."')
    (4, 2)
    """
    nodes = [node for node in ast.walk(ast.parse(text)) if not isinstance(node, ast.expr_context)]
    return sum(not _is_docstring(node) for node in nodes)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def list_grown(known: dict[str, Size], sizes: dict[str, Size]) -> list[str]:
    """List what has become larger, in words."""
    grown = []
    for room, size in sizes.items():
        before = known.get(room, Size())
        if size.nodes > before.nodes:
            grown.append(f"`{room}`: {before.nodes} to {size.nodes} nodes")
        if size.lines > before.lines:
            grown.append(f"`{room}`: {before.lines} to {size.lines} lines of YAML")
    return grown


def read_sizes(text: str) -> dict[str, Size]:
    """Read the rooms of a page."""
    return {room: Size(int(files), int(nodes), int(lines)) for room, files, nodes, lines in _ROW.findall(text)}


def write_page(sizes: dict[str, Size], reasons: str) -> str:
    """Write the page, the largest room first."""
    ordered = sorted(sizes.items(), key=lambda item: (-item[1].nodes, item[0]))
    rows = [f"| `{room}` | {size.files} | {size.nodes} | {size.lines} |\n" for room, size in ordered]
    return f"{_FIRST}{''.join(rows)}{_REASONS}{reasons}"


if __name__ == "__main__":
    sys.exit(main())
