"""python -m experiments.describe: write the pages that are made from the code.

results/README.md and results/reference/TABLES.md say what the columns of all tables mean, conf/help.txt is what
`bnlab sweep --help` prints, and results/reference/README.md lists the experiments with what they take.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from itertools import takewhile
from pathlib import Path

import pandas as pd

from bnlab.common.names import Named, list_named
from bnlab.common.printing import format_seconds
from bnlab.estimators import Estimator
from bnlab.harness.artifacts.job_settings import GROUPS, Config
from bnlab.harness.lab.registry import CONF, REFERENCE, find_question, list_measurements, list_questions
from bnlab.harness.run_table import RUNS
from bnlab.harness.schema import Table
from bnlab.harness.settings import Setting, list_names, list_settings, write_argument
from bnlab.harness.statistic_kinds import Measured, OfAveraging
from bnlab.inference import TestTimeStatistics

README = Path(__file__).parents[1] / "results" / "README.md"
OTHER_TABLES = REFERENCE / "TABLES.md"
HELP = CONF / "help.txt"
EXPERIMENTS = REFERENCE / "README.md"
_FIRST = """\
# Tables

A sweep writes `results/<name>/tables/<table>.parquet`, and `bnlab.harness.load("<name>")` loads all of them. There is
always a table `runs`. There are `gaps` and `evaluations`, too, unless `measurements` names
[other tables](reference/TABLES.md), most of which were made for an experiment.

The columns in bold are the key: there is one row for each of their combinations. Types are text, int, real (float64)
and bool. Null (NaN) means that a column has no meaning in a row. Shares, accuracies and errors are fractions from 0 to
1. The files hold key and meanings as metadata. `python -m experiments.describe` writes this page.
"""
_FIRST_OF_OTHERS = """\
# Tables of experiments

A sweep writes these tables if `measurements` names them; most were made for an experiment. Conventions are those of
[runs, gaps and evaluations](../README.md). This folder has tables and figures of one run of each experiment. The tables
have only the columns that its question reads, with seven digits (`python -m experiments.reference` drops the others).
`../begun/` has rows of unfinished experiments. `python -m experiments.describe` writes this page.
"""
_FIRST_OF_EXPERIMENTS = """\
# Experiments

Each page has an experiment's claims with their verdicts, its figures, and the commands that run it again.
[ANSWERS.md](ANSWERS.md) says what follows from them, and [HYPOTHESES.md](HYPOTHESES.md) which hypotheses hold. The
folder `papers` compares numbers that papers print with ours. Folders are laid out like your own results:
`bnlab.harness.load("momentum", "results/reference")` reads tables, `bnlab report experiment=momentum
results=results/reference` draws figures again, and `bnlab report paper=all results=results/reference` those of the
papers. `make results` trains the networks again.

*Training* is the time that the networks of the tables took to train, one after the other, on the devices that each page
names, without measuring them. `dry_run=true` estimates it for your machine.
"""
_HELP_HEAD = """\
Train what is missing, measure, write tables.

bnlab sweep experiment=quickstart
bnlab sweep -m batch_size=4,32,256 seed=0,1,2 'momentum=[0.01,0.1,0.5]' 'estimator=[ema,cumulative,exact]'
bnlab sweep experiment=momentum dry_run=true       how many networks, how long they train
bnlab report experiment=quickstart                 then: the figures and verdicts
bnlab runs list                                    what has been trained

