"""A watched training: what is kept of it, what exact statistics are of, and that training goes on as without."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import math
import random
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bnlab
from bnlab.nn import SelfTuned
from tests import references
from tests.helpers import (
    assert_equal_statistics,
    images,
    measure_difference,
    plain,
    residual,
    run_two_ranks,
    train,
    unchanged,
    without_dropout,
)

# A float64 model is measured and evaluated in float64: what is written differs by rounding, over some hundred sums.
ROUNDING = 1e-12


def make_model() -> nn.Sequential:
    return without_dropout(plain()).double()


def make_batches(*sizes: int, seed: int = 1) -> list[Tensor]:
    return [batch.double() for batch in images(*sizes, seed=seed)]


def assert_exact(watch: bnlab.Watch, batches: list[Tensor], model: nn.Module | None = None) -> None:
    """What `exact` writes are the statistics of these batches under the weights of now."""
    model = watch.model if model is None else model
    expected = references.full_batch_population(model, torch.cat(batches))
    with watch.exact():
        written = bnlab.running_statistics(watch.model)
    by_place = dict(zip(expected, written.values(), strict=True))  # one module may be inside of the other
    assert measure_difference(by_place, expected) <= ROUNDING


def evaluate(model: nn.Module) -> float:
    with torch.no_grad():
        return float(model.eval()(make_batches(16, seed=5)[0])[:, 0].mean())


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "kept"), [(1, [5]), (5, [5]), (6, [7, 5]), (12, [7, 5]), (13, [8, 7, 5]), (100, [6, 8, 7, 5])]
)
def test_exact_statistics_are_of_the_latest_batches_under_the_weights_of_now(wanted: int, kept: list[int]) -> None:
    model = make_model().train()
    watch = bnlab.watch(model, wanted)
    batches = make_batches(6, 8, 7, 5)
    train(model, batches)
    assert list(map(len, batches[-len(kept) :])) == kept

    assert_exact(watch, batches[-len(kept) :])
    assert watch.history.empty


def test_what_is_written_is_what_a_population_gives() -> None:
    """In float32, where the breadth-first walk is the same code: to rounding of the two orders of summation."""
    model = residual().train()
    watch = bnlab.watch(model)
    batches = images(6, 8)
    train(model, batches)

    assert_equal_statistics(watch.measure(), bnlab.population_statistics(model, batches))


def test_inputs_are_copied_as_loops_write_into_the_same_memory() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 6, 6)
    memory = torch.empty_like(batches[0])
    for batch in batches:
        memory.copy_(batch)
        train(model, [memory])
    memory.zero_()

    assert_exact(watch, batches)


def test_inputs_are_kept_before_other_hooks_change_them() -> None:
    """When the module is called with the copies, these hooks run again."""
    model = make_model().train()
    model.register_forward_pre_hook(lambda module, args: (2 * args[0] + 1,))
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    train(model, batches)

    assert_exact(watch, batches)


def test_a_batch_of_several_inputs_is_called_as_in_training() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_model()

        def forward(self, first: Tensor, parts: dict[str, Any], *, scale: float, mask: Tensor | None = None) -> Tensor:
            joined = first + parts["second"][0] * scale
            return self.network(joined if mask is None else joined * mask)

    model = Joined().train()
    watch = bnlab.watch(model)
    first, second = make_batches(6, 6)
    model(first, {"second": [second]}, scale=2.0)
    mask = (first > 0).double()
    model(first, {"second": [second]}, scale=3.0, mask=mask)

    assert_exact(watch, [first + 2 * second, (first + 3 * second) * mask], model.network)
    assert watch.measure().cost.images == 12  # type: ignore[union-attr]


def test_series_are_no_list_of_images() -> None:
    """A batch [N, C, L] beside nothing else is one argument."""
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)).double().train()
    watch = bnlab.watch(model, 6)
    for batch in torch.randn(3, 6, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        model(batch)

    assert_exact(watch, [batch])
    assert watch.measure().cost.images == 6  # type: ignore[union-attr]


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_a_checkpointed_batch_is_kept_once(is_reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = make_model()

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.network, x.clone().requires_grad_(), use_reentrant=is_reentrant)

    model = Checkpointed().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    train(model, batches)

    assert_exact(watch, batches, model.network)
    assert watch.measure().cost.batches == 2  # type: ignore[union-attr]


def test_a_wholly_checkpointed_batch_is_kept_once() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    first, second = (checkpoint(model, batch, use_reentrant=False) for batch in batches)
    (first.sum() + second.sum()).backward()  # type: ignore[union-attr]

    assert watch.measure().cost.batches == 2  # type: ignore[union-attr]
    assert_exact(watch, batches)


@pytest.mark.parametrize("update", ["each", "second"])
def test_history_counts_updates_and_has_the_learning_rate(update: str) -> None:
    model = make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    watch = bnlab.watch(model, 8, optimizer=optimizer)
    for number, batch in enumerate(make_batches(5, 5, 5, 5)):
        model(batch).sum().backward()
        if update == "each" or number % 2:
            optimizer.step()
            torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1).step()  # another model's
    optimizer.param_groups[0]["lr"] = 0.125
    watch.compare(lambda: {"first": 0.5, "second": 2})

    history = watch.history
    assert history.columns.tolist() == ["update", "images", "metric", "running", "exact", "lost", "learning_rate"]
    updates = 4 if update == "each" else 2
    assert history.values.tolist() == [
        [updates, 10, "first", 0.5, 0.5, 0.0, 0.125],
        [updates, 10, "second", 2.0, 2.0, 0.0, 0.125],
    ]


def call_each(model: nn.Module, watch: bnlab.Watch) -> None:
    for batch in make_batches(5, 5):
        model(batch)


def train_on_the_same_batch(model: nn.Module, watch: bnlab.Watch) -> None:
    """As on a graph, which is the whole data."""
    batches = make_batches(5)
    train(model, 2 * batches)


def train_after_close(model: nn.Module, watch: bnlab.Watch) -> None:
    train(model, make_batches(6, 7))
    watch.close()
    train(model, make_batches(8))


@pytest.mark.parametrize("go_on", [call_each, train_on_the_same_batch, train_after_close])
def test_two_updates_are_counted(go_on: Callable[[nn.Module, bnlab.Watch], None]) -> None:
    """Without an optimizer training forwards are; after `close` none."""
    model = make_model().train()
    watch = bnlab.watch(model)
    go_on(model, watch)
    watch.compare(lambda: 1)

    assert watch.history["update"].tolist() == [2]


def test_updates_go_on_after_other_parameters_were_loaded() -> None:
    """`load_state_dict(assign=True)` puts other parameters in the place of those that the watch has seen."""
    model = make_model().train()
    watch = bnlab.watch(model)
    for _ in range(2):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in make_batches(5, 5):
            model(batch).sum().backward()
            optimizer.step()
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    watch.compare(lambda: 1)

    assert watch.history["update"].tolist() == [4]


def test_a_student_is_watched_in_a_block_that_evaluates_its_teacher() -> None:
    model, teacher = make_model().train(), make_model()
    watch = bnlab.watch(model)
    with bnlab.using(teacher, bnlab.running_statistics(teacher)):
        train(model, make_batches(6, 7))
    watch.compare(lambda: 1)

    assert watch.history["update"].tolist() == [2]


def test_what_is_no_training_is_not_kept() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    train(model, batches[:1])

    model.eval()(batches[1])
    model.train()
    bnlab.record_frozen(model, batches[1:], training=True)
    with unchanged(model), watch.exact():
        model.eval()(batches[1])
        model.train()

    assert_exact(watch, batches[:1])


def test_a_block_of_exact_statistics_warns_of_calls_in_train_mode() -> None:
    """Their averages are lost, and a score there is no score under exact statistics."""
    model = make_model().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    model(batches[0])

    warning = pytest.warns(RuntimeWarning, match=r"called in train mode in a block of exact\(\)")
    with unchanged(model), warning, watch.exact():
        model(batches[1])
    assert_exact(watch, batches[:1])


def test_what_moves_the_averages_is_kept() -> None:
    """Also without gradients, as of a teacher; and images that require one, as of a generator."""
    model = make_model().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    with torch.no_grad():
        model(batches[0])
    model(batches[1].clone().requires_grad_())

    assert_exact(watch, batches)


def test_a_model_that_an_evaluation_has_left_in_eval_mode_is_named() -> None:
    """Its averages stand still, and it is trained to them."""
    model = make_model().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    train(model, batches[:1])
    model.eval()
    model(batches[1])  # an evaluation with gradients is no training
    assert_exact(watch, batches[:1])

    train(model, batches[1:])
    assert_exact(watch, batches[:1])  # one update may be of another kind, as of a search for an architecture
    train(model, batches[1:])
    line = watch.compare(lambda: evaluate(model))
    assert "exact statistics could not be had: watch: there have been 2 updates since a batch norm was last in" in line

    train(model.train(), batches[:1])
    assert_exact(watch, [batches[0], batches[0]])


def test_adversarial_images_that_are_made_in_eval_mode_are_no_training() -> None:
    model = make_model().eval()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    model(batches[0]).sum().backward()
    train(model.train(), batches[1:])
    assert_exact(watch, batches[1:])


# -- which module ------------------------------------------------------------------------------------------------------


class Outer(nn.Module):
    """As a LightningModule: its network is called, not itself."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Identity()
        self.network = make_model()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.network(x))


