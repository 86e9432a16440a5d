"""Subjects of measurements: the meaning of a name in `estimator=` for a trained network."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from bnlab.common.names import Named, StatisticName, make_named, read_parameters
from bnlab.estimators import Estimator, Stream, fold
from bnlab.estimators.lookup import import_estimator
from bnlab.harness.artifacts.job_settings import Config, as_list
from bnlab.harness.errors import UserError, suggest, where_raised
from bnlab.harness.own import import_object
from bnlab.harness.statistic_kinds import Measured, Stale, list_statistics
from bnlab.harness.user_code import digest_class
from bnlab.inference import TestTimeStatistics

_TRIAL = 8  # batches that running estimators are tried on
_TEST_BATCH = 64  # images that a rule at inference time sees at once, unless it says otherwise


@dataclass(frozen=True)
class Subject:
    """Statistics of a network that rows of a table are about: how they are estimated, and from which data."""

    estimator: Named
    split: str = "train"  # the data that the statistics are of
    at_once: int | None = None  # how many images a rule sees at once

    @property
    def is_rule(self) -> bool:
        """True for statistics at inference time, which differ from input to input."""
        return isinstance(self.estimator, TestTimeStatistics)

    @property
    def label(self) -> str:
        """The estimator's canonical name, which rows have in the column `estimator`."""
        if isinstance(self.estimator, TestTimeStatistics):
            return str(self.estimator.full_name.add(self.estimator.images_key, self.at_once))
        return self.estimator.label

    @property
    def momentum(self) -> float | None:
        """Weight of the new batch; None where it has no meaning."""
        return getattr(self.estimator, "momentum", None) if isinstance(self.estimator, Estimator) else None

    @property
    def running_average(self) -> Estimator | None:
        """Running estimator that is replayed over the recorded batches; None for all that is measured otherwise."""
        if isinstance(self.estimator, Stale):
            return self.estimator.running_average
        return self.estimator if isinstance(self.estimator, Estimator) else None

    @property
    def code(self) -> str:
        """Digest of the module of a user's own estimator or rule; empty for bnlab's."""
        return digest_class(type(self.estimator))


def list_subjects(config: Config) -> list[Subject]:
    """List every estimator of a job with every momentum, each once."""
    populations = as_list(config.population)
    return parse_subjects(as_list(config.estimator), as_list(config.momentum), *populations)


def parse_subjects(names: list[str], momenta: list[float], *populations: str) -> list[Subject]:
    """Parse names of estimators: each with every momentum or population that means something; UserError for others."""
    subjects: dict[Subject, None] = {}
    for name in names:
        try:
            subjects |= dict.fromkeys(_parse(StatisticName.parse(str(name)), momenta, populations))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"estimator={name}: {error}") from error
        except (Exception, SystemExit) as error:  # a module of the user's may raise anything
            raise UserError(f"estimator={name}: {where_raised(error)}") from error
    return list(subjects)


def _parse(name: StatisticName, momenta: Sequence[float], populations: Sequence[str]) -> Iterator[Subject]:
    cls = _find_class(name.base)
    if issubclass(cls, TestTimeStatistics):
        key = cls.images_key
        given = name.parameters.get(key, str(_TEST_BATCH))
        if not given.isdecimal() or int(given) == 0:
            raise ValueError(f"{key}={given}: is the number of images that are predicted at once, 1 or more")
        yield Subject(make_named(cls, name.leave_out(key)), "test", int(given))
        return

    # Statistics of frozen weights depend on the population, running averages on the momentum unless the name
    # fixes it, and all others on neither.
    parameters = read_parameters(cls, name)
    has_open_momentum = hasattr(cls, "momentum") and "momentum" not in parameters
    if issubclass(cls, Measured):
        for split in populations:
            yield Subject(cls(**parameters), split)
    elif issubclass(cls, Estimator) and has_open_momentum:
        for momentum in momenta:
            yield Subject(cls(**{**parameters, "momentum": float(momentum)}))
    else:
        yield Subject(cls(**parameters))


def _find_class(base: str) -> type[Any]:
    """Find the class that a name or import path stands for."""
    known = list_statistics()
    if base in known:
        return known[base]
    if "." not in base:
        raise ValueError(suggest(base, [*sorted(known), "package.module.Class"]))

    import_object("estimator", base)  # if this fails, the message has the line of the module
    cls = import_estimator(base)
    # A class without a @dataclass of its own has the fields of its base only, and cannot take its parameters.
    parameters = [name for name, hint in inspect.get_annotations(cls).items() if "ClassVar" not in str(hint)]
    declared = {each.name for each in fields(cls)}
    undeclared = [name for name in parameters if name not in declared]
    if undeclared:
        raise ValueError(
            f"{undeclared[0]} is no parameter yet; write @dataclass(frozen=True) above class {cls.__name__}"
        )
    if list_statistics().get(cls.name) is not cls:
        raise ValueError(f"its name {cls.name!r} is that of another estimator; give the class one of its own")
    return cls


def try_estimators(subjects: Iterable[Subject]) -> None:
    """Let every running estimator average a few batches of two layers together; UserError if one fails.

    Half of them have to give what they give within the whole: an estimator may neither look ahead nor draw at random.
    """
    channels = 3
    generator = torch.Generator().manual_seed(0)
    # All values are well above 0, as variances have to be.
    batches = 0.5 + torch.rand(_TRIAL, 2, channels, generator=generator, dtype=torch.float64)
    counts = torch.full((_TRIAL, channels), 64.0, dtype=torch.float64)
    eps = torch.full((channels,), 1e-5, dtype=torch.float64)
    stream = Stream(batches[0], batches, counts, eps=eps, layers=(1, 2))
    half = replace(stream, batches=batches[: _TRIAL // 2], counts=counts[: _TRIAL // 2])

    for average in {subject.running_average for subject in subjects}:
        if average is None:
            continue
        try:
            averages = fold([average], stream, range(1, _TRIAL + 1))
            # The last of them, because some averages have no meaning before a few batches.
            if not averages[:, -1].isfinite().all():
                raise ValueError(f"{average.label}: gives values that are not finite, of finite batches")
            if not torch.allclose(
                fold([average], half, range(1, len(half) + 1)), averages[:, : len(half)], equal_nan=True
            ):
                raise ValueError(
                    f"{average.label}: gives other values of {len(half)} batches where {_TRIAL} are recorded; it looks "
                    "ahead, or draws at random"
                )
        except (Exception, SystemExit) as error:  # a user's class may raise anything
            cls = type(average)
            name = f"{average.label}: {cls.__module__}.{cls.__qualname__}"
            raise UserError(f"estimator={name} fails on {_TRIAL} batches: {where_raised(error)}") from error
