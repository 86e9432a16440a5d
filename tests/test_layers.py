"""Finding batch-norm layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bnlab import population_statistics, record, record_frozen, running_statistics
from bnlab.layers import batch_norm_layers, match_names
from tests.helpers import images, plain, residual


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
            r"\(1 InstanceNorm2d, 1 BatchNorm1d without running statistics skipped; only [^;]* are read\)$",
        ),
        (
            nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True)),
            None,
            r"\(1 InstanceNorm2d skipped; .*; InstanceNorm with track_running_stats=True .* in eval mode, .* to False$",
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


def test_weights_without_values() -> None:
    model = plain()
    model[3].to("meta")
    for call in (population_statistics, record_frozen):
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
