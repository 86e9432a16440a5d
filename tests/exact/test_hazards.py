"""Things that models and loaders do which a measurement must survive, or refuse with a way out."""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import copy
import functools
import multiprocessing
import queue
import random
import threading
import types
import warnings
import weakref
from collections import ChainMap, UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import tests.exact.locks
from bnlab import (
    Moments,
    population_statistics,
    record_frozen,
    running_statistics,
    self_consistency,
    using,
)
from bnlab.loans import lent_to_this_thread
from tests import references
from tests.exact.test_population import assert_same
from tests.helpers import OwnNorm, assert_moments, images, plain, randomized, residual, unchanged

LAYERWISE = functools.partial(population_statistics, strategy="layerwise")
MEASURES = [population_statistics, LAYERWISE, functools.partial(population_statistics, upstream="batch"), record_frozen]
LOCK = threading.Lock()
SEMAPHORE = threading.Semaphore(2)
BETWEEN_PROCESSES = multiprocessing.get_context("spawn").Lock()


class Server:
    """An object with a lock, which a module's code knows by name."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def call(self, function: Callable[[], Tensor]) -> Tensor:
        with self.lock:
            return function()


SERVER = Server()


class Pool:
    """An object that is iterable, with a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return iter(())


@dataclass(slots=True)
class Slotted:
    """An object without a dictionary, with a lock."""

    lock: Any


@contextlib.contextmanager
def locked() -> Iterator[None]:
    with LOCK:
        yield


MADE: dict[int, Any] = {}


@functools.lru_cache
def make_lock(key: int) -> Any:
    return threading.Lock()


def imported_lock() -> Any:
    from tests.exact.locks import GPU

    return GPU


def named_lock() -> Any:
    return tests.exact.locks.GPU


class Held:
    """Holds a lock, and can be referred to weakly."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


KEPT = Held()
LOCAL, USER, CHAIN = threading.local(), UserDict({"it": threading.Lock()}), ChainMap({"it": threading.Lock()})
LOCAL.it = threading.Lock()
WEAK_VALUES, PROXY = weakref.WeakValueDictionary({"it": KEPT}), types.MappingProxyType({"it": threading.Lock()})
STRIPES = {stripe: threading.Lock() for stripe in range(2000)}
SEQUENCE = nn.Sequential()
SEQUENCE.lock = threading.Lock()
HOLDERS: dict[str, Callable[[], Any]] = {
    "local": lambda: LOCAL.it,
    "user dictionary": lambda: USER["it"],
    "chain of dictionaries": lambda: CHAIN["it"],
    "weak values": lambda: WEAK_VALUES["it"].lock,
    "proxy": lambda: PROXY["it"],
    "many": lambda: STRIPES[1234],
    "sequence": lambda: SEQUENCE.lock,
}


class LazyPool:
    """An object that makes a lock when it is asked for it."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self.made.setdefault(name, threading.Lock())


class Locking(nn.Module):
    """Holds a lock while it computes."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.inner, self.where = plain(), where
        self.held = {"here": threading.Lock()} if where == "container" else {}
        if where == "attribute":
            self.lock = threading.Lock()
        self.object: Any = {"slots": Slotted(threading.Lock()), "iterable": Pool()}.get(where)
        self.pool = LazyPool()
        if where == "namespace":
            self.settings = types.SimpleNamespace(lock=threading.Lock())

    def __deepcopy__(self, memo: object) -> Locking:
        raise TypeError("a lock cannot be copied")

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "method of an object":
            return SERVER.call(lambda: self.inner(x))
        with self.its_lock():
            return self.inner(x)

    def its_lock(self) -> Any:
        if self.where == "container":
            return self.held["here"]
        if self.where == "attribute":
            return self.lock
        if self.object is not None:
            return self.object.lock
        known = {"global": LOCK, "semaphore": SEMAPHORE, "processes": BETWEEN_PROCESSES, "object": SERVER.lock}
        if self.where == "made by the forward":
            return MADE.setdefault(id(self), threading.Lock())
        if self.where == "made in an object":
            return self.pool["it"]
        if self.where == "namespace":
            return self.settings.lock
        if self.where == "imported":
            return imported_lock()
        if self.where == "module of a module":
            return named_lock()
        if self.where in HOLDERS:
            return HOLDERS[self.where]()
        if self.where == "made and cached":
            return make_lock(id(self))
        return locked() if self.where == "function" else known[self.where]


PLACES = ["attribute", "container", "global", "semaphore", "processes", "object", "method of an object", "function"]
PLACES += ["slots", "iterable", "made by the forward"]
PLACES += ["made and cached", "namespace", "imported", "module of a module", *HOLDERS]


@pytest.mark.parametrize("where", PLACES)
def test_a_lock_around_the_forward(where: str) -> None:
    model, batches = Locking(where), images(4, 3, 2)
    with pytest.raises(ValueError, match=r"layer 'inner\.1' is called while the forward holds a lock.*layerwise"):
        population_statistics(model, batches)
    layerwise = population_statistics(model, batches, strategy="layerwise")
    assert_same(layerwise, population_statistics(_unlocked(model), batches))


def test_a_lock_that_each_forward_makes_for_itself() -> None:
    """What an object of the model holds each batch has for itself, and so its lock."""
    model, batches = Locking("made in an object"), images(4, 3, 2)
    assert_same(population_statistics(model, batches), population_statistics(_unlocked(model), batches))
    assert model.pool.made == {}


def test_a_lock_of_a_module_around_the_model() -> None:
    owner = Locking("attribute")
    with pytest.raises(ValueError, match="while the forward holds a lock"):
        population_statistics(owner.inner, images(4, 3), forward=lambda _, x: owner(x))


class Monitor(threading.Thread):
    """Holds a lock as long as it lives."""

    running: Any = None

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()

    def run(self) -> None:
        self.stop.wait()


class Monitored(nn.Module):
    """Its forward begins a thread, which goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()

    def forward(self, x: Tensor) -> Tensor:
        if Monitor.running is None:
            Monitor.running = Monitor()
            Monitor.running.start()
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_thread_that_the_forward_begins_is_no_hindrance() -> None:
    model, batches = Monitored(), images(4, 3)
    try:
        found = population_statistics(model, batches)
    finally:
        Monitor.running.stop.set()
        Monitor.running.join()
    assert found.check.held and list(found) == ["inner.1", "inner.4"]


