import subprocess
import sys

import pytest
import torch
from torch import nn

from bnlab.harness.artifacts.models import ModelConfig, build_model, check, load_weights
from bnlab.harness.artifacts.norms import NormConfig
from bnlab.harness.errors import UserError


def build(
    config: ModelConfig, channels: int = 1, image_size: int = 16, seed: int = 0, norm: NormConfig | None = None
) -> nn.Module:
    return build_model(config, norm, channels=channels, image_size=image_size, classes=7, seed=seed)


def norm_widths(model: nn.Module) -> list[int]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    return [module.num_features for module in model.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize(
    ("config", "widths"),
    [
        (ModelConfig("cnn"), [32, 64, 128]),
        (ModelConfig("cnn", depth=4, width=8, pool_every=2), [8, 8, 16, 16]),
        # 16 → 8 → 4 → 2 pixels: too few for a fourth pool, so the width stays.
        (ModelConfig("cnn", depth=6, width=4), [4, 8, 16, 32, 32, 32]),
        (ModelConfig("mlp", depth=2, width=5), [5, 5]),
        (ModelConfig("resnet", depth=8, width=4), [4, 4, 4, 8, 8, 16, 16]),
    ],
)
def test_widths_of_the_norm_layers(config: ModelConfig, widths: list[int]) -> None:
    assert norm_widths(build(config)) == widths


@pytest.mark.parametrize("depth", [20, 56])
def test_resnet_has_the_stated_number_of_weight_layers(depth: int) -> None:
    model = build(ModelConfig("resnet", depth=depth, width=16), channels=3)
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules()) == depth


def test_resnet20_has_the_parameters_of_the_paper() -> None:
    # He et al. 2015, table 6: 0.27 M.
    model = build_model(ModelConfig("resnet", depth=20, width=16), channels=3, image_size=32, classes=10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 269_722


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet", "resnet18", "googlenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_network_trains_on_grey_and_on_colour(name: str, channels: int) -> None:
    model = build(ModelConfig(name, depth=8, width=4), channels, image_size=32)
    assert model.training
    logits = model(torch.randn(3, channels, 32, 32))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["cnn", "mlp", "resnet", "mobilenet_v2"])
def test_weights_depend_on_the_seed_alone_and_the_caller_keeps_the_random_state(name: str) -> None:
    config = ModelConfig(name, depth=8, width=4)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(config, image_size=32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = build(config, image_size=32), build(config, image_size=32, seed=1)
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_building_leaves_the_running_statistics_at_their_start() -> None:
    for module in build(ModelConfig()).modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and not module.running_mean.any()
            assert module.num_batches_tracked == 0


def test_kernels_are_channels_last() -> None:
    kernel = build(ModelConfig())[4].weight  # type: ignore[index]
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_a_grey_network_sees_what_the_colour_network_sees_in_three_equal_channels() -> None:
    grey, colour = (build(ModelConfig("resnet18"), channels, image_size=32).eval() for channels in (1, 3))
    image = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(image), colour(image.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (ModelConfig("resnet"), "model.depth=3: a resnet has 6n+2 layers"),
        (ModelConfig("resnet", depth=2), "model.depth=2"),
        (ModelConfig("cnn", depth=0), "model.depth=0: must be 1 or more"),
        (ModelConfig("mlp", width=-1), "model.width=-1: must be 1 or more"),
        (ModelConfig("cnn", pool_every=0), "model.pool_every=0: must be 1 or more"),
        (ModelConfig("resnet19"), "model.name=resnet19: unknown; use cnn, resnet, mlp or a torchvision"),
        (ModelConfig("fcn_resnet50"), "model.name=fcn_resnet50: unknown"),
    ],
)
def test_bad_settings_are_named(config: ModelConfig, found: str) -> None:
    with pytest.raises(UserError, match="^" + found.replace("+", r"\+")):
        check(config, NormConfig())


@pytest.mark.parametrize(("name", "size"), [("alexnet", 16), ("vit_b_32", 32)])
def test_images_that_a_network_cannot_take_are_refused_when_it_is_built(name: str, size: int) -> None:
    with pytest.raises(UserError, match=f"model.name={name}: cannot take 3×{size}×{size} images"):
        build(ModelConfig(name), channels=3, image_size=size)


def test_torchvision_loads_in_a_fresh_process_and_its_absence_is_a_user_error() -> None:
    code = """
import sys
from bnlab.harness.errors import UserError
from bnlab.harness.artifacts.vision import torchvision
assert "torchvision" not in sys.modules
assert torchvision().models.resnet18 and torchvision().datasets.MNIST and torchvision() is torchvision()
torchvision.cache_clear()
sys.modules["torchvision"] = None
try:
    torchvision()
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "torchvision is not installed; pip install 'bnlab[harness]'\n"


@pytest.mark.parametrize(
    "config", [ModelConfig("cnn", 6, 32, 9), ModelConfig("mlp", 6, 256), ModelConfig("resnet", 56)]
)
def test_without_a_norm_the_scale_of_activations_is_kept(config: ModelConfig) -> None:
    model = build(config, image_size=32, norm=NormConfig("none"))
    assert not norm_widths(model)
    images = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    scales: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.ReLU):  # in place: the second moment that He et al. keep at 1
            module.register_forward_hook(lambda _, __, out: scales.append(out.square().mean().item()))
    model(images)
    assert len(scales) >= (1 if config.name == "resnet" else 6) and all(0.3 < scale < 3 for scale in scales)


def test_a_residual_block_without_a_norm_begins_as_its_shortcut() -> None:
    block = build(ModelConfig("resnet", 8, 8), norm=NormConfig("none"))[3]  # type: ignore[index]
    images = torch.rand(2, 8, 16, 16)
    assert torch.equal(block(images), images)


def test_a_norm_that_the_network_cannot_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"^norm\.name=none: resnet18 has normalization of its own"):
        check(ModelConfig("resnet18"), NormConfig("none"))


def test_weights_of_a_file_are_of_the_newest_format() -> None:
    """A file has tensors alone; some of torchvision's networks ask for the version of their format."""
    model, other = (build(ModelConfig("mnasnet0_5"), channels=3, image_size=32, seed=seed) for seed in (0, 1))
    load_weights(other, dict(model.state_dict()))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
