"""Where statistics come from: a name in `estimator=` and what it means for a trained network."""

from __future__ import annotations

import contextlib
import difflib
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
from torch import Tensor

from bnlab import estimators, inference
from bnlab.estimators import Estimator, Stream
from bnlab.estimators.base import fold
from bnlab.files import digest
from bnlab.harness.artifacts.settings import Config, as_list
from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.measurements.own_code import digest_of_class
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
_LONG_TRIAL = 256  # that show what they are
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
    found: dict[Source, None] = {}
    for name in names:
        for source in (
            _parse_averaging(name)
            or _parse_frozen(name, populations)
            or _parse_rule(name)
            or _parse_running(name, momenta)
        ):
            found.setdefault(source)
    return list(found)


def _parse_averaging(name: str) -> list[Source]:
    base = name.partition("(")[0]
    if base not in AVERAGING:
        return []
    if name != base:
        raise UserError(f"estimator={name}: write {base}, which has no parameters")
    if name == "stale":
        return [RunningAverage(name, None, "train", estimators.EMA(momentum=0.1))]
    return [FrozenWeights(name, None, "train")]


def _parse_frozen(name: str, populations: tuple[str, ...]) -> list[FrozenWeights]:
    match = re.fullmatch(r"(\w+)(?:\(images=(\d+)\))?", name)
    base = name.partition("(")[0]
    if base not in FROZEN:
        return []
    if match is None:
        raise UserError(f"estimator={name}: write {base}, or {base}(images=1000) for so many images")
    images = int(match[2]) if match[2] else None
    if images is not None and images < 2:
        raise UserError(f"estimator={name}: images must be 2 or more")
    label = base if images is None else f"{base}(images={images})"  # canonical: no leading zeros
    return [FrozenWeights(label, None, population, images) for population in populations]


def _parse_rule(name: str) -> list[InferenceRule]:
    base, _, rest = name.partition("(")
    if base not in inference.list_rules():
        return []
    # The size of the test batch: `n` of test_batch, which has no other parameter, `batch` of all others.
    key = "n" if base == "test_batch" else "batch"
    items = [item.strip() for item in rest.removesuffix(")").split(",") if item.strip()]
    sizes = [item.partition("=")[2].strip() for item in items if item.partition("=")[0].strip() == key]
    try:
        images = int(sizes[0]) if sizes else _TEST_BATCH
        rule = inference.parse(f"{base}({','.join(i for i in items if i.partition('=')[0].strip() != key)})")
    except ValueError as error:
        raise UserError(_explain(name, error)) from error
    if len(sizes) > 1:
        raise UserError(f"estimator={name}: {key} is given twice")
    if images < 1:
        raise UserError(f"estimator={name}: {key} counts images and is 1 or more")
    label = f"{rule.label.removesuffix(')')}{',' if '(' in rule.label else '('}{key}={images})"
    return [InferenceRule(label, None, "test", rule, images)]


def _parse_running(name: str, momenta: list[float]) -> list[RunningAverage]:
    try:
        with warnings.catch_warnings():  # a module of the user's may silence ours
            cls, parameters = estimators.parse(name)
        with contextlib.suppress(UserError):  # the code as it is imported; whoever needs it says that there is none
            digest_of_class(cls)
        _check_name(cls)
        one = cls(**parameters)
        found = [one]
        if hasattr(one, "momentum") and "momentum" not in parameters:
            found = [replace(one, momentum=float(m)) for m in momenta]  # type: ignore[call-arg]
        _check_label(one)
        _check_parameters(one)
        _check_default_dtype()
        return [RunningAverage(e.label, getattr(e, "momentum", None), "train", e) for e in found]
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        raise UserError(_explain(name, error)) from error


def _check_name(cls: type[Estimator]) -> None:
    """ValueError if rows of another estimator have the name."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    taken = {"none", *FROZEN, *AVERAGING, *inference.list_rules()}  # none: networks without statistics of the batch
    if cls.name in taken or not re.fullmatch(r"[^\W\d][\w.-]*", cls.name):
        raise ValueError(f"the name {cls.name!r} of {path} is taken or not a word; give the class another")
    if estimators.list_estimators().get(cls.name) is not cls:
        raise ValueError(f"{path} has no name of its own but {cls.name!r} of its base; give it one")


def _check_label(estimator: Estimator) -> None:
    """ValueError if an estimator's rows would be written under another name than its class has."""
    name, label = estimator.name, estimator.label
    if label != name and not label.startswith(f"{name}("):
        raise ValueError(f"its label {label!r} is not its name; let it be {name!r}, or {name}(parameter=value)")


