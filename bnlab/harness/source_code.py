"""What a user's code is: the syntax trees of a module and of the user's modules that it imports, and these in turn.

Comments, docstrings and layout do not count, and a digest is the same in all versions of Python. The files are read,
nothing is imported. Not followed are imports by a name that is computed, compiled modules, and files that code reads.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bnlab.common.files import digest
from bnlab.harness.errors import is_of_user, shorten

Code = dict[str, str]
"""A user's code: module → the digest of its syntax tree."""

CODE = "code"
"""What `environment.json` of a network calls the user's code."""

SOURCE = "source"
"""What the digest of a user's code is called beside the arguments of what it makes, as in `model.source`."""

_OURS = ("bnlab", "experiments")  # packages that are not the user's, wherever they lie
_DIGITS = 10
_AS_IMPORTED: dict[str, tuple[Any, tuple[str, list[str]]]] = {}  # module → its spec, and what `_read_module` returns


def read_code(*modules: str) -> dict[str, str]:
    """Digest these modules and the user's modules that they import, wherever they do so, and these in turn.

    The modules that are named count wherever they lie. Those without a file of Python, as what is typed into a
    notebook, are left out.
    """
    code = {}
    seen = set[str]()
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        package, _, _ = name.rpartition(".")
        # The __init__.py of a package is run before its modules.
        if package:
            waiting.append(package)

        file = _find_file(name)
        if file is None or not (name in modules or _is_of_user(name, file)):
            continue
        code[name], imported = _read_module(name, file)
        waiting += imported
    return code


def _read_module(name: str, file: Path) -> tuple[str, list[str]]:
    """Digest a module, and list what it imports."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    # What runs is the code as it was when it was imported, and importing it again makes another spec.
    if spec is not None and name in _AS_IMPORTED and _AS_IMPORTED[name][0] is spec:
        return _AS_IMPORTED[name][1]

    tree = _parse(file.read_bytes())
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    imports = [*_list_imports(tree, package)]
    digest_and_imports = _digest_tree(tree), imports
    if spec is not None:
        _AS_IMPORTED[name] = spec, digest_and_imports
    return digest_and_imports


def list_changed(before: Code, now: Code) -> list[str]:
    """List the files of the modules in which a user's code differs."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [name_file(name) for name in sorted(names)]


def digest_code(text: str | bytes) -> str:
    """Digest the syntax tree of a module; of what is not valid Python its text."""
    return _digest_tree(_parse(text))


def digest_whole(code: Code) -> str:
    """Digest all modules of a user's code together."""
    return digest(json.dumps(code, sort_keys=True), digits=_DIGITS)


def _digest_tree(tree: ast.AST) -> str:
    return digest("\n".join(_write_tree(tree)), digits=_DIGITS)


def _parse(text: str | bytes) -> ast.AST:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python has warned of this code where it was imported
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):  # ValueError: a null byte, before Python 3.12
            return ast.Constant(text)


def say_changed(files: Iterable[str]) -> str:
    """Say that files have changed.

    >>> say_changed(["layers.py"]), say_changed(["layers.py", "net.py"])
    ('layers.py has changed', 'layers.py, net.py have changed')
    """
    names = [*files]
    verb = "has" if len(names) == 1 else "have"
    return f"{', '.join(names)} {verb} changed"


def name_file(module: str) -> str:
    """Name the file of a module, as seen from the current folder."""
    file = _find_file(module)
    return f"{module} (which is gone)" if file is None else str(shorten(file))


def _find_file(module: str) -> Path | None:
    """Find the file of a module: of one that has been imported the file that was, else the one that would be.

    Not by `importlib.util.find_spec` alone, which imports the packages of a module.
    """
    package, _, name = module.rpartition(".")
    if sys.modules.get(module) is not None:
        files = [getattr(sys.modules[module], "__file__", None) or ""]
    elif package:
        files = []
        for folder in _find_folders(package):
            files += [f"{folder}/{name}/__init__.py", f"{folder}/{name}.py"]
    else:
        spec = importlib.util.find_spec(module)
        files = [spec.origin or ""] if spec is not None else []
    return next((Path(file) for file in files if file.endswith(".py") and os.path.exists(file)), None)


def _find_folders(package: str) -> list[str]:
    """Find the folders in which the modules of a package lie: one, or several of a namespace package."""
    above, _, name = package.rpartition(".")
    if sys.modules.get(package) is not None:
        return [*getattr(sys.modules[package], "__path__", ())]
    if above:
        return [f"{folder}/{name}" for folder in _find_folders(above)]
    spec = importlib.util.find_spec(package)
    return [] if spec is None else [*(spec.submodule_search_locations or ())]


def _is_of_user(module: str, file: Path) -> bool:
    top, _, _ = module.partition(".")
    return top not in _OURS and is_of_user(file)


def _list_imports(tree: ast.AST, package: str) -> Iterator[str]:
    """List what code in a package imports: modules, and names in modules, each of which may be a module too."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(names=names):
                with contextlib.suppress(ImportError):  # above the uppermost package
                    relative = "." * node.level + (node.module or "")
                    module = importlib.util.resolve_name(relative, package)
                    yield module
                    yield from (f"{module}.{alias.name}" for alias in names)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                waiting += node.orelse  # what is imported for type checkers is not run
            case _:
                waiting += ast.iter_child_nodes(node)


def _write_tree(tree: ast.AST) -> Iterator[str]:
    """Write a syntax tree in lines: each node before its fields, in order.

    Not `ast.dump`, whose text differs between versions of Python: fields that only newer ones have are empty in older
    code, and empty ones are left out. No recursion: a long sum is a deep tree.
    """
    waiting: list[Any] = [tree]
    while waiting:
        part = waiting.pop()
        match part:
            case ast.AST():
                fields = {name: value for name, value in ast.iter_fields(part) if value is not None and value != []}
                fields.pop("kind", None)  # u"" is ""
                if isinstance(part, ast.JoinedStr):
                    fields["values"] = [each for each in part.values if not _is_empty_text(each)]
                yield f"{type(part).__name__} {' '.join(fields)}"
                waiting += reversed(fields.values())
            case list():
                kept = [each for each in part if not _does_nothing(each)]
                yield f"{len(kept)} parts"
                waiting += reversed(kept)
            case _:
                yield ascii(part)  # which characters `repr` escapes depends on the version of Python


def _does_nothing(part: object) -> bool:
    """Return whether it is a statement without effect: a docstring, or `pass`, which a docstring may stand for."""
    match part:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
    return False


def _is_empty_text(part: ast.expr) -> bool:
    """Return whether it is an empty piece of an f-string, which Python 3.12 has beside the others."""
    return isinstance(part, ast.Constant) and part.value == ""
