"""Pages: templates that are filled in."""

from __future__ import annotations

from pathlib import Path

import jinja2


def fill_in(template: Path, **values: object) -> str:
    """Fill in a template; in HTML what is filled in is shown as it is written."""
    # By itself Jinja leaves out missing values without an error, and an empty line for each block tag.
    environment = jinja2.Environment(
        autoescape=template.suffix == ".html",
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template.name).render(values)
