"""Files are there whole or not at all, and those that cannot be read are named."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from bnlab import Moments, MomentTrace, Statistics
from bnlab.common.files import Unreadable, quarantine, reading


def make_statistics(channels: int) -> Statistics:
    zeros = torch.zeros(channels, dtype=torch.float64)
    return Statistics({"é": Moments(3, zeros, zeros)}, {"é": 0.1})


@pytest.mark.parametrize(("kind", "other"), [(Statistics, MomentTrace), (MomentTrace, Statistics)])
def test_files_that_are_of_another_kind_or_damaged_are_named(kind: Any, other: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.safetensors"
    made: dict[Any, Any] = {Statistics: make_statistics(5), MomentTrace: MomentTrace({})}
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors"):
        kind.load(path)
    made[other].save(path)
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*'bnlab\.{kind.__name__}/1'.*'bnlab\.{other.__name__}/1'"):
        kind.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="'none'"):
        kind.load(path)

    made[kind].save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"foreign" * 9, json.dumps({}).encode()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.safetensors: "):
            kind.load(path)
    assert [*path.parent.iterdir()] == [path]


def test_a_file_that_the_system_refuses_is_named_and_what_was_there_stays(tmp_path: Path) -> None:
    """Here by a limit on the size of files, which is met in the middle of writing as a full disk is."""
    path = tmp_path / "tensors.safetensors"
    make_statistics(10).save(path)
    before = path.read_bytes()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
    try:
        with pytest.raises(OSError) as raised:
            make_statistics(100_000).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)

    # An old safetensors gives no number, but its text says the same.
    assert os.strerror(errno.EFBIG) in str(raised.value)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), OSError("thrift"), KeyError("layers")])
def test_a_file_that_cannot_be_read_is_named(error: Exception) -> None:
    with pytest.raises(Unreadable, match=r"x\.json: "), reading("x.json"):
        raise error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError("No such device (os error 19)"), errno.ENODEV),
        (RuntimeError("unable to mmap 80 bytes from file </d/x>: Cannot allocate memory (12)"), errno.ENOMEM),
        (SafetensorError("Error while reading: Input/output error (os error 5)"), errno.EIO),
    ],
)
def test_a_machine_that_fails_is_no_damaged_file(error: Exception, number: int) -> None:
    """safetensors and torch give the number in their text alone."""
    with pytest.raises(OSError, match=r"x\.json") as raised, reading("x.json"):
        raise error
    assert raised.value.errno == number


def test_too_little_memory_is_no_damaged_file() -> None:
    with pytest.raises(MemoryError), reading("x.json"):
        raise MemoryError


def test_a_file_that_may_not_be_read_is_not_damaged() -> None:
    with pytest.raises(PermissionError), reading("x.json"):
        raise PermissionError(13, "Permission denied")


def test_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.parquet"
    for text in ("first", "second"):
        path.write_text(text, encoding="utf-8")
        quarantine(path, "x: damaged", "measured again")

    reason, where = caplog.messages[0].splitlines()
    assert reason == "x: damaged"
    assert "x.parquet.damaged-1" in where
    assert not path.exists()
    assert (tmp_path / "x.parquet.damaged-2").read_text(encoding="utf-8") == "second"
