"""The names of networks with code of the user's own, and which code that was.

    results/runs/<hash>/seed_<k>/environment.json   `code`: the digest of each module, by the setting that chooses it
    results/runs/<hash>/settings.json               settings of another name, which networks of these settings have

A network is named by its settings, and these have the digest of its code. Earlier versions of bnlab took the text of
one module for the code. A network that they named keeps its name as long as its module has that text or, once a sweep
has noted what its code is, that code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bnlab.common.files import Unreadable, reading, write_text
from bnlab.harness.artifacts.job_settings import (
    Config,
    hash_settings,
    list_code,
    list_naming_settings,
    list_own,
    name_by_text,
    restore_config,
    without_code,
)
from bnlab.harness.errors import UserError
from bnlab.harness.source_code import CODE, Code, list_changed, name_file

Codes = Mapping[str, Code]
"""The user's code by the setting that chooses it, as `list_code` has it."""


def find_settings(config: Config) -> dict[str, Any]:
    """Find the settings that name a network: today's, or those by which an earlier version has named it."""
    settings = list_naming_settings(config)
    codes = list_code(config)
    if not codes:
        return settings
    runs = Path(config.results, "runs")
    note = _find_note(runs, settings)
    noted = _read(note) if note.exists() else {}
    if noted:
        return noted

    by_text = name_by_text(config, settings)
    folder = runs / hash_settings(by_text)
    if not folder.is_dir():
        return settings
    known = [read_codes(path.parent) for path in folder.glob("seed_*/environment.json")]
    # None: it was trained before code was noted, when the text of the module was all that counted.
    is_same = all(each in (None, codes) for each in known)
    return by_text if known and is_same else settings


def note_codes(config: Config, folder: Path, settings: Mapping[str, Any]) -> Codes:
    """Note what the code of a network is that an earlier version has named by these settings.

    What its module imports is taken to be as it was.

    Returns:
        The code; empty where nothing had to be noted.
    """
    codes = list_code(config)
    path = folder / "environment.json"
    environment = _read(path)
    if not codes or not environment or CODE in environment:
        return {}
    write_text(_find_note(folder.parents[1], list_naming_settings(config)), json.dumps(settings, indent=1))
    if "data" in codes:  # else the network would be loaded with data that are known by the text
        file = folder / "config.yaml"
        written = yaml.safe_load(file.read_text(encoding="utf-8"))
        written["data"]["content"] = config.data.content
        write_text(file, yaml.safe_dump(written, sort_keys=False))
    # The environment comes last: once it has the code, nothing more is noted, also if the process was killed here.
    write_text(path, json.dumps(environment | {CODE: codes}, indent=1))
    return codes


def read_codes(folder: Path) -> Codes | None:
    """Read what the code of a network was when it was trained; None where that was not noted."""
    return _read(folder / "environment.json").get(CODE)


def list_changes(config: Config, folder: Path) -> list[str]:
    """List the files of the user's code that have changed since a network was trained.

    Of one that an earlier version has named, and whose name is another one now, these are the files that named it.
    """
    codes = list_code(config)
    before = read_codes(folder)
    if before is None:
        is_named_so = folder.parent.name == hash_settings(find_settings(config))
        return [] if is_named_so else sorted({name_file(own.own_module) for own in list_own(config).values()})
    changed = [list_changed(before.get(key, {}), codes.get(key, {})) for key in {**before, **codes}]
    return sorted({file for files in changed for file in files})


def find_changes(configs: Sequence[Config]) -> list[list[str]]:
    """Find the files that have changed since networks were trained that differ from these in the user's code alone.

    Returns:
        For each configuration the files, as of the newest such network; none where there is none.
    """
    described = [_describe_but_code(config) if list_code(config) else "" for config in configs]
    paths = {own.name for config in configs for own in list_own(config).values()}
    results = {config.results for config in configs}
    ended = [path for folder in results for path in Path(folder, "runs").glob("*/seed_*/status.json")]

    newest: dict[str, Path] = {}
    # The newest network of each description comes last, and takes the place of the others.
    for path in sorted(ended, key=lambda path: path.stat().st_mtime) if any(described) else ():
        newest[_describe_trained(path.parent, paths)] = path.parent
    return [
        list_changes(config, newest[words]) if words and words in newest else []
        for config, words in zip(configs, described, strict=True)
    ]


def _describe_trained(folder: Path, paths: Iterable[str]) -> str:
    """Describe a network that has been trained with code at one of these import paths; empty for another one."""
    file = folder / "config.yaml"
    try:
        with reading(file):
            text = file.read_text(encoding="utf-8")
        # Parsing all files would take long, and most networks have none of this code.
        if not any(path in text for path in paths):
            return ""
        return _describe_but_code(restore_config(yaml.safe_load(text)))
    except (Unreadable, UserError):  # UserError: other code of it is gone
        return ""


def _describe_but_code(config: Config) -> str:
    settings = list_naming_settings(config)
    for key in list_own(config):
        settings[key] = without_code(settings[key])
    return json.dumps(settings, sort_keys=True)


def _find_note(runs: Path, settings: Mapping[str, Any]) -> Path:
    return runs / hash_settings(settings) / "settings.json"


def _read(path: Path) -> dict[str, Any]:
    """Read a file; empty if it is not there, or damaged, in which case the network is trained again."""
    if not path.is_file():  # also where a folder of results is a file, which is named later
        return {}
    try:
        with reading(path):
            return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except Unreadable:
        return {}
