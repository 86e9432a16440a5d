"""The command `bnlab`: on a caller's own model, and sweeps, from any folder."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import bnlab
from bnlab.commands.parsers import add_parsers
from bnlab.common.printing import escape_unprintable

_DESCRIPTION = (
    "Batch norm's running averages against exact statistics: of your own model (doctor, gap, recalibrate, undo), and "
    "of small networks that are trained for it (sweep, report, runs). bnlab COMMAND --help says more."
)
_OF_SWEEPS = {
    "sweep": "train the networks that are missing, measure them, write tables",
    "report": "draw figures of a sweep, or the figures and verdicts of a question",
    "runs": "list, show, remove or export networks that have been trained",
    "new": "begin a folder with a model, data, a task, an estimator and a measurement of your own",
}
"""Commands of sweeps, modules of `bnlab.harness.lab`, with what they are for."""


def main() -> int:
    """Run the command that the words name; 2 for a user's mistake, with one line that says what to do."""
    escape_unprintable()
    # Torch reads it when it first allocates, and workers inherit it: huge pages are mapped 512 times more seldom.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        code = _run_command(sys.argv[1:])
        # If the reader has closed the pipe, the flush raises here, where it is handled, and not when Python exits.
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # as by `| head`
        sys.stdout = None  # type: ignore[assignment]  # it is not flushed at the end
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


def _run_command(words: list[str]) -> int:
    if words and words[0] in _OF_SWEEPS:
        lab_command = importlib.import_module(f"bnlab.harness.lab.{words[0]}")
        code: int = lab_command.main(words[1:])
        return code

    try:
        # `max_images=100` too, as Python and the commands of the harness write it.
        words = [re.sub("^max_images=", "--max-images=", word) for word in words]
        arguments = _make_parser().parse_args(words)
        code = _run(arguments)
    # This is nobody's mistake, and `main` handles it.
    except BrokenPipeError:
        raise
    except Exception as error:  # the caller's model and batches may raise anything
        print(f"error: {_describe_error(error)}", file=sys.stderr)
        return 2
    return code


def _run(arguments: argparse.Namespace) -> int:
    """Run a command; RuntimeError where the caller's code ends the program, whose status would be taken for ours."""
    # Imported here, because it loads torch, which explaining a code does not need.
    if arguments.command != "explain":
        from bnlab.memory import keep_freed_memory

        keep_freed_memory()
    command = importlib.import_module(f"bnlab.commands.{arguments.command}")
    try:
        code: int = command.run(arguments)
    except SystemExit as error:
        raise RuntimeError(f"the program was ended by sys.exit({error.code!r})").with_traceback(
            error.__traceback__
        ) from None
    return code


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="bnlab", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"bnlab {bnlab.__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    # These are only listed in --help, because importing their modules would load the whole harness.
    for name, purpose in _OF_SWEEPS.items():
        commands.add_parser(name, help=purpose)
    add_parsers(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise one line, where argparse prints its usage before it."""
        raise ValueError(f"{message}; {self.prog} --help says how to call it")


def _describe_error(error: Exception) -> str:
    """Write our own message as it is; of what the caller's code raised also the type, our notes, and the line."""
    trace = traceback.extract_tb(error.__traceback__)
    # LiveBytes stands between the caller's code and torch.
    frames = [frame for frame in trace if frame.name != "__torch_function__"]
    package = Path(__file__).parent
    # Frames below our last one belong to the caller's code, or to a package that it has called.
    ours = [number for number, frame in enumerate(frames) if package in Path(frame.filename).parents]
    # The traceback begins in `_run_command`, so that at least one frame is ours.
    foreign = frames[max(ours) + 1 :]
    notes = getattr(error, "__notes__", [])
    if not foreign:
        return "\n  ".join([str(error), *notes])

    lines = [_summarize(error), *notes]
    is_frozen = "<frozen "  # as the files of Python's import system are called
    callers = [
        frame for frame in foreign if "site-packages" not in frame.filename and not frame.filename.startswith(is_frozen)
    ]
    if isinstance(error, SyntaxError) and error.filename is not None:  # no frame has reached it
        lines.append(f"at {error.filename}:{error.lineno}: {(error.text or '').strip()}")
    elif callers:
        last = callers[-1]
        lines.append(f"at {last.filename}:{last.lineno}: {last.line}")
    return "\n  ".join(lines)


def _summarize(error: Exception) -> str:
    """Write an error's type and first line; of one that a loader's worker passed on the last, which says both."""
    text = str(error).rstrip()
    if "Original Traceback" in text:
        return text.rpartition("\n")[2]
    first_line = text.partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"


if __name__ == "__main__":
    sys.exit(main())
