"""Where statistics come from: a name in `estimator=` and what it means for a trained network."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from bnlab import estimators, inference
from bnlab.estimators import Estimator, Stream
from bnlab.estimators.base import fold
from bnlab.harness.artifacts.own import digest_of_source
from bnlab.harness.artifacts.settings import Config, as_list
from bnlab.harness.errors import UserError, where_raised
from bnlab.inference import Rule

# Statistics of frozen weights; `precise(images=1000)` draws 1,000, others for each network and step. All but exact are
# taken in batches of the training size, which normalize themselves: with norm=ghost part by part, as in training, with
# norm=renorm as batch norm does.
FROZEN = {
    "exact": "population upstream, found layer by layer",
    "precise": "moments pooled over all batches (Wu & Johnson 2021; fvcore)",
    "update_bn": "mean of batch means and of unbiased variances (Ioffe & Szegedy 2015, Alg. 2; torch's update_bn)",
    "swa": "the same weighted by the batches' sizes (SWA's reference code)",
}
# Statistics of the network that was trained, for the average of its weights; without averaging its own, both.
AVERAGING = {
    "stale": "its running averages with PyTorch's momentum",
    "averaged": "its buffers, averaged as the weights (use_buffers of torch's AveragedModel)",
}
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


def find_exact(config: Config) -> list[Source]:
    """Exact statistics of every population, which what is predicted is compared with.

    Of the training split too where there are rules at inference time, which start from those.
    """
    has_rules = any(isinstance(source, InferenceRule) for source in find_sources(config))
    return parse_sources(["exact"], [], *["train"] * has_rules, *as_list(config.population))


def parse_sources(names: list[str], momenta: list[float], *populations: str) -> list[Source]:
    """Every estimator with every momentum or population that means something to it, each once.

    Raises:
        UserError: an unknown estimator or parameter.
    """
    found: list[Source] = []
    for name in names:
        try:
            found += _parse(name, momenta, populations)
        except (Exception, SystemExit) as error:  # a module of the user's may raise anything
            raise UserError(_explain(name, error)) from error
    return list(dict.fromkeys(found))


def _parse(name: str, momenta: list[float], populations: tuple[str, ...]) -> list[Source]:
    base = name.partition("(")[0]
    if base in FROZEN:
        return [_parse_frozen(name, base, population) for population in populations]
    if base in inference.list_rules():
        return [_parse_rule(name, base)]
    if base not in AVERAGING:
        return [*_parse_running(name, momenta)]
    if name != base:
        raise ValueError(f"write {base}, which has no parameters")
    stale = RunningAverage(name, None, "train", estimators.EMA(momentum=0.1))
    return [stale if name == "stale" else FrozenWeights(name, None, "train")]


def _parse_frozen(name: str, base: str, population: str) -> FrozenWeights:
    match = re.fullmatch(r"\w+(?:\(images=(\d+)\))?", name)
    if match is None:
        raise ValueError(f"write {base}, or {base}(images=1000) for so many images")
    images = int(match[1]) if match[1] else None
    if images is not None and images < 2:
        raise ValueError("images must be 2 or more")
    label = base if images is None else f"{base}(images={images})"  # canonical: no leading zeros
    return FrozenWeights(label, None, population, images)


def _parse_rule(name: str, base: str) -> InferenceRule:
    # The size of the test batch: `n` of test_batch, which has no other parameter, `batch` of all others.
    key = "n" if base == "test_batch" else "batch"
    size = re.search(rf"[(,]\s*{key}\s*=([^,)]*),?", name)
    images = int(size[1]) if size else _TEST_BATCH
    if images < 1:
        raise ValueError(f"{key} counts images and is 1 or more")
    rule = inference.parse(name.replace(size[0], size[0][0]) if size else name)
    label = f"{rule.label.removesuffix(')')}{',' if '(' in rule.label else '('}{key}={images})"
    return InferenceRule(label, None, "test", rule, images)


def _parse_running(name: str, momenta: list[float]) -> list[RunningAverage]:
    cls, parameters = estimators.parse(name)
    path = f"{cls.__module__}.{cls.__qualname__}"
    taken = {"none", *FROZEN, *AVERAGING, *inference.list_rules()}  # none: networks without statistics of the batch
    if cls.name in taken or not re.fullmatch(r"[^\W\d][\w.-]*", cls.name):
        raise ValueError(f"the name {cls.name!r} of {path} is taken or not a word; give the class another")
    if estimators.list_estimators().get(cls.name) is not cls:
        raise ValueError(f"{path} has no name of its own but {cls.name!r} of its base; give it one")
    found = [cls(**parameters)]
    if hasattr(found[0], "momentum") and "momentum" not in parameters:
        found = [replace(found[0], momentum=float(m)) for m in momenta]  # type: ignore[call-arg]
    return [RunningAverage(e.label, getattr(e, "momentum", None), "train", e) for e in found]


def _explain(name: str, error: BaseException) -> str:
    reason = " ".join(str(error).split()).removeprefix(f"estimator={name!r}: ")
    if not name or reason.startswith("unknown"):
        known = [*sorted(estimators.list_estimators()), *FROZEN, *AVERAGING, *inference.list_rules()]
        close = difflib.get_close_matches(name.partition("(")[0], known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"estimator={name}: unknown{hint}; there are {', '.join(known)}, or package.module.Class"
    return f"estimator={name}: {reason if isinstance(error, ValueError) else where_raised(error)}"


def try_estimators(sources: Iterable[Source]) -> None:
    """Let every running estimator average a short stream.

    Raises:
        UserError: one fails; its name, the error and the line that raised it.
    """
    generator = torch.Generator().manual_seed(0)
    batches = torch.rand(_TRIAL, 2, 3, generator=generator, dtype=torch.float64) + 0.5
    counts, eps = torch.full((_TRIAL, 3), 64.0, dtype=torch.float64), torch.full((3,), 1e-5, dtype=torch.float64)
    for estimator in {source.average for source in sources if isinstance(source, RunningAverage)}:
        try:
            fold([estimator], Stream(batches[0], batches, counts, eps=eps, layers=(1, 2)), range(1, _TRIAL + 1))
        except (Exception, SystemExit) as error:  # a user's class may raise anything
            name = f"{estimator.label}: {type(estimator).__module__}.{type(estimator).__qualname__}"
            raise UserError(f"estimator={name} fails on {_TRIAL} batches: {where_raised(error)}") from error


def code_digest(source: Source) -> str:
    """Of the module of an estimator or rule of the user's; empty for ours, whose changes `frozen.VERSION` counts."""
    own: object = source.average if isinstance(source, RunningAverage) else getattr(source, "rule", None)
    return "" if type(own).__module__.startswith(("bnlab.", "builtins")) else digest_of_source(type(own))  # type: ignore[arg-type]