def test_the_module_inside_is_watched_where_it_alone_is_called() -> None:
    model = Outer().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    for batch in batches:
        model.network(batch)

    assert list(watch.measure()) == ["network.1", "network.4"]
    assert_exact(watch, batches, model.network)


def test_the_outermost_module_that_is_called_is_watched() -> None:
    """From its first call on: what was kept of an inner one before is dropped."""
    model = Outer().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    model.network(batches[0])
    model(batches[1])

    assert_exact(watch, [batches[1]], model.network)


def call_the_part(model: Any, batch: Tensor) -> None:
    model.network(batch)


def call_another_model(model: Any, batch: Tensor) -> None:
    nn.Sequential(model.network, nn.Identity())(batch)


@pytest.mark.parametrize("pass_by", [call_the_part, call_another_model])
def test_nothing_is_measured_while_averages_are_moved_by_other_calls(
    pass_by: Callable[[Any, Tensor], None],
) -> None:
    """Averages are of the images of both then, and those of the others are not kept."""
    model = Outer().train()
    watch = bnlab.watch(model, 12)
    batches = make_batches(6, 6, 6)
    model(batches[0])
    pass_by(model, batches[1])
    model(batches[0])

    with unchanged(model), pytest.raises(ValueError, match=r"also trained by calls of parts .*'network.4'"):
        watch.measure()
    model(batches[2])
    assert_exact(watch, [batches[0], batches[2]], model.network)


