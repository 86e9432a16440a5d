from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bnlab import storage
from bnlab.storage import load_tensors, save_tensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(3),
    "bytes": torch.tensor([1, 255], dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "double": torch.tensor([1.5], dtype=torch.float64),
}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    transposed = TENSORS["a"].T
    save_tensors(path, {**TENSORS, "transposed": transposed, "shared": TENSORS["a"][0]}, "kind/1", {"name": "é"})
    tensors, metadata = load_tensors(path, "kind/1")
    assert metadata["name"] == "é" and tensors.keys() == {*TENSORS, "transposed", "shared"}
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    assert torch.equal(tensors["transposed"], transposed)
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": TENSORS["a"], "b": TENSORS["bytes"]}, "kind/1", {"step": "3"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place * 5 % 8)
        path.write_bytes(flipped)
        try:
            tensors, metadata = load_tensors(path, "kind/1")
        except ValueError as error:
            assert str(path) in str(error)
        else:  # a space in the header's padding
            assert metadata["step"] == "3" and torch.equal(tensors["a"], TENSORS["a"])
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            load_tensors(path, "kind/1")


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_tensors(path, "kind/1")
    path.mkdir()
    with pytest.raises(ValueError, match=r"x.safetensors: is a folder, expected a file"):
        load_tensors(path, "kind/1")
    path.rmdir()
    save_tensors(path, {}, "kind/2", {})
    with pytest.raises(ValueError, match="expected format 'kind/1', found 'kind/2'"):
        load_tensors(path, "kind/1")
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="found 'none'"):
        load_tensors(path, "kind/1")


def test_a_copy_of_another_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, "kind/1", {"name": "a"}, {"run": "a1", "step": "3"})
    for about in ({}, {"run": "a1"}, {"step": "3", "later": "does not say"}):
        assert load_tensors(path, "kind/1", about=about)[1] == {
            "name": "a",
            "run": "a1",
            "step": "3",
            "format": "kind/1",
        }
    with pytest.raises(ValueError, match=r"x.safetensors: is of step 3, expected 4"):
        load_tensors(path, "kind/1", about={"run": "a1", "step": "4"})
    with pytest.raises(ValueError, match=r"about: the file has format, name by itself; choose other keys"):
        save_tensors(path, TENSORS, "kind/1", {"name": "a"}, {"name": "b", "format": "c", "run": "d"})


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")

    def full(*arguments: object) -> None:
        raise storage.SafetensorError("I/O error: no space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_tensors(path, TENSORS, "kind/1", {})
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.safetensors"]
