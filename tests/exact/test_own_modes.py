"""A model's own `train` and `eval`: they are used, and all that they do is undone."""

from __future__ import annotations

import copy
import functools
import itertools
import queue
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bnlab import (
    decompose,
    population_statistics,
    record,
    record_frozen,
    running_statistics,
    self_consistency,
    using,
)  # fmt: skip
from bnlab import (
    nn as tuned,
)
from bnlab.harness.artifacts.vision import torchvision
from bnlab.inference import TestBatch, applied
from tests.exact.test_fresh_forwards import Adapter, list_moments, measure_batch_upstream, record_training
from tests.exact.test_hazards import LAYERWISE
from tests.helpers import train, unchanged


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def make_batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 4, generator=generator) for _ in range(3)]


class AveragedElsewhere(nn.Sequential):
    """Is evaluated with averaged weights; an object of another kind holds those of training meanwhile."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.average = SimpleNamespace(weights=[torch.rand_like(p) for p in self.parameters()], kept=[])

    def train(self, mode: bool = True) -> AveragedElsewhere:
        held = self.average
        if mode and held.kept:
            self._write(held.kept)
            held.kept = []
        elif not mode:
            held.kept = [p.detach().clone() for p in self.parameters()]  # lost where it is called twice
            self._write(held.weights)
        return super().train(mode)

    def _write(self, values: list[Tensor]) -> None:
        for p, value in zip(self.parameters(), values, strict=True):
            p.data.copy_(value)


class PassesModeOn(AveragedElsewhere):
    """The same in a wrapper that leaves its own flag alone."""

    def train(self, mode: bool = True) -> PassesModeOn:
        for part in self:
            part.train(mode)
        if bool(self.average.kept) == mode:
            AveragedElsewhere.train(self, mode)
        self.training = True
        return self


def _use(model: nn.Module, batches: Any) -> None:
    with using(model, running_statistics(model)):
        model(batches[0])


def _look_for_consistency(model: nn.Module, batches: Any) -> None:
    self_consistency(model, running_statistics(model), batches)


MEASURES = [
    population_statistics, LAYERWISE, measure_batch_upstream, record_frozen, record_training, _use,
    _look_for_consistency,
]  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [AveragedElsewhere, PassesModeOn])
def test_modes_that_keep_weights_elsewhere(
    measure: Callable[..., Any], training: bool, kind: type[AveragedElsewhere]
) -> None:
    torch.manual_seed(0)
    model = kind(nn.Linear(4, 4), nn.BatchNorm1d(4))
    own, batches = [p.detach().clone() for p in model.parameters()], [torch.randn(8, 4) for _ in range(3)]
    model.train(training)
    with unchanged(model):
        measure(model, batches)
    assert bool(model.average.kept) != training
    model.train()
    assert all(map(torch.equal, model.parameters(), own))


class Dropping(nn.Module):
    """Has dropout that is no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(nn.functional.dropout(self.linear(x), 0.5, training=self.training))


def extract(model: nn.Module) -> Any:
    """What torchvision makes of it: it has a graph for each mode, and exchanges the forward of its class with these."""
    torchvision()  # first, since parts of it may be missing
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(model, {"bn": "bn"})


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("training", [True, False])
def test_modes_that_exchange_the_graph(measure: Callable[..., Any], training: bool) -> None:
    torch.manual_seed(0)
    model = extract(Dropping()).train(training)
    batches = [torch.randn(8, 4) for _ in range(3)]
    measure(model, batches)
    assert model.training == training
    first, second = (model(batches[0])["bn"] for _ in range(2))
    assert torch.equal(first, second) != training, "it drops in train mode alone"


def test_an_exchanged_graph_is_measured_as_the_plain_model_is() -> None:
    plain, batches = Dropping(), [torch.randn(8, 4) for _ in range(3)]
    for training, measure in itertools.product((True, False), (measure_batch_upstream, record_frozen)):
        model = extract(copy.deepcopy(plain)).train(training)
        found, wanted = (list_moments(measure(each, batches)) for each in (model, plain))
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, wanted, strict=True))


