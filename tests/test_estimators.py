"""Every running estimator against a float64 twin on every prefix; its properties; names."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnlab import record, replay, running_statistics
from bnlab.estimators import (
    EMA,
    Cumulative,
    DebiasedEMA,
    Estimator,
    Kalman,
    LastBatch,
    PooledCumulative,
    PooledEMA,
    Predictive,
    Stream,
    WeightedCumulative,
    Window,
    fold,
    list_estimators,
    parse,
)
from tests import references
from tests.helpers import assert_equal_statistics, images, plain, train, with_momentum, without_dropout

CHANNELS = 3
LAYERS = (1, 2)
EPS = 1e-3
START = torch.tensor([[0.3, -2.0, 5.0], [1.5, 0.2, 4.0]], dtype=torch.float64)


def batches(count: int, mean: float = 1.0, std: float = 2.0, seed: int = 0) -> list[Tensor]:
    """Of uneven sizes."""
    generator = torch.Generator().manual_seed(count + 1000 * seed)
    sizes = torch.randint(2, 12, (count,), generator=generator).tolist()
    return [mean + std * torch.randn(n, CHANNELS, generator=generator, dtype=torch.float64) for n in sizes]


def stream_of(data: list[Tensor], updates: int = 0) -> Stream:
    moments = [torch.stack(references.unbiased(batch)) for batch in data]
    recorded = torch.stack(moments) if moments else torch.empty(0, 2, CHANNELS, dtype=torch.float64)
    counts = torch.tensor([len(batch) for batch in data], dtype=torch.float64)[:, None].expand(-1, CHANNELS)
    return Stream(START, recorded, counts, updates, torch.full((CHANNELS,), EPS, dtype=torch.float64), LAYERS)


Twin = Callable[[Any, list[Tensor], int], list[Any]]


def averages(estimator: Any, data: list[Tensor], updates: int, **how: Any) -> list[Any]:
    return references.running_averages(data, start=tuple(START), updates=updates, **how)


def kalman(estimator: Any, data: list[Tensor], updates: int) -> list[Any]:
    # A fit takes 8 batches; of fewer there is no drift.
    fits = {t: part for t, part in estimator.fits(len(data)) if len(data[part]) >= 8}
    return references.running_kalman(data, LAYERS, estimator.per == "layer", EPS, fits)


def ema(estimator: Any, data: list[Tensor], updates: int, **how: Any) -> list[Any]:
    return references.running_ema(data, estimator.momentum, *START, **how)


def get_start(updates: int) -> Any:
    """The start, where it is the average of other batches."""
    return tuple(START) if updates else None


# Estimator and its twin: (estimator, batches, updates) -> (mean, var) after each batch.
TWINS: dict[str, Twin] = {
    "ema": ema,
    "ema_biased": partial(ema, biased=True),
    "ema_weighted": partial(ema, weighted=True),
    "ema_debiased": lambda e, data, updates: references.running_ema_debiased(data, e.momentum, *START),
    "ema_pooled": lambda e, data, updates: references.running_ema_pooled(data, e.momentum, get_start(updates)),
    "cumulative": averages,
    "cumulative_weighted": partial(averages, weighted=True),
    "cumulative_pooled": partial(averages, pooled=True),
    "window": lambda e, *a: averages(e, *a, last=e.k, pooled=e.pooled),
    "last_batch": partial(averages, last=1),
    "last_full_batch": lambda e, data, updates: references.running_last_full_batch(data),
    "kalman": kalman,
    "predictive": lambda e, data, updates: references.running_predictive(data, LAYERS, EPS, get_start(updates)),
}
PARAMETERS: dict[type[Estimator], list[dict[str, Any]]] = {
    Window: [{"k": 1}, {"k": 4}, {"k": 4, "pooled": True}, {"k": 100, "pooled": True}],
    Kalman: [{"per": "layer"}, {"per": "channel"}],
}


def instances(cls: type[Estimator]) -> list[Estimator]:
    momenta = [{"momentum": m} for m in (0.001, 0.1, 1.0)] if "momentum" in cls.__dataclass_fields__ else [{}]
    return [cls(**own, **momentum) for own in PARAMETERS.get(cls, [{}]) for momentum in momenta]


OWN = [cls for cls in list_estimators().values() if cls.__module__.startswith("bnlab.")]
ALL = [estimator for cls in OWN for estimator in instances(cls)]
each = pytest.mark.parametrize("estimator", ALL, ids=str)


def test_every_estimator_of_the_library_has_a_twin() -> None:
    assert {cls.name for cls in OWN} == set(TWINS)


@each
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    count=st.integers(0, 40),
    scale=st.sampled_from([(1.0, 2.0), (1000.0, 0.01)]),
    updates=st.sampled_from([0, 7]),
    seed=st.integers(0, 100),
)
def test_every_prefix_against_the_twin(
    estimator: Estimator, count: int, scale: tuple[float, float], updates: int, seed: int
) -> None:
    data = batches(count, *scale, seed)
    stream = stream_of(data, updates)
    found = fold([estimator], stream, range(count + 1))[0]

    assert torch.equal(found[0], START)

    if count:
        expected = torch.stack([torch.stack(tuple(pair)) for pair in TWINS[estimator.name](estimator, data, updates)])
        # Dividing the start out of an EMA leaves its rounding, some eps·|start|, divided by as little as the momentum.
        atol = 1e-14 / getattr(estimator, "momentum", 1.0)
        torch.testing.assert_close(found[1:], expected, rtol=1e-11, atol=atol)

    # The past does not depend on the future.
    half = stream_of(data[: count // 2], updates)
    again = fold([estimator], half, [count // 2])[0, 0]
    torch.testing.assert_close(again, found[count // 2], rtol=1e-12, atol=1e-14)


def stepwise(estimator: Estimator, stream: Stream) -> Tensor:
    """The definition: one step after the other, for every position."""
    gain = estimator.gains(stream)
    values = estimator.values(stream)
    state = estimator.begin(stream)
    states = [state]
    for t in range(len(stream)):
        state = state + gain[t] * (values[t] - state)
        states.append(state)
    return torch.cat((stream.start[None], estimator.read(torch.stack(states), stream)[1:]))


@each
def test_blocks_agree_with_single_steps(estimator: Estimator) -> None:
    stream = stream_of(batches(300), 7)
    some = [280, 0, 1, 255, 256, 257, 280, len(stream)]

    (dense,) = fold([estimator], stream, range(len(stream) + 1))
    (sparse,) = fold([estimator], stream, some)
    _, beside_others, _ = fold([EMA(0.3), estimator, PooledEMA(0.3)], stream, [280])

    if estimator.direct(stream, [0]) is None:
        torch.testing.assert_close(dense, stepwise(estimator, stream), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(sparse, dense[some], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(beside_others[0], dense[280], rtol=1e-11, atol=1e-12)
    assert fold([estimator], stream, []).shape == (1, 0, 2, CHANNELS)


def test_any_split_of_the_same_data_gives_the_same() -> None:
    data = torch.cat(batches(40, 1000, 0.01))
    _, mean, var = references.moments(data)
    bank = [PooledCumulative(), Window(1000, True), WeightedCumulative()]
    for sizes in ([len(data) // 2], [7, 3, 50], [2] * (len(data) // 2 - 1), [100, 5]):
        rest = len(data) - sum(sizes)
        stream = stream_of(list(data.split([*sizes, rest])))

        cumulative, window, weighted = fold(bank, stream, [len(stream)])[:, 0]

        for pooled in (cumulative, window):
            torch.testing.assert_close(pooled, torch.stack((mean, var)), rtol=1e-9, atol=0)
        torch.testing.assert_close(weighted[0], mean, rtol=1e-14, atol=0)


# Agreement with others


@pytest.mark.parametrize("peer", ["momentum", "momentum=None", "update_bn", "fvcore"])
def test_agreement_with(peer: str) -> None:
    data = images(4, 9, 2, 6)
    model = with_momentum(without_dropout(plain()), None if peer == "momentum=None" else 0.1)
    with record(model) as trace:
        train(model, data, lr=0.0)
    if peer == "fvcore":
        peers = pytest.importorskip("fvcore.nn.precise_bn")
        peers.update_bn_stats(model.train(), data, len(data))
    elif peer == "update_bn":
        torch.optim.swa_utils.update_bn(data, model)
    estimators = {"momentum": EMA(0.1), "fvcore": PooledCumulative()}
    replayed = replay(trace, estimators.get(peer, Cumulative()), [4])
    assert_equal_statistics(replayed[4], running_statistics(model))


# The Kalman gain, and what a replay gives it


def test_a_fit_is_of_the_batches_before_it() -> None:
    assert list(Kalman().fits(40)) == [(16, slice(0, 16)), (24, slice(8, 24)), (36, slice(18, 36))]


def test_a_replay_knows_the_layers_and_their_eps() -> None:
    model = plain()
    data = images(*[4] * 40)
    with record(model) as trace:
        train(model, data, lr=0.0)
    ((*_, stream),) = trace.streams()

    assert stream.layers == (6, 12)
    assert stream.eps.tolist() == [1e-5] * 6 + [1e-3] * 12

    gain = Kalman().gains(stream)[-1]
    assert gain.shape == (2, 18)
    assert [len(part.unique()) for part in (gain[0, :6], gain[1, 6:])] == [1, 1]


def test_what_is_not_finite_is_forgotten_where_its_weight_is_none() -> None:
    data = batches(6)
    stream = stream_of(data)
    bad = stream_of(data)
    bad.batches[2, :, 1] = torch.nan
    expected_last, expected_ema = fold([LastBatch(), EMA(0.1)], stream, range(7))

    last, ema = fold([LastBatch(), EMA(0.1)], bad, range(7))

    others = [0, 2]
    assert last[3, :, 1].isnan().all()
    assert torch.equal(last[4:], expected_last[4:])
    assert ema[3:, :, 1].isnan().all()
    torch.testing.assert_close(ema[:, :, others], expected_ema[:, :, others])
    assert Kalman().gains(bad).isfinite().all()

    started_badly = replace(stream, start=START * torch.nan)
    assert fold([Cumulative(), LastBatch()], started_badly, range(1, 7)).isfinite().all()


# The momentum that forecasts


@pytest.mark.parametrize(("when", "updates", "bad"), [(0, 0, torch.nan), (66, 5, torch.inf)])
def test_predictive_leaves_out_what_is_not_finite(when: int, updates: int, bad: float) -> None:
    """A batch with one such mean is left out in its layer: all is as if that layer had not been called."""
    data = batches(80)
    stream = replace(stream_of(batches(80), updates), layers=(1, 2))
    stream.batches[when, 0, 1] = bad
    data[when] = data[when] + torch.tensor([0.0, bad, 0.0])
    found = fold([Predictive()], stream, range(81))[0]
    start = (START[0], START[1]) if updates else None
    expected = torch.stack([torch.stack(pair) for pair in references.running_predictive(data, LAYERS, EPS, start)])
    first = 2 if when == 0 else 1  # before its first batch a layer has its start, which the twin does not know
    torch.testing.assert_close(found[first:], expected[first - 1 :], rtol=1e-11, atol=1e-12)
    assert found.isfinite().all()

    momenta = Predictive().momenta(stream)  # what is given out is the average with that momentum
    assert momenta.shape == (80, 2, 2)
    assert momenta[:, :, 0].isfinite().all()

    own = (EMA if updates else DebiasedEMA)(float(momenta[-1, 0, 0]))
    (average,) = fold([own], stream, [80])[0]
    torch.testing.assert_close(found[-1, 0, 0], average[0, 0], rtol=1e-9, atol=1e-12)


def test_predictive_without_variance_and_eps() -> None:
    """Dead channels of a layer without eps: what changes there is scored, and all is finite."""
    stream = stream_of(batches(80))
    stream.batches[:, 1, 1] = 0.0
    stream.batches[:, :, 2] = torch.tensor([1.0, 0.0])
    found = fold([Predictive()], replace(stream, eps=torch.zeros(3).double()), range(81))[0]

    assert found.isfinite().all()
    torch.testing.assert_close(found[1:, :, 2], stream.batches[:, :, 2], rtol=1e-12, atol=0)


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
    assert list_estimators()["test_weighted"] is PerChannel

    data = batches(20)
    found = fold([EMA(0.1), PerChannel(), LastBatch()], stream_of(data), range(21))[1]
    sizes = [len(batch) for batch in data]
    for t in range(1, 21):
        pairs = [torch.stack(references.unbiased(batch)) for batch in data[:t]]
        expected = sum(n * p for n, p in zip(sizes, pairs, strict=False)) / sum(sizes[:t])
        torch.testing.assert_close(found[t], expected)


@pytest.mark.parametrize("method", ["direct", "read"])
def test_states_of_another_shape_are_refused(method: str) -> None:
    """One state for all positions would be repeated without a word."""
    stream = stream_of(batches(20))
    mistaken = type("Mistaken", (EMA,), {method: lambda self, *arguments: stream.batches.mean(0)})

    with pytest.raises(ValueError, match=rf"ema: {method} .*\[2, \d+\].*\[3, 2, \d+\]"):
        fold([mistaken()], stream, [1, 5, 20])


def test_estimators_whose_channels_differ_are_the_same_beside_others() -> None:
    stream = stream_of(batches(20))
    uneven = replace(stream, counts=stream.counts ** torch.tensor([1.0, 2.0, 0.5]).double())
    bank = [EMA(0.3), PerChannel(), Kalman(), PerChannel(0.5), Kalman("channel")]

    together = fold(bank, uneven, [7, 20])

    for estimator, states in zip(bank, together, strict=True):
        assert torch.equal(states, fold([estimator], uneven, [7, 20])[0])


# Names


@pytest.mark.parametrize("estimator", [*ALL, PerChannel(), PerChannel(1e-7, -2, "x y", True)], ids=str)
def test_labels_round_trip(estimator: Estimator) -> None:
    cls, parameters = parse(estimator.label)

    assert cls is type(estimator)

    momentum = {"momentum": estimator.momentum} if hasattr(estimator, "momentum") else {}
    assert cls(**parameters, **momentum) == estimator


def test_parse_a_class_of_the_users_own() -> None:
    cls, parameters = parse("tests.test_estimators.PerChannel(power=3, kind=5.x)")

    assert cls.name == "test_weighted"
    assert parameters == {"power": 3, "kind": "5.x"}
    assert parse("ema()") == (EMA, {})
    assert parse("ema( momentum = 1 )") == (EMA, {"momentum": 1.0})


@pytest.mark.parametrize(
    ("label", "named"),
    [
        ("emma", "cumulative, .*, ema, .*, window, "),
        ("ema(", r"'ema\('"),
        ("ema(0.1)", r"'0\.1'"),
        ("ema(m=0.1)", "'m'.* momentum"),
        ("cumulative(k=1)", "'k'"),
        ("ema(momentum=high)", r"momentum=high .*\b0\.1"),
        ("test_weighted(quick=1)", "quick=1 .*bool"),
        ("no.such.module", r"'no\.such\.module'"),
        ("torch.nn.Linear", r"bnlab\.estimators\.Estimator"),
        ("bnlab.estimators.Estimator", r"bnlab\.estimators\.Estimator .*gains"),
    ],
)
def test_names_that_are_refused(label: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        parse(label)
    assert "estimator='" in str(caught.value)


def test_a_name_that_is_taken() -> None:
    class Second(Estimator):
        name = "ema"

        def gains(self, stream: Stream) -> Tensor:
            return torch.ones(len(stream), dtype=torch.float64)

    with pytest.raises(ValueError, match=r"Second: .*'ema' .*bnlab.*EMA"):
        list_estimators()
    del Second
    gc.collect()

    assert list_estimators()["ema"] is EMA


@pytest.mark.parametrize(
    ("returns", "named"),
    [
        (lambda stream: [0.1] * len(stream), "list; .*float64"),
        (lambda stream: torch.ones(len(stream)), r"torch\.float32 \(3,\); .*\[3\], \[3, 3\]"),
        (lambda stream: 50 + stream.steps, r"51 to 53; .*\[0, 1\]"),
        (lambda stream: stream.steps * torch.nan, "nan to nan"),
    ],
)
def test_gains_that_are_refused(returns: Callable[..., Any], named: str) -> None:
    """(Without a name of its own the class is not listed.)"""
    mistaken = type("Mistaken", (EMA,), {"gains": lambda self, stream: returns(stream)})

    with pytest.raises(ValueError, match=f"ema: gains .*{named}"):
        fold([mistaken()], stream_of(batches(3)), [1, 3])

    assert list_estimators()["ema"] is EMA


@pytest.mark.parametrize("position", [-1, 4])
def test_positions_outside_of_the_stream_are_refused(position: int) -> None:
    with pytest.raises(ValueError, match=f"position {position}; .* 0 to 3"):
        fold([EMA()], stream_of(batches(3)), [1, position])
