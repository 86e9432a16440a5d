"""Progress bars of tqdm: on a terminal and in a notebook; none where lines are kept, as in a file."""

from __future__ import annotations

import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm.auto import tqdm


def shows_bars() -> bool:
    """Return whether somebody watches the standard output of this process: a terminal, or the cell of a notebook."""
    if parent_process() is not None:
        return False  # several workers would draw in one place
    if _is_notebook():
        return True
    # A terminal without a size, as that of a container, has no room for a bar.
    return sys.stdout.isatty() and shutil.get_terminal_size(fallback=(0, 0)).columns > 0


def _is_notebook() -> bool:
    """Return whether this is the cell of a notebook, whose output is no terminal by its own account."""
    return type(sys.stdout).__module__.startswith("ipykernel.")


def make_bar(quiet: bool, is_inner: bool = False, **settings: Any) -> tqdm[Any]:
    """Make a bar, to be used in a `with` block; it draws nothing if it is quiet, or nobody watches.

    Args:
        quiet: draw nothing.
        is_inner: the bar stands below another one, and is taken away at its end.
        settings: arguments of tqdm, such as `total` and `unit`.
    """
    bars = _import_bars()
    is_hidden = quiet or not shows_bars()
    if is_inner and _is_notebook() and find_spec("ipywidgets") is None:
        is_hidden = True  # without widgets a cell rewrites one line only, and a second bar would overwrite the first
    return bars(**settings, leave=not is_inner, file=sys.stdout, disable=is_hidden)


@contextmanager
def ticking(bar: tqdm[Any]) -> Iterator[None]:
    """Draw a bar again each second in the block, so that its clock goes on while a job runs in another process."""
    is_over = threading.Event()

    def draw() -> None:
        while not is_over.wait(1):
            bar.refresh()

    thread = threading.Thread(target=draw, daemon=True)
    if not bar.disable:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if thread.is_alive():
            thread.join()


def print_above(line: str, is_problem: bool = False) -> None:
    """Print a line above the bars that there are; a problem on standard error."""
    stream = sys.stderr if is_problem else sys.stdout
    _import_bars().write(line, file=stream)
    stream.flush()  # a file that is read while the sweep runs


@cache
def _import_bars() -> type[tqdm[Any]]:
    """Import the bars of a notebook if this is one, otherwise those of a terminal."""
    import tqdm

    # The default lock is shared by processes, and one that is killed leaves it behind in the system.
    tqdm.tqdm.set_lock(threading.RLock())
    with warnings.catch_warnings():
        # Without ipywidgets a notebook gets the bar of a terminal, which needs no advice.
        warnings.filterwarnings("ignore", "IProgress not found")
        import tqdm.auto
    return tqdm.auto.tqdm
