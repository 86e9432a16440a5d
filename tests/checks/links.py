"""Links between files lead to files, and the site shows every page and figure."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator

from docs import pages
from docs.pages import DOCS, MODULES, ROOT, list_names, list_shown
from docs.release import make_links_absolute

LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")  # to a file
TOCTREE = re.compile(r"```{toctree}\n(.*?)```", re.DOTALL)


def read_prose(path: str) -> str:
    """Read a page of the repository without its code."""
    return re.sub("```.*?```", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)


def find_links_to_nothing() -> Iterator[str]:
    """Find links of pages to files that there are not."""
    made = {DOCS / f"{page}.md" for page in list_shown()}  # by a build of the site
    read = {*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("howto/*.md"), *DOCS.glob("contributing/*.md")} - made
    read |= {*ROOT.glob("results/*.md"), *ROOT.glob("results/reference/**/*.md")}
    for path in sorted(read):
        for link in LINK.findall(read_prose(str(path.relative_to(ROOT)))):
            if not (path.parent / link).exists():
                yield f"{path.relative_to(ROOT)} links to {link}, which there is not"


def find_answers_that_there_are_not() -> Iterator[str]:
    """Find links of README to headings that ANSWERS.md does not have."""
    answers = (ROOT / "results/reference/ANSWERS.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", answers, re.MULTILINE)
    anchors = {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for link in re.findall(r"ANSWERS\.md#([\w-]+)", read_prose("README.md")):
        if link not in anchors:
            yield f"README.md links to ANSWERS.md#{link}, which there is not"


def find_links_of_the_packed_readme_that_stay_relative() -> Iterator[str]:
    """Find links that lead nowhere where a package index shows README by itself."""
    packed = make_links_absolute(read_prose("README.md"), "https://example.org/bnlab")
    for target in re.findall(r"\]\(([^)\s]+)\)", packed):
        if not target.startswith("https://"):
            yield f"the packed README links to {target}"
    for kind, path in re.findall(r"https://example\.org/bnlab/(raw|blob)/HEAD/([^)#\s]+)", packed):
        is_picture = path.endswith((".png", ".svg"))
        if not (ROOT / path).exists() or (kind == "raw") != is_picture:
            yield f"the packed README links to {kind}/HEAD/{path}"


def find_pages_that_no_contents_have() -> Iterator[str]:
    """Find pages that the tables of contents of the front page lack, and entries without a page."""
    entries = set()
    for body in TOCTREE.findall((DOCS / "index.md").read_text(encoding="utf-8")):
        entries |= {line for line in body.splitlines() if line and not line.startswith(":")}

    written = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")} - {"index"}
    made = {*list_shown(), "experiments/index", "gallery", *(f"reference/{module}" for module in MODULES)}
    below_another = {page for page in {*written, *made} if re.fullmatch("(experiments|papers)/(?!index).*", page)}
    for page in sorted(entries ^ ({*written, *made} - below_another)):
        yield f"{page} is a page, or stands in the contents of docs/index.md, not both"


def find_figures_without_a_card() -> Iterator[str]:
    """Find figures that the gallery lacks."""
    page = pages.write_gallery(list_shown())
    for path in (*pages.REFERENCE.glob("*/figures/*.png"), *pages.REFERENCE.glob("papers/*/figures/*.png")):
        if page.count(f"{{image}} ../{path.relative_to(ROOT)}\n") != 1:
            yield f"{path.relative_to(ROOT)} has no card in the gallery, or two"


def find_names_without_an_example() -> Iterator[str]:
    """Find public names whose documentation does not show how they are used."""
    for module in map(importlib.import_module, MODULES):
        for name in list_names(module):
            value = getattr(module, name)
            if not callable(value):  # a table has no documentation of its own
                continue
            _, _, example = (inspect.getdoc(value) or "").partition(">>> ")
            if not re.search(rf"\b{name}\b", example) and not (example and inspect.isabstract(value)):
                yield f"{module.__name__}.{name} has no example"
