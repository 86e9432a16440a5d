"""No traceback for what a user's own code raises, nor for Ctrl-C while a command starts: the line of that code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnlab.estimators import list_estimators
from bnlab.files import digest
from bnlab.harness import load
from bnlab.harness.errors import UserError, where_raised
from bnlab.harness.jobs import attempt, prepare
from bnlab.harness.own import digest_of_source, import_object
from tests.conftest import small_config
from tests.experiments.commands import run

LEAVING = """
import sys
from dataclasses import dataclass
from bnlab.estimators import Estimator

@dataclass(frozen=True)
class Leaving(Estimator):
    name = "leaving"
    def gains(self, stream):
        if len(stream) > {most}: sys.exit("enough")
        return stream.counts[:, 0] * 0 + 1
"""


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules of the test's folder can be imported; estimators of theirs are none after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    if "leaving" in list_estimators():
        list_estimators()["leaving"].name = f"left {tmp_path}"


def test_the_last_line_of_the_users_own_code() -> None:
    with pytest.raises(ValueError, match="no results") as caught:
        load("nothing", "nowhere")
    assert re.fullmatch(r".*test_own_code.py:\d+: UserError: no results for .*", where_raised(caught.value))
    assert where_raised(RuntimeError("a\n  b")) == "RuntimeError: a b"


def test_ctrl_c_while_a_command_starts(tmp_path: Path) -> None:
    """Importing torch takes most of that time."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    done = run("sweep", "experiment=quickstart", path=tmp_path, expect=130)

    assert not done.stdout
    assert done.stderr.strip() == "stopped; the same command continues"


@pytest.mark.parametrize("most", [0, 8])
def test_an_estimator_that_leaves(most: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the short stream before training, or on the network's: then its job fails, and nothing is measured."""
    (tmp_path / f"leaver_{most}.py").write_text(LEAVING.format(most=most))
    job = small_config(tmp_path, estimator=f"leaver_{most}.Leaving", measurements="gaps")
    if most == 0:
        with pytest.raises(UserError, match=r"leaver_0.py:10: SystemExit: enough"):
            prepare([job])
        return
    prepare([job])
    attempt(job)
    err = capsys.readouterr().err

    assert "leaver_8.py:10: SystemExit: enough" in err
    assert "Traceback" not in err

    found = load("adhoc", tmp_path)
    assert list(found["runs"]["status"]) == ["failed"]
    assert not len(found.get("gaps", ()))


def test_a_module_that_leaves(tmp_path: Path) -> None:
    (tmp_path / "gone.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UserError, match=r"estimator=gone.Gone: .*gone.py:2: SystemExit: 0"):
        prepare([small_config(tmp_path, estimator="gone.Gone")])


def test_own_code_is_known_by_its_module(tmp_path: Path) -> None:
    """What that imports is not followed; what cannot be imported is named with its line."""
    (tmp_path / "mine_a.py").write_text("import mine_c\ndef make(): pass\n")
    (tmp_path / "mine_b.py").write_text("def make(): pass\n")
    (tmp_path / "mine_c.py").write_text("x = 1\n")
    first = import_object("mine_a.make")
    second = import_object("mine_b.make")

    assert digest_of_source(first) != digest_of_source(second)
    assert digest_of_source(second) == digest("def make(): pass\n", digits=10)

    (tmp_path / "mine_d.py").write_text("\n1 / 0\n")
    with pytest.raises(UserError, match=r"^mine_d.make: cannot be imported, .*mine_d.py:2: ZeroDivisionError"):
        import_object("mine_d.make")
    with pytest.raises(UserError, match=r"^mine_c.make: cannot be imported, AttributeError: .*'make'"):
        import_object("mine_c.make")
