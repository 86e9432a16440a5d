"""The grid of jobs that the words of a command line stand for, and lists of values that are none."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from bnlab.harness.errors import UserError
from bnlab.lab.words import SWEPT_BY_FILES, read_word


def list_jobs(overrides: Iterable[Override]) -> list[list[Override]]:
    """List what each job sets, in Hydra's order.

    Hydra's own sweeper, which does the same, can be asked for its jobs only by private names.
    """
    values = {}
    for override in overrides:
        values[override.get_key_element()] = _list_values(override)
    return [list(job) for job in itertools.product(*values.values())]


def _list_values(override: Override) -> list[Override]:
    """List the override for each of the values that it is swept over."""
    if not override.is_sweep_override():
        return [override]

    key = override.get_key_element()
    texts: list[str] = []
    with suppress(HydraException):  # intervals and globs
        texts = [*override.sweep_string_iterator()]
    if not texts or key in ("name", "results") or override.is_hydra_override():
        raise UserError(
            f"{override.input_line}: cannot be swept; comma lists can, but not of name, results and Hydra's settings"
        )
    return [read_word(f"{key}={text}") for text in texts]


def refuse_sweeps(overrides: Iterable[Override]) -> None:
    """Refuse lists of values without `-m`."""
    for override in overrides:
        if not override.is_sweep_override():
            continue
        word = str(override.input_line)
        key, _, value = word.partition("=")
        hint = ""
        if key in ("momentum", "estimator"):
            together = shlex.quote(f"{key}=[{value}]")
            hint = f"; to measure all on one network: {together}"
        raise UserError(f"{word}: several values are swept with -m{hint}")


def refuse_several_files(overrides: Iterable[Override], words: Sequence[str]) -> None:
    """Refuse a list of experiments: Hydra would drop what each file sweeps; the message has a command for each.

    Args:
        overrides: what the words say.
        words: as on the command line.
    """
    for override in overrides:
        if override.get_key_element() not in SWEPT_BY_FILES or not override.is_sweep_override():
            continue
        others = [word for word in words if word.removeprefix("++") != override.input_line]
        commands = []
        for one in _list_values(override):
            commands.append(shlex.join(["bnlab", "sweep", "-m", str(one.input_line), *others]))
        raise UserError(
            f"{override.input_line}: each of them has a sweep of its own; run one after the other:\n"
            f"  {' && '.join(commands)}"
        )