def _check_parameters(estimator: Estimator) -> None:
    """ValueError if a parameter can be changed, as a list can: estimators are told apart by their parameters."""
    for field in fields(estimator):
        try:
            hash(getattr(estimator, field.name))
        except TypeError as error:
            kind = type(getattr(estimator, field.name)).__name__
            raise ValueError(f"its parameter {field.name!r} is a {kind}, which can be changed; use a tuple") from error


def _check_default_dtype() -> None:
    """ValueError unless it is float32, in which networks are built and images stored."""
    if torch.get_default_dtype() != torch.float32:
        raise ValueError(
            f"torch's default dtype is {torch.get_default_dtype()} after it was imported or called, and networks are "
            "trained in float32; leave the default alone and give tensors their dtype=torch.float64"
        )


def try_estimators(sources: Iterable[Source]) -> None:
    """Let every running estimator average a stream of eight batches, twice.

    Raises:
        UserError: two have one label, or one fails, changes what others average too, or gives something else the second
            time; its name, the error and the line that raised it.
    """
    running = [source for source in sources if isinstance(source, RunningAverage)]
    _check_labels(running)
    for estimator in dict.fromkeys(source.average for source in running):
        try:
            _average_twice(estimator, _TRIAL)
            _check_default_dtype()
        except (Exception, SystemExit) as error:  # a user's class may raise anything
            path = f"{type(estimator).__module__}.{type(estimator).__qualname__}"
            reason = f"{path} fails on a stream of {_TRIAL} batches: {where_raised(error)}"
            raise UserError(f"estimator={estimator.label}: {reason}") from error


def _check_labels(sources: Iterable[RunningAverage]) -> None:
    """UserError if the rows of two estimators would have one key."""
    labelled: dict[tuple[str, float | None], Estimator] = {}
    for source in sources:
        other = labelled.setdefault((source.estimator, source.momentum), source.average)
        if other != source.average:
            raise UserError(
                f"estimator={source.estimator}: the label of both {other} and {source.average}; let it tell their "
                "parameters, as it does by itself"
            )


@cache
def _average_twice(estimator: Estimator, length: int) -> Tensor:
    """What the estimator makes of so many batches; ValueError if it writes into their stream, or varies."""
    generator = torch.Generator().manual_seed(0)
    means, variances = torch.rand(2, length, 3, generator=generator, dtype=torch.float64)
    start = torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64)
    batches, counts = torch.stack((means, variances + 0.5), dim=1), torch.full((length, 3), 64.0, dtype=torch.float64)
    values, results = (start, batches, counts), []
    for _ in range(2):
        start, batches, counts = copies = [value.clone() for value in values]
        eps = torch.full((3,), 1e-5, dtype=torch.float64)
        stream = Stream(start, batches, counts, eps=eps, layers=(1, 2))
        results.append(fold([estimator], stream, range(1, length + 1)))
        if not all(map(torch.equal, copies, values)):
            raise ValueError("it writes into the stream, which other estimators average too; work on a copy, .clone()")
    if not torch.equal(*results):
        raise ValueError("it gives something else the second time; draw from a generator with a fixed seed")
    return results[0]


def code_digest(source: Source) -> str:
    """Of the code of an estimator of the user's; empty for ours, whose changes `frozen.VERSION` counts."""
    if isinstance(source, InferenceRule):
        return digest_of_class(type(source.rule))
    return digest_of_class(type(source.average)) if isinstance(source, RunningAverage) else ""


def source_digest(source: Source) -> str:
    """Of the code of an estimator of the user's, and of what a running one makes of a few hundred batches.

    The latter tells of what no code says, such as a file of gains, as far as so many batches show it, or eight if its
    gains are fewer. Empty for ours.
    """
    code = code_digest(source)
    if not isinstance(source, RunningAverage) or not code:
        return code
    for length in (_LONG_TRIAL, _TRIAL):
        with contextlib.suppress(Exception, SystemExit):  # whoever measures with it says why
            # All momenta have one digest. Rounded, so that processors agree in it.
            fixed = {f.name: 0.1 for f in fields(source.average) if f.name == "momentum"}
            made = _average_twice(replace(source.average, **fixed), length).float()
            return digest(code, made.numpy().tobytes(), digits=10)
    return code


def _explain(name: str, error: BaseException) -> str:
    reason = " ".join(str(error).split()).removeprefix(f"estimator={name!r}: ")
    if not name or reason.startswith("unknown"):
        known = [*sorted(estimators.list_estimators()), *FROZEN, *AVERAGING, *inference.list_rules()]
        close = difflib.get_close_matches(name.partition("(")[0], known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return f"estimator={name}: unknown{hint}; there are {', '.join(known)}, or package.module.Class"
    return f"estimator={name}: {reason if isinstance(error, ValueError) else where_raised(error)}"