-m sweeps comma lists and seed=range(0,5); lists in brackets (momentum=[0.01,0.1]) are measured on one network.
What an experiment sweeps gives way to words: experiment=momentum seed=0,1. An interrupted sweep: the same command
continues. Networks are trained side by side on the cores that there are, with hydra/launcher=basic one after the other,
with hydra/launcher=submitit_slurm on a cluster. More in docs/howto/sweep.md.
Values with brackets of their own are quoted: 'estimator="window(k=50)"'.
--cfg job prints the settings of the first job; Hydra's --info, --resolve, --config-dir and others are left out.
model=, data=, task=, norm= and optimizer= also take a function of yours, as mine.make_model; its arguments are
settings.
"""
_WIDTH = 116
_COLUMN = 32  # where meanings begin
_ASKED_MOST = ("momentum", "batch_size", "estimator", "seed", "epochs", "steps")
_ESTIMATORS: dict[type[Named], str] = {
    Estimator: "estimators that average the recorded batches (estimator=package.module.Class: one of yours)",
    Measured: "estimators of frozen weights, from all training images, or as precise(images=1000)",
    OfAveraging: "estimators of a network with averaging=swa or ema",
    TestTimeStatistics: "statistics of each test batch",
}
_TYPES = {"string": "text", "int64": "int", "double": "real", "bool": "bool"}


def main() -> int:
    """Write the pages."""
    README.write_text(describe_tables(), encoding="utf-8")
    OTHER_TABLES.write_text(describe_other_tables(), encoding="utf-8")
    HELP.write_text(describe_sweep(), encoding="utf-8")
    EXPERIMENTS.write_text(describe_experiments(), encoding="utf-8")
    return 0


def describe_tables() -> str:
    """Write the page in Markdown on the tables that a sweep writes unless `measurements` says otherwise."""
    known = list_measurements()
    usual = {name: known[name].table for name in Config().measurements}
    return "\n\n".join([_FIRST.rstrip(), *_describe_each_table({"runs": RUNS, **usual})]) + "\n"


def describe_other_tables() -> str:
    """Write the page on the tables of all other measurements, most of which are made for an experiment."""
    others = {each.name: each.table for each in list_measurements().values() if each.name not in Config().measurements}
    return "\n\n".join([_FIRST_OF_OTHERS.rstrip(), *_describe_each_table(dict(sorted(others.items())))]) + "\n"


def _describe_each_table(tables: Mapping[str, Table]) -> Iterator[str]:
    for name, table in tables.items():
        lines = [f"## {name}", "", table.about, "", "| column | type | meaning |", "|---|---|---|"]
        for column, each in table.columns.items():
            shown = f"**{column}**" if column in table.key else column
            lines.append(f"| {shown} | {_TYPES[str(each.type)]} | {each.meaning} |")
        yield "\n".join(lines)


def describe_sweep() -> str:
    """Write what `bnlab sweep --help` prints: settings by importance, choices, estimators, experiments."""
    settings = list_settings(Config)
    others = [name for name in list_names(Config, "network") if name not in _ASKED_MOST]
    measured = [name for name in list_names(Config, "measuring") if name not in _ASKED_MOST]
    groups = [line for group in GROUPS for line in [*_describe_group(group), ""]]
    sections = {
        "What is varied most": [*_describe(settings, _ASKED_MOST), *_describe_estimators()],
        "The network, its data and its training": [*groups, *_describe(settings, others)],
        "What is measured": [*_describe(settings, measured), *_describe_measurements()],
        "How and where": _describe(settings, list_names(Config, "running")),
        "Experiments (experiment=NAME), and what they are made of": [
            *_describe_experiment_files(),
            "",
            *_list_other_files(),
        ],
    }
    lines = [_HELP_HEAD]
    for title, described in sections.items():
        lines += [title, *described, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _describe(settings: Mapping[str, Setting], names: Iterable[str], group: str = "", part: object = None) -> list[str]:
    """Describe these settings: each with its default, or that of a component, and its meaning."""
    lines = []
    for name in names:
        default = getattr(part or Config(), name)
        key = f"  {group}.{name}" if group else f"  {name}"
        lines += _wrap(f"{key}={write_argument(default)}", settings[name].meaning)
    return lines


def _describe_group(group: str) -> list[str]:
    """Describe the choices of a group, each with the settings that it has beside those of all; those come last."""
    choices = GROUPS[group]
    settings = {name: list_settings(type(choice)) for name, choice in choices.items()}
    # By meaning and default as well: settings of two choices may share a name and mean different things.
    of_choices = [
        {(key, each.meaning, repr(getattr(choices[name], key))) for key, each in known.items()}
        for name, known in settings.items()
    ]
    in_all = {key for key, *_ in set.intersection(*of_choices)}
    usual = getattr(Config(), group)
    shared = [key for key in list_settings(type(usual)) if key in in_all]

    lines: list[str] = []
    for name, choice in sorted(choices.items(), key=lambda item: item[0] != usual.name):  # the default first
        summary, _, _ = (type(choice).__doc__ or "").partition("\n")
        lines += _wrap(f"{group}={name}", f"{summary} (default)" if name == usual.name else summary)
        others = [each for each in settings[name] if each not in shared]
        # A setting that several choices have is listed once, below the first of them.
        for each in others:
            described = _describe(settings[name], [each], group, choice)
            if not {*described} <= {*lines}:
                lines += described
    if shared:
        lines.append(f"for every {group}=")
        lines += _describe(list_settings(type(usual)), shared, group, usual)
    return lines


def _describe_estimators() -> list[str]:
    """Describe each estimator, with its parameters, by kind."""
    lines = []
    for kind, title in _ESTIMATORS.items():
        lines.append(f"  {title}")
        for name, cls in sorted(list_named(kind).items()):
            parameters = [
                f"{each.name}={each.default}" for each in fields(cls) if each.name not in ("momentum", "images")
            ]
            summary, _, _ = (cls.__doc__ or "").partition("\n")
            lines += _wrap(f"    {name}({','.join(parameters)})" if parameters else f"    {name}", summary)
    return lines


def _describe_measurements() -> list[str]:
    lines = ["  measurements: tables, beside those of experiments and package.module.Class"]
    for name, each in list_measurements().items():
        if "." not in name:
            summary, _, _ = " ".join(each.table.about.split()).partition(". ")
            lines += _wrap(f"    {name}", summary)
    return lines


def _describe_experiment_files() -> list[str]:
    """Describe each experiment by the first sentence of its file, which begins in the second line."""
    lines = []
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        _, *written = path.read_text(encoding="utf-8").splitlines()
        comments = takewhile(lambda line: line.startswith("#"), written)
        sentence, _, _ = " ".join(line[2:] for line in comments).partition(". ")
        lines += _wrap(f"  {path.stem}", sentence.rstrip(".;:"))
    return lines


def _list_other_files() -> list[str]:
    """List the files that experiments are made of, by what chooses them."""
    folders = [folder for folder in sorted(CONF.iterdir()) if folder.is_dir() and folder.name in ("suite", "variation")]
    return [f"{folder.name}={', '.join(sorted(path.stem for path in folder.glob('*.yaml')))}" for folder in folders]


def _wrap(head: str, text: str) -> list[str]:
    """Lay out a head and its meaning in two columns; below a long head."""
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    has_room = len(head) < _COLUMN - 1
    if not lines or not has_room:
        return [head, *lines]
    # The head takes the place of the spaces before the first line.
    lines[0] = head + lines[0][len(head) :]
    return lines


def describe_experiments() -> str:
    """Write the list of the committed experiments: what each asks, its networks, and how long they trained."""
    rows = "\n".join(_describe_each())
    table = f"| experiment | what it asks | networks | training |\n|---|---|--:|--:|\n{rows}"
    return f"{_FIRST_OF_EXPERIMENTS}\n{table}\n"


def _describe_each() -> Iterator[str]:
    for name in list_questions():
        if not (REFERENCE / name).is_dir():
            continue
        runs = pd.read_parquet(REFERENCE / name / "tables" / "runs.parquet")
        seconds = runs["train_seconds"].sum() if "train_seconds" in runs else 0.0
        # Some networks were never trained, where it does not matter what their weights are.
        training = format_seconds(seconds) if seconds else ""
        yield f"| [{name}]({name}/README.md) | {find_question(name).asks} | {len(runs)} | {training} |"


if __name__ == "__main__":
    sys.exit(main())
