"""Run `bnlab` in the process of the test."""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

from bnlab import cli

Done = subprocess.CompletedProcess[str]


def call_bnlab(folder: Path, *words: str) -> Done:
    """Run the command in this process; what it imports from the folder is forgotten afterwards."""
    out = io.StringIO()
    err = io.StringIO()
    path = sys.path.copy()
    own = {file.stem for file in folder.glob("*.py")}
    others = {name: sys.modules.pop(name) for name in own & set(sys.modules)}  # another test's modules of these names
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", ["bnlab", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = cli.main()
        except SystemExit as end:  # of argparse, which has printed its help
            code = int(end.code or 0)

    sys.path[:] = path
    for name in own & set(sys.modules):
        del sys.modules[name]
    sys.modules.update(others)
    importlib.invalidate_caches()
    return Done(words, code, out.getvalue(), err.getvalue())


def assert_refused(done: Done, *found: str) -> None:
    """The command has ended with status 2 and one line, and that names what was found."""
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(words in done.stderr for words in found), done.stderr


def copy_module(folder: Path) -> Path:
    """Copy the module `mine` into a folder, and return the folder."""
    shutil.copy(Path(__file__).with_name("mine.py"), folder)
    return folder
