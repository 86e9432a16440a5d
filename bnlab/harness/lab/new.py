"""Begin a folder with code of one's own: `bnlab new FOLDER`."""

from __future__ import annotations

import shutil
from pathlib import Path

from bnlab.harness.errors import UserError
from bnlab.harness.lab.command import run_command
from bnlab.harness.lab.registry import CONF

_USAGE = """\
bnlab new FOLDER

Create a folder with one small file for each: a model, data, a task, an estimator and a measurement; and an experiment
that sweeps them, by bnlab sweep experiment=first in it. README.md there says more."""


def main(words: list[str]) -> int:
    """Run the command `bnlab new`."""
    return run_command(_write_folder, words, _USAGE)


def _write_folder(words: list[str]) -> int:
    if len(words) != 1:
        raise UserError(f"bnlab new: takes one folder, found {len(words)} words")
    folder = Path(words[0])
    if folder.exists():
        raise UserError(f"{folder}: already exists; name a new folder")
    shutil.copytree(CONF / "new", folder, ignore=shutil.ignore_patterns("__pycache__"))
    print(f"{folder}/README.md says how to go on; first: cd {folder}; bnlab sweep experiment=first")
    return 0
