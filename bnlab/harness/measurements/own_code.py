"""A digest of the code that an estimator of the user's consists of: rows of other code are not found again."""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

from bnlab.files import digest
from bnlab.harness.errors import UserError

_PYTHON = Path(sysconfig.get_path("stdlib")).resolve()


@cache  # what runs is the code as it was when it was imported
def digest_of_class(cls: type) -> str:
    """Of the modules of the class and of its bases, and of the user's modules that these take anything from.

    Empty for a class that has all its code from libraries.

    Raises:
        UserError: the source of a module cannot be read.
    """
    sources: dict[str, str] = {}
    queue = [base.__module__ for base in cls.__mro__ if not _is_library(base.__module__)]
    packages = {_top_of(module) for module in queue}  # whose modules are the user's own, also where it is installed
    while queue:
        name = queue.pop()
        if name in sources:
            continue
        sources[name] = _read_source(name, cls)
        queue += [used for used in _find_used(name, sources[name]) if not _is_others(used, packages)]
    return digest(repr(sorted(sources.items())), digits=10) if sources else ""


def _find_used(name: str, source: str) -> Iterator[str]:
    """The modules that a module takes anything from: by what it holds, and by its import statements.

    A notebook has no import statements that could be read; a constant that is held does not say where it is from.
    """
    for value in vars(sys.modules[name]).values() if name in sys.modules else ():
        used = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(used, str):
            yield used
    package = name if _spec_of(name, "submodule_search_locations") else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            given = dict(zip(("name", "package"), node.args, strict=False)) | {k.arg: k.value for k in node.keywords}
            words = {key: value.value for key, value in given.items() if isinstance(value, ast.Constant)}
            if isinstance(word := words.get("name"), str):
                with contextlib.suppress(ImportError):  # whoever calls it gets to hear that there is none
                    yield resolve_name(word, str(words.get("package", package)))


def _read_source(name: str, cls: type) -> str:
    """The source of a module; of one that has no file, such as a notebook, that of the class."""
    module = sys.modules.get(name)
    try:
        # Not yet imported where the import stands in a function.
        return (inspect.getsource(module) if module else Path(_spec_of(name, "origin")).read_text()).rstrip()
    except (OSError, TypeError, UnicodeDecodeError):
        pass
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError) as error:
        raise UserError(f"{cls.__qualname__}: its source cannot be read ({error}); put it into a module") from error


def _top_of(module: str) -> str:
    return module.partition(".")[0]


def _is_library(module: str) -> bool:
    """Ours or Python's; a file of the user's may have the name of one of Python's modules."""
    top = _top_of(module)
    if top not in sys.stdlib_module_names:
        return top == "bnlab"
    file = _find_file(module)
    return file is None or file.resolve().is_relative_to(_PYTHON)


def _find_file(module: str) -> Path | None:
    """Where a module's code lies; None if it is in no file, or there is no such module."""
    file = getattr(sys.modules[module], "__file__", None) if module in sys.modules else _spec_of(module, "origin")
    return None if file in (None, "built-in", "frozen") else Path(file)


def _is_others(module: str, packages: set[str]) -> bool:
    """Of a library, or of an installed package that is none of these."""
    if _is_library(module):
        return True
    file = _find_file(module)
    is_installed = file is not None and bool({"site-packages", "dist-packages"} & {*file.parts})
    return file is None or (is_installed and _top_of(module) not in packages)


def _spec_of(module: str, attribute: str) -> Any:
    """An attribute of the module's import specification; None if there is no such module."""
    try:
        return getattr(find_spec(module), attribute, None)
    except (ImportError, AttributeError, ValueError):  # an attribute of a module, or a notebook
        return None