class KeptByState(nn.Sequential):
    """Is evaluated with averages of its whole state, which an object holds, as it does that of training meanwhile."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.average = SimpleNamespace(state=copy.deepcopy(self.state_dict()), kept={})

    def train(self, mode: bool = True) -> KeptByState:
        held = self.average
        if mode and held.kept:
            self.load_state_dict(held.kept)
            held.kept = {}
        elif not mode and not held.kept:
            held.kept = copy.deepcopy(self.state_dict())
            self.load_state_dict(held.state)
        return super().train(mode)


class KeptByParameter(KeptByState):
    """The same by parameter, as they are."""

    def __init__(self, *modules: nn.Module) -> None:
        nn.Sequential.__init__(self, *modules)
        self.average = SimpleNamespace(state={p: p.detach() + 0.1 for p in self.parameters()}, kept={})

    def load_state_dict(self, state: Any) -> None:  # type: ignore[override]
        for p in self.parameters():
            p.data.copy_(state[p])

    def state_dict(self) -> Any:  # type: ignore[override]
        return Entries((p, p.detach().clone()) for p in self.parameters())


class Entries(dict[Any, Any]):
    def __deepcopy__(self, memo: Any) -> Entries:
        return self


class Counting(nn.Sequential):
    """Does something with each `train`: an epoch begins, a rate falls, meters and gradients are emptied."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.epoch, self.meters = SimpleNamespace(count=0, anchors=[torch.zeros(4)]), deque([1.0])
        self.optimizer = torch.optim.SGD(self.parameters(), lr=1.0)

    def train(self, mode: bool = True) -> Counting:
        if mode and hasattr(self, "optimizer"):
            self.epoch.count += 1
            self.epoch.anchors[0] += 1
            self.optimizer.param_groups[0]["lr"] *= 0.5
            self.meters.clear()
            for p in self.parameters():
                p.grad = None
        return super().train(mode)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [KeptByState, KeptByParameter])
def test_modes_that_keep_a_state(measure: Callable[..., Any], training: bool, kind: type[nn.Sequential]) -> None:
    """None of what the model was lent has come into it."""
    torch.manual_seed(0)
    model, batches = (
        kind(nn.Conv2d(4, 4, 2), nn.BatchNorm2d(4)),
        [x[..., None, None].expand(-1, -1, 3, 3) for x in make_batches()],
    )
    train(model, batches)
    own = [t.clone() for t in (*model.parameters(), *model.buffers())]
    model.train(training)
    with unchanged(model):
        measure(model, batches)
    assert bool(model.average.kept) != training
    model.eval().train()
    assert all(map(torch.equal, (*model.parameters(), *model.buffers()), own))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("training", [True, False])
def test_modes_that_do_something_each_time(measure: Callable[..., Any], training: bool) -> None:
    model = Counting(nn.Linear(4, 4), nn.BatchNorm1d(4)).train(training)
    model.epoch.count, model.meters, model.optimizer.param_groups[0]["lr"] = 3, deque([1.0, 2.0]), 0.7
    model(make_batches()[0]).sum().backward()
    gradients, anchor = [p.grad for p in model.parameters()], model.epoch.anchors[0].clone()
    values = [g.clone() for g in gradients if g is not None]
    with unchanged(model):
        measure(model, make_batches())
    assert model.epoch.count == 3
    assert torch.equal(model.epoch.anchors[0], anchor)
    assert model.meters == deque([1.0, 2.0])
    assert model.optimizer.param_groups[0]["lr"] == 0.7
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(map(torch.equal, [g for g in gradients if g is not None], values))


