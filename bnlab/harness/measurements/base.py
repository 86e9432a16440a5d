"""The base of all measurements: a table, the networks that it has rows of, and how rows are measured."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from bnlab.harness.artifacts.norms import Norm
from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.own import import_object
from bnlab.harness.settings import list_modules, require_one_of

if TYPE_CHECKING:  # mistakes are answered before these are imported
    import pandas as pd

    from bnlab.harness.artifacts.run import Run
    from bnlab.harness.measurements.subjects import Subject
    from bnlab.harness.schema import Table

_TABLES = f"{__package__}.tables"
# Columns of `runs` that reports read beside those of a table.
_RESERVED_RUN_COLUMNS = ("seed", "status", "batch_size", "steps")
# Columns that means over seeds have beside the table's key.
_RESERVED_MEAN_COLUMNS = ("mean", "low", "high", "n", "error", "log", "share", "count", "std", "nunique")


class Measurement:
    """A measurement on trained networks: the rows of one table.

    Each job that asks for the table calls these methods, in this order:

    1. `covers`, which networks have rows at all (`jobs`; `checks` calls it before the first job, too);
    2. `reads`, which checkpoints training has to keep for them (`jobs.list_needed_checkpoints`);
    3. `scope`, which estimators and steps they are of (`rows.complete_rows`, once the network is trained);
    4. `measure`, their values, of those rows alone that are not there yet (`rows`).

    Attributes:
        name: of its table.
        table: its columns and what they mean. Where `split` is in its key, there are rows of each split and shift of
            the images that are predicted.
        about_batches: whether it is about what the batches before a step make of running averages, which networks whose
            batch norm is frozen, or whose weights are averaged, do not have to the end.
        at_last_step: whether it measures the weights of the last step of `evaluate_at` alone.
        of_plain_norms: whether it has rows of torch's batch norm alone.
        predicts: whether its rows depend on test images, and so are measured again when these change.
    """

    name: ClassVar[str] = ""
    table: ClassVar[Table]
    about_batches: ClassVar[bool] = False
    at_last_step: ClassVar[bool] = False
    of_plain_norms: ClassVar[bool] = False
    predicts: ClassVar[bool] = True  # better to measure too many rows again than to keep stale ones

    @property
    def is_by_split(self) -> bool:
        """Whether it is measured for each split and shift of the images that are predicted."""
        return "split" in self.table.key

    def covers(self, norm: Norm) -> bool:
        """Return whether networks with this norm have rows: by default if they train with statistics of the batch."""
        return norm.is_plain if self.of_plain_norms else norm.uses_batch

    def scope(self, run: Run, subjects: list[Subject]) -> Mapping[Any, list[int]]:
        """Choose the subjects that it has rows of, with the steps of each: by default `None`, no estimator, alone."""
        return {None: self.list_steps(run)}

    def reads(self, run: Run, subjects: list[Subject]) -> list[int]:
        """List the steps whose checkpoints it reads: by default all that it measures.

        Choose from those up to the last of `run.measured_steps`: a training may diverge before the steps of the
        settings, and a dry run tries one of four updates.
        """
        return self.list_steps(run)

    def list_steps(self, run: Run) -> list[int]:
        """List the steps of `evaluate_at`, or the last of them."""
        return run.measured_steps[-1:] if self.at_last_step else run.measured_steps

    def measure(self, run: Run, subjects: list[Any], steps: list[int]) -> pd.DataFrame:
        """Measure rows of these subjects at these steps; with `split` in the key, of a split and a shift, two more.

        The columns `run` and `epoch` are filled in.
        """
        raise NotImplementedError


def find_measurement(name: str) -> Measurement:
    """Find a measurement by the name of its table, or by import path; UserError for none, or a name that is taken."""
    if "." not in name:
        require_one_of("measurements", name, [*list_tables(), "package.module.Class"])
        defined = vars(importlib.import_module(f"{_TABLES}.{name}")).values()
        classes = [each for each in defined if isinstance(each, type) and issubclass(each, Measurement)]
        return next(each() for each in classes if each.name == name)

    from bnlab.harness.schema import Table  # here: mistakes are answered before it is imported

    cls = import_object("measurements", name)
    if not (isinstance(cls, type) and issubclass(cls, Measurement)):
        raise UserError(f"measurements={name}: is no class below bnlab.harness.measurements.Measurement")
    if not cls.name or not isinstance(getattr(cls, "table", None), Table) or not _measures(cls):
        raise UserError(
            f"measurements={name}: needs a name, a table with run and step in its key, and a method that gives its "
            'rows; write name = "...", table = Table(about, key=common("run step ..."), others=...) and '
            "measure(self, run, subjects, steps) into the class"
        )
    taken = [column for column in cls.table.columns if column in _RESERVED_RUN_COLUMNS]
    if taken:
        raise UserError(
            f"measurements={name}: the table runs has a column {taken[0]!r} already, of the network; call it otherwise"
        )
    clashing = [column for column in cls.table.key if column in _RESERVED_MEAN_COLUMNS]
    if clashing:
        raise UserError(
            f"measurements={name}: means over seeds have a column {clashing[0]!r} already; call it otherwise"
        )
    # Without case, because on many disks Gaps and gaps are one folder.
    if cls.name.lower() in ("runs", *list_tables()) or not re.fullmatch(r"\w+", cls.name):
        raise UserError(f"measurements={name}: give it another name than {cls.name!r}, of letters, digits and _")
    try:
        return cls()
    except (Exception, SystemExit) as error:  # a user's class may raise either
        raise UserError(f"measurements={name}: {where_raised(error)}") from error


def _measures(cls: type[Measurement]) -> bool:
    return cls.measure is not Measurement.measure and {"run", "step"} <= {*cls.table.key}


def list_tables() -> list[str]:
    """List the tables that bnlab's own measurements are of; their modules in `tables/` are not imported."""
    return list_modules(_TABLES)
