"""Every norm against its formula in float64, in training and after it, and what is recorded and measured of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnlab
from bnlab.estimators import EMA
from bnlab.harness.artifacts import norms
from bnlab.harness.artifacts.data import Split
from bnlab.harness.artifacts.models import ModelConfig, build_model
from bnlab.harness.artifacts.norms import BatchRenorm, FrozenNorm, GainControl, GhostNorm, NormConfig, Norms
from bnlab.harness.artifacts.training import Batches, OptimizerConfig, Progress, Seeds, build_optimizer, train
from bnlab.harness.errors import UserError
from bnlab.recording.frozen import record_frozen
from bnlab.recording.trace import replay
from tests import references as ref

IMAGES, ROWS = (7, 4, 3, 5), (7, 4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal values in float64, each channel with a mean and a scale of its own."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.arange(1, shape[1] + 1, dtype=torch.float64).view(-1, *[1] * (len(shape) - 2))
    return x * scale + scale.square()


def build(config: NormConfig, channels: int = 4, of_images: bool = True, steps: int = 1, number: int = 1) -> nn.Module:
    """A norm in float64 with drawn weights."""
    layer = Norms(config, of_images, steps).build(channels, number).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


@pytest.mark.parametrize(
    ("config", "of_images", "groups"),
    [
        (NormConfig("group", groups=2), True, 2),
        (NormConfig("group", groups=2), False, 2),
        (NormConfig("layer"), True, 1),
        (NormConfig("layer"), False, 1),
        (NormConfig("instance"), True, 4),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
@pytest.mark.parametrize("training", [True, False])
def test_torchs_norms_of_single_images(config: NormConfig, of_images: bool, groups: int, training: bool) -> None:
    layer, x = build(config, of_images=of_images), draw(*(IMAGES if of_images else ROWS))
    expected = ref.scale_channels(ref.group_normalize(x, groups), layer.weight, layer.bias)
    torch.testing.assert_close(layer.train(training)(x), expected)
    torch.testing.assert_close(layer(x[:1]), expected[:1])  # an image alone


@pytest.mark.parametrize("of_images", [True, False])
def test_a_frozen_norm_is_a_scale_and_a_shift_in_training_too(of_images: bool) -> None:
    layer, x = build(NormConfig("frozen"), of_images=of_images), draw(*(IMAGES if of_images else ROWS))
    assert isinstance(layer, FrozenNorm)
    for mode in (True, False):
        layer.train(mode)
        expected = ref.scale_channels(x, layer.norm.weight / (1 + 1e-5) ** 0.5, layer.norm.bias)
        torch.testing.assert_close(layer(x), expected)
        assert layer.training == mode and not layer.norm.training
    assert layer.norm.num_batches_tracked == 0 and not layer.norm.running_mean.any()


def test_gain_control() -> None:
    layer, x = build(NormConfig("gain_control")), draw(*IMAGES)
    assert isinstance(layer, GainControl)
    expected = ref.control_gain(x, layer.share, layer.gain, layer.shift)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), expected)
    torch.testing.assert_close(layer(x[:1]), expected[:1])
    parameters = [layer.share, layer.gain, layer.shift]
    call = torch.func.functional_call
    assert torch.autograd.gradcheck(
        lambda x, *values: call(layer, dict(zip(("share", "gain", "shift"), values, strict=True)), x),
        [x[:2].requires_grad_(), *(p.detach().requires_grad_() for p in parameters)],
    )
    with pytest.raises(ValueError, match="one pixel is its own mean"):
        layer(x[:, :, :1, :1])


def test_gain_control_keeps_the_second_moment_of_independent_pixels() -> None:
    model = build_model(ModelConfig("cnn", 12, 32, 99), NormConfig("gain_control"), channels=1, image_size=24,
                        classes=2, seed=0)  # fmt: skip
    scales: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, __, out: scales.append(out.square().mean().item()))
    model(torch.randn(16, 1, 24, 24, generator=torch.Generator().manual_seed(0)))
    assert all(0.4 < scale < 2.5 for scale in scales), scales


@pytest.mark.parametrize("size", [2, 3, 8, 32])
def test_parts_of_a_ghost_batch(size: int) -> None:
    for images in range(2, 3 * size + 2):
        parts = ref.split_ghosts(torch.arange(images), size)
        assert torch.cat(parts).tolist() == list(range(images))
        assert images < size or min(map(len, parts)) >= size > max(map(len, parts)) - size


@pytest.mark.parametrize("images", [2, 5, 8, 11])
def test_a_ghost_norm_normalizes_each_part_in_training_and_all_by_its_averages_after_it(images: int) -> None:
    layer, x = build(NormConfig("ghost", batch_size=4)), draw(images, 4, 3, 5)
    assert isinstance(layer, GhostNorm)
    parts, weight, bias = ref.split_ghosts(x, 4), layer.norm.weight, layer.norm.bias
    assert len(parts) == {2: 1, 5: 1, 8: 2, 11: 2}[images]
    expected = torch.cat([ref.scale_channels(ref.batch_normalize(part), weight, bias) for part in parts])
    torch.testing.assert_close(layer(x), expected)
    mean, var = ref.running_ema(parts, 0.1)[-1]
    torch.testing.assert_close(layer.norm.running_mean, mean)
    torch.testing.assert_close(layer.norm.running_var, var)
    channels = [(x[:, c] - mean[c]) / (var[c] + 1e-5).sqrt() for c in range(4)]
    expected = ref.scale_channels(torch.stack(channels, dim=1), weight, bias)
    torch.testing.assert_close(layer.eval()(x), expected)


def test_gradients_of_a_ghost_norm_stay_in_their_part() -> None:
    layer, x = build(NormConfig("ghost", batch_size=3)), draw(6, 4).unsqueeze(2).unsqueeze(3).requires_grad_()
    layer(x)[:3].square().sum().backward()
    assert x.grad is not None and x.grad[:3].any() and not x.grad[3:].any()


class TwoNorms(nn.Module):
    """Two norms with a convolution between them, as plain batch norms or in parts."""

    def __init__(self, config: NormConfig) -> None:
        super().__init__()
        self.first, self.second = build(config, 3), build(config, 4)
        self.conv = nn.Conv2d(3, 4, 3, bias=False).double()
        with torch.no_grad():
            weights = torch.randn(self.conv.weight.shape, generator=torch.Generator().manual_seed(2))
            self.conv.weight.copy_(weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(x)).relu())  # type: ignore[no-any-return]


GHOST, PLAIN = TwoNorms(NormConfig("ghost", batch_size=4)), TwoNorms(NormConfig("batch"))
PLAIN.load_state_dict({key.replace("norm.", ""): value for key, value in GHOST.state_dict().items()})
BATCHES = [draw(9, 3, 5, 5, seed=1), draw(8, 3, 5, 5, seed=2), draw(3, 3, 5, 5, seed=3)]
PARTS = [part for batch in BATCHES for part in ref.split_ghosts(batch, 4)]


def compare(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Statistics by layer, whatever wraps the layers."""
    assert [name.removesuffix(".norm") for name in found] == list(expected)
    for mine, theirs in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(mine.mean, theirs.mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(mine.var, theirs.var, rtol=tolerance, atol=tolerance)


def test_each_part_of_a_ghost_batch_is_an_entry_of_the_same_step() -> None:
    model = copy.deepcopy(GHOST)
    twin, inputs = copy.deepcopy(PLAIN), []
    twin.second.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with bnlab.record(model) as trace:
        for batch in BATCHES:
            model(batch)
    for part in PARTS:
        twin(part)
    for name, parts in (("first.norm", PARTS), ("second.norm", inputs)):
        layer = trace.layers[name]
        assert layer.steps == [1, 1, 2, 2, 3]
        assert layer.counts == [part[:, 0].numel() for part in parts]
        for entry, part in zip(layer.moments, parts, strict=True):
            torch.testing.assert_close(entry, torch.stack(ref.unbiased(part)))
    found = replay(trace, EMA(0.1), [1, 2, 3])
    for step, seen in ((1, 2), (2, 4), (3, 5)):
        mean, var = ref.running_ema(PARTS, 0.1)[seen - 1]
        torch.testing.assert_close(found[step]["first.norm"].mean, mean)
        torch.testing.assert_close(found[step]["first.norm"].var, var)
    torch.testing.assert_close(model.first.norm.running_var, found[3]["first.norm"].var)


def test_exact_statistics_of_a_ghost_norm_are_those_of_its_batch_norm() -> None:
    found = bnlab.population_statistics(GHOST, BATCHES)
    compare(found, bnlab.population_statistics(PLAIN, BATCHES), tolerance=0)
    compare(found, ref.full_batch_population(PLAIN, torch.cat(BATCHES)))


def test_precise_statistics_of_a_ghost_norm_are_of_batches_in_parts() -> None:
    found = bnlab.population_statistics(GHOST, BATCHES, upstream="batch")
    compare(found, ref.batch_upstream_population(PLAIN, PARTS))
    trace = record_frozen(GHOST, BATCHES)
    assert [layer.steps for layer in trace.layers.values()] == [[1, 1, 2, 2, 3]] * 2


LIMITS = [(1.0, 0.0), (1.5, 0.5), (3.0, 5.0)]


@pytest.mark.parametrize("of_images", [True, False])
@pytest.mark.parametrize(("r_max", "d_max"), LIMITS)
def test_batch_renorm(of_images: bool, r_max: float, d_max: float, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = tuple(torch.tensor(value, dtype=torch.float64) for value in (r_max, d_max))
    monkeypatch.setattr(BatchRenorm, "limits", lambda _: limits)
    layer = build(NormConfig("renorm", momentum=0.3), of_images=of_images)
    assert isinstance(layer, BatchRenorm)
    weight, bias = layer.norm.weight, layer.norm.bias
    batches = [draw(*(IMAGES if of_images else ROWS), seed=seed) for seed in range(4)]
    running = torch.zeros(4).double(), torch.ones(4).double()
    for number, batch in enumerate(batches):
        r, d = torch.tensor(ref.renorm_corrections(batch, running, r_max, d_max), dtype=torch.float64).T
        x, twin = batch.clone().requires_grad_(), batch.clone().requires_grad_()
        dims = [0, *range(2, batch.dim())]
        mean, var = twin.mean(dims, keepdim=True), twin.var(dims, correction=0, keepdim=True)
        expected = ref.scale_channels(ref.scale_channels((twin - mean) / (var + 1e-5).sqrt(), r, d), weight, bias)
        y, towards = layer(x), draw(*batch.shape, seed=9)
        torch.testing.assert_close(y, expected)
        for mine, theirs in zip(
            torch.autograd.grad((y * towards).sum(), [x, weight, bias]),
            torch.autograd.grad((expected * towards).sum(), [twin, weight, bias]),
            strict=True,
        ):
            torch.testing.assert_close(mine, theirs)
        running = ref.running_ema(batches[: number + 1], 0.3)[-1]
        torch.testing.assert_close(layer.norm.running_mean, running[0])
        torch.testing.assert_close(layer.norm.running_var, running[1])
    torch.testing.assert_close(layer.eval()(batches[0]), layer.norm(batches[0]))


def test_without_limits_batch_renorm_normalizes_by_its_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = torch.tensor(1e9).double(), torch.tensor(1e9).double()
    monkeypatch.setattr(BatchRenorm, "limits", lambda _: limits)
    layer, x = build(NormConfig("renorm", momentum=0.5)), draw(*IMAGES)
    layer(x)
    expected = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), expected)