@pytest.mark.parametrize("switch", [{"track_running_stats": False}, {"momentum": 0.0}])
def test_second_passes_that_move_no_average_are_not_kept(switch: dict[str, Any]) -> None:
    """As of virtual adversarial training."""
    model = make_model().train()
    watch = bnlab.watch(model, 12)
    batches = make_batches(6, 7)
    for batch in batches:
        model(batch)
        before = [{name: getattr(layer, name) for name in switch} for layer in (model[1], model[4])]
        for layer in (model[1], model[4]):
            vars(layer).update(switch)
        model(10 * batch)
        for layer, values in zip((model[1], model[4]), before, strict=True):
            vars(layer).update(values)

    assert_exact(watch, batches)


class OfModes(nn.Module):
    """Keeps its mode in a flag, by a `train` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.mixes = True

    def train(self, mode: bool = True) -> Any:
        self.mixes = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Any:
        return self.norm(x + x.flip(0) if self.mixes else x)


def test_a_flag_of_the_mode_is_that_of_eval_mode() -> None:
    model = OfModes().double().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    for batch in batches:
        model(batch)

    assert torch.allclose(watch.measure()["norm"].mean, torch.cat(batches).mean((0, 2, 3)))
    assert model.mixes


class OfDomains(nn.Module):
    """Has a norm for each domain, and its loop sets which."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
        self.domain = 0

    def forward(self, x: Tensor) -> Any:
        return self.norms[self.domain](x)


def test_attributes_that_the_loop_sets_are_kept_with_the_batch() -> None:
    model = OfDomains().double().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7, 8)
    for batch, domain in zip(batches, (0, 1, 0), strict=True):
        model.domain = domain
        model(batch)

    found = watch.measure()

    assert model.domain == 0
    for name, own in {"norms.0": torch.cat((batches[0], batches[2])), "norms.1": batches[1]}.items():
        assert torch.allclose(found[name].mean, own.mean((0, 2, 3)))


class OfKinds(nn.BatchNorm2d):
    """Adds to its output what the kind of images asks for, which the loop sets: None, or a word."""

    kind: str | None = None

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + (0 if self.kind is None else 5)


def test_attributes_of_a_norm_that_the_loop_sets_are_kept_with_the_batch() -> None:
    model = nn.Sequential(OfKinds(3, affine=False), nn.BatchNorm2d(3)).double().train()
    watch = bnlab.watch(model)
    for batch, kind in zip(make_batches(8, 8), ("adversarial", None), strict=True):
        model.get_submodule("0").kind = kind  # type: ignore[assignment]
        model(batch)

    # Half of the images come with 5 more.
    assert torch.allclose(watch.measure()["1"].mean, torch.full((3,), 2.5).double())


class Makes(torch.autograd.Function):
    """Makes images, and can be seen to live."""

    alive: ClassVar[weakref.WeakSet[Any]] = weakref.WeakSet()

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        Makes.alive.add(ctx)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients


def test_what_has_made_the_images_is_not_kept() -> None:
    """A discriminator is watched; each batch would keep the generator's forward."""
    model = plain().double().train()
    watch = bnlab.watch(model)
    (batch,) = make_batches(8)
    model(Makes.apply(batch.requires_grad_()))  # type: ignore[no-untyped-call]
    gc.collect()
    assert not Makes.alive
    assert watch.measure()


def test_a_copy_of_a_watched_model_is_loaded_without_bnlab(tmp_path: Path) -> None:
    model = plain().train()
    watch = bnlab.watch(model)
    with bnlab.record(model):
        torch.save(copy.deepcopy(model), tmp_path / "model.pt")
    watch.close()
    program = f"import torch; torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)(torch.zeros(2, 3, 8, 8))"
    blocked = f"import sys; sys.modules['bnlab'] = None; {program}"
    subprocess.run([sys.executable, "-c", blocked], check=True)


def test_a_call_that_lightning_redirects_to_a_training_step_is_none_of_the_model() -> None:
    """Under DistributedDataParallel it calls the module with what `training_step` takes, and that calls the module."""
    model = Outer().train()
    watch = bnlab.watch(model)
    (batch,) = make_batches(6)
    own = model.forward

    def redirected(images: Tensor, number: int) -> Any:
        model.forward = own  # type: ignore[method-assign]
        return model(images * number)

    redirected.__module__ = "lightning.pytorch.strategies.strategy"
    model.forward = redirected  # type: ignore[method-assign, assignment]
    model(batch, 2)

    assert_exact(watch, [2 * batch], model.network)


@pytest.mark.parametrize("compiled", ["before", "later", "in place"])
def test_compiled_models_are_watched(compiled: str) -> None:
    torch.compiler.reset()  # it would take the code of another model, that is not watched
    model = make_model().train()
    called: Any = model
    if compiled == "in place":
        model.compile(backend="eager")
    if compiled == "before":
        called = torch.compile(model, backend="eager", fullgraph=True)
    watch = bnlab.watch(called)
    if compiled == "later":
        called = torch.compile(model, backend="eager")
    batches = make_batches(6, 7)
    for batch in batches:
        called(batch)

    assert watch.model is model
    assert list(watch.measure()) == ["1", "4"]
    assert_exact(watch, batches)