class Logging(nn.Sequential):
    """Notes its mode where others collect, empties meters, and has the weights' memory in an object too."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.log = SimpleNamespace(phase="train", seen=0, outputs=[], events=[])
        self.held = SimpleNamespace(weights=[p.data for p in self.parameters()])

    def train(self, mode: bool = True) -> Logging:
        if hasattr(self, "log"):
            self.log.phase = "train" if mode else "eval"
            self.log.events.append(mode)
            if not mode:
                self.log.seen = 0
            for weight in self.held.weights:
                weight *= 0.5 if mode else 2
        return super().train(mode)


def test_what_a_block_keeps_in_objects_stays() -> None:
    """Beside what the mode has changed there, which is put back."""
    model = Logging(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model.log.seen = 7
    own = [p.detach().clone() for p in model.parameters()]
    with using(model, running_statistics(model)):
        assert (model.log.phase, model.log.seen, model.log.events) == ("eval", 0, [False])
        model.log.outputs.append(model(make_batches()[0]))
        model.log.seen += 8
        for p in model.parameters():
            p.data.add_(1)
    assert (model.log.phase, model.log.seen, len(model.log.outputs), model.log.events) == ("train", 8, 1, [])
    assert all(torch.allclose(p, old + 1) for p, old in zip(model.parameters(), own, strict=True))
    with using(model, running_statistics(model)):
        pass
    assert model.log.seen == 8


def test_large_containers_are_data() -> None:
    """Which others may fill meanwhile."""
    model = Logging(nn.BatchNorm1d(4))
    model.replay = SimpleNamespace(entries=deque({"state": torch.zeros(1)} for _ in range(1001)), pending=deque([0]))
    with using(model, running_statistics(model)):
        model.replay.entries.append({})
        model.replay.pending.append(1)
    assert len(model.replay.entries) == 1002 and list(model.replay.pending) == [0, 1]


class Telling(nn.Sequential):
    """Tells another thread its mode."""

    def train(self, mode: bool = True) -> Telling:
        if hasattr(self, "told"):
            self.told.put(mode)
        return super().train(mode)


def test_what_threads_wait_at_is_left_alone() -> None:
    model = Telling(nn.BatchNorm1d(4))
    model.told = queue.Queue()
    with using(model, running_statistics(model)):
        pass
    assert [model.told.get(timeout=1) for _ in range(2)] == [False, True]


class FrozenPart(nn.Sequential):
    def train(self, mode: bool = True) -> FrozenPart:
        super().train(mode)
        for module in self:
            module.eval()
        return self


class Learner(nn.Sequential):
    """Has a frozen part, and trains itself by a method of the usual name."""

    def train(self, epochs: int = 10, mode: str = "offline") -> None:  # type: ignore[override]
        pytest.fail("nobody has asked for it")


@pytest.mark.filterwarnings("default")
def test_a_frozen_part_of_a_model_that_trains_itself() -> None:
    model = Learner(FrozenPart(nn.BatchNorm1d(4)), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[0].eval()
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"'0\.0' left in eval mode where the model"),
    ):
        measure_batch_upstream(model, make_batches())
    with unchanged(model), pytest.warns(RuntimeWarning, match=r"record_frozen: .* of '0\.0' are .* leaves them out"):
        assert list(record_frozen(model, make_batches()).layers) == ["2"]


class Deployed(nn.Sequential):
    """Can be evaluated alone, but has changed parts already where it says so."""

    def train(self, mode: bool = True) -> Deployed:
        super().train(mode)
        if mode:
            raise RuntimeError("for inference alone")
        return self


class Unready(nn.Sequential):
    def eval(self) -> Unready:
        super().eval()
        raise RuntimeError("not calibrated")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Deployed, Unready])
def test_modes_that_are_refused_half_way(kind: type[nn.Sequential], training: bool) -> None:
    torch.manual_seed(0)
    for measure in MEASURES:
        model = kind(Adapter(4), nn.BatchNorm1d(4))
        nn.Sequential.train(model, training)
        plainly = nn.Sequential(copy.deepcopy(model[0]), copy.deepcopy(model[1])).train(training)
        with unchanged(model):
            try:
                found = measure(model, make_batches())
            except RuntimeError:
                continue
        if found is not None:
            pairs = zip(list_moments(found), list_moments(measure(plainly, make_batches())), strict=True)
            assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


class Doubling(nn.Sequential):
    """Doubles its weights in eval mode, into which it can be put once."""

    left = 1

    def train(self, mode: bool = True) -> Doubling:
        if not mode and not self.left:
            raise RuntimeError("interrupted")
        if mode != self.training:
            self.left -= not mode
            for p in self.parameters():
                p.data *= 0.5 if mode else 2
        return super().train(mode)


def test_weights_come_back_where_the_mode_cannot_be_set_again() -> None:
    model = Doubling(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with unchanged(model), pytest.raises(RuntimeError, match="interrupted"), using(model, running_statistics(model)):
        model.train()


class Around(Tensor):
    """A tensor around another one, as of parallel or quantized weights: it has no memory."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[Around], inner: Tensor) -> Around:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = torch.utils._pytree.tree_map_only(Around, lambda t: t.inner, args)
        return function(*plain, **(kwargs or {}))


