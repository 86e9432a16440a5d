"""What is printed where the output is not UTF-8: in a container without a locale, or in a pipe on Windows."""

import io
import sys


def escape_unprintable() -> None:
    """Let standard output print letters that its encoding lacks as escapes, as standard error does: `\\xd7` for `×`.

    Python would raise UnicodeEncodeError, and the command end without its result.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a program may have put another kind of object there
        sys.stdout.reconfigure(errors="backslashreplace")