def test_two_watches_of_one_model_keep_their_own() -> None:
    model = make_model().train()
    one = bnlab.watch(model, 5)
    batches = make_batches(6, 7)
    train(model, batches[:1])
    other = bnlab.watch(model)
    train(model, batches[1:])

    one.compare(lambda: evaluate(model))
    assert_exact(other, batches[1:])
    assert_exact(one, batches[1:])
    other.close()
    model.train()(batches[0])
    assert_exact(one, batches[:1])


def test_copies_of_a_model_are_not_watched() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    model(batches[0])
    copied = copy.deepcopy(model)
    copied(batches[1])
    file = io.BytesIO()
    torch.save(model, file)

    assert_exact(watch, batches[:1])
    assert len(file.getvalue()) < 3 * sum(value.nbytes for value in model.state_dict().values()) + 20_000


def test_a_watch_goes_with_its_model() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    model(make_batches(6)[0])
    reference = weakref.ref(watch.model)
    del model, watch
    gc.collect()

    assert reference() is None


@pytest.mark.slow  # those of exact statistics join ranks as well
def test_two_ranks_measure_what_one_does(tmp_path: Path) -> None:
    """Under DistributedDataParallel, of batches of other sizes; a rank may have none of its own yet."""
    run_two_ranks(
        """
from torch.nn.parallel import DistributedDataParallel
from tests import references
from tests.helpers import images, measure_difference, plain, without_dropout
data = [batch.double() for batch in images(8, 3, 5, 7)]
model = DistributedDataParallel(without_dropout(plain()).double()).train()
watch = bnlab.watch(model)
try:
    watch.measure()
    raise SystemExit("not refused")
except ValueError as error:
    assert "no call of the model" in str(error)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in data[rank::2]:
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
expected = references.full_batch_population(model.module, torch.cat(data))
with watch.exact():
    assert measure_difference(bnlab.running_statistics(watch.model), expected) < 1e-12
line = watch.compare(lambda: {"a": 0.5, "rank": rank})
assert watch.history["exact"].tolist() == [0.5, rank], line
later = bnlab.watch(model)
if rank:
    model.module(data[0])
expected = references.full_batch_population(model.module, data[0])
assert measure_difference(later.measure(), expected) < 1e-12
model.module[1].eval()
last = bnlab.watch(model)
if rank:
    model.module(data[0])
assert list(last.measure()) == ["4"]
""",
        tmp_path,
    )


# -- training goes on as without ---------------------------------------------------------------------------------------


def validate_at_random(model: nn.Module) -> float:
    """Leaves the model in eval mode, and draws random numbers of all kinds."""
    images = make_batches(16, seed=5)[0] + 0.1 * torch.randn(())
    with torch.no_grad():
        return float(model.eval()(images).mean()) + np.random.rand() + random.random()