def test_tensors_without_memory() -> None:
    model, batches = KeptByState(nn.BatchNorm1d(4)), make_batches()
    model.tables = [Around(torch.ones(4))]
    for measure in MEASURES:
        measure(model, batches)
    assert torch.equal(model.tables[0].inner, torch.ones(4))


class Evaluating(nn.Sequential):
    """Has dropout, and evaluates itself by a method of the usual name."""

    def eval(self, data: list[Tensor] | None = None) -> float:  # type: ignore[override]
        return 0.0


class EvaluatingOnData(nn.Sequential):
    def eval(self, data: list[Tensor]) -> float:  # type: ignore[override]
        pytest.fail("nobody has asked for it")


@pytest.mark.parametrize("measure", [population_statistics, LAYERWISE, measure_batch_upstream, record_frozen])
@pytest.mark.parametrize("kind", [Evaluating, EvaluatingOnData])
def test_an_evaluation_of_the_name_of_the_mode(measure: Callable[..., Any], kind: type[nn.Sequential]) -> None:
    torch.manual_seed(0)
    model = kind(nn.Dropout(0.5), nn.BatchNorm1d(4))
    pairs = zip(*(list_moments(measure(m, make_batches())) for m in (model, nn.Sequential(*model))), strict=True)
    assert all(map(torch.equal, *zip(*pairs, strict=True)))


class OnlyNorms(nn.Sequential):
    """Is evaluated with dropout, and says nothing of its own mode."""

    def eval(self) -> OnlyNorms:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.Module.eval(module)
        return self


@pytest.mark.parametrize("measure", [population_statistics, LAYERWISE, measure_batch_upstream])
def test_an_eval_that_leaves_parts_in_train_mode_is_the_same_from_both_modes(measure: Callable[..., Any]) -> None:
    """From eval mode it changes nothing, and was taken for an evaluation of the model."""
    torch.manual_seed(0)
    model, found = OnlyNorms(nn.Dropout(0.5), nn.BatchNorm1d(4)), []
    starts = [model, copy.deepcopy(model).eval(), nn.Sequential(*copy.deepcopy(model)).eval()]
    for start in starts:
        torch.manual_seed(1)
        with unchanged(start):
            found.append([*list_moments(measure(start, make_batches()))])
    assert starts[0][1].training and not starts[1][1].training
    assert all(map(torch.equal, found[0], found[1])) and not all(map(torch.equal, found[0], found[2]))


