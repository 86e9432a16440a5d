"""Where statistics come from: a name in `estimator=` and what it means for a trained network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bnlab import estimators, inference
from bnlab.estimators import Estimator
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
    if images < 1:
        raise UserError(f"estimator={name}: {key} counts images and is 1 or more")
    label = f"{rule.label.removesuffix(')')}{',' if '(' in rule.label else '('}{key}={images})"
    return [Setting(label, None, "test", rule=rule, images=images)]


def _running(name: str, momenta: list[float]) -> list[Setting]:
    try:
        cls, parameters = estimators.parse(name)
        one = cls(**parameters)
        found = [one]
        if hasattr(one, "momentum") and "momentum" not in parameters:
            found = [replace(one, momentum=float(m)) for m in momenta]  # type: ignore[call-arg]
        return [Setting(e.label, getattr(e, "momentum", None), "train", e) for e in found]
    except (Exception, SystemExit) as error:  # a module of the user's may raise anything
        raise UserError(_unusable(name, error)) from error


def _unusable(name: str, error: BaseException) -> str:
    reason = " ".join(str(error).split()).removeprefix(f"estimator={name!r}: ")
    if not name or reason.startswith("unknown"):
        known = ", ".join([*sorted(estimators.known()), *FROZEN, *inference.known()])
        return f"estimator={name}: unknown; there are {known}, or package.module.Class"
    return f"estimator={name}: {reason if isinstance(error, ValueError) else where_raised(error)}"