@pytest.mark.parametrize("tuned", [False, True])
def test_training_goes_on_as_if_evaluate_had_been_called_once(tuned: bool) -> None:
    watches: dict[nn.Module, bnlab.Watch] = {}
    lines: list[str] = []

    def run(compare: Callable[[nn.Module, Callable[[], float]], Any], is_watched: bool = False) -> list[Any]:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        model: Any = plain().double()  # with dropout
        if tuned:
            model = SelfTuned.convert(model)
        if is_watched:
            watches[model] = bnlab.watch(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        seen: list[Any] = []
        for number, batch in enumerate(make_batches(6, 8, 6, 7, 5)):
            model.train()
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            if number % 2:
                compare(model, lambda: validate_at_random(model))
                seen += [model.training, torch.rand(2), np.random.rand(), random.random()]
        return [*seen, *model.state_dict().values()]

    def compare(model: nn.Module, function: Callable[[], float]) -> None:
        lines.append(watches[model].compare(function))

    plainly = run(lambda model, function: function())
    watched = run(compare, is_watched=True)

    assert len(lines) == 2 and all("under exact statistics" in line for line in lines)
    for one, other in zip(plainly, watched, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_running_averages_come_back_after_an_exception(error: type[BaseException]) -> None:
    model = residual().train()
    watch = bnlab.watch(model)
    train(model, images(6, 8))

    def fail() -> float:
        model.eval()
        model[1].running_mean.fill_(7.0)  # type: ignore[union-attr, operator]
        torch.rand(3)
        raise error

    with unchanged(model), pytest.raises(error):
        watch.compare(fail)
    with unchanged(model), pytest.raises(error), watch.exact():
        model[1].running_mean.fill_(7.0)  # type: ignore[union-attr, operator]
        raise error
    with unchanged(model):
        watch.measure()
    assert watch.history.empty


def test_a_checkpoint_that_is_saved_in_the_block_has_exact_statistics() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    train(model, batches)
    before = copy.deepcopy(model.state_dict())
    with watch.exact() as lent:
        assert lent is model and model.training
        saved = copy.deepcopy(model.state_dict())

    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    other = make_model()
    other.load_state_dict(saved)
    expected = references.full_batch_population(model, torch.cat(batches))
    assert measure_difference(bnlab.running_statistics(other), expected) <= ROUNDING
    with watch.exact(watch.measure()):
        assert all(torch.equal(model.state_dict()[name], value) for name, value in saved.items())


def test_a_backward_pass_may_come_after_a_comparison() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    (batch,) = make_batches(6)
    loss = model(batch).sum()
    watch.compare(lambda: 1.0)
    with watch.exact():
        pass

    loss.backward()


# -- frozen layers, autocast -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mode", "weights"])
def test_frozen_layers_keep_their_averages(how: str) -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    batches = make_batches(6, 7)
    if how == "mode":
        model[1].eval()
    else:
        model[1].requires_grad_(False)
    model(batches[0])
    model.eval()  # by the time of a validation

    assert watch.compare(lambda: 0.5).endswith("; frozen layers keep running averages: '1'")
    averages = bnlab.running_statistics(model)
    with watch.exact():
        written = bnlab.running_statistics(model)

    assert torch.equal(written["1"].mean, averages["1"].mean)
    expected = references.moments_of_inputs(model, ["4"], batches[:1], None)
    assert measure_difference({"4": written["4"]}, expected) <= ROUNDING


def test_under_autocast_inputs_are_kept_as_they_are_and_measured_under_the_autocast_of_then() -> None:
    model = without_dropout(plain()).train()
    watch = bnlab.watch(model)
    (batch,) = images(6)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
        inside = watch.measure()
        expected = bnlab.population_statistics(model, [batch])
    outside = watch.measure()

    assert_equal_statistics(inside, expected)
    assert measure_difference(outside, bnlab.population_statistics(model, [batch])) == 0
    assert measure_difference(outside, inside) > 0


def test_given_batches_are_measured_in_place_of_those_of_the_training() -> None:
    model = make_model().train()
    given = make_batches(9, 4, 5, seed=3)
    watch = bnlab.watch(model, batches=given, max_images=13)
    train(model, make_batches(6, 7))

    assert_exact(watch, given[:2])
    watch.compare(lambda: 1)
    assert watch.history[["update", "images"]].values.tolist() == [[2, 13]]


# -- words -------------------------------------------------------------------------------------------------------------


def compare_values(running: Any, exact: Any, images: int = 6, **options: Any) -> str:
    """The line of a comparison in which `evaluate` returns these values."""
    model = make_model().train()
    watch = bnlab.watch(model, images)
    model(make_batches(6)[0])
    values = iter((exact, running))

    def evaluate_to_next() -> Any:
        evaluate(model)
        return next(values)

    line = watch.compare(evaluate_to_next, **options)
    kept = watch.history
    assert kept["running"].notna().all() and kept["exact"].notna().all()
    return line


@pytest.mark.parametrize(
    ("running", "exact", "options", "line"),
    [
        (
            0.712,
            0.749,
            {},
            "71.2% under running averages, 74.9% under exact statistics: eval() understates it by 3.7 points",
        ),
        (
            torch.tensor(0.75),
            np.float64(0.75),
            {},
            "75.0% under running averages, 75.0% under exact statistics: no difference",
        ),
        (
            0.75,
            0.5,
            {},
            "75.0% under running averages, 50.0% under exact statistics: eval() overstates it by 25.0 points; "
            "running averages do better than exact statistics",
        ),
        (
            0.75,
            0.5,
            {"lower": True},
            "0.75 under running averages, 0.5 under exact statistics: eval() overstates it by 0.25",
        ),
        (
            0.5,
            0.75,
            {"lower": True},
            "0.5 under running averages, 0.75 under exact statistics: eval() understates it by 0.25; "
            "running averages do better than exact statistics",
        ),
        (
            {"loss": 0.5, "hits": 3},
            {"loss": 0.25, "hits": 5},
            {"lower": ["loss"]},
            "loss: 0.5 under running averages, 0.25 under exact statistics: eval() overstates it by 0.25; "
            "hits: 3 under running averages, 5 under exact statistics: eval() understates it by 2",
        ),
        (
            1.0,
            1.0,
            {"images": 100},
            "100.0% under running averages, 100.0% under exact statistics: no difference (of 6 images; 100 are wanted)",
        ),
    ],
)
def test_a_comparison_is_one_line(running: Any, exact: Any, options: dict[str, Any], line: str) -> None:
    assert compare_values(running, exact, **options) == line


def evaluate_a_copy(model: nn.Module) -> Callable[[], Any]:
    of_then = copy.deepcopy(model)
    return lambda: evaluate(of_then)


@pytest.mark.parametrize("make_evaluate", [evaluate_a_copy, lambda model: lambda: {"loss": 0.5, "hits": 3}])
def test_an_evaluate_of_something_else_is_noticed(make_evaluate: Callable[[nn.Module], Callable[[], Any]]) -> None:
    model = make_model().train()
    watch = bnlab.watch(model, 6)
    model(make_batches(6)[0])
    line = watch.compare(make_evaluate(model))
    assert line.endswith(
        "; evaluate was not seen to call the model in eval mode; does it evaluate a copy, or another model? Pass that "
        "as model="
    )


def test_parts_that_are_evaluated_one_by_one_are_compared() -> None:
    model = make_model().train()
    watch = bnlab.watch(model, 6)
    model(make_batches(6)[0])
    line = watch.compare(lambda: float(model.eval()[2:](model[:2](make_batches(7)[0])).sum().detach()))
    assert "not seen" not in line


@pytest.mark.parametrize("has_exact", [True, False])
def test_an_evaluate_without_eval_mode_is_refused(has_exact: bool) -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    batch = make_batches(6)[0]
    if has_exact:
        model(batch)

    with pytest.raises(ValueError, match=r"evaluate called the model in train mode.*model.eval\(\)"):
        watch.compare(lambda: model(batch).sum().item())
    assert watch.history.empty


def test_an_outcome_that_is_filled_in_again_is_read_at_once() -> None:
    """As of an evaluation that writes each time into the same dictionary, or array."""
    model = make_model().train()
    watch = bnlab.watch(model, 6)
    model(make_batches(6)[0])
    found: dict[str, float] = {}
    scores = np.zeros(3)

    def fill_dictionary() -> dict[str, float]:
        found["mean"] = evaluate(model)
        return found

    def fill_array() -> Any:
        scores[:] = evaluate(model)
        return scores

    watch.compare(fill_dictionary)
    watch.compare(fill_array)
    assert (watch.history["running"] != watch.history["exact"]).all()


def swap_weights(model: nn.Module, watch: bnlab.Watch) -> None:
    weight = model[0].weight.detach().clone()  # type: ignore[index]
    model[0].weight.data.mul_(0.9)  # type: ignore[index]
    evaluate(model)
    model[0].weight.data.copy_(weight)  # type: ignore[index]


def nest_exact(model: nn.Module, watch: bnlab.Watch) -> None:
    with watch.exact():
        evaluate(model)


def mix_modes(model: nn.Module, watch: bnlab.Watch) -> None:
    evaluate(model)
    model.train()(make_batches(6)[0])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (swap_weights, "evaluate called the model with other weights than it has outside"),
        (nest_exact, r"exact\(\) where the model has exact statistics already"),
        (mix_modes, "evaluate called the model in train mode"),
    ],
)
def test_what_evaluates_another_model_than_is_measured_is_refused(
    mistake: Callable[[nn.Module, bnlab.Watch], None], message: str
) -> None:
    model = make_model().train()
    watch = bnlab.watch(model, 6)
    model(make_batches(6)[0])

    def evaluate_wrongly() -> float:
        mistake(model, watch)
        return 0.5

    before = dict(model.named_parameters())
    with unchanged(model), pytest.raises(ValueError, match=message):
        watch.compare(evaluate_wrongly)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert watch.history.empty
    assert_exact(watch, make_batches(6))


