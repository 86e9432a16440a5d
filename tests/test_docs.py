"""The site: its pages, the names that it explains, and its links. The whole is built where Sphinx is installed."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import bnlab
from bnlab.doctor import list_causes
from bnlab.doctor.codes import ALIASES, EXPLANATIONS
from bnlab.doctor.gallery import FAULTS, UNSHOWN, faults, make_healthy
from bnlab.harness import load, load_images, load_model
from bnlab.harness.artifacts.job_settings import Config
from docs import pages
from docs.codes import PAGE, write_codes, write_explanations
from docs.pages import DOCS, MODULES, adapt_links, list_names, list_shown, write_pages
from tests.helpers import run_job

ROOT = DOCS.parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")  # to a file
TOCTREE = re.compile(r"```{toctree}\n(.*?)```", re.DOTALL)
NAMES = [(module, name) for module in MODULES for name in list_names(importlib.import_module(module))]


def list_contents() -> set[str]:
    """The pages in the tables of contents of the front page."""
    entries = set()
    for body in TOCTREE.findall((DOCS / "index.md").read_text(encoding="utf-8")):
        lines = body.splitlines()
        entries |= {line for line in lines if line and not line.startswith(":")}
    return entries


def list_loaded(page: Path) -> str:
    """The addresses of all files that a browser loads for a page: scripts, styles, images."""
    loaded = re.findall(r"<(?:script|img|link)\b[^>]*(?:src|href)=\"([^\"]+)", page.read_text(encoding="utf-8"))
    return "\n".join(loaded)


def test_every_page_is_in_the_table_of_contents() -> None:
    written = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")} - {"index"}
    made = {
        *list_shown(),
        "experiments/index",
        "gallery",
        *(f"reference/{module}" for module in MODULES),
    }
    below_another = {page for page in {*written, *made} if re.fullmatch("(experiments|papers)/(?!index).*", page)}

    assert list_contents() == {*written, *made} - below_another


@pytest.mark.parametrize(("module", "name"), NAMES, ids=lambda word: word)
def test_each_public_name_has_an_example(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)

    text = inspect.getdoc(value) or ""

    assert ">>> " in text
    example = text[text.index(">>> ") :]
    assert inspect.isabstract(value) or re.search(rf"\b{name}\b", example)


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


def test_every_figure_has_a_card_with_its_question_and_its_command() -> None:
    page = pages.write_gallery(list_shown())
    figures = {*pages.REFERENCE.glob("*/figures/*.png"), *pages.REFERENCE.glob("papers/*/figures/*.png")}
    cards = page.split("- ```{image} ")[1:]

    assert {(DOCS / card.splitlines()[0]).resolve() for card in cards} == figures
    assert len(cards) == len(figures)
    questions = {path.parents[1]: pages._read_question(path.parents[1] / "README.md") for path in figures}
    for path in figures:
        (card,) = [card for card in cards if card.startswith(str(path.relative_to(ROOT).parent / path.name), 3)]
        assert questions[path.parents[1]] in card
        assert f"={path.parents[1].name} results=results/reference`" in card


def list_sections() -> dict[str, str]:
    """The sections of the page of codes: a code → its text."""
    _, *sections = write_codes().split("\n## ")
    return {section[:5]: section for section in sections}


@pytest.mark.parametrize(("path", "write"), [(PAGE, write_codes), (EXPLANATIONS, write_explanations)])
def test_the_files_of_codes_are_as_the_causes_are(path: Path, write: Callable[[], str]) -> None:
    is_current = path.read_text(encoding="utf-8") == write()
    assert is_current, "a cause or a network of the gallery has changed: python -m docs.codes"


def test_each_code_has_a_section_that_says_what_the_cause_says() -> None:
    page = write_codes()
    sections = list_sections()

    assert [*sections] == [cause.code for cause in list_causes()]
    for cause in list_causes():
        words = " ".join(sections[cause.code].split())
        assert cause.meaning in words and cause.remedy in words
        assert " ".join((type(cause).__doc__ or "").split()) in words
        assert f"| [{cause.code}](#{cause.code.lower()}) | {cause.title} | " in page
    for former, now in ALIASES.items():
        assert f"{former} is part of [{now}](#{now.lower()})." in page


@pytest.mark.parametrize(
    ("code", "cause", "specimen", "verdict"),
    [
        ("BN299", "Deviations", "deviations_as_variances", "averages"),
        ("BN399", "SubtractedBias", "bias_subtracted", "network"),
    ],
)
def test_causes_that_are_added_as_examples_are_found(
    code: str, cause: str, specimen: str, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (DOCS / "contributing/cause.md").read_text(encoding="utf-8")
    blocks = [block.partition("\n")[2] for block in recipe.split("```")[1::2]]
    (cause_file,) = [block for block in blocks if f"causes/{code.lower()}.py" in block]
    module = ModuleType(code.lower())
    monkeypatch.setitem(sys.modules, code.lower(), module)
    exec(cause_file, module.__dict__)
    names = dict(vars(faults))
    for block in blocks:
        if "gallery/faults.py" in block:
            exec(block, names)

    causes = [getattr(module, cause)()]
    broken = names[specimen](make_healthy())
    diagnosis = bnlab.diagnose(broken.model, broken.batches, causes=causes, progress=False)
    assert diagnosis.verdict == verdict
    assert diagnosis.findings["code"][0] == code
    healthy = make_healthy()
    assert bnlab.diagnose(healthy.model, healthy.batches, causes=causes, progress=False).trials.empty


def test_the_kind_of_layer_that_is_added_as_an_example_is_measured() -> None:
    blocks = (DOCS / "contributing/adding.md").read_text(encoding="utf-8").split("```")[1::2]
    (example,) = [block.removeprefix("python\n") for block in blocks if "test_logarithms.py" in block]
    names: dict[str, Any] = {}
    exec(example, names)

    names["test_logarithms_are_measured"]()
    with pytest.raises(ValueError, match=r"\(LogNorm\) does not average the moments of its input .* inputs=\{LogNorm:"):
        bnlab.population_statistics(names["LogNorm"](3), [torch.rand(50, 3) + 0.1])


def test_a_code_that_the_gallery_shows_has_its_example() -> None:
    sections = list_sections()

    for name, fault in FAULTS.items():
        assert f"- *{name}*: {fault.done} New statistics " in sections[fault.code]


def test_a_code_without_an_example_says_why() -> None:
    sections = list_sections()

    for code, reason in UNSHOWN.items():
        assert f"\n\n{reason}\n" in sections[code]


def test_links_lead_to_the_pages_that_show_the_files() -> None:
    assert adapt_links("[gap](gap/README.md#claims)", "answers") == "[gap](experiments/gap.md#claims)"
    assert adapt_links("![](figures/cost.png)", "experiments/gap").endswith("/results/reference/gap/figures/cost.png)")
    assert adapt_links("[Q1](../ANSWERS.md)", "experiments/gap") == "[Q1](../answers.md)"
    assert adapt_links("[nn](../../bnlab/nn/self_tuned.py)", "howto/model") == "[nn](../reference/bnlab.nn.md)"
    assert adapt_links("[BN002](../../docs/codes.md#bn002)", "answers") == "[BN002](codes.md#bn002)"
    for untouched in ("[Q1](#q1)", "[torch](https://docs.pytorch.org/x.md)", "```\n[a](gap/README.md)\n```"):
        assert adapt_links(untouched, "answers") == untouched


def test_links_between_files_lead_to_files() -> None:
    root = DOCS.parent
    made = {DOCS / f"{page}.md" for page in list_shown()}  # by a build of the site
    read = {
        root / "README.md",
        root / "CONTRIBUTING.md",
        root / "CHANGELOG.md",
        *DOCS.glob("*.md"),
        *DOCS.glob("howto/*.md"),
    } - made
    read |= {*root.glob("results/*.md"), *root.glob("results/reference/**/*.md")}

    texts = {path: re.sub("```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL) for path in read}
    links = {(path, link) for path, text in texts.items() for link in LINK.findall(text)}
    assert [(path.name, link) for path, link in links if not (path.parent / link).exists()] == []


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
