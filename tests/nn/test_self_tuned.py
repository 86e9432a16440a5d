"""Self-tuned layers against replays of what a plain twin was trained on; whatever else happens in a training."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

from bnlab import population_statistics, record, record_frozen, replay, running_statistics, using
from bnlab.estimators import EMA, DebiasedEMA, Predictive
from bnlab.estimators.bank import Bank
from bnlab.inference import PseudoSamples, apply_statistics
from bnlab.model.borrow import restored
from bnlab.nn import SelfTuned, momenta
from tests.exact.zoo import Net, OwnForward
from tests.helpers import assert_equal_statistics, images, plain, train, with_momentum, without_dropout


def make() -> nn.Sequential:
    model = make_plain()
    SelfTuned.convert(model)
    return model


def make_plain() -> nn.Sequential:
    """Make a new network, whose averages are at their start."""
    model = make_loaded()
    reset(model)
    return model


def copy_buffers(layer: nn.Module) -> list[Tensor]:
    return [layer.get_buffer(name).clone() for name in ("running_mean", "running_var")]


def reset(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()


def make_loaded() -> nn.Sequential:
    """Make a network whose averages have been loaded without their count."""
    return without_dropout(plain(width=3))


def draw(steps: int, seed: int = 0) -> list[Tensor]:
    return images(*[6] * steps, side=4, seed=seed)


def make_trained(steps: int) -> nn.Sequential:
    train(model := make(), draw(steps))
    return model


def is_equal(one: nn.Module, other: nn.Module) -> bool:
    """Parameters, buffers and averages, bit for bit; torch counts batches that are left out, too."""
    mine = one.state_dict()
    others = other.state_dict()
    same = [torch.equal(value, others[key]) for key, value in mine.items() if "num_batches" not in key]
    return all(same) and momenta(one).equals(momenta(other))


LOOKS = itertools.cycle([nn.Module.eval, nn.Module.state_dict, momenta])


@pytest.mark.parametrize(("steps", "look"), [*zip([1, 2, 3, 9, 130], LOOKS, strict=False)])
def test_it_holds_what_a_replay_gives_and_trains_as_torch_does(steps: int, look: Any) -> None:
    model = make()
    twin = make_plain()
    with record(model) as trace:
        outputs = train(model, draw(steps))

    assert all(map(torch.equal, outputs, train(twin, draw(steps))))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    assert trace.last_step == steps
    assert model[1].num_batches_tracked == steps
    assert twin[1].num_batches_tracked == steps
    plain_averages = replay(trace, EMA(0.1))[steps]
    assert_equal_statistics(plain_averages, running_statistics(twin), tolerance=1e-5)

    look(model)

    shown = model.get_buffer("4.running_mean").clone()
    expected = replay(trace, Predictive())[steps]
    assert_equal_statistics(running_statistics(model), expected, tolerance=1e-6)
    assert torch.equal(shown, model.get_buffer("4.running_mean"))
    assert is_equal(model, make_trained(steps))


def test_training_goes_on_after_a_validation_in_inference_mode() -> None:
    """What a layer makes there it has to be able to write into afterwards."""
    model, twin = make_trained(3), make_trained(3)
    with torch.inference_mode():
        model.eval()(draw(1)[0])
    twin.eval()(draw(1)[0])

    for each in (model, twin):
        train(each.train(), draw(4, seed=1))

    assert is_equal(model, twin)


def test_looking_after_each_step_changes_nothing() -> None:
    model = make()
    for x in draw(40):
        train(model.train(), [x])
        model.eval()(x)
        model.state_dict()
        momenta(model)
    assert is_equal(model, make_trained(40))


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "checkpointed": lambda m: Net(lambda n, x: checkpoint(n.a, x, use_reentrant=False), a=m),
    "checkpointed, reentrant": lambda m: Net(lambda n, x: checkpoint(n.a, x.requires_grad_(), use_reentrant=True), a=m),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_call_it(name: str) -> None:
    model = make()
    expected = make_trained(10)
    called = WAYS[name](model)
    reset(model)  # `Net` has drawn values for all buffers
    train(called, draw(10))

    assert is_equal(model, expected)


def save_and_load(value: Any, weights_only: bool = True) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "saved whole": lambda model: save_and_load(model, weights_only=False),
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize(
    ("name", "steps"), [("state dict", 0), ("state dict", 1), ("state dict", 8), *((name, 10) for name in COPIES)]
)
def test_a_copy_goes_on_with_the_averages_by_itself(name: str, steps: int) -> None:
    model = make_trained(steps)
    other: nn.Module
    if name == "state dict":
        other = make_trained(3)
        other.load_state_dict(save_and_load(model.state_dict()))
    else:
        other = COPIES[name](model)

    train(other, draw(9, seed=1))

    assert is_equal(model, make_trained(steps))

    train(model, draw(9, seed=1))
    assert is_equal(model, other)


def test_checkpoints_go_from_and_to_plain_models() -> None:
    model = make_trained(10)
    twin = make_plain()

    assert list(model.state_dict()) == list(twin.state_dict())

    twin.load_state_dict(save_and_load(model.state_dict()), strict=True)
    assert_equal_statistics(running_statistics(twin), running_statistics(model), tolerance=0)
    model.load_state_dict(twin.state_dict(), strict=True)
    assert_begins_from_its_buffers(model)
    assert_begins_from_its_buffers(SelfTuned.convert(twin))


def test_a_state_dict_is_loaded_where_a_bank_has_further_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, eq=False)
    class Further(Bank):
        further: int = 0

        @staticmethod
        def begin(*arguments: Any) -> Further:
            return Further(**vars(Bank.begin(*arguments)))

    saved = save_and_load(make_trained(8).state_dict())
    monkeypatch.setattr("bnlab.nn.state.Bank", Further)
    other = make_trained(3)
    other.load_state_dict(saved)
    assert (momenta(other)["batches"] == 8).all()


def assert_begins_from_its_buffers(model: nn.Module) -> None:
    """The averages have forgotten all batches; one more has a thousandth of the weight, beside the buffers."""
    assert (momenta(model)["batches"] == 0).all()
    assert momenta(model)["momentum"].isna().all()
    before = running_statistics(model)
    (x,) = draw(1, seed=9)
    with record(model.train()) as trace:
        model(x)
    for name, moments in running_statistics(model).items():
        expected = before[name].mean + 0.001 * (trace.layers[name].moments[0, 0] - before[name].mean)
        torch.testing.assert_close(moments.mean, expected, rtol=1e-5, atol=1e-6)


def test_buffers_that_are_not_finite_are_forgotten() -> None:
    layer = nn.BatchNorm1d(3)

    assert layer.running_mean is not None
    assert layer.num_batches_tracked is not None

    layer.running_mean.fill_(torch.nan)
    layer.num_batches_tracked.fill_(5)
    model = SelfTuned.convert(nn.Sequential(layer))

    for _ in range(10):
        model(torch.randn(8, 3))
    model.eval()
    assert layer.running_mean.isfinite().all()
    assert (momenta(model)["batches"] == 10).all()


# What else happens in a training

MEASUREMENTS: dict[str, Callable[[nn.Module], Tensor]] = {
    "population_statistics": lambda model: population_statistics(model, draw(2), layers=["4"])["4"].mean,
    "record_frozen": lambda model: record_frozen(model, draw(2)).layers["4"].moments,
    "using": lambda model: look_within(using(model, running_statistics(make_loaded())), model),
    "apply_statistics": lambda model: look_within(apply_statistics(model, PseudoSamples(9)), model),
}


def look_within(block: Any, model: nn.Module) -> Tensor:
    with block:
        model.state_dict()
        model.train()
        model.eval()
        momenta(model)
        return model(*draw(1))


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_leave_the_averages_alone(name: str) -> None:
    model, expected = make_trained(6), make_trained(6)
    found = MEASUREMENTS[name](model)

    assert is_equal(model, expected)
    assert torch.equal(found, MEASUREMENTS[name](expected))  # buffers are up to date

    for each in (model, expected):
        train(each.train(), draw(5, seed=5))
    assert is_equal(model, expected)


def test_a_student_is_trained_in_a_block_that_evaluates_its_teacher() -> None:
    student, expected = make(), make()
    teacher = make_plain()
    with using(teacher, running_statistics(teacher)):
        train(student, draw(6))
    train(expected, draw(6))

    assert is_equal(student, expected)


LEFT_OUT: dict[str, Callable[[nn.Sequential], object]] = {
    "momentum 0": lambda model: with_momentum(model, 0.0)(draw(1)[0] + 5) is with_momentum(model, 0.1),
    "NaN": lambda model: model(draw(1)[0] * torch.nan),
    "empty": lambda model: model[:2](draw(1)[0][:0]),
}


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.parametrize("steps", [1, 7])
def test_what_is_left_out(steps: int, name: str) -> None:
    model, expected = make_trained(steps), make_trained(steps)
    LEFT_OUT[name](model)
    for each in (model, expected):
        train(each, draw(12, seed=1))

    assert is_equal(model, expected)


def load_other_buffers(model: nn.Module) -> None:
    """As of weights that are averaged, beside the averages of one of them."""
    state = model.state_dict()
    for place in (1, 4):
        state[f"{place}.running_mean"] = state[f"{place}.running_mean"] + 1
    model.load_state_dict(state)


WRITES: dict[str, Callable[[nn.Sequential], object]] = {
    "load_state_dict": lambda model: model.load_state_dict(dict(make_trained(5).state_dict())),  # without metadata
    "load_state_dict, averaged": load_other_buffers,
    "write_to": lambda model: running_statistics(make_loaded()).write_to(model),
    "in evaluation": lambda model: [model.eval().get_buffer(f"{place}.running_mean").fill_(3.0) for place in (1, 4)],
    "update_bn": lambda model: update_bn(draw(3), model),
    "another type": lambda model: model.double()(draw(1)[0].double()) is model.float(),
}


@pytest.mark.parametrize("name", WRITES)
def test_averages_begin_again_from_what_something_else_writes(name: str) -> None:
    model = make_trained(8)
    WRITES[name](model)
    assert_begins_from_its_buffers(model)


def test_reset_running_stats_makes_it_new() -> None:
    layer = make_trained(10)[1]

    assert isinstance(layer, nn.BatchNorm2d)

    layer.reset_running_stats()

    assert (layer.get_buffer("running_mean") == 0).all()
    assert (layer.get_buffer("running_var") == 1).all()
    assert not layer.num_batches_tracked

    x = torch.randn(8, 3, 4, 4)
    layer.train()(x)
    torch.testing.assert_close(layer.eval().running_mean, x.mean((0, 2, 3)))


# Conversion, and the reader


@pytest.mark.parametrize(("kind", "dims"), [(nn.BatchNorm1d, 1), (nn.BatchNorm1d, 0), (nn.BatchNorm3d, 3)])
def test_each_of_torchs_classes(kind: type[nn.BatchNorm2d], dims: int) -> None:
    layer = SelfTuned.convert(kind(4))
    x = torch.randn(8, 4, *[3] * dims) + 2
    for mode in (True, False):
        with pytest.raises(ValueError, match="1D input"):
            layer.train(mode)(torch.randn(8))
    layer.train()(x)

    assert isinstance(layer, SelfTuned)
    assert isinstance(layer, kind)
    all_but_channels = [0, *range(2, x.dim())]
    torch.testing.assert_close(layer.eval().running_mean, x.mean(all_but_channels))


def test_revert_gives_torchs_layers_with_the_buffers_as_they_are() -> None:
    model = make_trained(30)
    twin = make_plain()
    train(twin, draw(1))  # otherwise: all that it is to have is in the state
    twin.load_state_dict(model.state_dict())

    assert SelfTuned.convert(model) is model
    found = momenta(model)
    assert (found["batches"] == 30).all()
    assert (found["memory"] == 1 / found["momentum"]).all()
    assert SelfTuned.revert(model) is model
    assert type(model[1]) is nn.BatchNorm2d

    save_and_load(model, weights_only=False).load_state_dict(model.state_dict())
    train(model, draw(5))
    train(twin, draw(5))
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


def test_what_is_refused_and_how() -> None:
    with pytest.warns(UserWarning, match=r"SelfTuned\.convert: '1' ") as caught:
        model = nn.Sequential(nn.BatchNorm2d(3), OwnForward(3))
        SelfTuned.convert(model)

    assert caught[0].filename == __file__
    assert isinstance(model[0], SelfTuned)
    assert type(model[1]) is OwnForward

    for call in (SelfTuned.convert, SelfTuned.revert, momenta):
        with pytest.raises(TypeError, match=r"torch\.nn\.Module, .*dict"):
            call({})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"BatchNorm|SelfTuned\.convert"):
            call(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"SelfTuned\.convert"):
        SelfTuned(64)


def test_after_each_batch_the_buffers_include_it_at_the_momenta_chosen_last() -> None:
    """Copies of weights and buffers, as AveragedModel's, read them without a call of the layer's."""
    model = nn.Sequential(nn.BatchNorm1d(5))
    SelfTuned.convert(model)
    layer: Any = model[0]
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(16, 5, generator=generator) * (1 + step / 50) + step / 20 for step in range(60)]
    shown = {}
    with record(model) as trace:
        for step, batch in enumerate(data, start=1):
            model(batch)
            trace.step()
            shown[step] = copy_buffers(layer)
            if step == 32:  # a block ends here, and the next one after 64 batches
                of_mean, of_var = momenta(model)["momentum"]

    for step in (33, 45, 60):
        mean, var = shown[step]
        expected_mean = replay(trace, DebiasedEMA(of_mean))[step]["0"].mean
        expected_var = replay(trace, DebiasedEMA(of_var))[step]["0"].var
        torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(var.double(), expected_var, rtol=1e-5, atol=1e-5)


def test_a_batch_that_is_not_finite_does_not_reach_the_buffers() -> None:
    layer: Any = SelfTuned.convert(nn.Sequential(nn.BatchNorm1d(2)))[0]  # type: ignore[index]
    data = torch.randn(12, 8, 2, generator=torch.Generator().manual_seed(0))
    for batch in data:
        layer(batch)
    before = copy_buffers(layer)
    layer(torch.full((8, 2), torch.nan))

    assert all(map(torch.equal, copy_buffers(layer), before))


def test_a_batch_whose_sum_overflows_reaches_the_buffers() -> None:
    """Float16 ends at 65,504: variances of 900 in 2,048 channels are finite, and their sum is not."""
    layer: Any = SelfTuned.convert(nn.Sequential(nn.BatchNorm1d(2048).half()))[0]  # type: ignore[index]
    data = 30 * torch.randn(4, 16, 2048, generator=torch.Generator().manual_seed(0))
    for batch in data.half():
        layer(batch)
    before = copy_buffers(layer)
    layer(data[0].half())

    assert not any(map(torch.equal, copy_buffers(layer), before))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("make_graph", [torch.fx.symbolic_trace, torch.jit.script], ids=["fx", "script"])
def test_a_graph_is_made_after_revert(make_graph: Any) -> None:
    model = make_trained(3)
    with pytest.raises(Exception, match=r"."):  # whatever torch raises of what it cannot trace
        make_graph(model.train())

    SelfTuned.revert(model)
    x = draw(1)[0]
    torch.testing.assert_close(make_graph(model.eval())(x), model(x))


def test_a_block_of_evaluation_leaves_the_averages_of_batches_that_wait() -> None:
    """Values that were copied before layers had settled would come back as somebody else's, and end averages."""
    model, expected = make_trained(6), make_trained(6)

    with restored(model):
        model.eval()
        model(*draw(1))

    assert momenta(model)["batches"].eq(6).all()
    for each in (model, expected):
        train(each.train(), draw(5, seed=5))
    assert is_equal(model, expected)


def test_statistics_without_their_count_are_a_start() -> None:
    """As checkpoints without `num_batches_tracked` have them, or `Statistics.write_to` a new model."""
    counted = make_trained(6)
    state = {key: value for key, value in counted.state_dict().items() if "num_batches" not in key}
    uncounted = make_plain()
    uncounted.load_state_dict(state, strict=False)
    plain_again = SelfTuned.revert(counted)
    for model in (uncounted, plain_again):
        SelfTuned.convert(model)
        train(model, draw(1, seed=7))

    assert_equal_statistics(running_statistics(uncounted), running_statistics(plain_again))


def test_a_layer_whose_forward_was_replaced_is_left_out_and_named() -> None:
    model = make_plain()
    layer = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    forward = layer.forward
    layer.forward = lambda *images: forward(*images)  # type: ignore[method-assign]

    with pytest.warns(UserWarning, match=r"SelfTuned\.convert: '1' "):
        SelfTuned.convert(model)

    assert type(layer) is nn.BatchNorm2d
