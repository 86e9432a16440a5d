"""Every file in conf/experiment, in small: through the sweep, and the report of its question."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from experiments.compose import CONF, plan_jobs
from tests.experiments.commands import Call

QUESTIONS: dict[str, list[str]] = {}
for path in sorted((CONF / "experiment").glob("*.yaml")):
    QUESTIONS.setdefault(yaml.safe_load(path.read_text())["name"], []).append(path.stem)
IMAGES = {"few_images_predicted": 5200}  # as many validation images as the largest test batch has


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_is_swept_and_reported(question: str, tmp_path: Path, call: Call) -> None:
    """Four steps of one seed, on few images, in a network of a quarter of the width."""
    results = f"results={tmp_path}"
    for file in QUESTIONS[question]:
        (usual, *_) = plan_jobs([f"experiment={file}"]).configs
        words = ["steps=4", "seed=0", f"model.width={8 if usual.model.name == 'cnn' else 4}", "hydra/launcher=basic"]
        words += [f"data.images={IMAGES.get(file, 2400)}"] * (usual.data.name == "glyphs")
        code, out, err = call("sweep", f"experiment={file}", *words, results)
        assert code == 0 and f"next: python -m experiments.report experiment={question}" in out, out + err
    code, out, err = call("report", f"experiment={question}", results)
    assert code == 0 and "Traceback" not in err, err
    figures = {path.stem for path in (tmp_path / question / "figures").glob("*.png")}
    assert figures and "  one seed" in out
