"""The table `runs`: a column for each setting of a network, and others on its training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bnlab.harness.artifacts.job_settings import GROUPS, Config
from bnlab.harness.schema import Column, Table, boolean, integer, real, text
from bnlab.harness.settings import Setting, list_names, list_settings

_ABOUT = """\
A row for each network. Settings have their names from the command line, such as `optimizer.lr`; `data`, `model`, `norm`
and `optimizer` are the choices made there. A setting is null if the network does not read it: words before a colon say
which choices do. Further columns follow for code of your own: arguments of a model, a norm, an optimizer, a task or a
data set, such as `model.dropout`; the digest of the code, such as `model.source`, or of images and labels,
`data.content`; and for a task `task.metric`, `task.unit` and `task.larger_is_better`."""

DERIVED = {
    "norm_batch_size": integer(
        "derived: images that are normalized together in training. For ghost `norm.batch_size`, since the batch is "
        "divided into parts of that many images or a few more; for other norms with batch statistics `batch_size`; "
        "null for norms without"
    ),
    "steps": integer("length of the training in updates, also where `epochs` was set"),
    "lr_effective": real(
        "derived: the learning rate that the optimizer got at this batch size, before the schedule (parameter groups "
        "of your own optimizer may have others). `optimizer.lr` times `batch_size` / 128, to a power set by "
        "`optimizer.lr_scaling`: sqrt 1/2, linear 1, none 0"
    ),
}
"""Columns whose values are computed from settings."""

RESULTS = {
    "status": text("finished, diverged (rows end before `last_step`) or failed (a job on it has raised)"),
    "last_step": integer("updates that were made; if training diverged, it did so at the last one"),
    "train_seconds": real("time that training took, in seconds, summed over all processes that took part"),
    "final_loss": real("loss of the last mini-batch, in nats"),
    "unseen": text(
        "batch norms that an evaluation does not call, such as those of an auxiliary head, and which have no rows; "
        "null if there are none"
    ),
    "settings": text(
        "JSON of the settings that the hash in `run` is made of: batch size, length, the choices of data, model, norm "
        "and optimizer, and all others that differ from their defaults"
    ),
    "versions": text("JSON of the versions of packages when training began"),
    "device": text("where training began: the name of a GPU, or CPU with its architecture"),
    "threads": integer("torch's CPU threads when training began"),
}
"""Columns that say how a training ended, and with what it was made."""

FIXED = ("run", *DERIVED, *RESULTS)
"""Columns that the table always has."""

_RESOLVED = {
    "epochs": real("length of the training in passes over the training split, also where `steps` was set"),
    "data.images": integer("training and validation images that were used, also where null was set"),
    "freeze_at": real(
        "share of the training after which batch norm normalizes with frozen statistics; 1 if it never does"
    ),
    "freeze_with": text(
        "the frozen statistics, of the weights at that step: ema, the network's own running averages, or exact; none "
        "if nothing is frozen"
    ),
}
"""Columns of settings whose value in the configuration may be open, and which have the value that was used."""

METRIC_NAME, METRIC_UNIT, LARGER_IS_BETTER = "task.metric", "task.unit", "task.larger_is_better"
"""Columns on the metric of a task of the user's own, by which reports name it."""

_CHOSEN = {
    "data": "data set: {}, or the import path of your own",
    "task": "import path of a task of your own; null: {}",
    "model": "network: {}, or the import path of your own",
    "norm": "kind of normalization: {}, or the import path of your own",
    "optimizer": "optimizer: {}, or the import path of your own",
}
_COLUMN_MAKERS: Mapping[type, Callable[[str], Column]] = {bool: boolean, int: integer, float: real, str: text}


def _describe_runs() -> Table:
    """Describe the table with all its columns."""
    columns = {}
    for group, choices in GROUPS.items():
        names = dict.fromkeys(choice.name for choice in choices.values())
        columns[group] = text(_CHOSEN[group].format(", ".join(names)))
        columns |= _describe_group(group)
    settings = list_settings(Config)
    columns |= {name: _make_column(settings[name], settings[name].meaning) for name in list_names(Config, "network")}
    # These may take the place of settings: their values are those that were open in the configuration.
    columns |= {**DERIVED, **RESULTS, **_RESOLVED}

    # The columns that most readers look for come first.
    optimizers = [name for name in columns if name.startswith("optimizer.")]
    first = ["seed", "data", "model", "norm", "batch_size", "norm_batch_size", "optimizer", *optimizers]
    order = dict.fromkeys([*first, "epochs", "steps", *GROUPS, *columns])  # each once
    key = {"run": text("name of the network, `<hash of its settings>/seed_<seed>`, and its folder in `results/runs/`")}
    return Table(_ABOUT, key, {name: columns[name] for name in order}, is_open=True)


def _describe_group(group: str) -> dict[str, Column]:
    """Describe the columns of the settings that the choices of a group have, each `group.name`."""
    choices = {choice.name: choice for choice in GROUPS[group].values()}
    settings: dict[str, Setting] = {}
    readers: dict[str, dict[str, list[str]]] = {}  # by setting and meaning: the choices that have it
    for choice in choices.values():
        for name, each in list_settings(type(choice)).items():
            # Where files lie is no property of the network.
            if name not in choice.storage:
                settings.setdefault(name, each)
                readers.setdefault(name, {}).setdefault(each.meaning, []).append(choice.name)
    return {
        f"{group}.{name}": _make_column(each, _say_whose(readers[name], len(choices)))
        for name, each in settings.items()
    }


def _say_whose(meanings: Mapping[str, Sequence[str]], choices: int) -> str:
    """Say what a setting means, and for which choices unless all have it with that meaning.

    >>> _say_whose({"blocks": ["cnn"], "hidden layers": ["mlp"]}, choices=2)
    'cnn: blocks; mlp: hidden layers'
    """
    words = []
    for meaning, names in meanings.items():
        if len(names) == choices:
            return meaning
        words.append(f"{', '.join(names)}: {meaning}")
    return "; ".join(words)


def _make_column(setting: Setting, meaning: str) -> Column:
    """Make the column of a setting, by its type; lists and values of any type become text."""
    types = [each for each in setting.types if each in _COLUMN_MAKERS]
    make = text if setting.takes_list or not types else _COLUMN_MAKERS[types[0]]
    return make(meaning)


RUNS = _describe_runs()
"""The table; of its columns other than `FIXED` ones it has those that its networks read."""