@pytest.mark.parametrize("measure", MEASURES)
def test_self_tuned_layers_have_no_modes_of_their_own(measure: Callable[..., Any]) -> None:
    """That these are in train mode is no reason to put the model into eval mode twice."""
    torch.manual_seed(0)
    model = tuned.SelfTuned.convert(AveragedElsewhere(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    own = [p.detach().clone() for p in model.parameters()]
    measure(model.eval(), make_batches())
    assert all(map(torch.equal, model.train().parameters(), own))


class Folding(nn.Sequential):
    """Computes what it is evaluated with from its running statistics when it is put into eval mode."""

    def train(self, mode: bool = True) -> Folding:
        self.scale = None if mode else (self[0].running_var + self[0].eps).rsqrt()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self[0](x) if self.scale is None else (x - self[0].running_mean) * self.scale


def test_what_eval_computes_is_of_the_statistics_that_are_lent() -> None:
    model, batches = Folding(nn.BatchNorm1d(4)), make_batches()
    statistics = population_statistics(nn.Sequential(nn.BatchNorm1d(4)), [3 * x + 1 for x in batches])
    written = copy.deepcopy(model)
    statistics.write_to(written)
    with unchanged(model), using(model, statistics):
        assert torch.equal(model(batches[0]), written.eval()(batches[0]))


class WithFlags(KeptByState):
    def eval(self, averaged: bool = True, device: str | None = None) -> WithFlags:
        return self.train(not averaged)

    def train(self, mode: bool | None = None) -> WithFlags:
        self._switch(mode is not False)
        return self

    def _switch(self, mode: bool) -> None:
        KeptByState.train(self, mode)


class Phases(WithFlags):
    def train(self) -> Phases:  # type: ignore[override]
        self._switch(True)
        return self

    def eval(self) -> Phases:  # type: ignore[override]
        self._switch(False)
        return self


@pytest.mark.parametrize("kind", [WithFlags, Phases])
def test_an_eval_with_flags_is_the_mode(kind: type[nn.Sequential]) -> None:
    model = kind(nn.Linear(4, 4), nn.BatchNorm1d(4))
    train(model, make_batches())
    evaluated = copy.deepcopy(model).eval()
    statistics = running_statistics(evaluated)
    with unchanged(model), using(model, statistics):
        assert torch.equal(model(make_batches()[0]), evaluated(make_batches()[0]))


class TwoDomains(nn.Module):
    """Normalizes with one of two layers, of which one has a further name in each mode."""

    def __init__(self) -> None:
        super().__init__()
        self.now = nn.BatchNorm1d(4)
        self.source, self.target = self.now, nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> TwoDomains:
        self.now = self.source if mode else self.target
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.now(x)


def test_statistics_are_lent_to_the_layers_they_are_of() -> None:
    """Not to those that bear their names in eval mode."""
    model = TwoDomains()
    model.source.running_mean.fill_(3.0)
    evaluated, statistics = copy.deepcopy(model).eval(), running_statistics(model)
    with unchanged(model), using(model, statistics):
        assert torch.equal(model(make_batches()[0]), evaluated(make_batches()[0]))


class Exchanging(nn.Module):
    """Is evaluated with a layer that is no part of it otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.others = nn.BatchNorm1d(4), [nn.BatchNorm1d(4).eval()]

    def train(self, mode: bool = True) -> Exchanging:
        if mode != self.training:
            self.bn, self.others[0] = self.others[0], self.bn
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x)


def test_layers_that_eval_puts_in_the_place_of_others() -> None:
    model, batches = Exchanging(), make_batches()
    statistics = population_statistics(nn.Sequential(nn.BatchNorm1d(4)), [3 * x for x in batches])
    statistics = type(statistics)({"bn": statistics["0"]}, {"bn": 1e-5})
    under, rule = (copy.deepcopy(model).eval() for _ in range(2))
    statistics.write_to(under)
    with unchanged(model), using(model, statistics):
        assert torch.equal(model(batches[0]), under(batches[0]))
    with unchanged(model), applied(model, TestBatch()):
        assert torch.allclose(model(batches[0]), rule.bn.train()(batches[0]), atol=1e-6)


class Adapting(nn.Sequential):
    """Takes batch statistics in eval mode."""

    def eval(self) -> Adapting:
        super().eval()
        self[0].running_mean = self[0].running_var = None
        return self


def test_statistics_that_eval_would_not_use_are_refused() -> None:
    model = Adapting(nn.BatchNorm1d(4))
    told = pytest.raises(ValueError, match="using: '0' have no running statistics in eval mode")
    with unchanged(model), told, using(model, running_statistics(model)):
        pytest.fail("nothing would be evaluated under them")


def test_weights_of_training_are_decomposed_whatever_the_mode() -> None:
    torch.manual_seed(0)
    model, batches, weights = nn.Sequential(Adapter(4), nn.BatchNorm1d(4)), make_batches() * 8, {}
    with record(model) as trace:
        for step, x in enumerate(batches):
            weights[step] = copy.deepcopy(model.state_dict())
            train(model, [x])
    tables = [
        decompose(m, trace, weights.__getitem__, batches[:3], momentum=0.9)
        for m in (model, copy.deepcopy(model).eval())
    ]
    assert torch.allclose(*(torch.tensor(table.iloc[:, 4:].to_numpy()) for table in tables), atol=1e-5)


def set_train(model: nn.Sequential) -> None:
    model.train = lambda mode=True: nn.Module.train(model, mode)  # type: ignore[method-assign]


def set_autocast(model: nn.Sequential) -> None:
    model.forward = torch.autocast("cpu", enabled=False)(model.forward)  # type: ignore[method-assign]


def set_padding(model: nn.Sequential) -> None:
    own = model[0].forward
    model[0].forward = lambda x: own(x.roll(1))


def add_hook(model: nn.Sequential) -> None:
    model[2].register_forward_hook(lambda _, args, output: output + model[0](*args))


def add_partial(model: nn.Sequential) -> None:
    def scaled(x: Tensor, scale: float) -> Tensor:
        return own(x) * scale

    own = model[1].forward
    model[1].forward = functools.partial(scaled, scale=2.0)


def add_method(model: nn.Sequential) -> None:
    own = model[2].forward
    model[2].forward = types.MethodType(lambda _, x: own(x + 1), model[2])


def add_product(model: nn.Sequential) -> None:
    model.product = model[0](make_batches()[0]).detach() @ model[0].weight  # a copy of it would be refused


def log_distance(model: nn.Sequential) -> None:
    logged: list[Tensor] = []
    model[1].register_forward_pre_hook(lambda _, args: logged.append(args[0].mean(0) - model[1].running_mean))


@pytest.mark.parametrize(
    "change",
    [set_train, set_autocast, set_padding, add_hook, add_partial, add_method, add_product, log_distance],
)
def test_past_weights_go_into_all_that_a_forward_computes_with(change: Callable[[nn.Sequential], None]) -> None:
    """In a copy of the model, functions around its parts had the last weights, without a word."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    change(model)
    batches, weights = make_batches(), []
    with record(model) as trace:
        for x in batches:
            weights.append(copy.deepcopy(model.state_dict()))
            model(x)
            nn.utils.vector_to_parameters(torch.randn(56), model.parameters())
    output = model[2](model[0](batches[0])).sum()  # a backward pass that is still to come
    with unchanged(model):
        table = decompose(model, trace, weights.__getitem__, batches, momentum=1.0)
    output.backward()
    now, before = {}, {}
    for state, found in ((copy.deepcopy(model.state_dict()), now), (weights[-1], before)):
        model.load_state_dict(state)
        update_bn(batches, model)
        found |= {name: model[int(name)].running_mean.clone() for name in ("1", "3")}
    for name in ("1", "3"):
        lag = table.query("layer == @name and statistic == 'mean'")["lag"]
        expected = before[name] - now[name]
        assert expected.abs().max() > 0.01
        assert torch.allclose(torch.tensor(lag.to_numpy()).float(), expected, atol=1e-6)


def test_rules_go_with_own_modes() -> None:
    model = KeptByState(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with unchanged(model), applied(model, TestBatch()):
        model(make_batches()[0])
