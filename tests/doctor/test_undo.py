"""Undo files: the old buffers come back in another process, and into no other model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bnlab
from bnlab.doctor import undo_from_file
from tests.helpers import images, plain, unchanged


def recalibrate(model: nn.Module, path: Path) -> None:
    """Recalibrate a model and save how this is undone."""
    bnlab.recalibrate(model, images(8, 4)).save_undo(path)


def test_old_buffers_come_back_bit_for_bit_whatever_buffers_hold_now(tmp_path: Path) -> None:
    model: Any = plain()
    model[1].running_mean[0] = torch.nan
    path = tmp_path / "undo.safetensors"

    with unchanged(model):
        recalibrate(nn.DataParallel(model), path)
        assert undo_from_file(model, path) == ("1", "4")

    old = copy.deepcopy(model.state_dict())
    model.train()(images(8)[0])
    undo_from_file(model, path)
    assert torch.equal(model[4].running_var, old["4.running_var"])

    saved = load_file(path)  # by the names of a state dict
    assert set(saved) == {f"{layer}.{name}" for layer in (1, 4) for name in ("running_mean", "running_var")}
    assert torch.equal(saved["4.running_mean"], old["4.running_mean"])


class NamedTwice(nn.Module):
    """Has its batch norms once more by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.network = plain()
        self.norms = nn.ModuleList([self.network[1], self.network[4]])

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]


def test_buffers_with_two_names_may_hold_anything_too(tmp_path: Path) -> None:
    model = NamedTwice()
    path = tmp_path / "undo.safetensors"
    recalibrate(model, path)

    model.train()(images(8)[0])

    assert undo_from_file(model.eval(), path) == ("network.1", "network.4")


def test_other_weights_are_named(tmp_path: Path) -> None:
    model: Any = plain()
    recalibrate(model, tmp_path / "undo.safetensors")
    model[3].weight.data[0, 0, 0, 0] += 1e-3

    with unchanged(model), pytest.raises(ValueError, match=r"other weights or another model: '3\.weight' differs"):
        undo_from_file(model, tmp_path / "undo.safetensors")


def test_another_model_is_refused(tmp_path: Path) -> None:
    recalibrate(plain(), tmp_path / "undo.safetensors")
    for model in (plain(width=7), plain()[:5]):
        with unchanged(model), pytest.raises(ValueError, match="another model"):
            undo_from_file(model, tmp_path / "undo.safetensors")

    recalibrate(nn.Sequential(nn.BatchNorm2d(3, affine=False)), tmp_path / "undo.safetensors")
    with pytest.raises(ValueError, match=r"'0\.running_mean'"):  # told apart by its channels alone
        undo_from_file(nn.Sequential(nn.BatchNorm2d(4, affine=False)), tmp_path / "undo.safetensors")


def test_files_that_are_no_undo_files(tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    bnlab.running_statistics(plain()).save(path)

    with pytest.raises(ValueError, match=r"expected format 'bnlab\.Undo/1'"):
        undo_from_file(plain(), path)
    with pytest.raises(FileNotFoundError):
        undo_from_file(plain(), tmp_path / "nowhere")


def test_what_cannot_be_undone_is_not_saved(tmp_path: Path) -> None:
    model: Any = plain().train()
    written = bnlab.recalibrate(model, images(8))
    model(images(8)[0])

    with pytest.raises(RuntimeError, match="save_undo: the running statistics of '1', '4' have been written since"):
        written.save_undo(tmp_path / "undo.safetensors")

    model[1].eval()
    model[4].eval()
    frozen = bnlab.recalibrate(model, images(8))
    with pytest.raises(ValueError, match="save_undo: nothing was written"):
        frozen.save_undo(tmp_path / "undo.safetensors")
    assert not list(tmp_path.iterdir())


class Wrapper(nn.Module):
    """A norm of its own around a backbone that is called as a wrapper calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.module = nn.ModuleDict({"bn": nn.BatchNorm2d(3)})

    def forward(self, x: Tensor) -> Tensor:
        return self.module["bn"](self.bn(x) + x)  # type: ignore[no-any-return]


def test_layers_that_a_file_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    recalibration = bnlab.recalibrate(Wrapper(), images(8, 4))

    with pytest.raises(ValueError, match="two layers have the same name but for what wrappers add"):
        recalibration.save_undo(tmp_path / "undo.safetensors")

    assert not list(tmp_path.iterdir())
    recalibration.undo()


def test_a_recalibration_is_a_block_once() -> None:
    """Its end puts the old statistics back, under which a second block would evaluate."""
    model = plain()
    recalibration = bnlab.recalibrate(model, images(8, 4))
    with recalibration, pytest.raises(RuntimeError, match="was undone, or is a block already"), recalibration:
        pass
    with pytest.raises(RuntimeError, match="call recalibrate again for another block"), recalibration:
        pass