@pytest.mark.parametrize("is_frozen_first", [True, False])
def test_images_that_no_batch_norm_averages_are_not_kept(is_frozen_first: bool) -> None:
    """As where each step has a second forward with batch norm frozen, on adversarial images."""
    model = make_model().train()
    watch = bnlab.watch(model, 6)
    batches = make_batches(6, 7)
    for _ in range(3):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for is_frozen in (is_frozen_first, not is_frozen_first):
            for layer in (model[1], model[4]):
                layer.train(not is_frozen)
            model(batches[is_frozen]).sum().backward()
        optimizer.step()

    assert_exact(watch, batches[:1])


@pytest.mark.parametrize("frozen", ["layers", "inner module"])
def test_batch_norm_that_is_frozen_in_the_middle_is_noticed(frozen: str) -> None:
    outer = Outer().train()
    watch = bnlab.watch(outer)
    batches = make_batches(6, 7)
    for step in range(6):
        if step == 3:
            modules = [outer.network] if frozen == "inner module" else [outer.network[1], outer.network[4]]
            for module in modules:
                module.eval()
        train(outer, [batches[step % 2]])

    watch.compare(lambda: evaluate(outer.network))
    assert watch.history["update"].tolist() == [6]
    with pytest.raises(ValueError, match=r"3 updates since a batch norm was last in train mode.*frozen on purpose"):
        watch.measure()


def test_frozen_forwards_with_steps_of_their_own_are_updates() -> None:
    model = make_model().train()
    watch = bnlab.watch(model, 6)
    batches = make_batches(6, 7)
    for step in range(6):
        for layer in (model[1], model[4]):
            layer.train(step % 2 == 0)
        train(model, [batches[step % 2]])
    watch.compare(lambda: evaluate(model))
    assert watch.history["update"].tolist() == [6]


def test_a_comparison_within_a_comparison_is_refused() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    model(make_batches(6)[0])
    with pytest.raises(ValueError, match=r"compare\(\) where the model has exact"):
        watch.compare(lambda: watch.compare(lambda: evaluate(model)))


def test_layers_that_were_replaced_are_named() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    model(make_batches(6)[0])
    model[1] = copy.deepcopy(model[1])
    for ask in (watch.measure, lambda: watch.compare(lambda: evaluate(model))):
        with pytest.raises(ValueError, match=r"replaced since bnlab.watch was called .*: '1'; call bnlab.watch again"):
            ask()


def test_one_value_in_a_tensor_is_a_number() -> None:
    line = compare_values(torch.tensor([0.5]), np.array([[0.75]]))
    assert line == "50.0% under running averages, 75.0% under exact statistics: eval() understates it by 25.0 points"


def test_a_comparison_within_exact_statistics_is_refused() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    model(make_batches(6)[0])
    with (
        unchanged(model),
        watch.exact(),
        pytest.raises(ValueError, match=r"compare\(\) where the model has exact"),
    ):
        watch.compare(lambda: evaluate(model))
    assert watch.history.empty
    watch.compare(lambda: evaluate(model))


def test_instance_norms_that_keep_averages_are_named() -> None:
    norms = [nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.InstanceNorm2d(3)]
    model = nn.Sequential(*norms).double().train()
    watch = bnlab.watch(model, 6)
    model(make_batches(6)[0])
    line = watch.compare(lambda: float(model.eval()(make_batches(6)[0]).square().mean().detach()))
    assert line.endswith("; instance norms keep running averages: '1'")