def test_the_limits_of_batch_renorm_rise_at_the_shares_of_the_paper() -> None:
    layer = build(NormConfig("renorm"), steps=260)
    assert isinstance(layer, BatchRenorm) and layer.norm.momentum == 0.01
    for update in range(100):
        limits = tuple(float(limit) for limit in layer.limits())
        assert limits == pytest.approx(ref.renorm_limits(update, 260))
        assert limits == {0: (1, 0), 10: (1, 0), 50: (pytest.approx(15 / 7), 5), 80: (3, 5)}.get(update, limits)
        layer(draw(3, 4, 1, 1))


def test_a_batch_renorm_is_recorded_as_a_batch_norm_and_reads_its_own_averages_meanwhile() -> None:
    model, alone = (TwoNorms(NormConfig("renorm", momentum=0.2)) for _ in range(2))
    with bnlab.record(model) as trace:
        outputs = [model(batch) for batch in BATCHES]
    for output, batch in zip(outputs, BATCHES, strict=True):
        torch.testing.assert_close(output, alone(batch))
    assert [layer.steps for layer in trace.layers.values()] == [[1, 2, 3]] * 2
    found = replay(trace, EMA(0.2), [3])[3]
    mean, var = ref.running_ema(BATCHES, 0.2)[-1]
    torch.testing.assert_close(found["first.norm"].mean, mean)
    torch.testing.assert_close(found["first.norm"].var, var)
    for name in ("first", "second"):
        torch.testing.assert_close(getattr(model, name).norm.running_var, found[f"{name}.norm"].var)


