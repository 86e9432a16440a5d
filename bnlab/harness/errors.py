"""The one exception that a user's mistake raises in the harness; commands print it and exit 2."""


class UserError(ValueError):
    """What was found and what to do, in one or two lines; shown without a traceback."""


class JobError(UserError):
    """What stops one job of a sweep and leaves the others alone."""