def test_scores_for_each_image_have_a_paired_interval() -> None:
    """The differences are 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, and 1.96·0.1/√3 = 0.113."""
    line = compare_values([0.5, 0.5, 0.5], torch.tensor([0.6, 0.7, 0.8]))
    assert line.endswith("eval() understates it by 20.0 points [8.7, 31.3]")
    line = compare_values(np.array([0.6, 0.7, 0.8]), [0.5, 0.5, 0.5])
    assert "eval() overstates it by 20.0 points [8.7, 31.3]; running averages do better" in line


def watch_a_batch() -> bnlab.Watch:
    model = make_model().train()
    watch = bnlab.watch(model, 6)
    model(make_batches(6)[0])
    return watch


def test_lost_is_how_much_worse_running_averages_are() -> None:
    watch = watch_a_batch()
    values = iter([{"accuracy": 0.75, "loss": 1.0}, {"accuracy": 0.5, "loss": 3.0}])
    watch.compare(lambda: next(values), lower=("loss",))
    watch.compare(lambda: 1.0, lower=True)

    assert watch.history["lost"].astype(str).tolist() == ["0.25", "2.0", "0.0"]


@pytest.mark.parametrize(("running", "shown"), [(math.nan, "nan"), (math.inf, "inf"), ([0.5, math.nan], "nan")])
def test_values_that_are_not_finite_are_not_compared(running: Any, shown: str) -> None:
    values = iter(([0.25, 0.75] if isinstance(running, list) else 0.5, running))
    line = watch_a_batch().compare(lambda: next(values))
    assert line.startswith(f"{shown} under running averages, 0.5 under exact statistics: no difference can be taken")


@pytest.mark.parametrize(
    ("exact", "running", "options", "message"),
    [
        ({"a": 1}, {"b": 1}, {}, "returned 'a' the first time and 'b' the second"),
        ({"a": 1, "b": 1}, {"b": 1}, {}, "returned 'a', 'b' the first time and 'b' the second"),
        ([1, 2], [1, 2, 3], {}, "returned 2 scores the first time and 3 the second"),
        ({"loss": 1}, {"loss": 2}, {"lower": ["los"]}, "lower has 'los'; evaluate returned 'loss'"),
    ],
)
def test_what_cannot_be_compared_is_refused(exact: Any, running: Any, options: dict[str, Any], message: str) -> None:
    watch = watch_a_batch()
    values = iter((exact, running))
    with pytest.raises(ValueError, match=message):
        watch.compare(lambda: next(values), **options)
    assert watch.history.empty


def test_before_the_first_batch_running_averages_are_compared_with_nothing() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    line = watch.compare(lambda: 0.5)

    assert line == (
        "50.0% under running averages; exact statistics could not be had: watch: no call of the model with a "
        "batch norm in train mode has been seen; call model.train() and train first, or pass batches="
    )
    with (
        unchanged(model),
        pytest.raises(ValueError, match="no call of the model with a batch norm in train mode"),
        watch.exact(),
    ):
        pass
    assert watch.history["exact"].isna().tolist() == [True]
    assert watch.history["running"].tolist() == [0.5]