def test_a_lock_of_an_event_loop() -> None:
    """Each forward has a loop of its own, in which nobody would ever release what another one holds."""

    async def call(model: nn.Module, x: Tensor) -> Tensor:
        async with lock:
            return model(x)  # type: ignore[no-any-return]

    lock = asyncio.Lock()
    with pytest.raises(ValueError, match="holds a lock"):
        population_statistics(plain(), images(4, 3), forward=lambda model, x: asyncio.run(call(model, x)))


def _unlocked(model: Locking) -> nn.Module:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    return Plain()


def test_a_refused_forward_is_not_run_again() -> None:
    """Not in another memory layout either: a lock that no `finally` releases would be waited for."""
    model, lock = plain(), threading.Lock()
    model[0].register_forward_pre_hook(lambda *_: None if lock.acquire(timeout=1) else pytest.fail("run again"))
    model[-1].register_forward_hook(lambda *_: lock.release())
    with pytest.raises(ValueError, match="holds a lock"):
        population_statistics(model, images(4, 3))


def test_a_reentrant_lock_is_no_hindrance() -> None:
    model = Locking("attribute")
    model.lock = threading.RLock()
    assert len(population_statistics(model, images(4, 3))) == 2


def test_auto_reads_no_more_than_it_needs() -> None:
    read = []

    def endless() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        while True:
            read.append(0)
            yield torch.randn(64, 3, 4, 4, generator=generator)

    found = population_statistics(plain(), endless(), max_images="auto", tolerance=0.05)
    assert found.cost.images == 64 * len(read) >= 256


def test_auto_goes_on_with_the_callers_random_numbers_and_gives_them_back() -> None:
    """Each round drew those of the first again, so that half of the images were others' copies."""
    read = []

    def endless() -> Iterator[Tensor]:
        while True:
            read.append(torch.randn(64, 3, 4, 4) + random.random())
            yield read[-1]

    def expected() -> Iterator[Tensor]:
        torch.manual_seed(0)
        random.seed(0)
        while True:
            yield torch.randn(64, 3, 4, 4) + random.random()

    model = plain()
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    population_statistics(model, endless(), max_images="auto", tolerance=0.02)
    assert len(read) > 4 and torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    for mine, other in zip(read, expected(), strict=False):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("options", [{}, {"upstream": "batch"}, {"max_images": "auto", "tolerance": 0.1}])
def test_a_loader_draws_no_number_of_the_callers(options: Any) -> None:
    model, loader = plain(), DataLoader(TensorDataset(torch.randn(64, 3, 4, 4)), batch_size=8, shuffle=True)
    before = torch.get_rng_state()
    population_statistics(model, loader, **options)
    assert torch.equal(torch.get_rng_state(), before)


class ReadsStrides(nn.Module):
    """Has another result for images and weights in another memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = residual()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * (1 + x.stride(1) / 64) + self.inner[0].weight.stride(1) / 64)


def test_a_forward_that_reads_strides() -> None:
    model, batches = ReadsStrides(), images(4, 3)
    with unchanged(model):
        found = population_statistics(model, batches, channels_last=False)
    assert max(self_consistency(model, found, batches, channels_last=False)) < 1e-5
    assert min(self_consistency(model, found, batches)) > 1e-3
    assert_same(found, population_statistics(model, batches, strategy="layerwise"))
    with pytest.warns(RuntimeWarning, match=r"or the forward reads strides \(channels_last=False\)"):
        assert not population_statistics(model, batches).check.held


class ReadsSomeStrides(ReadsStrides):
    """Reads them for upright images only, or draws random numbers beside."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        if self.noise:
            return super().forward(x + self.noise * torch.randn_like(x))
        return super().forward(x) if x.size(2) > x.size(3) else super().forward(x.contiguous())


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_forward_that_reads_strides_of_some_batches_or_beside_noise(noise: float) -> None:
    model = ReadsSomeStrides(noise)
    batches = [torch.randn(2, 3, 8, 10) + i for i in range(3)] + [torch.randn(2, 3, 10, 8)]
    with unchanged(model), pytest.warns(RuntimeWarning, match=r"or the forward reads strides \(channels_last=False\)"):
        assert not population_statistics(model, batches).check.held
    assert population_statistics(model, batches, channels_last=False).check.held


class Noisy(nn.Module):
    """Draws random numbers in all the ways that fill tensors; or so that the stream does not show it."""

    def __init__(self, forked: bool) -> None:
        super().__init__()
        self.inner, self.forked = plain()[:6], forked

    def forward(self, x: Tensor) -> Tensor:
        if self.forked:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return self.inner(x + torch.randn_like(x))
        x = nn.functional.dropout(x + torch.randn_like(x), training=True) * torch.bernoulli(torch.full_like(x, 0.5))
        return self.inner(x + torch.empty_like(x).normal_() + torch.randint_like(x, 3) + torch.rand(x.shape))


@pytest.mark.parametrize("forked", [False, True])
def test_noise_itself_is_no_reason_to_warn(forked: bool) -> None:
    with warnings.catch_warnings(), unchanged(model := Noisy(forked)):
        warnings.simplefilter("error")
        found = population_statistics(model, images(40, 40))
    assert found.check.held and found.check.compared == 2 * len(found)


class Conditional(nn.Module):
    """Has an operation that runs others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = plain()[:6], nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.last(torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)))  # type: ignore[no-any-return]


def test_operations_that_run_others() -> None:
    model, batches = Conditional(), images(4, 3)
    assert_same(population_statistics(model, batches), population_statistics(model, batches, strategy="layerwise"))


class OwnGenerators(nn.Module):
    """Draws from generators that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = plain()
        self.torch, self.numpy, self.python = torch.Generator(), np.random.default_rng(0), random.Random(0)
        self.legacy = [np.random.RandomState(0)]
        self.noise = argparse.Namespace(generator=torch.Generator())

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(x.shape, generator=self.torch) + self.numpy.random() + self.python.random()
        noise += self.legacy[0].random() + torch.rand(1, generator=self.noise.generator)
        return self.inner(x + noise)  # type: ignore[no-any-return]

    def draw(self) -> list[float]:
        return [
            torch.rand(1, generator=self.torch).item(),
            self.numpy.random(),
            self.python.random(),
            self.legacy[0].random(),
            torch.rand(1, generator=self.noise.generator).item(),
        ]


