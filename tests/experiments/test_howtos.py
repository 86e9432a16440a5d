"""The how-to pages of the site: their files, code and commands work in the order in which they are read."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.running import call_bnlab
from tests.experiments.commands import ROOT, Call, Called, Write

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


def run(words: list[str], call: Call, folder: Path) -> Called:
    """Run a command in this process: of the clone, or of the package."""
    if words[0] in ("sweep", "report", "runs"):
        return call(*adapt(words))
    done = call_bnlab(folder, *words)
    return Called(done.returncode, done.stdout, done.stderr)


def strip_numbers(text: str) -> str:
    """What a page shows of an output and what is printed are the same but for numbers, which depend on the machine."""
    return " ".join(re.sub(r"\d+(\.\d+)?", "#", text).split())


@pytest.mark.parametrize("page", HOWTOS, ids=lambda page: page.stem)
def test_a_reader_can_follow(
    page: Path, write: Write, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = ""

    for language, text in list_blocks(page):
        file = FILE.match(text)
        if file:
            write(text, name=file[1])
        elif language == "python":
            exec(text, names)
        elif language == "text":
            assert strip_numbers(text) == strip_numbers(printed)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                command, _, remark = line.partition("  # status ")
                program, *words = shlex.split(command)
                code, printed, err = run(words, call, tmp_path)

                assert program == "bnlab"
                assert code == int(remark or 0), err
