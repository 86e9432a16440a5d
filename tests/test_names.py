"""Names of statistics: taken apart, put together, and the classes that they stand for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

import bnlab
from bnlab.estimators import EMA, parse
from bnlab.harness.measurements.subjects import parse_subjects
from bnlab.harness.reporting.wording import estimator_label
from bnlab.harness.statistic_kinds import list_statistics

NEW = """
from dataclasses import dataclass
from bnlab.estimators.base import Estimator

@dataclass(frozen=True)
class Halving(Estimator):
    name = "halving"

    def gains(self, stream):
        return stream.steps * 0 + 0.5
"""


@dataclass(frozen=True)
class Slower(EMA):
    """An average below another one, with a name of its own."""

    name: ClassVar[str] = "test_slower"
    spans: tuple[int, ...] = (1, 2)


def test_a_parameter_may_be_a_tuple() -> None:
    label = Slower().label

    assert label == "test_slower(spans=(1, 2))"
    assert parse(label) == (Slower, {"spans": (1, 2)})
    assert parse("test_slower(spans=((1, 2), [3, 4]),momentum=1)")[1] == {"spans": ((1, 2), (3, 4)), "momentum": 1.0}
    assert estimator_label(label) == label.replace("(spans", " (spans")
    assert estimator_label("test_slower", 0.1) == "test_slower (momentum 0.1)"


@pytest.mark.parametrize("value", ["[3,4]", "(3, 4)"])
def test_a_list_is_read_as_a_tuple(value: str) -> None:
    assert parse(f"test_slower(spans={value})") == (Slower, {"spans": (3, 4)})


@pytest.mark.parametrize(
    ("name", "named"), [("test_slower(spans=3)", r"spans=3 .*\(1, 2\)"), ("window(k=1,k=2)", r"\bk .*twice")]
)
def test_parameters_that_are_refused(name: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse(name)


def test_every_choice_makes_a_source() -> None:
    ours = [name for name, cls in list_statistics().items() if cls.__module__.startswith("bnlab.")]

    sources = parse_subjects(ours, [0.1], "train")

    assert [source.label.partition("(")[0] for source in sources] == ours
    assert "none" not in ours


def test_an_estimator_is_found_by_its_file(tmp_path: Path) -> None:
    """A further file in the folder is all that it takes."""
    package = Path(bnlab.__file__).parent
    copied = tmp_path / "bnlab"
    copied.mkdir()
    for path in package.iterdir():
        if path.name != "estimators":
            (copied / path.name).symlink_to(path)
    shutil.copytree(package / "estimators", copied / "estimators")
    (copied / "estimators" / "halving.py").write_text(NEW, encoding="utf-8")
    code = "from bnlab.estimators import list_estimators; print(list_estimators()['halving'].__module__)"

    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path, env=environment
    )

    assert done.stdout == "bnlab.estimators.halving\n", done.stderr
