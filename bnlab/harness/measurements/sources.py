"""Sources of statistics: the meaning of a name in `estimator=` for a trained network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bnlab.estimators import Estimator, Stream, fold
from bnlab.estimators.names import import_estimator
from bnlab.harness.artifacts.settings import Config, as_list
from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.own import digest_of_own, import_object
from bnlab.harness.statistics import Averaged, Measured, Stale, list_choices
from bnlab.inference import Rule
from bnlab.names import EstimatorName, make_named, read_parameters

_TRIAL = 8  # batches that running estimators are tried on
_TEST_BATCH = 64  # images that a rule at inference time sees at once, unless it says otherwise


@dataclass(frozen=True)
class Source:
    """A source of statistics; an object of this class itself stands for no statistics.

    Attributes:
        estimator: canonical name.
        momentum: weight of the new batch; None where it has no meaning.
        split: the data that the statistics are of.
    """

    estimator: str
    momentum: float | None
    split: str


@dataclass(frozen=True)
class RunningAverage(Source):
    """An average over the recorded batch moments."""

    average: Estimator


@dataclass(frozen=True)
class FrozenWeights(Source):
    """Statistics of a checkpoint: measured with its weights, or its buffers as they are."""

    statistic: Measured | Averaged

    @classmethod
    def of(cls, statistic: Measured | Averaged, split: str) -> FrozenWeights:
        """Make a source under the canonical name."""
        return cls(statistic.label, None, split, statistic)

    @property
    def images(self) -> int | None:
        """Number of images that are drawn for it; None: all, or none for the buffers."""
        return self.statistic.images if isinstance(self.statistic, Measured) else None


@dataclass(frozen=True)
class InferenceRule(Source):
    """A rule at inference time on top of exact statistics, for so many images at once."""

    rule: Rule
    images: int


def find_sources(config: Config) -> list[Source]:
    """List every estimator of a job with every momentum, each once."""
    populations = as_list(config.population)
    return parse_sources(as_list(config.estimator), as_list(config.momentum), *populations)


def parse_sources(names: list[str], momenta: list[float], *populations: str) -> list[Source]:
    """Parse names of estimators: each with every momentum or population that means something to it, once.

    Raises:
        UserError: an unknown estimator or parameter.
    """
    found: dict[Source, None] = {}
    for name in names:
        try:
            found |= dict.fromkeys(_parse(str(name), momenta, populations))
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # a module of the user's may raise anything
            raise UserError(f"estimator={name}: {_explain(error)}") from error
    return list(found)


def _explain(error: BaseException) -> str:
    """Say why a name could not be parsed."""
    return str(error) if isinstance(error, ValueError) else where_raised(error)


def _parse(text: str, momenta: Sequence[float], populations: Sequence[str]) -> Sequence[Source]:
    name = EstimatorName.parse(text)
    cls = _find_class(name.base)
    if issubclass(cls, Estimator):
        return _average_with_each(cls, name, momenta)
    if issubclass(cls, Rule):
        return [_give_images(cls, name)]

    statistic: Measured | Averaged | Stale = make_named(cls, name)
    if isinstance(statistic, Stale):
        return [RunningAverage(statistic.label, None, "train", statistic.average)]
    splits = populations if isinstance(statistic, Measured) else ["train"]
    return [FrozenWeights.of(statistic, split) for split in splits]


def _find_class(base: str) -> type[Any]:
    """Find the class that a name or import path stands for."""
    known = list_choices()
    if base in known:
        return known[base]
    if "." not in base:
        names = ", ".join(sorted(known))
        raise ValueError(f"unknown; there are {names}, or package.module.Class")

    import_object("estimator", base)  # if this fails, the message has the line of the module
    cls = import_estimator(base)
    if list_choices().get(cls.name) is not cls:
        raise ValueError(f"its name {cls.name!r} is that of another estimator; give the class one of its own")
    return cls


def _average_with_each(cls: type[Estimator], name: EstimatorName, momenta: Sequence[float]) -> list[RunningAverage]:
    """List the averages of a class with each momentum; one, if it has none or the name says it."""
    parameters = read_parameters(cls, name)
    if hasattr(cls, "momentum") and "momentum" not in parameters:
        averages = [cls(**{**parameters, "momentum": float(momentum)}) for momentum in momenta]
    else:
        averages = [cls(**parameters)]

    found = []
    for average in averages:
        _require_label(average.label)
        momentum = getattr(average, "momentum", None)
        found.append(RunningAverage(average.label, momentum, "train", average))
    return found


def _require_label(label: str) -> None:
    """Refuse a label that figures could not take apart: ValueError."""
    try:
        EstimatorName.parse(label)
    except ValueError as error:
        raise ValueError(f"its label {label!r} is no name; let its parameters have values without commas") from error


def _give_images(cls: type[Rule], name: EstimatorName) -> InferenceRule:
    """Make a rule at inference time, with the number of images in a test batch, which its name may say as well."""
    key = cls.images_key
    given = name.parameters.get(key, str(_TEST_BATCH))
    if not given.isdecimal() or int(given) == 0:
        raise ValueError(f"{key}={given}: is the number of images that are predicted at once, 1 or more")
    images = int(given)

    rule = make_named(cls, name.leave_out(key))
    label = rule.full_name.add(key, images)
    return InferenceRule(str(label), None, "test", rule, images)


def try_estimators(sources: Iterable[Source]) -> None:
    """Let every running estimator average a short stream.

    Raises:
        UserError: one fails; its name, the error and the line that raised it.
    """
    stream = _draw_stream()
    positions = range(1, len(stream) + 1)
    averages = {source.average for source in sources if isinstance(source, RunningAverage)}
    for average in averages:
        try:
            fold([average], stream, positions)
        except (Exception, SystemExit) as error:  # a user's class may raise anything
            cls = type(average)
            name = f"{average.label}: {cls.__module__}.{cls.__qualname__}"
            raise UserError(f"estimator={name} fails on {_TRIAL} batches: {where_raised(error)}") from error


def _draw_stream() -> Stream:
    """Draw the moments of a few batches, of two layers with three channels together."""
    channels = 3
    generator = torch.Generator().manual_seed(0)
    moments = torch.rand(_TRIAL, 2, channels, generator=generator, dtype=torch.float64)
    batches = moments + 0.5
    counts = torch.full((_TRIAL, channels), 64.0, dtype=torch.float64)
    eps = torch.full((channels,), 1e-5, dtype=torch.float64)
    return Stream(batches[0], batches, counts, eps=eps, layers=(1, 2))


def code_digest(source: Source) -> str:
    """Digest the module of a user's own estimator or rule; empty for bnlab's."""
    if isinstance(source, RunningAverage):
        return digest_of_own(type(source.average))
    if isinstance(source, InferenceRule):
        return digest_of_own(type(source.rule))
    return ""
