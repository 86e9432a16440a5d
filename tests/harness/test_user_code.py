"""What a user's code is: in all versions of Python the same, and what of it is followed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest

from bnlab.common.files import digest
from bnlab.harness.errors import UserError
from bnlab.harness.user_code import digest_code, read_code

# What versions of Python parse differently: f-strings (3.12), functions and classes (type parameters, 3.12), docstrings
# (3.13), constants of either prefix; and the rest of the grammar of 3.11.
SAMPLE = r'''"""A module."""
from __future__ import annotations

import a.b, c as d
from . import e


class A(B, metaclass=C):
    """A class."""

    v: int
    w: "int" = u"text" 'more' """ and
    more"""

    @dec(1)
    async def g(self, a, /, b=1, *c, d: int = 0, e, **f) -> None:
        """A function."""
        global h
        async with a as b, c:
            pass
        async for q in w:
            await q
        return [u async for u in v if u]


x = f"{a}{b!r:>{width}} {c=} {d:}" "abc" f"{e}" 'q'
y = f"{ x = !s:^{w}.{p}f}" f"" rf"\d{x}" "\N{DEGREE SIGN}{" f"a{{b}}{x:%Y-%m-%d}{y:{'>'}{10}}{ {1: 2} }"
z = f"""
{x:>4
}"""
match p:
    case {"a": 1, **rest} | [1, *_]:
        pass
    case A(x=1, y=None) as s if s:
        ...
try:
    raise E from None
except* ValueError as error:
    del x
with (open(1) as a, open(2) as b):
    print(*a, **b, sep="")
lam = lambda *a, k=None: (yield (a := k))
x[1:2, ..., ::3] = -1, 1e999, 1j, b"\x00", 0x10, True, None, 10_000, "\ud800", "é", {**a}, not a < b <= c
'''
DIGEST = "a17ed87237"
"""Of what is read of the sample: the same in Python 3.11, 3.12 and 3.13."""


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], str]:
    """Reads a text as the code of a module."""
    monkeypatch.syspath_prepend(tmp_path)

    def written(text: str | bytes) -> str:
        (tmp_path / "u_text.py").write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        return read_code("u_text")["u_text"]

    return written


Read = Callable[[str], str]


def test_code_is_the_same_in_all_versions_of_python(read: Read) -> None:
    assert digest(read(SAMPLE), digits=10) == DIGEST


SAME = {
    "comments": "x = 1  # one\n# two\n\n\ny = (x\n     + 2)\n",
    "docstrings": '"""A module."""\nx = 1\ny = x + 2',
    "encoding": "# coding: latin-1\nx = 1\ny = x + 2",
    "layout": "x=1;y=((x)+\\\n2)\r\n",
    "prefixes": "x = 0x1\ny = x + 0b10",
}
OTHERS = {
    "value": "x = 1\ny = x + 3",
    "type": "x = 1.0\ny = x + 2",
    "truth": "x = True\ny = x + 2",
    "name": "x = 1\nz = x + 2",
    "order": "y = x + 2\nx = 1",
    "operator": "x = 1\ny = x - 2",
    "grouping": "x = 1\nif y:\n    x + 2",
    "no code": "x = 1\ny = x + ",
}


@pytest.mark.parametrize("case", SAME)
def test_what_does_not_count(case: str, read: Read) -> None:
    assert read(SAME[case]) == read("x = 1\ny = x + 2\n")


def test_what_counts(read: Read) -> None:
    texts = [read(text) for text in ("x = 1\ny = x + 2\n", *OTHERS.values())]

    assert len({*texts}) == len(texts)
    assert read('def f():\n    "It does nothing."\n') == read("def f(): pass")
    assert read("x = ['', 'a']") != read("x = ['a']")
    assert read("x = f'{a}b'") != read("x = f'{a!r}b'")
    assert read("if a:\n    b\n    c") != read("if a:\n    b\nc")


FILES = {
    "u_net.py": "import u_layers, torch\nfrom bnlab.harness import errors\nimport experiments.margins",
    "u_layers.py": "def f():\n    from u_pkg.deep import act",
    "u_pkg/__init__.py": "from . import side",
    "u_pkg/side.py": "import u_above",
    "u_pkg/deep/__init__.py": "from .act import *\nfrom ..other import missing",
    "u_pkg/deep/act.py": "import u_pkg.deep.act, u_net",
    "u_pkg/other.py": "import u_space.inner.leaf as leaf",
    "u_pkg/unused.py": "",
    "u_space/inner/leaf.py": "try:\n    import u_missing\nexcept ImportError:\n    import u_instead",
    "u_instead.py": "import u_run",
    "u_run.py": "import u_installed, u_editable, u_broken",
    "u_broken.py": "1 +",
    "elsewhere/u_editable.py": "import u_installed",
    "u_types.py": "",
    "u_above.py": "",
    "site-packages/u_installed.py": "import u_types",
}
FOLLOWED = {
    "u_net",
    "u_layers",
    *("u_pkg", "u_pkg.side", "u_pkg.deep", "u_pkg.deep.act", "u_pkg.other"),
    "u_space.inner.leaf",
    "u_instead",
    "u_run",
    "u_broken",
    "u_editable",
    "u_above",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that can be imported, and are not: each would fail."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\nraise AssertionError('this module was imported')\n", encoding="utf-8")
    for elsewhere in ("site-packages", "elsewhere"):  # the latter as by an editable installation
        monkeypatch.syspath_prepend(tmp_path / elsewhere)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_followed(folder: Path) -> None:
    """Every import of every module but of installed packages and of bnlab's own; nothing is run."""
    assert {*read_code("u_net")} == FOLLOWED
    assert not {*FOLLOWED} & {*sys.modules}


