"""Which files of the user's own code have changed since networks were trained with them.

    results/runs/<hash>/seed_<k>/environment.json   `code`: the digest of each module, by the setting that chooses it

The digests are part of a network's settings, and so of its name: changed code trains a network beside the old one.
What is found out here is only why.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bnlab.common.files import Unreadable, reading
from bnlab.harness.artifacts.job_settings import Config, list_code, list_naming_settings, list_own, restore_config
from bnlab.harness.source_code import CODE, SOURCE, Code, list_changed


def list_changes(config: Config, folder: Path) -> list[str]:
    """List the files of the user's code that have changed since the network in a folder was trained."""
    now = list_code(config)
    before = _read_code(folder)
    changed = [list_changed(before.get(key, {}), now.get(key, {})) for key in {**before, **now}]
    return sorted({file for files in changed for file in files})


def find_changes(configs: Sequence[Config]) -> list[list[str]]:
    """Find the files that have changed since networks were trained that differ from these in the user's code alone.

    Returns:
        For each configuration the files, as of the newest such network; none where there is none.
    """
    # Empty for a network without a user's code, which cannot have changed.
    described = [_describe_but_code(config) if list_code(config) else "" for config in configs]
    if not any(described):
        return [[] for _ in configs]
    paths = {own.name for config in configs for own in list_own(config).values()}
    results = {config.results for config in configs}
    ended = [path for folder in results for path in Path(folder, "runs").glob("*/seed_*/status.json")]

    newest: dict[str, Path] = {}
    # The newest network of each description comes last, and takes the place of the others.
    for path in sorted(ended, key=lambda path: path.stat().st_mtime):
        newest[_describe_trained(path.parent, paths)] = path.parent

    changes = []
    for config, words in zip(configs, described, strict=True):
        is_known = words != "" and words in newest
        changes.append(list_changes(config, newest[words]) if is_known else [])
    return changes


def _read_code(folder: Path) -> Mapping[str, Code]:
    """Read the user's code with which a network was trained, by the setting that chooses it; empty without any."""
    path = folder / "environment.json"
    try:
        with reading(path):
            return json.loads(path.read_text(encoding="utf-8")).get(CODE, {})  # type: ignore[no-any-return]
    except Unreadable:  # or there is none: the network is trained again
        return {}


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
    except Unreadable:  # damaged, or other code of it is gone
        return ""


def _describe_but_code(config: Config) -> str:
    """Describe a network by all that names it, but for the digests of the user's code."""
    settings: dict[str, Any] = list_naming_settings(config)
    for key in list_own(config):
        settings[key] = {name: value for name, value in settings[key].items() if name != SOURCE}
    return json.dumps(settings, sort_keys=True)