def test_statistics_of_frozen_weights_are_those_of_the_batch_norm_inside_of_a_renorm() -> None:
    model = TwoNorms(NormConfig("renorm"))
    model.load_state_dict(GHOST.state_dict())
    compare(bnlab.population_statistics(model, BATCHES), ref.full_batch_population(PLAIN, torch.cat(BATCHES)))
    found = bnlab.population_statistics(model, BATCHES, upstream="batch")
    compare(found, ref.batch_upstream_population(PLAIN, BATCHES))


SPLIT = Split(draw(24, 1, 8, 8).float(), torch.arange(24) % 10)
NETWORKS = [ModelConfig("cnn", 2, 8), ModelConfig("mlp", 2, 16), ModelConfig("resnet", 8, 8)]


@pytest.mark.parametrize("name", norms.NAMES)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_two_updates(network: ModelConfig, name: str) -> None:
    norm = NormConfig(name, batch_size=4, groups=4)
    if network.name == "mlp" and name in ("instance", "gain_control"):
        with pytest.raises(UserError, match=f"^norm.name={name}: a unit of an mlp has one value"):
            build_model(network, norm, channels=1, image_size=8, classes=10, seed=0)
        return
    model = build_model(network, norm, channels=1, image_size=8, classes=10, seed=0, steps=2)
    optimizer = OptimizerConfig(lr=0.01, lr_scaling="none", schedule="constant")
    # The first update of a weight of 0 before a branch leaves the branch as it is.
    progress, batches = Progress(model, build_optimizer(optimizer, model, 12), step=0), Batches(SPLIT, 12, Seeds.of(0))
    before = {key: value.clone() for key, value in model.named_parameters()}
    train(progress, batches, optimizer, 2, [])
    assert progress.step == 2 and progress.loss < 10
    assert not [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    averages = [value for key, value in model.named_buffers() if key.endswith("num_batches_tracked")]
    assert {int(value) for value in averages} <= {{"ghost": 6, "frozen": 0}.get(name, 2)}
    assert bool(averages) == (name in (*norms.RECORDED, "frozen"))


@pytest.mark.parametrize("name", ["group", "layer", "instance", "gain_control", "frozen", "none"])
def test_batches_of_one_image(name: str) -> None:
    model = build_model(NETWORKS[0], NormConfig(name, groups=4), channels=1, image_size=8, classes=10, seed=0)
    optimizer, batches = OptimizerConfig(lr=0.01, schedule="constant"), Batches(SPLIT, 1, Seeds.of(0))
    assert batches.per_epoch == 24 and {len(labels) for _, labels in islice(batches.from_step(0), 30)} == {1}
    progress = Progress(model, build_optimizer(optimizer, model, 1), step=0)
    train(progress, batches, optimizer, 3, [])
    assert progress.step == 3


@pytest.mark.parametrize(
    ("network", "kinds"),
    [
        (ModelConfig("cnn", 5, 8, 5), "bgbgb"),
        (ModelConfig("mlp", 4, 16), "bgbg"),
        (ModelConfig("resnet", 14, 8), "b" + "bg" * 6),
    ],
    ids=["cnn", "mlp", "resnet"],
)
@pytest.mark.parametrize("name", norms.RECORDED)
def test_every_second_norm(network: ModelConfig, kinds: str, name: str) -> None:
    norm = NormConfig(name, groups=4, every_second="group")
    model = build_model(network, norm, channels=1, image_size=8, classes=10, seed=0)
    known = {nn.BatchNorm1d: "b", nn.BatchNorm2d: "b", nn.GroupNorm: "g"}
    layers = [module for module in model.modules() if type(module) in known]
    assert "".join(known[type(layer)] for layer in layers) == kinds
    assert {layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)} == {4}
    usual = build_model(network, replace(norm, every_second="none"), channels=1, image_size=8, classes=10, seed=0)
    weights = zip(model.parameters(), usual.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in weights)  # both norms start at 1 and 0


