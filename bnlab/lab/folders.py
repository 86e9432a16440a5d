"""Folders: of the committed results, and those in which Hydra looks for files.

Hydra looks in bnlab's own `conf/`, that of `--config-dir`, and `conf/` of the current folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bnlab.harness.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_IN_WHEEL = _PACKAGE / "conf"  # where a wheel has what lies beside the package in a clone

CONF = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent / "conf"
REFERENCE = _PACKAGE.parent / "results" / "reference"
"""The results that are committed, in a clone."""


def search_folders(words: Sequence[str]) -> list[str]:
    """Put a Hydra setting in place of `--config-dir`, with `conf/` here; UserError for a folder that cannot be used."""
    options = [word for word in words if word.startswith("--config-dir")]
    others = [word for word in words if word not in options]
    folders = []
    for option in options:
        folder = Path(option.partition("=")[2])
        if not folder.is_dir():
            raise UserError(f"--config-dir={folder}: is no folder; write --config-dir=FOLDER")
        folders.append(folder.resolve())
    here = Path("conf").resolve()
    if here.is_dir() and here != CONF:
        folders.append(here)

    for folder in folders:
        for path in sorted(folder.glob("experiment/*.yaml")):
            if (CONF / "experiment" / path.name).exists():
                raise UserError(f"{path}: bnlab has an experiment of this name; rename the file, and name: in it")
    if not folders:
        return others
    quoted = [f"'{folder}'" for folder in dict.fromkeys(folders)]
    return [*others, f"hydra.searchpath=[{','.join(quoted)}]"]
