"""The how-to pages of the site: their files, code and commands work in the order in which they are read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.commands import ROOT, Call, Write

HOWTOS = sorted((ROOT / "docs" / "howto").glob("*.md"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+)\.py\n")
QUICK = ("steps=3", "data.images=200", "evaluate_at=final", "device=cpu", "threads=1")


def list_blocks(page: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of each block of code."""
    for match in FENCE.finditer(page.read_text()):
        yield match[1], match[2]


def adapt(words: list[str]) -> list[str]:
    """The words of a command, with settings that make its sweep short; nothing is sent to a cluster."""
    if words[0] != "sweep":
        return words
    if "hydra/launcher=submitit_slurm" in words:
        return [*words, "dry_run=true"]
    return [*words, *QUICK, "hydra/launcher=basic"]


@pytest.mark.parametrize("page", HOWTOS, ids=lambda page: page.stem)
def test_a_reader_can_follow(
    page: Path, write: Write, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}

    for language, text in list_blocks(page):
        file = FILE.match(text)
        if file:
            write(text, name=file[1])
        elif language == "python":
            exec(text, names)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                program, *words = shlex.split(line)
                code, _, err = call(*adapt(words))

                assert program == "bnlab"
                assert code == 0, err
