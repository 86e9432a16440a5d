"""Sources of statistics: the meaning of a name in `estimator=` for a trained network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from bnlab import estimators, inference
from bnlab.estimators import Estimator, Stream, fold
from bnlab.harness.artifacts.own import digest_of_source, import_object
from bnlab.harness.artifacts.settings import Config, as_list
from bnlab.harness.errors import UserError, where_raised
from bnlab.inference import Rule

FROZEN = ("exact", "precise", "update_bn", "swa")
"""Statistics of frozen weights.

exact: of the whole population, layer after layer.
precise: moments pooled over all batches (Wu & Johnson 2021; fvcore).
update_bn: the mean of batch means and of unbiased variances (torch's update_bn).
swa: the same weighted by the sizes of batches (SWA's reference code).

All but exact are taken in batches of the training size, which normalize themselves: with norm=ghost part by part.
"""
AVERAGING = ("stale", "averaged")
"""Statistics of a network whose weights are averaged: its running averages; its buffers, averaged like weights."""
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
    """Statistics of a checkpoint's weights, computed from so many images; None: from all."""

    images: int | None = None

    @property
    def statistic(self) -> str:
        """A name in `FROZEN`, or `averaged` for the values of the checkpoint's buffers."""
        return self.estimator.partition("(")[0]


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
    found: list[Source] = []
    for name in names:
        try:
            found += _parse(str(name), momenta, populations)
        except (Exception, SystemExit) as error:  # a module of the user's may raise anything
            raise UserError(f"estimator={name}: {_explain(error, name)}") from error
    return list(dict.fromkeys(found))


def _explain(error: BaseException, name: str) -> str:
    """Say why a name could not be parsed."""
    reason = str(error) if isinstance(error, ValueError) else where_raised(error)
    if ": unknown; " in reason:
        known = ", ".join(sorted(_list_names()))
        return f"unknown; there are {known}, or package.module.Class"
    return reason.removeprefix(f"estimator={name!r}: ")


def _parse(name: str, momenta: list[float], populations: tuple[str, ...]) -> Sequence[Source]:
    if name == "stale":
        return [RunningAverage(name, None, "train", estimators.EMA(momentum=0.1))]
    if name == "averaged":
        return [FrozenWeights(name, None, "train")]

    base = name.partition("(")[0]
    if base in FROZEN:
        images = _parse_images(name, base)
        return [FrozenWeights(name, None, population, images) for population in populations]
    if base in inference.list_rules():
        size_key = "n" if base == "test_batch" else "batch"
        return [_parse_rule(name, size_key)]
    return _parse_running(name, momenta)


def _parse_images(name: str, base: str) -> int | None:
    """Read 1000 from `exact(images=1000)`; None where the name is `exact` alone."""
    if name == base:
        return None
    found = re.fullmatch(r"\w+\(images=(\d+)\)", name)
    if found is None:
        raise ValueError(f"write {base}, or {base}(images=1000) for so many images")
    return int(found[1])


def _parse_rule(name: str, size_key: str) -> InferenceRule:
    """Parse a rule at inference time.

    Args:
        name: of the rule, with its parameters.
        size_key: the parameter for the number of images in a test batch, which is no parameter of the rule itself.
    """
    images = _TEST_BATCH
    given = re.search(rf"[(,]\s*{size_key}\s*=([^,)]*),?", name)
    if given is not None:
        images = int(given[1])
        bracket_or_comma = given[0][0]
        name = name.replace(given[0], bracket_or_comma)
    rule = inference.parse(name)

    begin = rule.label.removesuffix(")")
    separator = "," if "(" in rule.label else "("
    label = f"{begin}{separator}{size_key}={images})"
    return InferenceRule(label, None, "test", rule, images)


def _parse_running(name: str, momenta: list[float]) -> list[RunningAverage]:
    path = name.partition("(")[0]
    if "." in path:
        import_object(path)
    cls, parameters = estimators.parse(name)
    if _list_names().get(cls.name) is not cls:
        raise ValueError(f"its name {cls.name!r} is that of another estimator; give the class one of its own")

    if hasattr(cls, "momentum") and "momentum" not in parameters:
        averages = [cls(**{**parameters, "momentum": float(momentum)}) for momentum in momenta]
    else:
        averages = [cls(**parameters)]
    return [RunningAverage(each.label, getattr(each, "momentum", None), "train", each) for each in averages]


def _list_names() -> dict[str, type[Estimator] | type[Rule] | None]:
    """List what `estimator=` can be, except import paths, with the class of a running estimator or a rule."""
    without_class = dict.fromkeys((*FROZEN, *AVERAGING))
    return {**estimators.list_estimators(), **inference.list_rules(), **without_class}


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
    """Digest the module of a user's own estimator or rule; empty for ours, whose changes `frozen.VERSION` counts."""
    own: Estimator | Rule
    if isinstance(source, RunningAverage):
        own = source.average
    elif isinstance(source, InferenceRule):
        own = source.rule
    else:
        return ""
    if own.__module__.startswith("bnlab."):
        return ""
    return digest_of_source(type(own))
