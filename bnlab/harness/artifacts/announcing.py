"""What is shown of a training while it runs."""

from __future__ import annotations

import time

from tqdm import tqdm

from bnlab.harness.artifacts.training import Callback, Progress

_SECONDS = 60.0  # between two lines where there is no terminal


def build_announcer(name: str, first: int, last: int) -> Callback:
    """A callback that shows a progress bar on a terminal, and prints a line a minute and one at the end elsewhere.

    Args:
        name: of the network.
        first, last: updates that have been made, and after which training ends.
    """
    bar = tqdm(total=last, initial=first, desc=name, unit="step", disable=None, leave=False)
    started = told = time.monotonic()

    def announce(progress: Progress) -> None:
        nonlocal told
        now, done = time.monotonic(), progress.step == last
        if not bar.disable:
            bar.update(progress.step - bar.n)
        elif done or now - told >= _SECONDS:
            told, seconds = now, now - started
            left = format_seconds(seconds * (last - progress.step) / (progress.step - first))
            end = f"trained in {format_seconds(seconds)}" if done else f"about {left} left"
            print(f"{name}  step {progress.step:,} of {last:,}  loss {progress.loss:.3f}  {end}", flush=True)
        if done:
            bar.close()

    return announce


def format_seconds(seconds: float) -> str:
    """A duration as a reader needs it: `42 s`, `7 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