@pytest.mark.parametrize("measure", MEASURES)
def test_generators_of_random_numbers_that_modules_hold(measure: Callable[..., object]) -> None:
    model = OwnGenerators()
    measure(model, images(4, 3))
    assert model.draw() == OwnGenerators().draw()


class NoisyBatches(nn.Module):
    """Adds noise of σ = 3 to each batch, from one generator or another."""

    def __init__(self, draw: Callable[[], float] | str) -> None:
        super().__init__()
        self.draw = draw
        self.generator, self.numpy = torch.Generator(), np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        draws = {"torch": lambda: torch.randn(1, generator=self.generator), "numpy": self.numpy.normal}
        noise = draws[self.draw]() if isinstance(self.draw, str) else self.draw()
        return x + 3 * noise


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
@pytest.mark.parametrize("draw", ["torch", "numpy", np.random.normal, functools.partial(random.gauss, 0, 1)])
def test_each_batch_draws_its_own_numbers(draw: Any, options: Any) -> None:
    """Between batches as between those of an evaluation: the variance is that of the noise beside the data's."""
    model = nn.Sequential(NoisyBatches(draw), nn.BatchNorm2d(2))
    batches = list(torch.randn(200, 4, 2, 8, 8, generator=torch.Generator().manual_seed(0)))
    with warnings.catch_warnings():
        if callable(draw) and not options:
            warnings.simplefilter("ignore")  # batches that take turns share numpy's and Python's
        found = population_statistics(model, batches, **options)["1"]
    # 200 draws of σ = 3: their variance has a standard error of 9 · sqrt(2 / 199) = 0.9, and 1 is the data's.
    assert ((found.var - 10).abs() < 5 * 0.9).all()


class Refilling(nn.Module):
    """Keeps counters and a queue in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.usage = plain(), [torch.zeros(()), torch.zeros(2)]
        self.queue = {"features": torch.zeros(4, 3)}

    def forward(self, x: Tensor) -> Tensor:
        self.usage[0] += len(x)
        self.queue["features"][0] = x[0, :, 0, 0]
        return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("measure", MEASURES)
def test_tensors_in_containers_come_back(measure: Callable[..., object]) -> None:
    model = Refilling()
    measure(model, images(4, 3))
    assert model.usage[0] == 0 and not model.queue["features"].any()


class Graph(nn.Module):
    """Has a sparse adjacency, and counts."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        adjacency = torch.eye(4).to_sparse() if layout == "coo" else torch.eye(4).to_sparse_csr()
        self.register_buffer("adjacency", adjacency)
        self.register_buffer("calls", torch.zeros(()))
        self.inner = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.inner(self.adjacency @ x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_sparse_buffers(layout: str, measure: Callable[..., Any]) -> None:
    model, batches = Graph(layout), [torch.randn(4, 3), torch.randn(4, 3)]
    measure(model, batches)
    assert model.calls == 0
    found = population_statistics(model, batches)
    assert_moments(found["inner"], references.moments(torch.cat(batches)))


class Zoom(nn.Module):
    """Writes attributes of torch's own modules, from its batch, and uses them after a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.second = nn.BatchNorm2d(3), nn.Upsample(scale_factor=1), nn.BatchNorm2d(3)

    def forward(self, batch: tuple[Tensor, int]) -> Tensor:
        x, self.up.scale_factor = batch
        return self.second(self.up(self.first(x)))  # type: ignore[no-any-return]


def test_attributes_of_torchs_modules_are_each_batchs_own() -> None:
    batches = list(zip(images(*[4] * 6), (1, 1, 4, 4, 1, 2), strict=True))
    options: dict[str, Any] = {"forward": lambda model, batch: model(batch)}
    found = population_statistics(Zoom(), batches, **options)
    assert found["second"].count == 4 * 64 * (1 + 1 + 16 + 16 + 1 + 4)
    assert_same(found, population_statistics(Zoom(), batches, strategy="layerwise", **options))


def test_what_is_put_on_a_batchs_tensors() -> None:
    (batch,) = images(8)
    batch.gain = 3.0
    model = nn.Sequential(nn.BatchNorm2d(3))
    for strategy in ("breadth", "layerwise"):
        found = population_statistics(model, [batch], strategy=strategy, forward=lambda m, x: m(x * x.gain))
        assert_moments(found["0"], references.moments(3 * batch))


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
def test_a_batch_that_can_be_read_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a batch is, or holds, a list_iterator, which the first.*make it a list"):
        population_statistics(
            plain(), [iter(images(4)), iter(images(3))], forward=lambda m, x: m(torch.cat([*x])), **options
        )


@pytest.mark.parametrize("measure", MEASURES)
def test_batches_that_are_made_with_the_model(measure: Callable[..., Any]) -> None:
    """It has its own statistics there, or is refused."""
    model, batches = plain().eval(), images(4, 3)

    def pick() -> Iterator[Tensor]:
        for batch in batches:
            model(batch)
            yield batch

    if measure in (population_statistics, LAYERWISE):
        assert_same(measure(model, pick()), measure(model, batches))
    else:
        with pytest.raises(ValueError, match="called while the next batch is made, where it has"):
            measure(model, pick())


def test_weights_that_are_written_without_a_trace_are_put_back_for_each_batch() -> None:
    """In ways that go by one batch at a time."""

    def noisy(model: nn.Module, x: Tensor) -> None:
        for parameter in model.parameters():
            parameter.data.mul_(1.5)
        model(x)

    model, batches = plain(), images(4, 4, 4)
    last = record_frozen(model, batches, forward=noisy).layers["4"].moments[-1]
    alone = record_frozen(model, batches[-1:], forward=noisy).layers["4"].moments[-1]
    assert torch.equal(last, alone)


def test_objects_that_do_not_let_themselves_be_asked() -> None:
    class Strange:
        __module__ = None  # type: ignore[assignment]

    model = plain()
    held = Held()
    model.held, model.gone = [weakref.proxy(held), Strange()], weakref.proxy(held)
    del held
    with using(model, running_statistics(model)):
        pass
    assert population_statistics(model, images(4, 3)).check.held


def test_filters_of_warnings_that_a_forward_sets() -> None:
    """They neither silence what is said of the model, nor stay."""

    class Silencing(OwnNorm):
        def forward(self, x: Tensor) -> Tensor:
            warnings.simplefilter("ignore")
            return super().forward(x)

    model = nn.Sequential(Silencing(3), nn.BatchNorm2d(3))
    before = list(warnings.filters)
    with pytest.warns(RuntimeWarning, match="no subclass of torch's batch norm"):
        population_statistics(model, images(4, 3))
    assert warnings.filters == before


def test_nested_batches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of nested tensors
        batches = [torch.nested.nested_tensor([torch.randn(n, 3) for n in sizes]) for sizes in ((4, 2), (3, 5))]
        found = population_statistics(
            nn.Sequential(nn.BatchNorm1d(3)), batches, forward=lambda model, x: model(torch.cat(x.unbind()))
        )
    assert_moments(found["0"], references.moments(torch.cat([part for x in batches for part in x.unbind()])))


def test_noise_that_an_operation_does_not_tell_of() -> None:
    library = torch.library.Library("bnlab_tests", "FRAGMENT")
    library.define("noise(Tensor x) -> Tensor")
    library.impl("noise", lambda x: x + torch.empty_strided(x.shape, x.stride()).normal_(), "CPU")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        population_statistics(plain(), images(40, 40), forward=lambda model, x: model(torch.ops.bnlab_tests.noise(x)))


class Guarded(nn.Module):
    """Takes a lock for a moment, as another thread does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lock = plain(), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            pass
        return self.inner(x)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: object) -> Guarded:
        raise TypeError("a lock cannot be copied")


