"""What a user's mistake raises in the harness (commands print it and exit 2), and the words for code that fails."""

import sysconfig
import traceback
from pathlib import Path

_OTHERS = (str(Path(__file__).parents[1]), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))


class UserError(ValueError):
    """What was found and what to do, in one or two lines; shown without a traceback."""


class JobError(UserError):
    """What stops one job of a sweep and leaves the others alone."""


def describe_failure(error: BaseException) -> str:
    """The error on one line, with the line of the user's own code that it comes from."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((*_OTHERS, "<"))]
    return reason + (f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else "")
