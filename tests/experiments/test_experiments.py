"""Every file in conf/experiment, in small: through the sweep, and the report of its question."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from bnlab.harness.artifacts.data.cifar10 import Cifar10
from tests.experiments.commands import ROOT, Call
from tests.helpers import plan_jobs, write_copies, write_fashion

FILES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
# As many as their estimators take, or as fill all batches of 64 and of 256.
IMAGES = {"gap": 2400, "predictive": 2400, "few_images": 5200, "last_batch": 1137}


@cache
def read_files() -> dict[str, Any]:
    """Read the settings of every file, by its name."""
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}


@pytest.fixture
def copies(tmp_path: Path) -> list[str]:
    """What a sweep of CIFAR-10 is told, to read 180 small images for it."""
    write_copies(tmp_path / "copies", 150, 30)
    return ["data.copies=true", f"data.root={tmp_path / 'copies'}", "population_images=100"]


@pytest.fixture
def fashion(tmp_path: Path) -> list[str]:
    """What a sweep of Fashion-MNIST is told, to read 180 small images for it."""
    write_fashion(tmp_path / "fashion", 150, 30)
    return [f"data.root={tmp_path / 'fashion'}", "population_images=100"]


OF_COPIES = ("cifar10", "real", "scaled_batches", "step_schedule")  # beginnings of names
OVERVIEWED = ("cifar10_large",)  # which is the question of another sweep: what is printed next is an overview


def list_first(file: str) -> list[str]:
    """Of all that a file sweeps the first value, as one job; two values where no committed tables try the claims."""
    settings = read_files()[file]
    name = settings["name"]
    is_measured = (ROOT / "results" / "reference" / name).is_dir()
    count = 1 if is_measured or name in OVERVIEWED else 2
    swept: dict[str, Any] = settings.get("hydra", {"sweeper": {"params": {"batch_size": "64"}}})["sweeper"]["params"]
    first = {}
    for key, values in swept.items():
        # What depends on other settings is a list: its first row stands for all.
        listed = next(iter(values.values())) if isinstance(values, dict) else values
        first[key] = ",".join(str(listed).split(",")[:count])
    return [f"{key}={values}" for key, values in first.items() if key not in ("seed", "steps")]


AT_STEPS = (
    "forecast",
    "ground_constant",
    "last_batch",
    "last_batch_64",
    "rates",
)  # which read more steps than there are here


UNSCORED = ("gap",)
"""Experiments with claims about networks that are right on half of the images, which none is after four updates."""


@pytest.mark.slow  # test_own_folder sweeps and reports, test_report draws the quickstart
@pytest.mark.parametrize("first", [path.stem for path in FILES])
def test_it_is_swept_and_reported(
    first: str, tmp_path: Path, call: Call, copies: list[str], fashion: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps of one seed on few images, in a network of a quarter of the width, of each of its files."""
    name = read_files()[first]["name"]
    files = [file for file, settings in read_files().items() if settings["name"] == name]
    if first != files[0]:
        return  # swept and reported together with the first one
    monkeypatch.setattr(Cifar10, "size", Cifar10.size._replace(available=150, test=30))
    results = f"results={tmp_path}"
    report: list[str] = []
    for file in files:
        words = [f"experiment={file}", *list_first(file), "steps=4", "seed=0", "model.width=8", results]
        words += ["hydra/launcher=basic"]
        words += copies * file.startswith(OF_COPIES)
        words += fashion * (file == "fashion")
        words += ["batch_size=32,64"] * (file == "scaled_batches")  # of 135 training images
        words += ["evaluate_at=[1.0]"] * (file in AT_STEPS)
        # The last word on a setting counts, and whole epochs take the place of steps.
        named = {word.partition("=")[0]: word for word in words}
        if "epochs" in named:
            del named["steps"]
        config, *_ = plan_jobs([*named.values()]).configs
        if config.data.name == "glyphs":
            named["data.images"] = f"data.images={IMAGES.get(name, 1200)}"
        code, out, err = call("sweep", *named.values())
        report = shlex.split(out.partition("next: bnlab report ")[2])
        assert code == 0 and report[-1:] == [results], out + err
    code, out, err = call("report", *report)
    assert code == (name in UNSCORED) and "Traceback" not in err, out + err
    if name in OVERVIEWED:
        assert report[0] == f"name={name}"
    else:
        question = report[0].removeprefix("experiment=")
        assert name.startswith(question) and f"\n{question}: " in f"\n{out}", out