def test_layers_that_no_batch_has_reached_are_named() -> None:
    model = nn.Sequential(make_model(), nn.BatchNorm1d(4).double()).train()
    model[1].register_module("part", nn.BatchNorm1d(2))
    watch = bnlab.watch(model)
    model(make_batches(6)[0])

    line = watch.compare(lambda: 0.5)
    assert line.endswith("; no batch has reached '1.part', which keep running averages")


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_statistics_that_are_not_exact_are_not_shown() -> None:
    model = nn.Sequential(Noisy(), nn.BatchNorm2d(3)).train()
    watch = bnlab.watch(model)
    model(images(6)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        line = watch.compare(lambda: 0.5)

    assert "could not be had: watch: the statistics are not exact" in line


@pytest.mark.parametrize(
    ("wanted", "size", "kept"),
    [(100_000, 4, "100,000 training images: 76.8 MB"), (1_000, 3_000, "3,000 training images: 2.3 MB")],
)
def test_the_bytes_are_said_at_the_first_batch(
    wanted: int, size: int, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 3·8·8 float32 values, 768 bytes an image; also of the images that are more, as batches are not cut."""
    model = plain().train()
    watch = bnlab.watch(model, wanted)
    for batch in images(size, size):
        model(batch)

    assert capsys.readouterr().err == f"bnlab.watch keeps the latest {kept}\n"
    watch.close()


def test_the_history_is_drawn_and_written(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    model = make_model().train()
    watch = bnlab.watch(model)
    values = iter([0.5, 0.75, 0.25, 0.5, 0.5])
    watch.compare(lambda: next(values))
    for batch in make_batches(6, 7):
        train(model, [batch])
        watch.compare(lambda: next(values))

    top, bottom = watch.plot()
    lines = {line.get_label(): line.get_xydata() for line in (*top.get_lines(), *bottom.get_lines()[:1])}
    plt.close(top.figure)
    assert {name: np.asarray(points)[1:, 1].tolist() for name, points in lines.items()} == {
        "running averages": [0.25, 0.5],
        "exact statistics": [0.75, 0.5],
        "lost under running averages": [0.5, 0.0],
    }
    assert np.asarray(lines["running averages"])[:, 0].tolist() == [0, 1, 2]

    watch.history.to_parquet(tmp_path / "watch.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "watch.parquet"), watch.history)


# -- bad input ---------------------------------------------------------------------------------------------------------


def watched(**options: Any) -> bnlab.Watch:
    return bnlab.watch(make_model().train(), **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bnlab.watch(nn.Linear(2, 2)), ValueError, "watch: no BatchNorm layer with running statistics"),
        (lambda: bnlab.watch("model"), TypeError, "watch: expected a torch.nn.Module, found str"),  # type: ignore[arg-type]
        (lambda: watched(images=0), ValueError, "watch: images=0; pass how many"),
        (lambda: watched(images=1.5), TypeError, "watch: images=1.5; pass how many"),
        (
            lambda: watched(images=[torch.ones(3)]),
            TypeError,
            "watch: images is a list; pass how .* instead are batches=",
        ),
        (lambda: watched(keep="disk"), ValueError, "watch: keep='disk'; pass \"cpu\""),
        (lambda: watched(image=3), TypeError, "watch: 'image' is no keyword"),
        (
            lambda: watched(batches=iter([torch.ones(3)])),
            ValueError,
            "watch: batches is a list_iterator, which is used",
        ),
        (lambda: watched().exact(0.5).__enter__(), TypeError, r"watch: exact\(\) was given a float"),  # type: ignore[arg-type]
        (
            lambda: watched().compare(lambda: 1, lower={"loss": True}),
            TypeError,
            "watch: lower={'loss': True}; pass True",
        ),
        (lambda: watched(batches=torch.ones(3)), TypeError, "watch: batches is a Tensor"),
        (lambda: watched(forward=print), TypeError, "watch: 'forward' is for batches=, which are not given"),
        (lambda: watched(optimizer=0.1), TypeError, "watch: optimizer is a float; pass an optimizer"),
        (
            lambda: watched().compare(lambda: (0.5, 0.5)),
            TypeError,
            "watch: evaluate returned a tuple of 2; return a",
        ),
        (lambda: watched().compare(lambda: None), TypeError, "watch: evaluate returned None; return a number, a dict"),
        (lambda: watched().compare(lambda: 1, lower="loss"), TypeError, "watch: lower='loss'; pass True, or a list"),
        (lambda: watched().compare(0.5), TypeError, "watch: evaluate is a float; pass a function"),  # type: ignore[arg-type]
        (lambda: watched().compare(lambda: "good"), TypeError, "watch: evaluate returned a str"),
        (
            lambda: watched().compare(lambda: pd.DataFrame({"right": [0, 1], "name": ["a", "b"]})),
            TypeError,
            "watch: evaluate returned a DataFrame",
        ),
        (lambda: watched().compare(lambda: {}), ValueError, "watch: evaluate returned no metric"),
        (lambda: watched().compare(lambda: {"a": "b"}), TypeError, "watch: evaluate returned a str as 'a'"),
        (lambda: watched().plot(), ValueError, "watch: nothing was compared yet"),
    ],
)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()


def pass_what_cannot_be_copied(model: nn.Module) -> None:
    with contextlib.suppress(TypeError):
        model(make_batches(6)[0], (number for number in range(3)))


def read_no_tensor(model: nn.Module) -> None:
    with contextlib.suppress(TypeError):
        model("file.png")


def call_forward(model: nn.Module) -> None:
    model.forward(make_batches(6)[0]).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def call_parts(model: Any) -> None:
    model[2:](model[:2](make_batches(6)[0])).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    ("train_with", "message"),
    [
        (call_forward, "also trained by calls of parts of the model.*pass batches="),
        (call_parts, "also trained by calls of parts of the model.*pass batches="),
        (lambda model: None, r"no call .* train mode has been seen; call model.train\(\) .* pass batches="),
        (lambda model: train(model.eval(), make_batches(6)), r"no call .* train mode has been seen"),
        (pass_what_cannot_be_copied, "inputs cannot be copied .*pass batches="),
        (read_no_tensor, "inputs hold no tensor.*pass batches="),
    ],
)
def test_what_cannot_be_kept_is_named_when_it_is_asked_for(
    train_with: Callable[[nn.Module], None], message: str
) -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    train_with(model)

    with unchanged(model), pytest.raises(ValueError, match=message):
        watch.measure()


def test_a_model_on_a_device_without_values_is_named() -> None:
    model = make_model().train()
    watch = bnlab.watch(model)
    model(make_batches(6)[0])
    model.to("meta")

    for ask in (watch.measure, lambda: watch.compare(lambda: 0.5)):
        with pytest.raises(ValueError, match="on the meta device"):
            ask()


def test_a_watch_that_is_dropped_is_closed() -> None:
    """As where a cell of a notebook is run again: the model's hooks would hold its images for good."""
    model = make_model().train()
    with unchanged(model):
        watch = bnlab.watch(model)
        del watch


def test_after_close_nothing_is_kept() -> None:
    model = make_model().train()
    with unchanged(model):
        watch = bnlab.watch(model)
        watch.close()
    model(make_batches(6)[0])

    given = bnlab.watch(model, batches=make_batches(6))
    given.close()
    for closed in (watch, given):
        with pytest.raises(ValueError, match="this watch is closed"):
            closed.measure()
