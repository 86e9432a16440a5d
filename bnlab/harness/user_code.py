"""The code that a user's function or class is: a digest of its file and of the files of its folder that this imports.

A result is known by it: other code is another network, or another row. Files are read as `ast.unparse` writes them, so
that comments, layout and Python's version do not count. Nothing is imported. Not followed are imports by a name that is
computed, packages that are installed, and files that code reads.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from bnlab.common.files import digest
from bnlab.harness.errors import UserError, is_of_user

SOURCE = "source"
"""What the digest of a user's code is called beside the arguments of what it makes, as in `model.source`."""

_OURS = ("bnlab", "experiments")  # packages that are not the user's, wherever they lie
_SHIPPED = ("bnlab.", "experiments.questions.")  # modules whose changes the version of all measurements counts
_DIGITS = 10
_READ: dict[str, tuple[dict[str, Any], str]] = {}  # module → the specs of all that was read for it, and the digest


def digest_class(cls: type) -> str:
    """Digest the code of a user's class; empty for bnlab's, whose changes `measurements.estimates.VERSION` counts."""
    return "" if cls.__module__.startswith(_SHIPPED) else digest_code(cls.__module__)


def digest_code(module: str) -> str:
    """Digest the code of a module; UserError for what has no file, as what is typed into a notebook.

    What it calls there could change, and nobody would see it. A module of bnlab's own questions is known by its text.
    """
    if module.startswith(_SHIPPED):
        return _digest_text(module)
    # What runs is the code as it was when it was imported, and importing a module again gives it another spec.
    if module in _READ:
        specs, known = _READ[module]
        if all(_find_spec(name) is spec for name, spec in specs.items()):
            return known

    texts = read_code(module)
    if module not in texts:
        raise UserError(
            f"{module}: has no file of Python that could be read, so that nobody knows when its code changes; write it "
            "into a module (in a notebook by %%writefile net.py) and name it there"
        )
    _READ[module] = {name: _find_spec(name) for name in texts}, digest(repr(sorted(texts.items())), digits=_DIGITS)
    return _READ[module][1]


def read_code(module: str) -> dict[str, str]:
    """Read the code of a module, and of all modules in its folder that it imports, wherever it does so, and these too.

    Of an installed package the module alone. Empty for a module without a file.
    """
    folder = _find_folder(module)
    if folder is None:
        return {}
    texts: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _find_file(folder, name)
        if name in texts or file is None or name.split(".")[0] in _OURS:
            continue
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError:  # of a file that has not been imported yet
            texts[name] = file.read_text(encoding="utf-8", errors="replace")
            continue
        imports = _list_imports(tree, package)
        texts[name] = ast.unparse(_Normalizer().visit(tree))
        if is_of_user(file):
            # The __init__.py of a package is run before its modules.
            waiting += [*imports, name.rpartition(".")[0]]
    return texts


def _find_folder(module: str) -> Path | None:
    """Find the folder from which a module is imported, or would be."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    if loaded is not None:
        if file is None:
            return None
        depth = module.count(".") + (Path(file).name == "__init__.py")
        return Path(file).resolve().parents[depth]
    folders = [Path(entry).resolve() for entry in sys.path]
    return next((folder for folder in folders if _find_file(folder, module)), None)


def _find_file(folder: Path, module: str) -> Path | None:
    path = folder.joinpath(*module.split("."))
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), None) if module else None


def _find_spec(module: str) -> Any:
    loaded: ModuleType | None = sys.modules.get(module)
    return getattr(loaded, "__spec__", None)


def _list_imports(tree: ast.AST, package: str) -> list[str]:
    """List what code in a package imports: modules, and names in modules, each of which may be a module too."""
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            with contextlib.suppress(ImportError):  # above the uppermost package, which Python refuses
                module = importlib.util.resolve_name(relative, package)
                imported += [module, *(f"{module}.{alias.name}" for alias in node.names)]
    return imported


class _Normalizer(ast.NodeTransformer):
    """Takes away what is no code, docstrings, and what versions of Python write in different ways, f-strings."""

    def visit(self, node: ast.AST) -> Any:
        self.generic_visit(node)
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
            case ast.JoinedStr(values=values):
                # Python 3.12 has empty pieces beside the others, and other quotes than 3.11.
                return _call("f", *(each for each in values if ast.unparse(each) != "''"))
            case ast.FormattedValue(value=value, conversion=conversion, format_spec=spec):
                return _call("format", value, ast.Constant(conversion), spec or ast.Constant(None))
        return node


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name), [*arguments], [])


@cache
def _digest_text(module: str) -> str:
    """Digest the text of a module of bnlab's own, by which networks of its questions have always been named."""
    return digest(inspect.getsource(sys.modules[module]), digits=_DIGITS)