def test_a_lock_that_another_thread_takes_for_a_moment() -> None:
    model, end = Guarded(), threading.Event()

    def flush() -> None:
        while not end.is_set():
            with model.lock:
                end.wait(0.002)

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        population_statistics(model, images(4, 3, 2, 4, 5))
    finally:
        end.set()
        thread.join()


def test_a_loader_that_fills_its_dictionary_again() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.inner(batch["x"]) + self.inner(batch["x"].flip(-1))

    def refill() -> Iterator[dict[str, Tensor]]:
        batch: dict[str, Tensor] = {}
        for x in images(4, 3, 2):
            batch["x"] = x
            yield batch

    model = Twice()
    expected = population_statistics(model, [{"x": x} for x in images(4, 3, 2)])
    assert_same(population_statistics(model, refill()), expected)


class Surrounded(nn.Module):
    """Runs its layers in what torch does not let batches interleave."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner = how, plain()[:6]

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "vmap":
            return torch.func.vmap(lambda image: self.inner(image[None])[0])(x)
        if self.how == "fork":
            return torch.jit.wait(torch.jit.fork(self.inner, x))
        with forward_ad.dual_level():
            return self.inner(forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("vmap", r"inside of a torch\.func transform"),
        ("fork", r"by torch\.jit\.fork"),
        ("dual", "of forward_ad.dual_level"),
    ],
)
def test_calls_that_cannot_be_suspended(how: str, message: str) -> None:
    model, batches = Surrounded(how), images(4, 3)
    with unchanged(model), pytest.raises(ValueError, match=f"{message}.*layerwise"):
        population_statistics(model, batches)
    found = population_statistics(model, batches, strategy="layerwise")
    expected = population_statistics(model.inner, batches)
    for name, moments in expected.items():
        assert_moments(found[f"inner.{name}"], moments, mean=1e-6, var=1e-6)
    assert max(self_consistency(model, found, batches)) < 1e-5


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("scale", [1e18, 1e19])
def test_large_finite_values(scale: float, channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    (x,) = (batch.contiguous(memory_format=layout) * scale for batch in images(40))
    assert_moments(Moments.of(x), references.moments(x), mean=2e-6, var=2e-6)
    assert list(population_statistics(nn.Sequential(nn.BatchNorm2d(3)), x.split(10))) == ["0"]


def test_values_beyond_what_a_buffer_holds() -> None:
    batches = [x * 1e20 for x in images(4, 3)]
    with pytest.raises(ValueError, match=r"variance of layer '0' is beyond torch\.float32"):
        population_statistics(nn.Sequential(nn.BatchNorm2d(3)), batches)
    with pytest.raises(ValueError, match="NaN or infinite"):
        population_statistics(nn.Sequential(nn.BatchNorm2d(3)), [torch.full((4, 3, 2, 2), torch.inf)])


class Routing(nn.Module):
    """Sends each image to one of three experts; the last gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)) for _ in range(3))
        self.last = nn.BatchNorm2d(3)
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        first = x.mean((1, 2, 3)) > 0.0
        parts = [self.experts[0](x[first]), self.experts[1](x[~first]), self.experts[2](x[:0])]
        return self.last(torch.cat(parts).relu())


@pytest.mark.parametrize("upstream", ["population", "batch"])
def test_experts_that_get_no_images(upstream: str) -> None:
    batches = [torch.cat((x, x - 5))[: 4 + k] for k, x in enumerate(images(4, 4, 4))]
    found = population_statistics(Routing(), batches, upstream=upstream)
    assert found.unseen == ("experts.2.1",)
    assert found["last"].count == found["experts.0.1"].count + found["experts.1.1"].count
    if upstream == "population":
        assert max(self_consistency(Routing(), found, batches)) < 1e-5
    with pytest.raises(ValueError, match="batch 1 has no images; leave empty batches out"):
        population_statistics(Routing(), [batches[0], batches[0][:0]], upstream=upstream)


