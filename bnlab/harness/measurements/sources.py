"""Where statistics come from: a name in `estimator=` and what it means for a trained network."""

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

# Statistics of frozen weights: population upstream; moments pooled over all batches (Wu & Johnson 2021; fvcore); the
# mean of batch means and of unbiased variances (torch's update_bn); the same weighted by sizes (SWA's reference code).
# All but exact are taken in batches of the training size, which normalize themselves: with norm=ghost part by part.
FROZEN = ("exact", "precise", "update_bn", "swa")
# Of a network whose weights are averaged: its own running averages; its buffers, averaged as the weights (use_buffers).
AVERAGING = ("stale", "averaged")
_TRIAL = 8  # batches that running estimators are tried on
_TEST_BATCH = 64  # images that a rule at inference time sees at once, unless it says otherwise


@dataclass(frozen=True)
class Source:
    """Where a row's statistics come from; by itself, that there are none.

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
    """The recorded batch moments, averaged by `average`."""

    average: Estimator


@dataclass(frozen=True)
class FrozenWeights(Source):
    """Statistics of a checkpoint's weights, of so many images; None is all."""

    images: int | None = None

    @property
    def statistic(self) -> str:
        """A name in `FROZEN`, or `averaged`: what the checkpoint's buffers hold."""
        return self.estimator.partition("(")[0]


@dataclass(frozen=True)
class InferenceRule(Source):
    """A rule at inference time on top of exact statistics, for so many images at once."""

    rule: Rule
    images: int


def find_sources(config: Config) -> list[Source]:
    """Every estimator with every momentum, each once."""
    return parse_sources(as_list(config.estimator), as_list(config.momentum), *as_list(config.population))


def parse_sources(names: list[str], momenta: list[float], *populations: str) -> list[Source]:
    """Every estimator with every momentum or population that means something to it, each once.

    Raises:
        UserError: an unknown estimator or parameter.
    """
    found: list[Source] = []
    for name in names:
        try:
            found += _parse(str(name), momenta, populations)
        except (Exception, SystemExit) as error:  # a module of the user's may raise anything
            reason = str(error) if isinstance(error, ValueError) else where_raised(error)
            if ": unknown; " in reason:
                reason = f"unknown; there are {', '.join(sorted(_list_names()))}, or package.module.Class"
            raise UserError(f"estimator={name}: {reason.removeprefix(f'estimator={name!r}: ')}") from error
    return list(dict.fromkeys(found))


def _parse(name: str, momenta: list[float], populations: tuple[str, ...]) -> Sequence[Source]:
    base = name.partition("(")[0]
    if name in AVERAGING:
        stale = RunningAverage(name, None, "train", estimators.EMA(momentum=0.1))
        return [stale if name == "stale" else FrozenWeights(name, None, "train")]
    if base in FROZEN:
        some = re.fullmatch(r"\w+\(images=(\d+)\)", name)
        if name != base and some is None:
            raise ValueError(f"write {base}, or {base}(images=1000) for so many images")
        return [FrozenWeights(name, None, population, int(some[1]) if some else None) for population in populations]
    if base in inference.list_rules():
        return [_parse_rule(name, "n" if base == "test_batch" else "batch")]
    return _parse_running(name, momenta)


def _parse_rule(name: str, key: str) -> InferenceRule:
    """`key` is the parameter that says how many images a test batch has; all others are the rule's."""
    size = re.search(rf"[(,]\s*{key}\s*=([^,)]*),?", name)
    images = int(size[1]) if size else _TEST_BATCH
    rule = inference.parse(name.replace(size[0], size[0][0]) if size else name)
    label = f"{rule.label.removesuffix(')')}{',' if '(' in rule.label else '('}{key}={images})"
    return InferenceRule(label, None, "test", rule, images)


def _parse_running(name: str, momenta: list[float]) -> list[RunningAverage]:
    if "." in (path := name.partition("(")[0]):
        import_object(path)
    cls, parameters = estimators.parse(name)
    if _list_names().get(cls.name) is not cls:
        raise ValueError(f"its name {cls.name!r} is that of another estimator; give the class one of its own")
    is_swept = hasattr(cls, "momentum") and "momentum" not in parameters
    found = [cls(**{**parameters, "momentum": float(m)}) for m in momenta] if is_swept else [cls(**parameters)]
    return [RunningAverage(e.label, getattr(e, "momentum", None), "train", e) for e in found]


def _list_names() -> dict[str, type[Estimator] | type[Rule] | None]:
    """All that `estimator=` can be, but for import paths; with the class of a running estimator or a rule."""
    return {**estimators.list_estimators(), **inference.list_rules(), **dict.fromkeys((*FROZEN, *AVERAGING))}


def try_estimators(sources: Iterable[Source]) -> None:
    """Let every running estimator average a short stream.

    Raises:
        UserError: one fails; its name, the error and the line that raised it.
    """
    batches = torch.rand(_TRIAL, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    counts, eps = torch.full((_TRIAL, 3), 64.0, dtype=torch.float64), torch.full((3,), 1e-5, dtype=torch.float64)
    for estimator in {source.average for source in sources if isinstance(source, RunningAverage)}:
        try:
            fold([estimator], Stream(batches[0], batches, counts, eps=eps, layers=(1, 2)), range(1, _TRIAL + 1))
        except (Exception, SystemExit) as error:  # a user's class may raise anything
            name = f"{estimator.label}: {type(estimator).__module__}.{type(estimator).__qualname__}"
            raise UserError(f"estimator={name} fails on {_TRIAL} batches: {where_raised(error)}") from error


def code_digest(source: Source) -> str:
    """Of the module of an estimator or rule of the user's; empty for ours, whose changes `frozen.VERSION` counts."""
    own = getattr(source, "average", None) or getattr(source, "rule", None)
    return "" if own is None or own.__module__.startswith("bnlab.") else digest_of_source(own.__class__)
