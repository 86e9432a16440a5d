"""What is out of range is refused; estimators and momenta make each source once."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import pytest

from bnlab.harness.artifacts.data import DataConfig
from bnlab.harness.artifacts.norms import NAMES, RECORDED, NormConfig
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.config import check
from bnlab.harness.errors import Note, UserError
from bnlab.harness.measurements.sources import FrozenWeights, RunningAverage, find_sources


def test_each_setting_once() -> None:
    names = ["ema", "cumulative", "exact", "ema", "precise(images=10)", "ema(momentum=0.3)"]
    found = find_sources(Config(estimator=names, momentum=[0.1, 0.2, 0.1]))
    assert [(s.estimator, s.momentum) for s in found] == [
        ("ema", 0.1),
        ("ema", 0.2),
        ("cumulative", None),
        ("exact", None),
        ("precise(images=10)", None),
        ("ema", 0.3),
    ]
    kinds = [RunningAverage] * 3 + [FrozenWeights] * 2 + [RunningAverage]
    assert [type(s) for s in found] == kinds
    assert found[4] == FrozenWeights("precise(images=10)", None, "train", 10)


def test_each_population() -> None:
    """Of statistics that have one: a running average's are of what the network was trained on."""
    found = find_sources(Config(estimator=["exact", "ema", "test_batch"], population=["train", "val"]))
    described = [(s.estimator, s.split) for s in found]
    assert described == [("exact", "train"), ("exact", "val"), ("ema", "train"), ("test_batch(n=64)", "test")]


def test_bounds() -> None:
    check(Config(batch_size=2))
    check(Config(batch_size=1295, data=DataConfig()))
    with pytest.raises(UserError, match="batch_size=1296"):
        check(Config(batch_size=1296))
    with pytest.raises(UserError, match="epochs=100000: is 64,700,000 steps; must be 10,000,000 or fewer"):
        check(Config(batch_size=2, epochs=100_000))
    with pytest.raises(UserError, match="name='a b'"):
        check(Config(name="a b"))


def test_steps_after_the_end_are_refused() -> None:
    with pytest.raises(UserError, match="evaluate_at=100: the training has 41 steps"):
        check(Config(batch_size=32, epochs=1, evaluate_at=[10, 100]))


@pytest.mark.parametrize("at", [[0.5, 1], [1]])
def test_one_alone_or_among_shares_is_the_first_step(at: list[float]) -> None:
    """It is easily written for the end of the training, 1.0."""
    with pytest.warns(Note, match=rf"evaluate_at={re.escape(str(at))}: 1 is the first step, 1.0 the end of the train"):
        check(Config(evaluate_at=at))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for clear in ([1, 10], [0.5, 1.0], [1, 0.5, 1.0]):
            check(Config(evaluate_at=clear))


@pytest.mark.parametrize("name", NAMES)
def test_one_image_is_a_batch_where_the_norm_needs_no_more(name: str) -> None:
    config = Config(norm=NormConfig(name, batch_size=2), momentum=0.01, batch_size=1)
    if name not in RECORDED:
        check(config)
        with pytest.raises(UserError, match=r"batch_size=0: must be 1 to 1,295 \(the training split has"):
            check(Config(norm=NormConfig(name), batch_size=0))
        return
    with pytest.raises(UserError, match=rf"batch_size=1: must be 2 to 1,295 \(norm={name} needs at least 2 images\)"):
        check(config)


def test_a_ghost_batch_is_no_larger_than_the_batch() -> None:
    check(Config(norm=NormConfig("ghost", batch_size=32), batch_size=32))
    with pytest.raises(UserError, match=r"norm\.batch_size=32: is larger than the batch, of which it is a part"):
        check(Config(norm=NormConfig("ghost", batch_size=32), batch_size=31))
    check(Config(norm=NormConfig("batch", batch_size=32), batch_size=31))


def test_a_renorm_has_no_other_running_averages_than_its_own() -> None:
    config = Config(norm=NormConfig("renorm", momentum=0.05), momentum=[0.05])
    frozen = ["exact", "precise", "update_bn", "swa", "test_batch"]
    check(replace(config, estimator=["ema", *frozen]))
    check(replace(config, momentum=0.1, estimator=["ema(momentum=0.05)", *frozen]))
    check(replace(config, momentum=0.1, estimator=frozen))
    check(replace(config, norm=NormConfig("renorm", momentum=0.1), estimator="stale", averaging="swa"))
    for changes, found in (
        ({"momentum": [0.05, 0.1]}, "momentum=0.1: a network with norm=renorm reads its running averages"),
        ({"estimator": ["ema(momentum=0.5)"]}, "momentum=0.5: .*use estimator=ema with momentum=0.05"),
        ({"estimator": ["exact", "cumulative"]}, "estimator=cumulative: a network with norm=renorm"),
        ({"estimator": ["stale"]}, "estimator=stale: .*use estimator=ema with momentum=0.05"),
        ({"estimator": ["ema_debiased"]}, "estimator=ema_debiased: .*or statistics of frozen weights"),
    ):
        with pytest.raises(UserError, match=found):
            check(replace(config, **changes))
        check(replace(config, norm=NormConfig(), **changes))
