"""The site, built by Sphinx: `make docs` writes build/site/index.html. Nothing is fetched, here or by its readers."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

# The checkout comes first: its bnlab is documented, and no installed package has `docs`.
sys.path.insert(0, str(Path(__file__).parents[1]))

import bnlab
from docs import pages

project = "bnlab"
author = "the bnlab contributors"
release = bnlab.__version__
html_title = f"bnlab {release}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["**/__pycache__"]
myst_enable_extensions = ["attrs_block", "deflist"]  # `{.cards}` above a list
myst_heading_anchors = 3

# Single backticks are code in docstrings, as in Markdown.
default_role = "code"
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # an estimator overrides what its base has explained
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_use_ivar = True

html_theme = "furo"  # reads well on a phone, follows the reader's light or dark, and brings its fonts and scripts along
html_static_path = ["static"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).with_name("static") / "scorer.js")  # what is found first
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False


def setup(app: Sphinx) -> None:
    """Write the pages that are made before the others are read, and let all links stay inside the site."""
    app.connect("builder-inited", lambda _: pages.write_pages())
    app.connect("source-read", _adapt_links)


def _adapt_links(app: Sphinx, page: str, source: list[str]) -> None:
    # Sphinx hands over the text as the one item of a list, and reads it from there again.
    source[0] = pages.adapt_links(source[0], page)