class Split(nn.BatchNorm2d):
    """A ghost batch norm that keeps statistics of each half of its batches."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.running_mean, self.running_var = torch.zeros(2 * channels), torch.ones(2 * channels)


def test_layers_with_statistics_of_parts_of_a_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Split(3))
    with unchanged(model), pytest.raises(ValueError, match="layer '1' keeps statistics of 6 channels and normalizes 3"):
        population_statistics(model, images(4))


def test_self_consistency_leaves_out_copies_of_the_model() -> None:
    model, batches = plain(), images(4, 3)

    def forward(model: nn.Module, x: Tensor) -> None:
        model(x)
        copy.deepcopy(model)(x + 3)

    with pytest.warns(RuntimeWarning, match="outside of all layers"):
        found = population_statistics(model, batches, forward=forward)
    assert max(self_consistency(model, found, batches, forward=forward)) < 1e-5


def test_self_consistency_by_layer() -> None:
    model, batches = residual(), images(4, 3)
    found = population_statistics(model, batches)
    frame = self_consistency(model, found, batches, by_layer=True)
    assert list(frame) == ["layer", "depth", "mean", "var", "mean_rounding", "var_rounding"]
    assert list(frame["layer"]) == list(found) and list(frame["depth"]) == list(range(1, len(found) + 1))
    worst = self_consistency(model, found, batches)
    assert (frame["mean"].max(), frame["var"].max()) == worst
    assert (frame[["mean_rounding", "var_rounding"]] < 1e-5).all(axis=None)
    assert (frame["mean_rounding"].iloc[1:] > 0).all(), "float32 rounds"
    model.double()
    exact = self_consistency(model, found, [x.double() for x in batches], by_layer=True)
    assert (exact[["mean_rounding", "var_rounding"]] < 1e-12).all(axis=None)


def test_a_network_that_does_not_run_in_float64() -> None:
    model, batches = Locking("attribute"), images(4, 3)
    found = population_statistics(model, batches, strategy="layerwise")
    frame = self_consistency(model, found, batches, by_layer=True)
    assert frame["mean_rounding"].isna().all() and (frame["mean"] < 1e-5).all()


class Nesting(nn.Module):
    """Measures or borrows a part of itself in its own forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.part, self.b = (
            how,
            nn.BatchNorm2d(3),
            nn.Sequential(nn.BatchNorm2d(3)),
            nn.BatchNorm2d(3),
        )
        randomized(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        if self.how == "using":
            with using(self.part, running_statistics(self.part)):
                return self.b(self.part(x).relu())
        if self.how == "self_consistency":
            self_consistency(self.part, running_statistics(self.part), [x])
        else:
            population_statistics(self.part, [x])
        return self.b(self.part(x).relu())


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
@pytest.mark.parametrize("how", ["using", "self_consistency", "population_statistics"])
def test_a_measurement_inside_of_a_measured_forward(how: str, options: dict[str, str]) -> None:
    model = Nesting(how)
    with unchanged(model), pytest.raises(ValueError, match="inside of a measurement or of bnlab"):
        population_statistics(model, images(4, 3), **options)
    with unchanged(model), pytest.raises(ValueError, match="inside of a measurement or of bnlab"):
        self_consistency(model, running_statistics(model), images(4, 3))


def test_blocks_that_end_in_another_order_than_they_began() -> None:
    # Of `borrowed` the part that notices: the rest would leave torch's settings behind for the tests that follow.
    modules = list(plain().modules())
    first, second = lent_to_this_thread(modules), lent_to_this_thread(modules)
    first.__enter__()
    second.__enter__()
    with pytest.warns(RuntimeWarning, match="end in another order"):
        first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    with using(plain(), running_statistics(plain())), using(plain(), running_statistics(plain())):
        pass


@pytest.mark.parametrize("measure", MEASURES)
def test_batches_that_are_made_with_the_model_in_evaluation(measure: Callable[..., Any]) -> None:
    model, batches = plain().eval(), images(4, 3)

    def pick() -> Iterator[Tensor]:
        for batch in batches:
            modes = [(module, module.training) for module in model.modules()]
            model.eval()(batch)
            for module, mode in modes:
                module.training = mode
            yield batch

    if measure is not record_frozen:  # which records evaluations as well
        assert_same(measure(model, pick()), measure(model, batches))


def test_a_call_after_the_last_batch() -> None:
    model, batches = plain(), images(4, 3)

    def pick() -> Iterator[Tensor]:
        yield from batches
        model(batches[0])

    with pytest.raises(ValueError, match="called while the next batch is made"):
        record_frozen(model, pick())


@pytest.mark.parametrize("measure", MEASURES)
def test_jagged_batches_are_copied(measure: Callable[..., Any]) -> None:
    """A nested tensor keeps its values in an attribute."""

    def forward(model: nn.Module, x: Tensor) -> None:
        x.values().add_(1)
        model(x.values())

    batch = torch.nested.nested_tensor([torch.randn(4, 3), torch.randn(2, 3)], layout=torch.jagged)
    before = batch.values().clone()
    measure(nn.Sequential(nn.BatchNorm1d(3)), [batch], forward=forward)
    assert torch.equal(batch.values(), before)


def test_a_batch_with_an_open_file(tmp_path: Any) -> None:
    (tmp_path / "notes").write_text("of the batch")
    model, (batch,) = plain(), images(4)
    with (tmp_path / "notes").open() as file:
        assert_same(population_statistics(model, [(batch, file)]), population_statistics(model, [batch]))


class OwnRandom(random.Random):
    def getstate(self) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("measure", MEASURES)
def test_generators_of_other_kinds(measure: Callable[..., Any]) -> None:
    model, bits = plain(), np.random.get_bit_generator()
    model.held = [
        OwnRandom(),
        random.SystemRandom(),
        np.random.SeedSequence(0),
        np.random.RandomState(np.random.PCG64()),
    ]
    np.random.set_bit_generator(np.random.PCG64(0))
    try:
        measure(model, images(4, 3))
    finally:
        np.random.set_bit_generator(bits)


def test_both_ways_draw_the_same_numbers() -> None:
    batches = [x.double() for x in images(4, 3)]
    for draw in ("torch", "numpy"):
        model = nn.Sequential(NoisyBatches(draw), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).double()
        assert_same(population_statistics(model, batches), LAYERWISE(model, batches))


class Probe(nn.Module):
    """Evaluates its backbone, whatever its own mode."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.backbone.eval()
        return self.head(self.backbone(x))  # type: ignore[no-any-return]


def test_a_forward_that_evaluates_a_part_of_its_model() -> None:
    """That part has no batch statistics to measure."""
    model, batches = Probe(), images(4, 3)
    with pytest.raises(ValueError, match=r"running statistics of 'backbone' are used.*changes to eval mode"):
        population_statistics(model, batches, upstream="batch")
    assert list(population_statistics(model, batches, upstream="batch", layers=["head"])) == ["head"]
    with pytest.warns(RuntimeWarning, match="record_frozen: .* of 'backbone' are used.*changes to eval mode"):
        trace = record_frozen(model, batches)
    assert list(trace.layers) == ["head"] and len(trace.layers["head"]) == 2


class Mixed(nn.BatchNorm2d):
    """Normalizes with statistics halfway between its batch's and its running ones."""

    def forward(self, x: Tensor) -> Tensor:
        mean = (x.mean([0, 2, 3]) + self.running_mean) / 2
        var = (x.var([0, 2, 3]) + self.running_var) / 2
        return F.batch_norm(x, mean, var, self.weight, self.bias, eps=self.eps).relu()


class OfTheBatch(nn.BatchNorm2d):
    """Normalizes with its batch's by hand, adds noise of its own and writes over its input."""

    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean([0, 2, 3], keepdim=True)
        x /= (x.var([0, 2, 3], keepdim=True, correction=0) + self.eps).sqrt()
        return x + 0.1 * torch.randn_like(x)


class EvaluatedWithout(nn.BatchNorm2d):
    """In train mode, but normalizes as in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


@pytest.mark.parametrize("kind", [Mixed, EvaluatedWithout])
def test_layers_that_take_their_running_statistics_in_train_mode(kind: type[nn.BatchNorm2d]) -> None:
    """What comes after them is not under their batch's statistics."""
    model, batches = nn.Sequential(kind(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), images(4, 3)
    with unchanged(model), pytest.raises(ValueError, match=r"running statistics of '0' are used.*own takes"):
        population_statistics(model, batches, upstream="batch")
    with unchanged(model), pytest.warns(RuntimeWarning, match="record_frozen: .* of '0' are .*own takes them"):
        assert list(record_frozen(model, batches).layers) == ["2"]


class Cautious(nn.BatchNorm2d):
    """Takes its running statistics where a batch is small."""

    def forward(self, x: Tensor) -> Tensor:
        small = len(x) < 4
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, not small, 0.1, self.eps)


class Switched(nn.BatchNorm2d):
    """Takes its running statistics where its model says so."""

    flag = False

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, None, not self.flag, 0.1, self.eps)


