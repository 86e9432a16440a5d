"""Pages that the site takes from elsewhere: files of the repository that it shows, and public names.

They are written into docs/ when a build begins, and git ignores them.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = ROOT / "results" / "reference"
MODULES = (
    "bnlab",
    "bnlab.callbacks",
    "bnlab.doctor",
    "bnlab.estimators",
    "bnlab.inference",
    "bnlab.theory",
    "bnlab.nn",
    "bnlab.memory",
    "bnlab.harness",
)
_MADE = ("experiments", "papers", "reference")  # folders of docs/ that hold nothing else
_LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")  # to a file
_FIGURE = re.compile(r"!\[(.*)\]\((figures/\S+)\)")
_FENCED = re.compile(r"(```.*?```)", re.DOTALL)


def list_shown() -> dict[str, Path]:
    """Map the names of pages to the files elsewhere in the repository that they show."""
    shown = {
        "answers": REFERENCE / "ANSWERS.md",
        "tables": ROOT / "results" / "README.md",
        "contributing": ROOT / "CONTRIBUTING.md",
        "changelog": ROOT / "CHANGELOG.md",
        "experiments/index": REFERENCE / "README.md",
        "experiments/withdrawn": ROOT / "experiments" / "withdrawn.md",
    }
    for path in sorted(REFERENCE.glob("*/README.md")):
        shown[f"experiments/{path.parent.name}"] = path
    for path in sorted(REFERENCE.glob("papers/*/README.md")):
        shown[f"papers/{path.parent.name}"] = path
    for path in sorted(REFERENCE.glob("*.md")):  # what is said of all experiments together
        if path.name not in ("ANSWERS.md", "README.md"):
            shown[f"experiments/{path.stem.lower()}"] = path
    return shown


def list_names(module: ModuleType) -> list[str]:
    """List the public functions and classes of a module, without the modules and tables in it."""
    return [name for name in module.__all__ if callable(getattr(module, name))]


def list_sources(name: str) -> set[Path]:
    """List the files of a public module: its own, and those in which its public names are written."""
    module = importlib.import_module(name)
    files = {module.__file__, *(inspect.getsourcefile(getattr(module, each)) for each in list_names(module))}
    return {Path(file) for file in files if file}


def write_pages(docs: Path = DOCS) -> None:
    """Write all pages that are made, and remove those of earlier builds that are not made any more.

    Files whose text is the same are left alone, so that builds are short.
    """
    shown = list_shown()
    pages = {name: path.read_text(encoding="utf-8") for name, path in shown.items()}
    experiments = [path.stem for path in map(Path, shown) if path.parent.name == "experiments" and path.stem != "index"]
    pages["experiments/index"] += "\n" + "\n".join([*_write_contents(experiments), ""])
    pages["gallery"] = write_gallery(shown)
    for name in MODULES:
        pages[f"reference/{name}"] = _write_module(name)

    for name, text in pages.items():
        path = docs / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    of_earlier_builds = [path for folder in _MADE for path in docs.glob(f"{folder}/*.md")]
    for path in of_earlier_builds:
        if str(path.relative_to(docs).with_suffix("")) not in pages:
            path.unlink()


def write_gallery(shown: dict[str, Path]) -> str:
    """Write the page with a card for each figure: its picture, title and question, and the command that draws it."""
    lines = [
        "# Gallery",
        "",
        "All figures, each with its question and the command that draws it again from the tables.",
    ]
    headings = {"papers": "Papers, redrawn", "experiments": "Experiments"}
    for folder, heading in headings.items():
        lines += ["", f"## {heading}", "", "{.cards}"]
        for page, path in shown.items():
            if page.startswith(f"{folder}/"):
                lines += _write_cards(page, path)
    papers = [page for page in shown if page.startswith("papers/")]
    return "\n".join([*lines, "", *_write_contents(papers), ""])


def _write_cards(page: str, path: Path) -> Iterator[str]:
    """Write the cards of a page's figures; pictures are loaded when they are scrolled to."""
    folder, _, name = page.partition("/")
    kind = folder.removesuffix("s")
    text = path.read_text(encoding="utf-8")
    heading = text.partition("\n")[0].removeprefix("# ")
    # The gallery lies at the top of docs/, so that its paths are relative to that folder.
    for title, figure in _FIGURE.findall(text):
        yield f"- ```{{image}} {os.path.relpath(path.parent / figure, DOCS)}"
        yield f"  :alt: {title}"
        yield f"  :target: {page}.html"
        yield "  :loading: lazy"
        yield "  ```"
        yield f"\n  **[{title}]({page}.md)**"
        yield f"\n  *{heading}*: {_read_question(path)}"
        yield f"\n  `bnlab report {kind}={name} results=results/reference`"


def _read_question(path: Path) -> str:
    """Read an experiment's question, the first paragraph of its page, without the numbers that it bears on."""
    _, question, *_ = path.read_text(encoding="utf-8").split("\n\n")
    return re.sub(r" \([^)]*\)$", "", question)


def _write_contents(names: list[str]) -> Iterator[str]:
    """Write a table of contents that only the sidebar shows."""
    yield "```{toctree}"
    yield ":hidden:"
    yield ""
    yield from names
    yield "```"


def _write_module(name: str) -> str:
    """Write the reference of a module: what it is for, a list of its names, and each name's docstring."""
    module = importlib.import_module(name)
    names = list_names(module)
    # Members are documented one by one below. The default of conf.py would document all of them here as well.
    lines = [f"# {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :no-members:", ""]

    lines += [".. autosummary::", "   :nosignatures:", ""]
    lines += [f"   {each}" for each in names]
    for each in names:
        value = getattr(module, each)
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        lines += ["", f".. {kind}:: {each}"]
    return "\n".join([*lines, "```", ""])


def adapt_links(text: str, page: str) -> str:
    """Let the links of a page's text lead to the pages of the site, where it shows the files that they name.

    Args:
        text: Markdown, as it stands in the file that the page shows.
        page: the page's name, such as "experiments/gap".
    """
    # Targets with a page: files that the site shows, README.md in whose place it has another page, and source files
    # of public modules, whose page is in the reference.
    shown = list_shown()
    pages = {path: name for name, path in shown.items()}
    pages[ROOT / "README.md"] = "index"
    for name in MODULES:
        for source in list_sources(name):
            pages[source] = f"reference/{name}"

    # Links are relative to the file that is shown, which lies in another folder than its page.
    at = (DOCS / f"{page}.md").parent
    origin = shown.get(page, DOCS / f"{page}.md").parent

    def adapt(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(origin / match[1]))
        if target in pages:
            target = DOCS / f"{pages[target]}.md"
        return "](" + os.path.relpath(target, at)

    # What looks like a link in a block of code is code. The group in `_FENCED` keeps the blocks among the
    # parts.
    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(adapt, part) for part in parts)
