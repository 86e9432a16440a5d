"""What is wrong with a command line or a configuration file, in a line: the word or file, the key, what to do."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from bnlab.harness.artifacts.settings import Config, field_names, flatten

CONF = Path(__file__).resolve().parents[1] / "conf"
CHOICES = ("data", "model", "norm", "optimizer", "suite", "variation", "experiment")
_OF_ALL_GROUPS = CHOICES[-3:]  # whose files have settings of all groups
# What other programs call a setting, and its name here.
_SYNONYMS = {
    "learning_rate": "optimizer.lr",
    "iterations": "steps",
    "dataset": "data",
    "network": "model",
    "layers": "model.depth",
    "channels": "model.width",
    "workers": "hydra.launcher.n_jobs",
    "n_jobs": "hydra.launcher.n_jobs",
}


def list_choices(group: str) -> list[str]:
    """What there is to choose from: the files of a folder of conf/."""
    if group == "hydra/launcher":
        return ["basic", "joblib", "submitit_slurm"]
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def experiment_file(words: Iterable[str]) -> str:
    """The file of the experiment that is among the words; without one, that of the defaults."""
    chosen = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    return f"conf/experiment/{chosen[0]}.yaml" if chosen else "conf/config.yaml"


@cache  # each job of a sweep asks
def list_settings(file: str) -> set[str]:
    """The settings that a file of conf/ has values of, dotted, and the groups of which it chooses a file."""
    content = _read(file)
    chosen = [key for item in content.pop("defaults", []) if isinstance(item, dict) for key in item]
    return {*flatten(content), *(key.removeprefix("override /") for key in chosen)}


def list_required(file: str) -> list[str]:
    """The settings of which a file of conf/ says that they have to be given: '???', as Hydra writes it."""
    return [key for key, value in flatten(_read(file)).items() if value == "???"]


def _read(file: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / file).read_text()) or {}


def explain_syntax(word: str) -> str:
    """Why Hydra cannot parse a word, and how to write it."""
    if any(word.count(a) != word.count(b) for a, b in ("[]", "()", "{}")) or word.count("'") % 2:
        return "a bracket or quote is not closed"
    key, equals, value = word.partition("=")
    quoted = re.sub(r"""(?<![^\s,\[])[^\s,\[\]"'()](?:[^,\[\]"'()]*\([^()]*\))+[^,\[\]"'()]*""", r'"\g<0>"', value)
    if quoted != value:
        return f"a value with brackets needs quotes: {shlex.quote(f'{key}={quoted}')}"
    return "write key=value, a list as key=[a,b]" if equals else "write key=value"


def explain_unknown(source: str, key: str) -> str:
    """There is no such setting; `source` is the word or the file that has it."""
    if key.startswith("hydra.launcher."):
        return f"{source}: there is no setting {key!r} of this launcher; n_jobs needs hydra/launcher=joblib"
    close = _nearest_setting(key)
    if close == [key]:  # in a file
        group, _, name = key.partition(".")
        return f"{source}: {key} is nested in a file, '{group}: {{{name}: ...}}'; dots stand below params only"
    return f"{source}: there is no setting {key!r}{_suggest(close)}; --help lists them"


def explain_failure(files: Sequence[str], error: Exception) -> str:
    """The word or file, and in it the key or line, that made Hydra's composition of `files` (group=name) fail."""
    text = str(error)
    if missing := re.search(r"Could not find '([\w/]+)/([^']*)'", text):
        return _explain_missing(files, *missing.groups())
    if setting := re.search(r"In '([\w/]+)': \w+ raised while composing config:\n(.*)\n\s*full_key: (\S*)", text):
        return _explain_value(*setting.groups())
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        path = Path(mark.name).relative_to(CONF.parent)
        return f"{path}: line {mark.line + 1}, column {mark.column + 1}: not valid YAML ({error.problem})"
    return f"{experiment_file(files)}: cannot be read ({first_line(error)})"


def _explain_missing(files: Sequence[str], group: str, name: str) -> str:
    word, known, kind = f"{group}={name}", list_choices(group), group.removeprefix("hydra/")
    source = word if word in files else f"{_find_file(files, group, name)}: {word}"
    close = difflib.get_close_matches(name, known, n=1)
    return f"{source}: there is no such {kind}; choose from {', '.join(known)}{_suggest(close)}"


def explain_name(words: Sequence[str], name: str) -> str:
    """The name of the results is another than the experiment's; the file that sets it."""
    path = experiment_file(words)
    own = yaml.safe_load((CONF.parent / path).read_text()) or {}
    if path.startswith("conf/experiment/") and own.get("name") != Path(path).stem:
        found = f"name: {own['name']}" if "name" in own else "has no name"
        return f"{path}: {found}; write name: {Path(path).stem}"
    chosen = [word for word in words if word.partition("=")[0] in CHOICES and not word.startswith("experiment=")]
    return (
        f"{' '.join(chosen)}: sets name: {name}, where results lie, which an experiment's file and name= do; only "
        "files of experiment, suite and variation begin with '# @package _global_'"
    )


def _find_file(files: Sequence[str], group: str, name: str) -> str:
    """The chosen file whose defaults choose this name in a group; without one the experiment's."""
    choice = rf"/{group}: *{re.escape(name)}\b"
    for chosen, _, file in (word.partition("=") for word in files):
        path = CONF / chosen / f"{file}.yaml"
        if chosen in _OF_ALL_GROUPS and path.exists() and re.search(choice, path.read_text()):
            return f"conf/{chosen}/{file}.yaml"
    return experiment_file(files)


def _explain_value(file: str, reason: str, key: str) -> str:
    path = f"conf/{file}.yaml"
    if not key and reason.startswith("Merge error"):
        return _explain_group(file)
    if key in _OF_ALL_GROUPS and (CONF / f"{file}.yaml").read_text().startswith("# @package _global_"):
        return _explain_group(file)
    if not key or key in _OF_ALL_GROUPS:
        return f"{path}: must begin with the line '# @package _global_'; settings follow as key: value"
    if reason.startswith("Key "):
        return explain_unknown(path, key)
    return f"{path}: {key}: {reason.strip().rstrip('.')}"


def _explain_group(file: str) -> str:
    """A file that gives a name to a group of settings where Hydra wants an override."""
    path = CONF / f"{file}.yaml"
    content = yaml.safe_load(path.read_text())
    named = {key: value for key, value in content.items() if key in CHOICES and isinstance(value, str)}
    if "experiment" in named:
        return f"conf/{file}.yaml: experiment: one experiment cannot choose another; what two share is a file of suite"
    if "variation" in named:
        word = f"variation={named['variation']}"
        return (
            f"conf/{file}.yaml: variation: is chosen on the command line ({word}) or swept, below hydra.sweeper.params"
        )
    if not named:
        return f"conf/{file}.yaml: a value stands where a group of settings is, or the other way round"
    chosen = ", ".join(f"override /{key}: {value}" for key, value in named.items())
    return f"conf/{file}.yaml: {', '.join(named)}: a group of settings, chosen by 'defaults: [{chosen}]'"


def _nearest_setting(key: str) -> list[str]:
    """The known setting whose last part is most alike; of several the one whose group is."""
    names = {**_SYNONYMS, **{name: name for name in (*field_names(Config), *CHOICES)}}

    def likeness(name: str) -> tuple[float, float]:
        return _ratio(name.rpartition(".")[2], key.rpartition(".")[2]), _ratio(name, key)

    best = max(names, key=likeness)
    return [names[best]] if likeness(best)[0] >= 0.6 else []


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()


def _suggest(close: list[str]) -> str:
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop."""
    return next(iter(str(error).splitlines()), type(error).__name__).strip().rstrip(".")