@pytest.mark.parametrize("kind", [Cautious, Switched])
def test_layers_that_take_their_running_statistics_sometimes(kind: type[nn.BatchNorm2d]) -> None:
    model = nn.Sequential(kind(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        model[0].flag = len(x) < 4
        return model(x)  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="running statistics of '0' are used"):
        population_statistics(model, images(4, 4, 3), upstream="batch", forward=forward)
    with pytest.warns(RuntimeWarning, match="running statistics of '0' are used"):
        assert list(record_frozen(model, images(4, 4, 3), forward=forward).layers) == ["2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(record_frozen(model, images(4, 4), forward=forward).layers) == ["0", "2"]


class Dropping(nn.BatchNorm2d):
    """Has dropout inside, as timm's layers may."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(x))  # type: ignore[no-any-return]


def test_dropout_inside_of_a_layer_is_off() -> None:
    layers = [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)]
    dropping, usual = nn.Sequential(Dropping(3), *layers), nn.Sequential(nn.BatchNorm2d(3), *layers)
    batches = images(4, 3)
    assert_same(*(population_statistics(model, batches, upstream="batch") for model in (dropping, usual)))
    found, expected = (record_frozen(model, batches).layers["2"].moments for model in (dropping, usual))
    assert torch.equal(found, expected)
    assert not torch.equal(record_frozen(dropping, batches, training=True).layers["2"].moments, expected)


def test_layers_that_compute_with_their_batch_by_hand() -> None:
    model, batches = nn.Sequential(OfTheBatch(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), images(4, 3)
    given = [x.clone() for x in batches]
    with unchanged(model), pytest.warns(RuntimeWarning) as told:
        record_frozen(model, batches)
    assert all(map(torch.equal, given, batches))
    assert [str(w.message).partition(":")[2] for w in told] == [
        " '0' averaged nothing, though called in train mode (without gradients, as all of this pass): the trace has no "
        "entries of theirs"
    ]


def test_a_loader_may_evaluate_the_model_between_batches() -> None:
    """Which is no forward that is measured."""
    model, batches = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)), images(4, 3)

    def load() -> Iterator[Tensor]:
        for x in batches:
            modes = [module.training for module in model]
            model.eval()(x)
            for module, mode in zip(model, modes, strict=True):
                module.train(mode)
            yield x

    assert_same(
        population_statistics(model, load(), upstream="batch"), population_statistics(model, batches, upstream="batch")
    )
    assert list(record_frozen(model, load()).layers) == ["0", "1"]


class Remembering(nn.Module):
    """Adds what it has seen in forwards before, as its `memory` holds it, to its input."""

    def __init__(self, memory: str) -> None:
        super().__init__()
        self.kind, self.seen, self.bn = memory, torch.zeros(1), nn.BatchNorm2d(3)
        self.convolution = nn.Conv2d(3, 3, 1)
        self.memory: Any = {"bank": Bank, "callable": Summer}.get(memory, nn.Identity)()
        self.optimizer = torch.optim.SGD(self.convolution.parameters(), 0.1, momentum=0.9)
        if memory == "method":
            self.convolution.register_forward_hook(self.remember)

    def remember(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen = self.seen + output.mean()

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "bank":
            self.memory.push(x.mean())
            x = x + sum(self.memory[i] for i in range(len(self.memory)))
        if self.kind == "callable":
            x = x + self.memory(x)
        if self.kind == "optimizer":
            with torch.enable_grad():
                self.optimizer.zero_grad()
                self.convolution(x).square().mean().backward()
                self.optimizer.step()
        return self.bn(self.convolution(x)) * self.seen  # type: ignore[no-any-return]


class Bank:
    def __init__(self) -> None:
        self.items = list[Tensor]()

    def push(self, x: Tensor) -> None:
        self.items = [*self.items, x]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Tensor:
        return self.items[place]


class Summer:
    def __init__(self) -> None:
        self.total = torch.zeros(())

    def __call__(self, x: Tensor) -> Tensor:
        self.total = self.total + x.mean()
        return self.total


@pytest.mark.parametrize("memory", ["bank", "callable", "method", "optimizer"])
@pytest.mark.parametrize("measure", MEASURES)
def test_objects_that_a_model_keeps(memory: str, measure: Callable[..., Any]) -> None:
    """Each batch begins with them as they are, and so they are afterwards."""
    batches = [x + i for i, x in enumerate(images(4, 3))]
    model = nn.Sequential(Remembering(memory), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    if memory == "optimizer" and measure is population_statistics:
        with pytest.raises(ValueError, match=r"the forward writes into '0\.convolution\.weight' in place"):
            measure(model, batches)
        return
    found = measure(model, batches)
    alone = [measure(model, [batch]) for batch in batches]
    if measure is record_frozen:
        moments = torch.cat([trace.layers["0.bn"].moments for trace in alone])
        assert torch.equal(found.layers["0.bn"].moments, moments)
    else:
        assert_moments(found["0.bn"], functools.reduce(Moments.merge, (one["0.bn"] for one in alone)))
    kept = model[0]
    assert not kept.optimizer.state and kept.seen == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert memory != "bank" or not kept.memory.items
    assert memory != "callable" or kept.memory.total == 0


def test_the_memory_of_an_optimizer_that_has_stepped() -> None:
    """It is written in place."""
    model = Remembering("optimizer")
    model(images(4)[0])
    before = [entry.clone() for state in model.optimizer.state.values() for entry in state.values()]
    population_statistics(model, images(4, 3), upstream="batch")
    record_frozen(model, images(4, 3))
    after = [entry for state in model.optimizer.state.values() for entry in state.values()]
    assert before and all(map(torch.equal, before, after))


@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_of_before_are_those_of_after(measure: Callable[..., Any]) -> None:
    """A forward may have a backward pass of its own, as for adversarial images."""

    def attack(model: nn.Module, x: Tensor) -> Tensor:
        with torch.enable_grad():
            attacked = x.clone().requires_grad_()
            model(attacked).square().sum().backward()
        return model(x + 0.01 * attacked.grad)  # type: ignore[no-any-return, union-attr]

    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model(images(4)[0]).sum().backward()
    model[0].bias.grad = None
    before = {name: p.grad if p.grad is None else (p.grad, p.grad.clone()) for name, p in model.named_parameters()}
    if measure is not LAYERWISE:  # which is called once there
        measure(model, images(4, 3), forward=attack)
    else:
        with pytest.raises(ValueError, match="several times"):
            measure(model, images(4, 3), forward=attack)
    for name, parameter in model.named_parameters():
        kept = before[name]
        assert parameter.grad is None if kept is None else parameter.grad is kept[0] and torch.equal(*kept)


def test_forwards_that_share_the_memory_of_their_inputs() -> None:
    """As for CUDA graphs: a batch that waits would be read again as the last one."""
    static = torch.empty(4, 3, 8, 8)
    batches = [10 * i + x for i, x in enumerate(images(4, 4))]

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model(static.copy_(x))  # type: ignore[no-any-return]

    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="the input of layer '0' is written while its batch waits there"):
        population_statistics(model, batches, forward=forward)
    assert_moments(LAYERWISE(model, batches, forward=forward)["0"], references.moments(torch.cat(batches)))


@pytest.mark.parametrize("kind", ["held", "attribute"])
def test_what_a_loader_writes_into_the_model_between_batches(kind: str) -> None:
    """It is what the next batch begins with, as where nothing is measured."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held, self.attribute, self.bn = [torch.ones(1)], torch.ones(1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x * self.held[0] * self.attribute)  # type: ignore[no-any-return]

    model, batches = Scaled(), images(4, 3)
    scaled = [x * (2 + i) for i, x in enumerate(batches)]

    def load() -> Iterator[Tensor]:
        written = model.held[0] if kind == "held" else model.attribute
        for x in batches:
            written += 1
            yield x

    plain_model = nn.Sequential(nn.BatchNorm2d(3))
    expected = population_statistics(plain_model, scaled, upstream="batch")["0"]
    assert_moments(population_statistics(model, load(), upstream="batch")["bn"], expected)
    model.held[0].fill_(1), model.attribute.fill_(1)
    recorded, wanted = record_frozen(model, load()).layers["bn"], record_frozen(plain_model, scaled).layers["0"]
    assert torch.equal(recorded.moments, wanted.moments)


def test_a_forward_that_evaluates_all_of_its_model() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="record_frozen: the running statistics of '0' are used as ever"):
        record_frozen(model, images(4, 3), forward=lambda model, x: model.eval()(x))


@pytest.mark.parametrize("measure", MEASURES)
def test_values_that_are_no_numbers_leave_a_backward_pass_to_come(measure: Callable[..., Any]) -> None:
    """NaN is not equal to itself, and was taken for a value that a forward has changed."""
    model = nn.Sequential(nn.BatchNorm2d(3))
    model.register_buffer("sentinel", torch.full((3, 1, 1), float("nan")))
    model.register_parameter("scale", nn.Parameter(torch.full((3, 1, 1), float("nan"))))
    loss = (images(4)[0] * model.scale * model.sentinel).sum() + model(images(4)[0]).sum()
    measure(model, images(4, 3))
    loss.backward()


def test_self_consistency_of_a_forward_that_begins_a_thread() -> None:
    """A layer of which nothing is known is not taken for one that agrees."""

    def forward(model: nn.Module, x: Tensor) -> None:
        thread = threading.Thread(target=model[1], args=[model[0](x)])
        thread.start()
        thread.join()

    model, batches = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)), images(4, 3)
    found = population_statistics(model, batches)
    with pytest.raises(ValueError, match="the forward calls '1' in another thread, where nobody looks"):
        self_consistency(model, found, batches, forward=forward)


