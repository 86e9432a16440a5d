"""What `before=` may be, how it is read, and what it tells."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.masked import masked_tensor

from bnlab.common.checkpoints import read_state
from bnlab.doctor.diagnose import diagnose
from bnlab.doctor.history import compare_with_before
from bnlab.doctor.patient import Patient
from tests.doctor import digits
from tests.helpers import unchanged


@pytest.fixture
def model() -> nn.Sequential:
    return digits.make_healthy(0)


def stretch(model: nn.Module) -> None:
    """Stretch weights in front of batch norms, whose averages stay: exact statistics undo it to the last digit."""
    for name, factor in (("3", 3.0), ("6", 2.0)):
        conv: Any = model.get_submodule(name)
        conv.weight.data.mul_(factor)
        conv.bias.data.mul_(factor)


def move(model: nn.Module) -> None:
    """Move averages, and no weight."""
    for name in ("4", "7"):
        norm: Any = model.get_submodule(name)
        norm.running_mean.add_(1.5 * norm.running_var.sqrt())


def forget(model: nn.Module) -> None:
    """Put noise over the weights, and averages that are right for these: training has spoiled the network."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(0.7 * parameter.data.std() * torch.randn_like(parameter))
    norms: Any = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for images, _ in digits.make_training_batches():
            model(images)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()


def save_torch(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "before.pt")
    return folder / "before.pt"


def save_checkpoint(model: nn.Module, folder: Path) -> str:
    """Save as trainers do, from within DataParallel."""
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {}}}, folder / "checkpoint.pth")
    return str(folder / "checkpoint.pth")


def save_safetensors(model: nn.Module, folder: Path) -> Path:
    save_file(model.state_dict(), folder / "before.safetensors")
    return folder / "before.safetensors"


FORMS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "module": lambda model, folder: model,
    "wrapped module": lambda model, folder: nn.DataParallel(model),
    "state dict": lambda model, folder: model.state_dict(),
    "torch's file": save_torch,
    "checkpoint": save_checkpoint,
    "safetensors": save_safetensors,
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_before_say_the_same(model: nn.Sequential, form: str, tmp_path: Path) -> None:
    """Of a wrapped model too, whose names begin with `module.`."""
    before = FORMS[form](digits.make_healthy(0), tmp_path)
    stretch(model)

    for spoiled in (model, nn.DataParallel(model)):
        with unchanged(spoiled):
            diagnosis = diagnose(spoiled, digits.make_batches(), before=before)
        assert (diagnosis.verdict, diagnosis.causes) == ("averages", ["BN106"])
        assert "4 weights have changed since before=, and the averages of 2 layers have not" in str(diagnosis)


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_a_weight_that_cannot_be_compared_has_changed(model: nn.Sequential) -> None:
    """Neither masked tensors nor torchao's quantized weights know a comparison."""
    before = {**model.state_dict(), "rate": torch.ones(3)}
    quantized = masked_tensor(torch.ones(3), torch.ones(3, dtype=torch.bool))
    model.register_parameter("rate", nn.Parameter(quantized, requires_grad=False))

    history = compare_with_before(Patient(model, digits.make_batches(), before=before))

    assert history is not None
    assert history.changed == ["rate"]


TOLD: dict[str, tuple[Callable[[nn.Module], None], str, str, str]] = {
    "stretched": (stretch, "averages", "BN106", "4 weights have changed since before="),
    "moved": (
        move,
        "averages",
        "BN104",
        "averages of 2 layers that have moved since before=, where no weight has",
    ),
    "forgotten": (forget, "network", "BN305", "all that was changed since before="),
}


@pytest.mark.parametrize("fault", TOLD)
def test_before_tells_what_has_changed(model: nn.Sequential, fault: str) -> None:
    spoil, verdict, code, words = TOLD[fault]
    spoil(model)

    with unchanged(model):
        diagnosis = diagnose(model, digits.make_batches(), before=digits.make_healthy(0))

    assert (diagnosis.verdict, diagnosis.causes) == (verdict, [code])
    assert words in str(diagnosis)
    assert "before" not in diagnosis.asks
    # Without it another cause is named, or none: what tells is before=.
    assert code not in diagnose(model, digits.make_batches()).causes


def test_a_network_of_another_shape_is_no_earlier_one(model: nn.Sequential) -> None:
    """It cannot be tried in this one's place."""
    earlier = nn.Sequential(*list(digits.make_healthy(0).children())[:-1], nn.Linear(128, 7))
    forget(model)
    with unchanged(model):
        diagnosis = diagnose(model, digits.make_batches(), before=earlier)
    assert "BN305" not in diagnosis.table["code"].tolist()


# -- reading -----------------------------------------------------------------------------------------------------------


class Leaves:
    """Leaves a file behind where it is loaded."""

    def __reduce__(self) -> Any:
        return open, ("was_run", "w")


@pytest.mark.parametrize("content", [nn.Linear(1, 1), {"state_dict": {}, "extra": Leaves()}])
def test_objects_in_a_file_are_refused_and_not_run(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "before.pt")
    with contextlib.chdir(tmp_path):
        with pytest.raises(ValueError, match=r"before .*before\.pt: cannot be read .*can run code") as raised:
            diagnose(digits.make_healthy(0), before=tmp_path / "before.pt")
        assert not Path("was_run").exists()
    assert "weights_only" not in str(raised.value)


@pytest.mark.parametrize(
    ("source", "error", "named"),
    [
        (3, TypeError, "here is a int; pass a module, a state dict, or a file of one"),
        ("nowhere.pt", ValueError, r"here nowhere\.pt: no such file"),
        ("damaged.safetensors", ValueError, r"here damaged\.safetensors: cannot be read"),
        ("list.pt", TypeError, r"here list\.pt is a list"),
    ],
)
def test_what_is_no_state_dict(source: Any, error: type[Exception], named: str, tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    torch.save([1, 2], tmp_path / "list.pt")
    with contextlib.chdir(tmp_path), pytest.raises(error, match=named):
        read_state(source, "here")


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_weights_are_found_in_what_trainers_save(key: str) -> None:
    state = {"0.weight": torch.ones(1)}
    assert read_state({"epoch": 3, key: state, "optimizer": {"state": {}}}, "here") is state
    # A model whose own tensor has that name is no checkpoint.
    assert [*read_state({key: torch.ones(1)}, "here")] == [key]
