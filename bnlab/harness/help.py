"""What `sweep --help` says, written from the components, the configuration and the estimators.

`python -m experiments.describe` writes it to `conf/help.txt`: the command waits neither for torch nor for Hydra.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bnlab.common.names import Named, list_named
from bnlab.estimators import Estimator
from bnlab.harness.artifacts.job_settings import GROUPS, Config
from bnlab.harness.components import list_settings
from bnlab.harness.measurements import list_names
from bnlab.harness.statistic_kinds import Measured, OfAveraging
from bnlab.inference import TestTimeStatistics

_HEAD = """\
Train what is missing, measure, write tables.

bnlab sweep experiment=quickstart
bnlab sweep -m batch_size=4,32,256 seed=0,1,2 'momentum=[0.01,0.1,0.5]' 'estimator=[ema,cumulative,exact]'
bnlab sweep experiment=momentum dry_run=true       how many networks, how long they take
bnlab report experiment=quickstart                 then: the figures and verdicts
bnlab runs list                                    what has been trained

-m sweeps comma lists; lists in brackets (momentum=[0.01,0.1]) are measured together, on one network.
--cfg job prints the settings of the first job; Hydra's --info, --resolve, --config-dir and others are left out.
model=, data=, task=, norm= and optimizer= also take a function of yours, as mine.make_model; its arguments are
settings.
"""
_WIDTH = 116
_COLUMN = 32  # where meanings begin
_KINDS: dict[type[Named], str] = {
    Estimator: "averages of the recorded batches",
    Measured: 'statistics of frozen weights, also "precise(images=1000)"',
    OfAveraging: "with averaging=swa or ema",
    TestTimeStatistics: "of the test batch",
}  # of what `estimator` may be
_OWN = "your own: package.module.Class"


def write_help(files: Mapping[str, Sequence[str]]) -> str:
    """Write the page: commands to begin with, settings, and the files by group that can be chosen by name."""
    lines = [_HEAD, *_describe_settings(), "", "Files (key=name)"]
    names = {group: sorted(choices) for group, choices in GROUPS.items()} | dict(files)
    for group in sorted(names):
        lines.append(f"{group}: {', '.join(names[group])}")
    return "\n".join(lines) + "\n"


def _describe_settings() -> list[str]:
    """Describe every choice and setting with its default and its meaning."""
    lines = []
    for group in GROUPS:
        lines += [*_describe_group(group), ""]
    lines += [*_describe(Config()), ""]

    kinds = []
    for kind, meaning in _KINDS.items():
        kinds.append(f"{meaning}: {', '.join(sorted(list_named(kind)))}")
    estimators = "; ".join([*kinds, _OWN])
    lines += _wrap("estimator", f"{estimators}. Parameters in quotes: 'estimator=\"window(k=50)\"'")
    lines += _wrap("measurements", f"{', '.join(list_names())}; {_OWN}")
    return lines


def _describe_group(group: str) -> list[str]:
    """Describe the choices of a group, each with the settings that it has beside those of all; those come last."""
    choices = GROUPS[group]
    # By name and meaning, because settings of two choices may share a name and mean different things.
    of_choices = [{(each.name, meaning.text) for each, meaning in list_settings(choice)} for choice in choices.values()]
    shared = {name for name, _ in set.intersection(*of_choices)}

    lines: list[str] = []
    for name, choice in choices.items():
        summary, _, _ = (type(choice).__doc__ or "").partition("\n")
        lines += _wrap(f"{group}={name}", summary)
        # A setting that several choices have is listed once, below the first of them.
        for line in _describe(choice, group, left_out=shared):
            if line not in lines:
                lines.append(line)
    if shared:
        usual = getattr(Config(), group)
        lines.append(f"every {group} (defaults of {usual.name})")
        lines += _describe(usual, group, left_out=vars(usual).keys() - shared)
    return lines


def _describe(part: Any, group: str = "", left_out: Collection[str] = ()) -> list[str]:
    """Describe each setting of a component, or of the configuration without its groups."""
    described = []
    for each, meaning in list_settings(part):
        if each.name in left_out:
            continue
        key = f"  {group}.{each.name}" if group else each.name
        value = _write(getattr(part, each.name))
        lines = _wrap(f"{key}={value}", meaning.describe())
        described.append("\n".join(lines))
    return described


def _write(value: Any) -> str:
    """A default as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(value)}]"
    return str(value)


def _wrap(head: str, text: str) -> list[str]:
    """A head and its meaning, which begins in a column of its own; below a long head."""
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    has_room = len(head) < _COLUMN - 1
    if not lines or not has_room:
        return [head, *lines]
    # The head takes the place of the spaces before the first line.
    lines[0] = head + lines[0][len(head) :]
    return lines
