"""A digest of the user's code: of the file that defines a function or class, and of the files that it imports.

A result is known by it: other code is another network, or another row. Files are read as `ast.unparse` writes them, so
that comments, layout and Python's version do not count. Nothing is imported. Not followed are imports by a name that is
computed, packages that are installed, and files that code reads.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import os
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
# Imported module → the specs of all modules whose code it runs, and the digest of that code.
_DIGESTED: dict[str, tuple[dict[str, Any], str]] = {}


def digest_class(cls: type) -> str:
    """Digest the code of a user's class; empty for bnlab's, whose changes `records.VERSION` counts."""
    return digest_path(f"{cls.__module__}.{cls.__name__}")


def digest_path(path: str) -> str:
    """Digest the code of a class at `package.module.Class`, as `digest_class`; of a name without dots, bnlab's, too.

    The class need not have been imported. Of a module that is not there it is empty: the check of the job says so.
    """
    module, _, _ = path.rpartition(".")
    is_ours = not module or module.startswith(_SHIPPED)
    if is_ours or (module not in sys.modules and _find_file(module) is None):
        return ""
    return digest_code(module)


def digest_code(module: str) -> str:
    """Digest the code of a module; UserError for what has no file, as what is typed into a notebook.

    What it calls there could change, and nobody would see it. A module of bnlab's own questions is known by its text.
    """
    if module.startswith(_SHIPPED):
        return _digest_text(module)
    # What runs is the code as it was when it was imported, and importing a module again gives it another spec.
    if module in _DIGESTED:
        specs, known = _DIGESTED[module]
        if all(_find_spec(name) is spec for name, spec in specs.items()):
            return known

    texts = read_code(module)
    if module not in texts:
        raise UserError(
            f"{module}: has no file of Python that could be read, so that nobody knows when its code changes; write it "
            "into a module (in a notebook by %%writefile net.py) and name it there"
        )
    found = digest(repr(sorted(texts.items())), digits=_DIGITS)
    specs = {name: _find_spec(name) for name in texts}
    # A module that has not been imported yet will run as its file is then.
    if all(specs.values()):
        _DIGESTED[module] = specs, found
    return found


def read_code(module: str) -> dict[str, str]:
    """Read the code of a module and of the user's modules that it imports, anywhere in its code, directly or in turn.

    Returns the code by module; nothing for a module without a file.
    """
    texts: dict[str, str] = {}
    seen = {""}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        package, _, _ = name.rpartition(".")
        waiting.append(package)  # its __init__.py is run before its modules
        file = _find_file(name)
        is_ours = name.partition(".")[0] in _OURS
        if file is None or is_ours or not (name == module or is_of_user(file)):
            continue

        try:
            tree = ast.parse(file.read_bytes())
        except SyntaxError:  # of a file that has not been imported yet
            texts[name] = file.read_text(encoding="utf-8", errors="replace")
            continue
        if is_of_user(file):
            waiting += _list_imports(tree, name if file.name == "__init__.py" else package)
        texts[name] = ast.unparse(_Normalizer().visit(tree))
    return texts


def _find_file(module: str) -> Path | None:
    """Find the file of a module: of one that has been imported the file that was, else the one that would be."""
    package, _, name = module.rpartition(".")
    loaded = sys.modules.get(module)
    if loaded is not None:
        files = [getattr(loaded, "__file__", None)]
    elif package:
        files = [f"{folder}/{name}{ending}" for folder in _find_folders(package) for ending in ("/__init__.py", ".py")]
    else:
        spec = importlib.util.find_spec(module)
        files = [spec.origin] if spec else []
    return next((Path(file) for file in files if file and file.endswith(".py") and os.path.isfile(file)), None)


def _find_folders(package: str) -> list[str]:
    """Find the folders in which the modules of a package lie: one, or several where it has no __init__.py."""
    loaded = sys.modules.get(package)
    if loaded is not None:
        return [*getattr(loaded, "__path__", ())]
    above, _, name = package.rpartition(".")
    if above:
        return [f"{folder}/{name}" for folder in _find_folders(above)]
    # Not by sys.path: a package that is installed as editable may lie outside of it. Nor for modules in packages,
    # which `find_spec` would import.
    spec = importlib.util.find_spec(package)
    return [*(spec.submodule_search_locations or ())] if spec else []


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
    """Removes docstrings, and rewrites f-strings, which versions of Python write differently."""

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
