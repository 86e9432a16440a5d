"""Every norm against its formula in float64, in training and after it, and what is recorded and measured of it."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from bnlab.harness.artifacts import norms
from bnlab.harness.artifacts.data import Split
from bnlab.harness.artifacts.models import ModelConfig, build_model
from bnlab.harness.artifacts.norms import FrozenNorm, GainControl, NormConfig, Norms
from bnlab.harness.artifacts.training import Batches, OptimizerConfig, Progress, Seeds, build_optimizer, train
from bnlab.harness.errors import UserError
from tests import references as ref

IMAGES, ROWS = (7, 4, 3, 5), (7, 4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal values in float64, each channel with a mean and a scale of its own."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.arange(1, shape[1] + 1, dtype=torch.float64).view(-1, *[1] * (len(shape) - 2))
    return x * scale + scale.square()


def build(config: NormConfig, channels: int = 4, of_images: bool = True) -> nn.Module:
    """A norm in float64 with drawn weights."""
    layer = Norms(config, of_images).build(channels).double()
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


SPLIT = Split(draw(24, 1, 8, 8).float(), torch.arange(24) % 10)
NETWORKS = [ModelConfig("cnn", 2, 8), ModelConfig("mlp", 2, 16), ModelConfig("resnet", 8, 8)]


@pytest.mark.parametrize("name", norms.NAMES)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_two_updates(network: ModelConfig, name: str) -> None:
    norm = NormConfig(name, groups=4)
    if network.name == "mlp" and name in ("instance", "gain_control"):
        with pytest.raises(UserError, match=f"^norm.name={name}: a unit of an mlp has one value"):
            build_model(network, norm, channels=1, image_size=8, classes=10, seed=0)
        return
    model = build_model(network, norm, channels=1, image_size=8, classes=10, seed=0)
    optimizer = OptimizerConfig(lr=0.01, lr_scaling="none", schedule="constant")
    # The first update of a weight of 0 before a branch leaves the branch as it is.
    progress, batches = Progress(model, build_optimizer(optimizer, model, 12), step=0), Batches(SPLIT, 12, Seeds.of(0))
    before = {key: value.clone() for key, value in model.named_parameters()}
    train(progress, batches, optimizer, 2, [])
    assert progress.step == 2 and progress.loss < 10
    assert not [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    averages = [value for key, value in model.named_buffers() if key.endswith("num_batches_tracked")]
    assert {int(value) for value in averages} <= {0 if name == "frozen" else 2}
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
    ("network", "norm", "found"),
    [
        (NETWORKS[0], NormConfig("batch_norm"), "norm.name=batch_norm: must be one of batch"),
        (NETWORKS[0], NormConfig("group", groups=0), "norm.groups=0: must be 1 or more"),
        (NETWORKS[0], NormConfig("group", groups=3), "norm.groups=3: must divide the channels; .*model.width=8"),
        (NETWORKS[1], NormConfig("group", groups=16), "model.width=16: 16 groups of one unit"),
        (ModelConfig("mlp", 2, 1), NormConfig("layer"), "model.width=1: 1 group of one unit"),
        (ModelConfig("resnet", 8, 8), NormConfig("instance"), "model.name=resnet, norm.name=instance: cannot take 1×4"),
        (ModelConfig("resnet", 8, 8), NormConfig("gain_control"), "cannot take 1×4×4 images .one pixel is its own"),
    ],
)  # fmt: skip
def test_norms_that_mean_nothing_are_refused(network: ModelConfig, norm: NormConfig, found: str) -> None:
    with pytest.raises(UserError, match=found):
        build_model(network, norm, channels=1, image_size=4, classes=10, seed=0)
