"""The programs that README and the recipes show run, and print what they show. How-tos have tests of their own."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from torch import nn

import bnlab
from benchmarks.gallery import make_healthy, planters
from bnlab.doctor import Cause
from tests.checks.outcomes import ROOT
from tests.helpers import images, plain

HOWTOS = ROOT / "docs" / "howto"
RECIPES = ROOT / "docs" / "contributing"


def list_blocks(text: str) -> list[str]:
    """List the blocks of code of a page."""
    return [block.partition("\n")[2] for block in text.split("```")[1::2]]


def find_calls_of_readme_that_fail() -> Iterator[str]:
    """Find whether README's calls on a model give other statistics than its averages are."""
    blocks = list_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    model = plain()
    loader = images(8, 8, 4)

    def train(network: nn.Module) -> None:
        network.train()
        for batch in loader:
            network(batch)

    def test(network: nn.Module) -> float:
        return float(network.eval()(loader[0]).detach().mean())

    names: dict[str, Any] = {"model": model, "loader": loader, "train": train, "test": test}
    (watched,) = [block for block in blocks if "bnlab.watch" in block]
    (lines,) = [block for block in blocks if "population_statistics(model, loader)" in block]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # a checkpoint is saved
        exec(watched, names)
        exec(lines, names)

    written = bnlab.gap(names["exact"], bnlab.running_statistics(model))
    if not names["watch"].history["exact"].notna().all() or written["mean_gap"].max() > 1e-6:  # of float32
        yield "README.md: its calls on a model do not leave exact statistics in it"


def find_tables_of_readme_that_are_others() -> Iterator[str]:
    """Find whether README's lines on tables print something else than stands below them."""
    blocks = list_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    lines, shown = [block for block in blocks if "mean_gap" in block]
    printed = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed):
        exec(lines, {})
    if printed.getvalue() != shown:
        yield f"README.md: its lines on tables print\n{printed.getvalue()}"


def find_names_that_there_are_not() -> Iterator[str]:
    """Find names in the text of README and how-tos that a program which imports bnlab alone does not find."""
    pages = [ROOT / "README.md", *sorted(HOWTOS.glob("*.md"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    found = set(re.findall(r"`(?:help\()?(bnlab(?:\.\w+)+)", text))
    names = sorted(name for name in found if not name.startswith("bnlab.harness"))  # which is imported by itself
    words = [sys.executable, "-c", f"import bnlab; {'; '.join(names)}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8")
    if done.returncode:
        yield done.stderr.splitlines()[-1]


def find_causes_of_the_recipe_that_are_not_found() -> Iterator[str]:
    """Find rows of the recipe that the doctor does not find in their specimens, or finds in a healthy network."""
    page = (RECIPES / "cause.md").read_text(encoding="utf-8")
    names = dict(vars(planters))
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, names)
    causes = [value for value in names.values() if isinstance(value, Cause)]

    healthy = make_healthy()
    if not bnlab.diagnose(healthy.model, healthy.batches, causes=causes).is_healthy:
        yield "cause.md: with its rows a healthy network is not healthy"
    specimens = re.findall(r"^([a-z ]+),(BN\d+),", page, re.MULTILINE)  # rows of faults.csv
    if sorted(code for _, code in specimens) != sorted(cause.code for cause in causes):
        yield "cause.md: has rows without a specimen, or specimens without a row"
    for name, code in specimens:
        broken = names[name.replace(" ", "_")](healthy)
        if bnlab.diagnose(broken.model, broken.batches, causes=causes).causes != [code]:
            yield f"cause.md: {code} is not found in {name!r}"


def find_layers_of_the_recipe_that_are_not_measured() -> Iterator[str]:
    """Find whether the test of the kind of layer that is added as an example fails."""
    blocks = list_blocks((RECIPES / "adding.md").read_text(encoding="utf-8"))
    (example,) = [block for block in blocks if "test_logarithms.py" in block]
    names: dict[str, Any] = {}
    exec(example, names)
    try:
        names["test_logarithms_are_measured"]()
    except AssertionError:
        yield "adding.md: its test of a kind of layer fails"
