"""Every file in conf/experiment, in small: through the sweep, and the report of its question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.compose import CONF, plan_jobs
from tests.experiments.commands import Call

FILES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF / "experiment").glob("*.yaml"))}
QUESTIONS = sorted({content["name"] for content in FILES.values()})
IMAGES = {"accuracy": 2400, "predictive": 2400, "few_images": 5200}  # as many as their estimators take


def list_first(file: str) -> list[str]:
    """Of all that a file sweeps the first value, as one job."""
    swept: dict[str, Any] = FILES[file].get("hydra", {"sweeper": {"params": {"batch_size": "64"}}})["sweeper"]["params"]
    return [f"{key}={str(values).split(',')[0]}" for key, values in swept.items() if key not in ("seed", "steps")]


@pytest.mark.parametrize("file", FILES)
def test_it_composes(file: str) -> None:
    sweep = plan_jobs([f"experiment={file}"])
    assert {config.name for config in sweep.configs} == {FILES[file]["name"]} and len(sweep.configs) > 4


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_is_swept_and_reported(question: str, tmp_path: Path, call: Call) -> None:
    """Four steps of one seed on few images, in a network of a quarter of the width, of each of its files."""
    results = f"results={tmp_path}"
    for file in (file for file, content in FILES.items() if content["name"] == question):
        words = [f"experiment={file}", *list_first(file), "steps=4", "seed=0", "model.width=8", results]
        (config,) = plan_jobs(words).configs
        words += [f"data.images={IMAGES.get(question, 1200)}"] * (config.data.name == "glyphs")
        code, out, err = call("sweep", *words)
        assert code == 0 and f"next: python -m experiments.report experiment={question} results=" in out, out + err
    code, out, err = call("report", f"experiment={question}", results)
    assert code == 0 and "Traceback" not in err and f"\n{question}: " in out, out + err