class OfAGlobalGenerator(nn.BatchNorm2d):
    """A forward of its own that gives something else each time, and takes no running statistics."""

    generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(1, generator=self.generator)


def test_layers_that_give_something_else_each_time_are_not_blamed() -> None:
    model = nn.Sequential(OfAGlobalGenerator(3), nn.BatchNorm2d(3))
    with pytest.warns(RuntimeWarning, match="layer '1': the first batch, run again after the others, gives something"):
        assert list(record_frozen(model, images(4, 3)).layers) == ["0", "1"]


@dataclass(slots=True)
class Counter:
    count: int = 0


class Counting(nn.Module):
    """Adds to its input how many forwards there have been, as it is counted where `place` says."""

    everywhere = np.zeros(1)

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place, self.counter, self.identity = place, Counter(), nn.Identity()
        self.identity.held = [0]  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self.place == "slots":
            self.counter.count += 1
        if self.place == "class":
            self.everywhere += 1
        if self.place == "torch's own module":
            self.identity.held[0] += 1  # type: ignore[index, operator]
        return x + self.counter.count + float(self.everywhere[0]) + self.identity.held[0]  # type: ignore[index]


@pytest.mark.parametrize("place", ["slots", "class", "torch's own module"])
@pytest.mark.parametrize("measure", MEASURES)
def test_what_a_forward_leaves_behind_is_told_or_put_back(place: str, measure: Callable[..., Any]) -> None:
    model = nn.Sequential(Counting(place), nn.BatchNorm2d(3))
    if place == "torch's own module":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            measure(model, images(4, 3, 5))
        assert model[0].identity.held == [0]
    else:
        with pytest.warns(RuntimeWarning, match="layer '1': the first batch, (run|evaluated) again"):
            measure(model, images(4, 3, 5))


