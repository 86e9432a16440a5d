"""Finding batch-norm layers, and lending a model."""

import collections
import copy
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnlab import borrowing, population_statistics, record, record_frozen, running_statistics, self_consistency, using
from bnlab.borrowing import borrowed
from bnlab.layers import batch_norm_layers, match_names
from tests.helpers import images, plain, residual, unchanged


def test_layers_by_name_and_in_order() -> None:
    assert list(batch_norm_layers(plain(), caller="f")) == ["1", "4"]
    assert list(batch_norm_layers(residual(), caller="f"))[:3] == ["1", "3.shortcut.1", "3.bn1"]
    assert list(batch_norm_layers(plain(), ["4", "1"], caller="f")) == ["1", "4"]
    assert list(batch_norm_layers(plain(), iter(["4"]), caller="f")) == ["4"]  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [None, plain, {"1": 2}])
def test_not_a_model(model: Any) -> None:
    with pytest.raises(TypeError, match=rf"f: expected a torch.nn.Module, found {type(model).__name__}"):
        batch_norm_layers(model, caller="f")


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        (nn.Linear(2, 2), None, r"f: no BatchNorm layer with running statistics in Linear$"),
        (
            nn.Sequential(nn.InstanceNorm2d(3), nn.BatchNorm1d(2, track_running_stats=False)),
            None,
            r"\(1 InstanceNorm2d, 1 BatchNorm1d without running statistics skipped\)",
        ),
        (nn.Sequential(nn.LazyBatchNorm2d()), None, "layer '0' is lazy and not built yet; run one forward pass first"),
        (plain(), ["2"], "layers has '2', which is no BatchNorm layer with running statistics; there are '1', '4'"),
        (plain(), [], "layers is empty; name at least one, or pass None for all"),
        (nn.Sequential(*(nn.BatchNorm1d(1) for _ in range(8))), ["x"], "'5' and 2 more"),
        (nn.Sequential(torch.jit.trace(plain().eval(), images(2)[0])), None, "'0' is TorchScript"),
        (torch.jit.trace(plain().eval(), images(2)[0]), None, "the model is TorchScript, whose layers cannot be watch"),
    ],
)
def test_models_and_layers_that_do_not_fit(model: nn.Module, layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_norm_layers(model, layers, caller="f")


class Everything(nn.Module):
    """Has every kind of state that a borrower can touch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.bn = plain(), nn.BatchNorm1d(4)
        self.register_buffer("steps", torch.zeros(3))
        self.features: dict[str, Any] = {"first": 1}
        self.history, self.seen = [1, 2], {1}
        self.inner[0].register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.inner(x))


def disturb(model: Any) -> None:
    model.eval()
    model(images(4)[0])
    model.train()
    model(images(4)[0])  # torch's own update of running statistics does not change a buffer's version
    model.requires_grad_(False)
    model.bn.momentum, model.bn.eps = 0.9, 1.0
    model.bn.running_mean = torch.ones(4)
    model.inner[1].running_var.data.fill_(7)
    model.steps.add_(1)
    model.features.update(first=2, second=3)
    model.history.append(3)
    model.seen.clear()
    model.extra = 1
    del model.inner[0]
    model.register_forward_pre_hook(lambda *_: None)
    model.bn._forward_hooks.clear()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    torch.rand(3)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_borrowed_comes_back_as_it_was(error: type[BaseException] | None) -> None:
    model = Everything()
    model.inner[4].eval()
    with unchanged(model):
        try:
            with borrowed(model) as lent:
                assert lent is model
                disturb(model)
                if error is not None:
                    raise error
        except BaseException as raised:
            assert type(raised) is error
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("measure", [record_frozen, partial(population_statistics, upstream="batch")])
def test_a_model_is_borrowed_for_all_batches_at_once(
    measure: Callable[[nn.Module, list[Tensor]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, counts, borrow = plain(), list[int](), borrowing._borrowed
    for batches in (2, 5):
        lent = list[nn.Module]()
        monkeypatch.setattr(borrowing, "_borrowed", lambda m, *rest, lent=lent: (lent.append(m), borrow(m, *rest))[1])
        measure(model, images(4)[:1] * batches)
        counts.append(len(lent))
    assert counts[0] == counts[1] in (1, 2)  # once more for the check of upstream="batch" on its first batch


def test_borrowing_does_not_break_a_backward_pass_that_is_still_to_come() -> None:
    model = Everything().eval()
    loss = (model(images(4)[0]).sum() * model.steps).sum()
    with borrowed(model):
        model(images(4)[0])
    loss.backward()


def test_borrowed_models_whose_buffers_are_inference_tensors() -> None:
    with torch.inference_mode():
        model = Everything()
    with unchanged(model), borrowed(model), torch.inference_mode():
        model.steps.add_(1)


def test_a_buffer_that_was_given_other_memory() -> None:
    model = plain()
    memory = model[1].running_mean.data_ptr()
    with unchanged(model), borrowed(model):
        model[1].running_mean.data = torch.ones(6)
    assert model[1].running_mean.data_ptr() == memory


@pytest.mark.parametrize("shape", [(4,), (2,), ()])
def test_a_buffer_that_is_resized(shape: tuple[int, ...]) -> None:
    """As fresh observers of quantization do when they see their first batch."""
    model = plain()
    model.register_buffer("scale", torch.arange(3.0))
    with borrowed(model):
        model.scale.resize_(shape).fill_(9.0)  # type: ignore[operator,union-attr]
    assert model.scale.tolist() == [0.0, 1.0, 2.0]  # type: ignore[operator,union-attr]


def test_what_is_compiled_runs_uncompiled() -> None:
    """Compiling happens at the first call: if it were tried here, the backend would complain."""

    def backend(*_: object) -> Any:
        raise AssertionError("compiled")

    inner, model = torch.compile(plain(), backend=backend), plain()
    model.compile(backend=backend)
    for compiled in (inner, model, nn.Sequential(inner)):
        called: list[str] = []
        with unchanged(compiled), borrowed(compiled):
            for name, layer in batch_norm_layers(compiled, caller="f").items():
                layer.register_forward_pre_hook(lambda *_, name=name, called=called: called.append(name))
            compiled.eval()(images(2)[0])
            assert len(called) == 2


class Frozen(collections.OrderedDict[str, int]):
    """Refuses to be written, and to be copied, as configurations of models do."""

    def __init__(self, entries: dict[str, int], purpose: str) -> None:
        super().__init__()
        for key, value in entries.items():
            super().__setitem__(key, value)
        self.purpose = purpose

    def update(self, *entries: Any, **more: Any) -> None:
        raise TypeError("frozen")

    def clear(self) -> None:
        raise TypeError("frozen")


def test_a_container_that_refuses_writing() -> None:
    model = plain().train()
    model.settings = config = Frozen({"a": 1}, "test")  # type: ignore[assignment]
    with unchanged(model):
        population_statistics(model, images(4, 4))
        with borrowed(model):
            model.eval()
    assert model.settings is config and dict(config) == {"a": 1}


def test_a_tensor_attribute_that_a_forward_writes_into() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.seen = nn.BatchNorm2d(3), torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return self.bn(x)

    model = Counting()
    with pytest.raises(ValueError, match="writes into 'seen' in place"):
        population_statistics(model, images(4, 4))
    assert model.seen == 0
    population_statistics(model, images(4, 4), strategy="layerwise")
    assert model.seen == 0


def test_an_unbuilt_layer_of_another_kind() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="layer '1' is lazy and not built yet; run one forward pass first"):
        population_statistics(model, [torch.randn(4, 3)])
    assert model(torch.randn(4, 3)).shape == (4, 2)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, self.mean, self.var)


def scripted(*parts: nn.Module) -> nn.Module:
    return torch.jit.script(nn.Sequential(*parts))  # type: ignore[no-any-return]


def test_a_scripted_part_without_batch_norm() -> None:
    model = nn.Sequential(scripted(nn.Conv2d(3, 3, 1), nn.Dropout(0.5)), plain()).train()
    expected = plain()
    with unchanged(model):
        found = population_statistics(model, images(4, 4))
        twin = population_statistics(model, images(4, 4), strategy="layerwise")
        inputs = [model.eval()[0](x) for x in images(4, 4)]
        model.train()
    for name, moments in population_statistics(expected, inputs).items():
        torch.testing.assert_close(found[f"1.{name}"].mean, moments.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(twin[f"1.{name}"].mean, moments.mean, rtol=1e-5, atol=1e-5)
    assert all(module.training for module in model.modules())
    with record(model) as trace:
        model(images(4)[0])
    assert trace.last_step == 1


@pytest.mark.parametrize("part", [nn.BatchNorm2d(3), Functional(), nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)))])
def test_scripted_parts_with_batch_norm(part: nn.Module) -> None:
    with pytest.raises(ValueError, match="f: '0' is TorchScript, whose layers cannot be watched"):
        batch_norm_layers(nn.Sequential(scripted(nn.Conv2d(3, 3, 1), part), nn.BatchNorm2d(3)), caller="f")


def test_a_frozen_part() -> None:
    """Frozen, a scripted module has no mode any more, and its batch norm may have become part of a convolution."""
    frozen = torch.jit.freeze(scripted(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval())
    with pytest.raises(ValueError, match="f: '0' is TorchScript, whose layers cannot be watched"):
        batch_norm_layers(nn.Sequential(frozen, nn.BatchNorm2d(3)), caller="f")


def test_weights_without_values() -> None:
    model, found = plain(), running_statistics(plain())
    model[3].to("meta")
    for call in (population_statistics, record_frozen, lambda m, batches: self_consistency(m, found, batches)):
        with pytest.raises(ValueError, match=r": '3\.weight' is on the meta device, which holds no values"):
            call(model, images(4))


def test_a_model_without_values() -> None:
    model = plain().to("meta")
    for call in (running_statistics, lambda m: population_statistics(m, images(4)), lambda m: record(m).__enter__()):
        with pytest.raises(
            ValueError, match=r"layer '1' is on the meta device, which holds no values; use model.to_em"
        ):
            call(model)


def test_names_of_wrapped_models() -> None:
    names = ["a.bn", "b.bn"]
    assert match_names(names, ["module.b.bn", "module.a.bn"]) == {"a.bn": "module.a.bn", "b.bn": "module.b.bn"}
    assert match_names(["module._orig_mod.a.bn"], ["_orig_mod.a.bn", "c"]) == {
        "module._orig_mod.a.bn": "_orig_mod.a.bn"
    }
    assert match_names(["module.bn", "bn"], ["bn", "module.bn"]) == {"module.bn": "module.bn", "bn": "bn"}
    assert match_names(["bn", "module.bn"], ["module.bn", "module.module.bn"]) == {}  # the first is the other's second
    assert match_names(["bn", "module.bn"], ["bn"]) == {"bn": "bn"}  # no data has reached the other
    assert match_names(["x.bn"], ["module.x.bn", "x._orig_mod.bn"]) == {}  # either could be meant
    assert match_names(["module.x.bn", "_orig_mod.x.bn"], ["x.bn"]) == {}


def in_another_thread(call: Callable[[], object]) -> BaseException | None:
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_another_thread_has_to_wait() -> None:
    model, batches = plain(), images(4, 4)
    expected = population_statistics(model, batches)

    def measure(part: nn.Module = model) -> None:
        population_statistics(part, batches)

    with unchanged(model):
        with using(model, expected), borrowed(model):  # in one thread they nest
            for call in (
                measure,
                lambda: measure(nn.Sequential(model[:2])),
                lambda: record(model).__enter__(),
                lambda: running_statistics(model),
                lambda: expected.write_to(model),
            ):
                error = in_another_thread(call)
                assert type(error) is ValueError and "in use by a measurement or by bnlab.using in ano" in str(error)
            assert in_another_thread(lambda: measure(plain())) is None
            assert in_another_thread(lambda: copy.deepcopy(model).state_dict()) is None
        assert in_another_thread(measure) is None


@pytest.mark.parametrize(
    "measure",
    [
        population_statistics,
        partial(population_statistics, strategy="layerwise"),
        partial(population_statistics, upstream="batch"),
        record_frozen,
        lambda model, batches: self_consistency(model, running_statistics(model), batches),
    ],
)
def test_another_thread_does_not_get_borrowed_buffers(measure: Callable[..., object]) -> None:
    model, (batch, _) = plain(), images(4, 4)
    state, told = copy.deepcopy(model.state_dict()), list[object]()
    calls = (lambda: model(batch), model.state_dict, model[:3].state_dict, lambda: model.load_state_dict(state))

    def loader() -> Iterator[Tensor]:
        yield batch
        told.extend(map(in_another_thread, calls))

    with unchanged(model):
        measure(model, loader())
    assert len(told) == len(calls)
    for error in told:
        assert type(error) is ValueError and "in use by a measurement or by bnlab.using in another" in str(error)
    assert [in_another_thread(call) for call in calls] == [None] * len(calls)


@pytest.mark.parametrize("options", [{}, {"strategy": "layerwise"}, {"upstream": "batch"}])
def test_a_part_that_another_thread_calls_meanwhile_is_named(options: Any) -> None:
    """What it has called is no part of the statistics."""
    model, (batch, _) = plain(), images(4, 4)

    def elsewhere() -> None:
        assert in_another_thread(lambda: model[:3](100 * batch)) is None

    def loader() -> Iterator[Tensor]:
        yield batch
        elsewhere()

    def forward(model: nn.Module, x: Tensor) -> None:
        elsewhere()
        model(x)

    # Layerwise reads all batches before it measures.
    calls = {"forward": forward} if "strategy" in options else {}
    with pytest.warns(RuntimeWarning, match=r"layer '1': called past its hooks \(.*in another thread\)"):
        found = population_statistics(model, loader(), **options, **calls)
    expected = population_statistics(model, [batch], **options)
    assert torch.equal(found["1"].mean, expected["1"].mean) and found["1"].count == expected["1"].count
