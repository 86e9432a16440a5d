from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from bnlab.files import digest, set_aside, write_whole


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def half(beside: Path) -> None:
        beside.write_text("ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_whole(path, half)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]


def test_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.parquet"
    for text in ("first", "second"):
        path.write_text(text)
        set_aside(path, "x: damaged", "measured again")
    assert capsys.readouterr().err.splitlines()[:2] == ["x: damaged", "  set aside; measured again"]
    assert not path.exists() and (tmp_path / "x.parquet.damaged").read_text() == "second"


def test_a_digest_is_that_of_all_parts_together() -> None:
    whole = hashlib.sha256("é12".encode()).hexdigest()
    assert digest("é", b"1", memoryview(b"2")) == whole
    assert digest("é12", digits=10) == whole[:10]
