"""Where statistics come from: a name in `estimator=` and what it means for a trained network."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from bnlab import estimators, inference
from bnlab.estimators import Estimator, Stream
from bnlab.estimators.base import fold
from bnlab.harness.errors import UserError, where_raised
from bnlab.inference import Rule

# Statistics of frozen weights; `precise(images=1000)` takes the first 1,000, the same for all seeds. All but exact are
# taken in batches of the training size, which normalize themselves.
FROZEN = {
    "exact": "population upstream, found layer by layer",
    "precise": "moments pooled over all batches (Wu & Johnson 2021; fvcore)",
    "update_bn": "mean of batch means and of unbiased variances (Ioffe & Szegedy 2015, Alg. 2; torch's update_bn)",
    "swa": "the same weighted by the batches' sizes (SWA's reference code)",
}
_TEST_BATCH = 64  # images that a rule at inference time sees at once, unless it says otherwise


@dataclass(frozen=True)
class Setting:
    """One row key of the tables: where statistics come from, with their momentum and the data that they are of.

    One of `running`, `rule` or neither (frozen weights) is set.
    """

    estimator: str  # canonical name
    momentum: float | None
    split: str
    running: Estimator | None = None
    rule: Rule | None = None  # at inference time; on top of exact statistics
    images: int | None = None  # frozen weights: of how many, None is all; a rule: how many at once

    @property
    def kind(self) -> str:
        """`running`, `rule`, or the name of a statistic of frozen weights."""
        return "running" if self.running else "rule" if self.rule else self.estimator.partition("(")[0]


def settings(names: list[str], momenta: list[float], population: str) -> list[Setting]:
    """Every estimator with every momentum that means something to it, each once.

    Raises:
        UserError: an unknown estimator or parameter.
    """
    found: dict[Setting, None] = {}
    for name in names:
        for setting in _frozen(name, population) or _at_inference_time(name) or _running(name, momenta):
            found.setdefault(setting)
    return list(found)


def _frozen(name: str, population: str) -> list[Setting]:
    match = re.fullmatch(r"(\w+)(?:\(images=(\d+)\))?", name)
    base = name.partition("(")[0]
    if base not in FROZEN:
        return []
    if match is None:
        raise UserError(f"estimator={name}: write {base}, or {base}(images=1000) for so many images")
    images = int(match[2]) if match[2] else None
    if images is not None and images < 2:
        raise UserError(f"estimator={name}: images must be 2 or more")
    return [Setting(name, None, population, images=images)]


def _at_inference_time(name: str) -> list[Setting]:
    base, _, rest = name.partition("(")
    if base not in inference.known():
        return []
    # The size of the test batch: `n` of test_batch, which has no other parameter, `batch` of all others.
    key = "n" if base == "test_batch" else "batch"
    items = [item.strip() for item in rest.removesuffix(")").split(",") if item.strip()]
    sizes = [item.partition("=")[2].strip() for item in items if item.partition("=")[0].strip() == key]
    try:
        images = int(sizes[0]) if sizes else _TEST_BATCH
        rule = inference.parse(f"{base}({','.join(i for i in items if i.partition('=')[0].strip() != key)})")
    except ValueError as error:
        raise UserError(_unusable(name, error)) from error
    if len(sizes) > 1:
        raise UserError(f"estimator={name}: {key} is given twice")
    if images < 1:
        raise UserError(f"estimator={name}: {key} counts images and is 1 or more")
    label = f"{rule.label.removesuffix(')')}{',' if '(' in rule.label else '('}{key}={images})"
    return [Setting(label, None, "test", rule=rule, images=images)]


def _running(name: str, momenta: list[float]) -> list[Setting]:
    try:
        cls, parameters = estimators.parse(name)
        _check_name(cls)
        one = cls(**parameters)
        found = [one]
        if hasattr(one, "momentum") and "momentum" not in parameters:
            found = [replace(one, momentum=float(m)) for m in momenta]  # type: ignore[call-arg]
        return [Setting(e.label, getattr(e, "momentum", None), "train", e) for e in found]
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        raise UserError(_unusable(name, error)) from error


def _check_name(cls: type[Estimator]) -> None:
    """ValueError if rows of another estimator have the name."""
    path = f"{cls.__module__}.{cls.__qualname__}"
    if cls.name in (*FROZEN, *inference.known()) or not re.fullmatch(r"[^\W\d][\w.-]*", cls.name):
        raise ValueError(f"the name {cls.name!r} of {path} is taken or not a word; give the class another")
    if estimators.known().get(cls.name) is not cls:
        raise ValueError(f"{path} has no name of its own but {cls.name!r} of its base; give it one")


def try_estimators(settings: Iterable[Setting]) -> None:
    """Let every running estimator average a stream of eight batches.

    Raises:
        UserError: one fails; its name, the error and the line that raised it.
    """
    generator = torch.Generator().manual_seed(0)
    means, variances = torch.rand(2, 8, 3, generator=generator, dtype=torch.float64)
    start = torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float64)
    batches, counts = torch.stack((means, variances + 0.5), dim=1), torch.full((8, 3), 64.0, dtype=torch.float64)
    for estimator in dict.fromkeys(s.running for s in settings if s.running is not None):
        stream = Stream(start, batches, counts, eps=torch.full((3,), 1e-5, dtype=torch.float64), layers=(1, 2))
        try:
            fold([estimator], stream, [1, 8])
        except (Exception, SystemExit) as error:  # a user's class may raise anything
            path = f"{type(estimator).__module__}.{type(estimator).__qualname__}"
            reason = f"{path} fails on a stream of 8 batches: {where_raised(error)}"
            raise UserError(f"estimator={estimator.label}: {reason}") from error


def source_digest(setting: Setting) -> str:
    """Of the code of a user's own estimator; empty for ours, whose changes `frozen.VERSION` counts."""
    rule = setting.running or setting.rule
    return "" if rule is None else _digest_of_class(type(rule))


@cache  # what runs is the code as it was when it was imported
def _digest_of_class(cls: type) -> str:
    """Of the modules of the class and of its bases, and of the user's own modules that these take anything from."""
    sources: dict[str, str] = {}
    queue = [base.__module__ for base in cls.__mro__ if not _is_library(base.__module__)]
    while queue:
        name = queue.pop()
        module = sys.modules.get(name)
        if name in sources or module is None:
            continue
        sources[name] = _source(module, cls)
        for value in vars(module).values():
            used = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(used, str) and not _is_installed(used):
                queue.append(used)
    if not sources:
        return ""
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:10]


def _source(module: ModuleType, cls: type) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):  # defined in a notebook, say
        pass
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError) as error:
        raise UserError(f"{cls.__qualname__}: its source cannot be read ({error}); put it into a module") from error


def _is_library(module: str) -> bool:
    """Ours or Python's."""
    top = module.partition(".")[0]
    return top == "bnlab" or top in sys.stdlib_module_names


def _is_installed(module: str) -> bool:
    """Of a library or an installed package."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return _is_library(module) or file is None or bool({"site-packages", "dist-packages"} & {*Path(file).parts})


def _unusable(name: str, error: BaseException) -> str:
    reason = " ".join(str(error).split()).removeprefix(f"estimator={name!r}: ")
    if not name or reason.startswith("unknown"):
        known = ", ".join([*sorted(estimators.known()), *FROZEN, *inference.known()])
        return f"estimator={name}: unknown; there are {known}, or package.module.Class"
    return f"estimator={name}: {reason if isinstance(error, ValueError) else where_raised(error)}"