class Filled:
    """A loader of one's own: a thread fills its queue while the model is measured."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.waiting: collections.deque[Tensor | None] = collections.deque()
        self.queue: queue.Queue[Tensor | None] = queue.Queue(maxsize=2)
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        def fill() -> None:
            for batch in [*self.batches, None]:
                self.queue.put(batch)
                self.waiting.append(batch)

        thread = threading.Thread(target=fill)
        thread.start()
        while (batch := self.queue.get(timeout=60)) is not None:
            yield batch
        thread.join()


@pytest.mark.parametrize("measure", MEASURES)
def test_a_loader_that_the_model_holds(measure: Callable[..., Any]) -> None:
    """What a thread does with it meanwhile is not the forward's, and is not put back."""
    model, batches = nn.Sequential(nn.BatchNorm2d(3)), images(4, 3, 5, 4, 3, 5)
    model.loader = Filled(batches)
    found = measure(model, model.loader)
    assert len(model.loader.waiting) == 7
    if measure is record_frozen:
        assert found.last_step == 6
    else:
        assert_moments(found["0"], references.moments(torch.cat(batches)))


def test_batches_that_a_frozen_record_reads_once() -> None:
    """They are recorded first, and not run again."""
    model, batches = nn.Sequential(nn.BatchNorm2d(3)), images(4, 3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = record_frozen(model, [iter(x.split(2)) for x in batches], forward=lambda m, b: [m(x) for x in b])
        images_left = iter(batches)
        drawn = record_frozen(model, range(3), forward=lambda m, _: m(next(images_left)))
    assert len(parts.layers["0"]) == 2 + 2 + 3
    assert torch.equal(drawn.layers["0"].moments, record_frozen(model, batches).layers["0"].moments)


def test_gradients_that_are_unlike_their_parameters_stay() -> None:
    """As after pruning, which gives a parameter other memory: such a gradient cannot be set."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model(images(4)[0]).sum().backward()
    kept = [parameter.grad for parameter in model.parameters()]
    model[0].weight.data = model[0].weight.data[:2]
    model[0].bias.data = model[0].bias.data[:2]
    model[1].weight.data = model[1].weight.data[:, :2]
    population_statistics(model, images(4, 3))
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), kept, strict=True))


def test_optimizers_with_other_states() -> None:
    model = Remembering("none")
    model.optimizer.state["step"] = 3  # type: ignore[index]
    assert population_statistics(model, images(4, 3)).check.held and model.optimizer.state["step"] == 3


class Tiny(nn.BatchNorm2d):
    """Takes its running statistics, and scales what comes out by next to nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e-6 * F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)


class WarmedUp(nn.BatchNorm2d):
    """Counts its calls in an object, and adds something from the third on."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.calls = types.SimpleNamespace(count=[0])

    def forward(self, x: Tensor) -> Tensor:
        self.calls.count[0] += 1
        return super().forward(x) + (self.calls.count[0] > 2)


def test_trials_of_layers_are_as_large_as_what_comes_out_and_leave_nothing_behind() -> None:
    with pytest.warns(RuntimeWarning, match="running statistics of '0' are used"):
        assert list(record_frozen(nn.Sequential(Tiny(3), nn.BatchNorm2d(3)), images(4, 3)).layers) == ["1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nn.Sequential(WarmedUp(3), nn.BatchNorm2d(3))
        record_frozen(model, images(4, 3))
    assert model[0].calls.count == [0]


def test_a_method_of_a_module_that_hooks_call() -> None:
    """What it sets on its module is the batch's own, also where the batch waits."""
    model = nn.Sequential(Remembering("method"), nn.BatchNorm2d(3)).double()  # all of it hangs on one mean
    batches = [x.double() + i for i, x in enumerate(images(4, 3))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = population_statistics(model, batches)
    assert_same(found, LAYERWISE(model, batches))
    assert found.cost.forwards == len(batches)


class InFloat32(nn.BatchNorm2d):
    """Normalizes in float32 what is kept in another type."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean.float(), self.running_var.float()  # type: ignore[union-attr]
        return F.batch_norm(x.float(), mean, var, eps=self.eps).to(x.dtype)


def test_statistics_that_are_widened_are_those_that_were_measured() -> None:
    model = nn.Sequential(InFloat32(3), nn.BatchNorm2d(3)).bfloat16()
    check = population_statistics(model, [x.bfloat16() for x in images(4, 3)]).check
    assert check.held and check.replaced == ()
