from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bnlab import storage
from bnlab.storage import load_tensors, save_tensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "empty": torch.empty(0, 3),
    "bytes": torch.tensor([1, 255], dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "double": torch.tensor([1.5], dtype=torch.float64),
}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    transposed = TENSORS["a"].T
    shared = TENSORS["a"][0]
    saved = {**TENSORS, "transposed": transposed, "shared": shared}

    save_tensors(path, saved, "kind/1", {"name": "é"})

    tensors, metadata = load_tensors(path, "kind/1")

    assert metadata["name"] == "é"
    assert tensors.keys() == {*TENSORS, "transposed", "shared"}

    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert torch.equal(tensors["transposed"], transposed)
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors"):
        load_tensors(path, "kind/1")
    save_tensors(path, {}, "kind/2", {})
    with pytest.raises(ValueError, match="expected format 'kind/1', found 'kind/2'"):
        load_tensors(path, "kind/1")
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="found 'none'"):
        load_tensors(path, "kind/1")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")

    def full(*arguments: object) -> None:
        raise storage.SafetensorError("I/O error: no space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_tensors(path, TENSORS, "kind/1", {})

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_a_file_that_the_system_refuses_is_named_and_what_was_there_stays(tmp_path: Path) -> None:
    """Here by a limit on the size of files, which is met in the middle of writing as a full disk is."""
    path = tmp_path / "tensors.safetensors"
    save_tensors(path, {"a": torch.zeros(10)}, "test", {})
    before = path.read_bytes()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
    try:
        with pytest.raises(OSError) as raised:
            save_tensors(path, {"a": torch.zeros(100_000)}, "test", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    assert raised.value.errno == errno.EFBIG
    assert raised.value.filename == str(path)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]
