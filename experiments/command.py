"""What the commands share: exit codes, and no traceback for what a user may do."""

from __future__ import annotations

import sys
from collections.abc import Callable


def exit_code(command: Callable[[list[str]], int]) -> int:
    """Run a command with the words of the command line; 2 for a user's mistake, 130 for Ctrl-C, each with its line.

    The command imports what takes seconds by itself, so that Ctrl-C in that time is caught here too.
    """
    try:
        return command(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nstopped; the same command continues", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error}; what is finished is kept, the same command continues", file=sys.stderr)
        return 2
    except ValueError as error:
        from bnlab.harness.errors import UserError  # here: importing bnlab takes seconds

        if not isinstance(error, UserError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
