"""Text is UTF-8 on every machine: what reads or writes it says so, because Python would ask the locale.

Ruff's PLW1514 finds such a call only where it can tell that the object is a path: 5 of 90 when this was written.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.checks.outcomes import ROOT

FOLDERS = ("bnlab", "experiments", "benchmarks", "docs", "tests")
OF_TEXT = ("read_text", "write_text")
OF_PROGRAMS = ("run", "Popen", "check_output")
BINARY = ("rb", "wb", "ab", "r+b")


def find_text_without_an_encoding() -> Iterator[str]:
    """Find calls that leave the encoding of text to the locale."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line in list_unnamed(path.read_text(encoding="utf-8")):
                yield f"{path.relative_to(ROOT)}:{line}: say encoding='utf-8'"


def list_unnamed(source: str) -> Iterator[int]:
    """List the lines of the calls that leave the encoding of text to the locale."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and asks_the_locale(call):
            yield call.lineno


def asks_the_locale(call: ast.Call) -> bool:
    """Decide if a call reads or writes text, of a file or of another program, without naming the encoding."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named:
        return False

    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function in OF_PROGRAMS:
        return "text" in named
    if function in OF_TEXT:
        return isinstance(call.func, ast.Attribute)  # bnlab's own function `write_text` writes UTF-8

    values = [*call.args, *named.values()]
    is_binary = any(isinstance(value, ast.Constant) and value.value in BINARY for value in values)
    is_image = ast.unparse(call.func) in ("Image.open", "pillow.open")
    return function == "open" and not is_binary and not is_image
