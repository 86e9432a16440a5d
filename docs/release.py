"""python -m docs.release ADDRESS: build wheel and source archive, and try them where nothing else is installed.

`make release BASE=ADDRESS` calls it, with the address of the repository's page, https://github.com/OWNER/NAME. A
package index shows README.md by itself, so links in the copy that is packed lead to that address. All is written to
build/release, and nothing is uploaded: `twine upload build/release/dist/*` is left to a person.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "release"
PACKED = ("bnlab", "conf", "experiments", "LICENSE", "README.md", "pyproject.toml", "setup.py")
# A link without a scheme, in four groups: the ! of a picture; words, in which a picture may stand; a path,
# which is empty within the page; an anchor.
_LINK = re.compile(r"(!?)\[((?:!\[[^\]]*\]\([^)]*\)|[^\]])*)\]\((?!\w+:)([^)\s#]*)(#[^)\s]*)?\)")
_FENCED = re.compile(r"(```.*?```)", re.DOTALL)

_USES_THE_LIBRARY = """\
import torch
import bnlab
model = torch.nn.Sequential(torch.nn.BatchNorm1d(1))
exact = bnlab.population_statistics(model, [torch.tensor([[1.0], [3.0]])])
assert exact["0"].mean.item() == 2.0
"""


def main(words: Sequence[str]) -> int:
    """Build and try both archives; the exit code, 2 without an address."""
    if len(words) != 1 or not words[0].startswith("https://"):
        print("name the repository's page: make release BASE=https://github.com/OWNER/NAME", file=sys.stderr)
        return 2

    # Archives of an earlier version in dist/ would be uploaded along with the new ones.
    shutil.rmtree(BUILD, ignore_errors=True)
    source = copy_source(BUILD / "source", words[0].rstrip("/"))
    archives = build(source, BUILD / "dist")
    _call(sys.executable, "-m", "twine", "check", "--strict", *map(str, archives))
    (wheel,) = [archive for archive in archives if archive.suffix == ".whl"]
    try_out(wheel)
    print(*archives, sep="\n")
    return 0


def copy_source(folder: Path, base: str) -> Path:
    """Copy what git knows of the package, with links in README.md that lead to `base`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *PACKED], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    # With -z each name ends with a null character, so that the last part is empty.
    for name in listed.stdout.split("\0")[:-1]:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)

    readme = folder / "README.md"
    readme.write_text(make_links_absolute(readme.read_text(encoding="utf-8"), base), encoding="utf-8")
    return folder


def make_links_absolute(text: str, base: str) -> str:
    """Let links to files of the repository lead to their pages there, and pictures to the files themselves.

    >>> make_links_absolute("[Why](docs/why.md#map), ![](a.png), [else](https://x.org)", "https://y.org/n")
    '[Why](https://y.org/n/blob/HEAD/docs/why.md#map), ![](https://y.org/n/raw/HEAD/a.png), [else](https://x.org)'
    """

    def adapt(match: re.Match[str]) -> str:
        is_picture, words, path, anchor = match.groups()
        place = "raw" if is_picture else "blob"
        page = path or "README.md"  # an index gives headings no anchors: a link within the page would lead nowhere
        inside = _LINK.sub(adapt, words)  # a picture that is a link
        return f"{is_picture}[{inside}]({base}/{place}/HEAD/{page}{anchor or ''})"

    # What looks like a link in a block of code is code. The group in `_FENCED` keeps the blocks among the
    # parts.
    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(adapt, part) for part in parts)


def build(source: Path, folder: Path) -> list[Path]:
    """Build the source archive, and the wheel from what that holds."""
    _call(sys.executable, "-m", "build", "--outdir", str(folder), str(source))
    return sorted(folder.iterdir())


def try_out(wheel: Path) -> None:
    """Install the wheel; use the library and the doctor; train, measure and report one network."""
    python = _make_environment(wheel)
    _call(python, "-c", _USES_THE_LIBRARY)
    _call(python, "-m", "bnlab", "doctor", "--demo")

    words = ["experiment=quickstart", "seed=0", "batch_size=256", "steps=3", "results=results"]
    _call(python, "-m", "bnlab", "sweep", *words)
    _call(python, "-m", "bnlab", "report", "name=quickstart", "results=results")


def _make_environment(wheel: Path) -> str:
    """Make an environment that holds a wheel, and versions that bnlab is tested with; its interpreter."""
    folder = BUILD / "environment"
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    _call(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", constraints, str(wheel))
    return python


def _call(*words: str) -> None:
    """Call a command outside of the checkout, which would be imported there; the whole ends where it fails."""
    print("$", *words, flush=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(words, cwd=BUILD, env=_list_variables())
    if done.returncode:
        sys.exit(done.returncode)


def _list_variables() -> dict[str, str]:
    """List the environment's variables without those by which Python would find the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
