"""What is printed where the output is ASCII."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(
    not torch.__file__.isascii(), reason="torch cannot be imported from a folder that is not ASCII without a locale"
)
def test_letters_that_the_output_lacks_are_escaped_and_nothing_else_changes() -> None:
    words = [sys.executable, "-m", "bnlab", "sweep", "--help"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}

    ascii_only = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=True)
    environment["PYTHONIOENCODING"] = "utf-8"
    whole = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=True)

    assert not ascii_only.stderr
    assert "\\xd7" in ascii_only.stdout.decode("ascii")
    assert whole.stdout.decode("utf-8").encode("ascii", "backslashreplace") == ascii_only.stdout