@pytest.mark.parametrize(
    ("network", "norm", "found"),
    [
        (NETWORKS[0], NormConfig("batch_norm"), "norm.name=batch_norm: must be one of batch"),
        (NETWORKS[0], NormConfig("ghost", batch_size=1), "norm.batch_size=1: one image has no batch statistics"),
        (NETWORKS[0], NormConfig("group", groups=0), "norm.groups=0: must be 1 or more"),
        (NETWORKS[0], NormConfig("group", groups=3), "norm.groups=3: must divide the channels; .*model.width=8"),
        (NETWORKS[0], NormConfig(groups=3, every_second="group"), "norm.groups=3: must divide"),
        (NETWORKS[1], NormConfig("group", groups=16), "model.width=16: 16 groups of one unit"),
        (ModelConfig("mlp", 2, 1), NormConfig("layer"), "model.width=1: 1 group of one unit"),
        (NETWORKS[0], NormConfig("renorm", momentum=0.0), "norm.momentum=0.0: is the weight of the new batch"),
        (NETWORKS[0], NormConfig("renorm", momentum=1.5), "norm.momentum=1.5"),
        (NETWORKS[0], NormConfig(every_second="layer"), "norm.every_second=layer: must be one of none, group"),
        (NETWORKS[0], NormConfig("layer", every_second="group"), "norm.every_second=group: stands in for a norm"),
        (ModelConfig("resnet18"), NormConfig("ghost"), "norm.name=ghost: resnet18 has normalization of its own"),
        (ModelConfig("resnet18"), NormConfig(every_second="group"), "norm.every_second=group: resnet18 has"),
        (ModelConfig("resnet", 8, 8), NormConfig("instance"), "model.name=resnet, norm.name=instance: cannot take 1×4"),
        (ModelConfig("resnet", 8, 8), NormConfig("gain_control"), "cannot take 1×4×4 images .one pixel is its own"),
    ],
)  # fmt: skip
def test_norms_that_mean_nothing_are_refused(network: ModelConfig, norm: NormConfig, found: str) -> None:
    with pytest.raises(UserError, match=found):
        build_model(network, norm, channels=1, image_size=4, classes=10, seed=0)
