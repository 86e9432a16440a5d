"""Text is UTF-8 on every machine: what reads or writes it says so, because Python would ask the locale.

Ruff's PLW1514 finds such a call only where it can tell that the object is a path: 5 of 90 when this test was written.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDERS = ("bnlab", "experiments", "benchmarks", "docs", "tests")
OF_TEXT = ("read_text", "write_text")
OF_PROGRAMS = ("run", "Popen", "check_output")
BINARY = ("rb", "wb", "ab", "r+b")


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


@pytest.mark.parametrize(
    ("call", "asks"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("Path('x').write_text(text)", True),
        ("write_text(path, text)", False),
        ("path.open()", True),
        ("open('x', 'w')", True),
        ("open('x', mode='rb')", False),
        ("path.open('wb')", False),
        ("Image.open(path)", False),
        ("subprocess.run(words, text=True)", True),
        ("subprocess.run(words, capture_output=True)", False),
    ],
)
def test_what_asks_the_locale(call: str, asks: bool) -> None:
    assert [*list_unnamed(call)] == [1] * asks


def test_text_says_its_encoding() -> None:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 100

    found = {
        f"{path.relative_to(ROOT)}:{line}" for path in paths for line in list_unnamed(path.read_text(encoding="utf-8"))
    }

    assert not found, "say encoding='utf-8'"


@pytest.mark.skipif(
    not torch.__file__.isascii(), reason="torch cannot be imported from a folder that is not ASCII without a locale"
)
@pytest.mark.parametrize(("command", "printed"), [("explain BN101", "\\u2212"), ("sweep --help", "\\xd7")])
def test_what_is_printed_where_the_output_is_ascii(command: str, printed: str) -> None:
    """Letters that it lacks are escaped, and nothing else changes."""
    words = [sys.executable, "-m", "bnlab", *command.split()]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}

    ascii_only = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=True)
    environment["PYTHONIOENCODING"] = "utf-8"
    whole = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=True)

    assert not ascii_only.stderr
    assert printed in ascii_only.stdout.decode("ascii")
    assert whole.stdout.decode("utf-8").encode("ascii", "backslashreplace") == ascii_only.stdout
