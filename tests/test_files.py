from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from bnlab.files import Unreadable, digest, reading, set_aside, write_whole


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def half(beside: Path) -> None:
        beside.write_text("ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_whole(path, half)

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), OSError("thrift"), KeyError("layers")])
def test_a_file_that_cannot_be_read_is_named(error: Exception) -> None:
    with pytest.raises(Unreadable, match=r"x.json: cannot be read \("), reading("x.json"):
        raise error


def test_a_file_that_may_not_be_read_is_not_damaged() -> None:
    with pytest.raises(PermissionError), reading("x.json"):
        raise PermissionError(13, "Permission denied")


def test_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.parquet"
    for text in ("first", "second"):
        path.write_text(text)
        set_aside(path, "x: damaged", "measured again")
    said = ["x: damaged", "  set aside as x.parquet.damaged-1; measured again"]

    assert capsys.readouterr().err.splitlines()[:2] == said
    assert not path.exists()
    assert (tmp_path / "x.parquet.damaged-2").read_text() == "second"


def test_a_digest_is_that_of_all_parts_together() -> None:
    whole = hashlib.sha256("é12".encode()).hexdigest()
    assert digest("é", b"1", memoryview(b"2")) == whole
    assert digest("é12", digits=10) == whole[:10]
