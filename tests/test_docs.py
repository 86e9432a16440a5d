"""The site: how its pages are made. The whole is built where Sphinx is installed; `tests.checks` looks at its links."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bnlab.harness import load, load_images, load_model
from bnlab.harness.artifacts.job_settings import Config
from docs import pages
from docs.pages import DOCS, adapt_links, list_shown, write_pages
from tests.helpers import run_job


def list_loaded(page: Path) -> str:
    """The addresses of all files that a browser loads for a page: scripts, styles, images."""
    loaded = re.findall(r"<(?:script|img|link)\b[^>]*(?:src|href)=\"([^\"]+)", page.read_text(encoding="utf-8"))
    return "\n".join(loaded)


@pytest.mark.parametrize("function", [load_model, load_images])
def test_examples_that_need_a_sweep_run_after_one(
    function: Callable[..., object], copied: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are skipped among the other examples, because there is no sweep."""
    folder = Path(copied.results).rename(Path(copied.results).with_name("results"))
    monkeypatch.chdir(folder.parent)
    run_job(copied, results="results", name="quickstart", estimator=["ema", "exact"])
    names = {"load": load, function.__name__: function}  # as `from bnlab.harness import` gives them
    (test,) = doctest.DocTestFinder(recurse=False).find(function, globs=names)
    for example in test.examples:
        del example.options[doctest.SKIP]

    outcome = doctest.DocTestRunner().run(test)

    assert outcome.attempted == 3
    assert outcome.failed == 0


def test_what_is_said_of_all_experiments_stands_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "REFERENCE", tmp_path)
    for name in ("ANSWERS.md", "README.md", "HYPOTHESES.md"):
        (tmp_path / name).touch()

    shown = list_shown()

    assert shown["answers"] == tmp_path / "ANSWERS.md"
    of_experiments = [page for page in shown if page.startswith("experiments/")]
    assert of_experiments == ["experiments/index", "experiments/withdrawn", "experiments/hypotheses"]


def test_pages_that_are_not_made_any_more_are_removed(tmp_path: Path) -> None:
    write_pages(tmp_path)
    made = {path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.md")}
    (tmp_path / "experiments" / "gone.md").write_text("# gone\n", encoding="utf-8")

    write_pages(tmp_path)

    assert {path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.md")} == made
    assert (tmp_path / "experiments" / "gap.md").read_text(encoding="utf-8") == list_shown()[
        "experiments/gap"
    ].read_text(encoding="utf-8")


def test_links_lead_to_the_pages_that_show_the_files() -> None:
    assert adapt_links("[gap](gap/README.md#claims)", "answers") == "[gap](experiments/gap.md#claims)"
    assert adapt_links("![](figures/cost.png)", "experiments/gap").endswith("/results/reference/gap/figures/cost.png)")
    assert adapt_links("[Q1](../ANSWERS.md)", "experiments/gap") == "[Q1](../answers.md)"
    assert adapt_links("[nn](../../bnlab/nn/self_tuned.py)", "howto/model") == "[nn](../reference/bnlab.nn.md)"
    assert adapt_links("[BN002](../../docs/codes.md#bn002)", "answers") == "[BN002](codes.md#bn002)"
    for untouched in ("[Q1](#q1)", "[torch](https://docs.pytorch.org/x.md)", "```\n[a](gap/README.md)\n```"):
        assert adapt_links(untouched, "answers") == untouched


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="Sphinx is not installed; make docs installs it")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    site = tmp_path / "site"
    words = ["-W", "--keep-going", "-q", "-d", str(tmp_path / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *words, str(DOCS), str(site)]

    done = subprocess.run(command, cwd=DOCS.parent, capture_output=True, encoding="utf-8")

    assert done.returncode == 0, done.stderr
    missing = [page for page in list_shown() if not (site / f"{page}.html").exists()]
    assert not missing
    assert "http" not in list_loaded(site / "index.html")