def test_a_module_is_found_as_python_would_find_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable installation may have a finder of its own, whose folder is not on the path."""
    package = folder / "hidden" / "u_mapped"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "net.py").write_text("import u_types", encoding="utf-8")

    class Finder:
        """As setuptools installs one."""

        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            if name != "u_mapped":
                return None
            return spec_from_file_location(name, package / "__init__.py", submodule_search_locations=[str(package)])

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert {*read_code("u_mapped.net")} == {"u_mapped", "u_mapped.net", "u_types"}


def test_of_an_installed_package_the_module_alone_is_read(folder: Path) -> None:
    (folder / "site-packages" / "u_types.py").write_text("", encoding="utf-8")
    assert {*read_code("u_installed")} == {"u_installed"}


def test_a_package_is_run_before_its_modules(folder: Path) -> None:
    assert {*read_code("u_pkg.unused")} == {"u_pkg", "u_pkg.side", "u_pkg.unused", "u_above"}


@pytest.mark.parametrize("file", ["u_net.py", "u_pkg/deep/act.py", "u_space/inner/leaf.py"])
def test_a_file_that_has_changed_is_other_code(file: str, folder: Path) -> None:
    before = read_code("u_net")
    path = folder / file
    text = path.read_text(encoding="utf-8")
    path.write_text(f"# a comment\n{text}", encoding="utf-8")
    assert read_code("u_net") == before

    path.write_text(f"CHANGED = True\n{text}", encoding="utf-8")
    assert read_code("u_net") != before


def test_code_is_as_it_was_when_it_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edited file counts once its module is imported again, as that is when it runs."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "u_edited.py"
    file.write_text("x = 1\n", encoding="utf-8")
    module = importlib.import_module("u_edited")
    before = digest_code("u_edited")

    file.write_text("x = 20\n", encoding="utf-8")
    assert digest_code("u_edited") == before

    importlib.reload(module)
    assert digest_code("u_edited") != before


def test_what_has_no_file_is_refused() -> None:
    with pytest.raises(UserError, match="sys: has no file of Python"):
        digest_code("sys")
