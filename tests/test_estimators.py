"""Every running estimator against a float64 twin on every prefix; names."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from bnlab import estimators
from bnlab.estimators import EMA, Cumulative, DebiasedEMA, Estimator, LastBatch, Stream, fold, known, parse
from tests import references

CHANNELS = 3
START = torch.tensor([[0.3, -2.0, 5.0], [1.5, 0.2, 4.0]], dtype=torch.float64)


def batches(count: int, mean: float = 1.0, std: float = 2.0) -> list[Tensor]:
    """Of uneven sizes."""
    generator = torch.Generator().manual_seed(count)
    sizes = torch.randint(2, 12, (count,), generator=generator).tolist()
    return [mean + std * torch.randn(n, CHANNELS, generator=generator, dtype=torch.float64) for n in sizes]


def stream_of(data: list[Tensor], updates: int = 0) -> Stream:
    moments = [torch.stack(references.unbiased(batch)) for batch in data]
    recorded = torch.stack(moments) if moments else torch.empty(0, 2, CHANNELS, dtype=torch.float64)
    counts = torch.tensor([len(batch) for batch in data], dtype=torch.float64)
    return Stream(START, recorded, counts[:, None].expand(-1, CHANNELS), updates)


def cumulative(estimator: Estimator, data: list[Tensor], updates: int) -> list[Any]:
    """The start counts as the `updates` batches that it was made of."""
    plain = references.running_cumulative(data)
    return [
        [(updates * s + t * p) / (updates + t) for s, p in zip(START, pair, strict=True)]
        for t, pair in enumerate(plain, start=1)
    ]


# Estimator and its twin: (estimator, batches, updates) -> (mean, var) after each batch.
TWINS: dict[str, Callable[[Any, list[Tensor], int], list[Any]]] = {
    "ema": lambda e, data, updates: references.running_ema(data, e.momentum, *START),
    "ema_debiased": lambda e, data, updates: references.running_ema_debiased(data, e.momentum, *START),
    "cumulative": cumulative,
    "last_batch": lambda e, data, updates: references.running_last_batch(data),
}


def instances(cls: type[Estimator]) -> list[Estimator]:
    if issubclass(cls, EMA) or "momentum" in cls.__dataclass_fields__:
        return [cls(momentum=m) for m in (0.001, 0.1, 0.9, 1.0)]  # type: ignore[call-arg]
    return [cls()]


ALL = [estimator for cls in known().values() for estimator in instances(cls)]
each = pytest.mark.parametrize("estimator", ALL, ids=str)


def test_every_estimator_of_the_library_has_a_twin() -> None:
    own = {name for name, cls in known().items() if cls.__module__ == estimators.__name__}
    assert own == set(TWINS)


@each
@pytest.mark.parametrize("updates", [0, 7])
@pytest.mark.parametrize(("mean", "std"), [(1, 2), (1000, 0.01)])
def test_every_prefix_against_the_twin(estimator: Estimator, updates: int, mean: float, std: float) -> None:
    data = batches(9, mean, std)
    found = fold([estimator], stream_of(data, updates), range(10))[0]
    assert torch.equal(found[0], START)
    expected = torch.stack([torch.stack(tuple(pair)) for pair in TWINS[estimator.name](estimator, data, updates)])
    # Dividing the start out of an EMA leaves its rounding, some eps·|start|, divided by as little as the momentum.
    atol = 1e-14 / getattr(estimator, "momentum", 1.0)
    torch.testing.assert_close(found[1:], expected, rtol=1e-11, atol=atol)


@each
@pytest.mark.parametrize("updates", [0, 7])
def test_blocks_agree_with_single_steps(estimator: Estimator, updates: int) -> None:
    stream = stream_of(batches(3 * estimators._BLOCK + 17), updates)
    gains = estimator.gains(stream)
    state, dense = START, [START]
    for gain, batch in zip(gains, stream.batches, strict=True):
        state = state + gain * (batch - state)
        dense.append(state)
    some = [700, 0, 1, 255, 256, 257, 512, 700, len(stream)]
    for positions in (some, range(len(stream) + 1)):
        expected = torch.stack([dense[p] for p in positions])
        torch.testing.assert_close(fold([estimator], stream, positions)[0], expected, rtol=1e-11, atol=1e-12)


@each
def test_the_past_does_not_depend_on_the_future(estimator: Estimator) -> None:
    data = batches(12)
    gains = estimator.gains(stream_of(data))
    for t in range(12):
        assert torch.equal(estimator.gains(stream_of(data[:t])), gains[:t])


@each
def test_weights_of_the_batches_are_no_more_than_one(estimator: Estimator) -> None:
    gains = estimator.gains(stream_of(batches(600)))
    assert gains.dtype == torch.float64 and gains.shape[0] == 600 and (gains > 0).all() and (gains <= 1 + 1e-15).all()


def test_many_at_once() -> None:
    stream = stream_of(batches(30))
    together = fold(ALL, stream, [0, 13, 30])
    assert together.shape == (len(ALL), 3, 2, CHANNELS)
    for estimator, values in zip(ALL, together, strict=True):
        torch.testing.assert_close(values, fold([estimator], stream, [0, 13, 30])[0])


def test_closed_form_on_two_batches() -> None:
    stream = Stream(torch.tensor([[8.0], [4.0]]).double(), torch.tensor([[[1.0], [2]], [[5], [6]]]).double(), None)  # type: ignore[arg-type]
    expected = {
        EMA(0.25): (0.75 * (0.75 * 8 + 0.25) + 1.25, 0.75 * (0.75 * 4 + 0.5) + 1.5),
        DebiasedEMA(0.25): ((0.75 * 1 + 5) / 1.75, (0.75 * 2 + 6) / 1.75),
        Cumulative(): (3, 4),
        LastBatch(): (5, 6),
    }
    for estimator, pair in expected.items():
        assert fold([estimator], stream, [2]).flatten().tolist() == pytest.approx(pair)


def test_a_bad_batch_is_forgotten_where_its_weight_is_none() -> None:
    data = batches(6)
    stream, bad = stream_of(data), stream_of(data)
    bad.batches[2, :, 1] = torch.nan
    last, ema = fold([LastBatch(), EMA(0.1)], bad, range(7))
    assert torch.equal(last[4:], fold([LastBatch()], stream, range(4, 7))[0]) and last[3, :, 1].isnan().all()
    assert ema[3:, :, 1].isnan().all()
    torch.testing.assert_close(ema[:, :, [0, 2]], fold([EMA(0.1)], stream, range(7))[0][:, :, [0, 2]])
    started_badly = Stream(START * torch.nan, stream.batches, stream.counts)
    assert fold([Cumulative(), LastBatch()], started_badly, range(1, 7)).isfinite().all()


@dataclass(frozen=True)
class PerChannel(Estimator):
    """Toy: sample-weighted with a floor, channels apart; what a user would write."""

    name: ClassVar[str] = "test_weighted"
    floor: float = 0.0
    power: int = 1
    kind: str = "n"
    quick: bool = False

    def gains(self, stream: Stream) -> Tensor:
        n = stream.counts**self.power
        return (n / n.cumsum(0)).clamp(min=self.floor)


def test_an_estimator_of_the_users_own() -> None:
    assert known()["test_weighted"] is PerChannel
    data = batches(20)
    found = fold([EMA(0.1), PerChannel(), LastBatch()], stream_of(data), range(21))[1]
    sizes = [len(batch) for batch in data]
    for t in range(1, 21):
        pairs = [torch.stack(references.unbiased(batch)) for batch in data[:t]]
        expected = sum(n * p for n, p in zip(sizes, pairs, strict=False)) / sum(sizes[:t])
        torch.testing.assert_close(found[t], expected)


def test_a_subclass_without_a_name_of_its_own_does_not_take_its_parents() -> None:
    class Unnamed(EMA):
        pass

    assert known()["ema"] is EMA and Unnamed(0.5) != EMA(0.5)


# Names


@pytest.mark.parametrize("estimator", [*ALL, PerChannel(), PerChannel(1e-7, -2, "x y", True)], ids=str)
def test_labels_round_trip(estimator: Estimator) -> None:
    cls, parameters = parse(estimator.label)
    assert cls is type(estimator)
    momentum = {"momentum": estimator.momentum} if isinstance(estimator, EMA) else {}
    assert cls(**parameters, **momentum) == estimator


def test_labels() -> None:
    assert [e.label for e in (EMA(0.3), Cumulative(), DebiasedEMA())] == ["ema", "cumulative", "ema_debiased"]
    assert PerChannel(power=2).label == "test_weighted(floor=0.0,power=2,kind=n,quick=False)"


def test_parse() -> None:
    assert parse("ema") == (EMA, {}) and parse("ema()") == (EMA, {})
    assert parse("ema( momentum = 1 )") == (EMA, {"momentum": 1.0})
    assert parse("tests.test_estimators.PerChannel(power=3, kind=5.x)")[1] == {"power": 3, "kind": "5.x"}
    assert parse("tests.test_estimators.PerChannel")[0].name == "test_weighted"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("emma", r"unknown; known are cumulative, ema, ema_debiased, last_batch.*, or package.module.Class"),
        ("ema(", r"estimator='ema\(': write a name such as ema, or name\(parameter=value\)"),
        ("", "write a name such as ema"),
        ("ema(0.1)", r"found '0.1'; write ema\(parameter=value\)"),
        ("ema(m=0.1)", "ema has no parameter 'm'; it has momentum"),
        ("cumulative(k=1)", "cumulative has no parameter 'k'; it has none"),
        ("ema(momentum=high)", "momentum=high is no float; its default is 0.1"),
        ("test_weighted(power=1.5)", "power=1.5 is no int"),
        ("test_weighted(quick=1)", "quick=1 is no bool"),
        ("no.such.module", r"'no\.such\.module': cannot be imported"),
        ("tests.test_estimators.Missing", "cannot be imported"),
        ("torch.nn.Linear", "is no subclass of bnlab.estimators.Estimator"),
        ("bnlab.estimators.Estimator", "is no subclass of bnlab.estimators.Estimator that has gains"),
        (".ema", "unknown; known are"),
    ],
)
def test_names_that_are_refused(label: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(label)
    assert re.search(r"estimator='", str(caught.value))


@pytest.mark.parametrize("momentum", [0, -0.1, 1.5, math.nan])
def test_momentum_out_of_its_range(momentum: float) -> None:
    for cls in (EMA, DebiasedEMA):
        with pytest.raises(ValueError, match=r"it is the weight of the new batch and lies in \(0, 1\]"):
            cls(momentum)


def test_decay() -> None:
    assert EMA.from_decay(0.75) == EMA(0.25) and DebiasedEMA.from_decay(0.75) == DebiasedEMA(0.25)
    for decay in (1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match=r"decay=.*weight of the old average and lies in \[0, 1\)"):
            EMA.from_decay(decay)
