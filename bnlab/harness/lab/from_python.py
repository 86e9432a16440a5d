"""bnlab.harness.sweep: what the command `bnlab sweep` does, called from a script or a notebook."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.errors import UserError
from bnlab.harness.lab.command import require_memory
from bnlab.harness.lab.compose import quote
from bnlab.harness.lab.registry import import_shipped
from bnlab.harness.lab.sweep import plan_and_run
from bnlab.harness.reporting.tables import LoadedTables, load
from bnlab.harness.settings import list_settings

_SPELLED = ("null", "true", "false", "nan", "inf")  # words that Hydra reads as values and not as texts


def sweep(*words: str, **settings: Any) -> LoadedTables:
    """Train and measure what is missing, as the command `bnlab sweep -m` does, and load the tables.

    A bar shows how far it has come. What is finished is kept: an interrupted call continues where it was.

    Args:
        words: words of the command line that are no settings of a job, such as "experiment=momentum" or
            "hydra/launcher=basic".
        settings: settings of the command line by name; those with a dot as `**{"optimizer.lr": [0.1, 0.4]}`. A list is
            swept: networks for each of its values. The settings that may be lists themselves (momentum, estimator,
            population, evaluate_at, accuracy_at, evaluate_on, shifts, measurements, weight_averages) are measured
            together, on the same networks.

    Returns:
        The tables of this name, see `bnlab.harness.load`: a DataFrame for each, also of networks that were there.

    Raises:
        UserError: a ValueError; what is wrong with a setting, or that some networks failed. The tables have the others.

    >>> tables = sweep(name="first", batch_size=[32, 128], momentum=[0.01, 0.1])  # doctest: +SKIP
    >>> tables["gaps"].groupby("momentum")["mean_gap"].mean()  # doctest: +SKIP
    """
    import_shipped()
    require_memory()
    lists = {name for name, setting in list_settings(Config).items() if setting.takes_list}
    written = [_write_word(key, value, key in lists) for key, value in settings.items()]
    code, config = plan_and_run(["-m", *words, *written])
    if code:
        raise UserError(
            f"networks failed, see above; what rows there are: bnlab.harness.load({config.name!r}, {config.results!r})"
        )
    return LoadedTables({}) if config.dry_run else load(config.name, config.results)


def _write_word(key: str, value: Any, is_list: bool) -> str:
    """Write a setting as a word of the command line.

    >>> _write_word("batch_size", [4, 32], False), _write_word("momentum", [0.1, 0.3], True)
    ('batch_size=4,32', 'momentum=[0.1,0.3]')
    >>> _write_word("momentum", np.array([0.1, 0.3]), True), _write_word("momentum", [np.float64(0.1)], True)
    ('momentum=[0.1,0.3]', 'momentum=[0.1]')
    >>> _write_word("model.widths", [[16, 32], [8, 8]], False), _write_word("seed", range(3), False)
    ('model.widths=[16,32],[8,8]', 'seed=0,1,2')
    >>> _write_word("momentum", ["0.1"], True), _write_word("model.words", ["cnn", "1_000", "ä"], False)
    ('momentum=[0.1]', "model.words=cnn,'1_000','ä'")
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    # Of a component a text stays one, as its function may take any; all other settings know what they are.
    read_texts = "." not in key
    if not isinstance(value, list | tuple | range):
        return f"{key}={_write_value(value, read_texts)}"

    if len(value) == 0 and not is_list:
        raise UserError(f"{key}=[]: is swept over no value; name at least one, or leave it out")
    values = ",".join(_write_value(each, read_texts) for each in value)
    return f"{key}=[{values}]" if is_list else f"{key}={values}"


def _write_value(value: Any, read_texts: bool) -> str:
    """Write a value as Hydra reads it; `read_texts`: the text "1e-3" as a number, and "null" as nothing."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(_write_value(each, read_texts) for each in value)}]"
    if isinstance(value, float):
        return repr(float(value))  # of numpy's numbers `repr` names the type, too
    if not isinstance(value, str):
        return str(value)
    # Unquoted, Hydra would read a word as what it spells.
    pattern = r"[\w./-]+" if read_texts else r"[A-Za-z][\w./-]*"
    is_plain = re.fullmatch(pattern, value, re.ASCII) and (read_texts or value.lower() not in _SPELLED)
    return value if is_plain else quote(value)
