"""`bnlab doctor`: what is wrong with a model's batch norms, what it costs, and what to do."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bnlab
from bnlab.commands.images import ImageFolder
from bnlab.commands.loading import (
    hint_at_forward,
    load_arguments,
    name_options,
    report_warnings,
)
from bnlab.commands.packages import is_packaged
from bnlab.doctor.catalogue import list_causes
from bnlab.doctor.cause import SEVERITIES, Severity
from bnlab.doctor.codes import ALIASES
from bnlab.doctor.evidence.history import read_state_file
from bnlab.doctor.report.diagnosis import Diagnosis
from bnlab.doctor.verdict.verdict import Verdict
from bnlab.model.layers import require_watchable

_WITH_BATCHES = ("forward", "evaluate", "labels", "training", "expected", "worth", "max_images")
"""Arguments that say nothing without batches."""


def run(arguments: argparse.Namespace) -> int:
    """Print the diagnosis; 1 if it is as severe as `--fail-on` says, else 0."""
    if arguments.demo:
        from bnlab.commands.demo import show_demo

        show_demo()
        return 0
    _require_arguments(arguments)
    # What the caller's code prints would stand before the JSON.
    printed = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with printed:
        diagnosis = _diagnose(arguments)
    # With --select, only the selected codes decide the exit status; the verdict does not.
    severities = []
    if arguments.select is not None:
        diagnosis = _select(diagnosis, arguments.select)
    elif diagnosis.judged is not None:
        severities.append(_grade_verdict(diagnosis.judged))

    print(diagnosis.to_json() if arguments.json else name_options(str(diagnosis)))
    if arguments.html is not None:
        diagnosis.to_html(arguments.html)
        print(f"page: {arguments.html}", file=sys.stderr)
    severities += [finding.severity for finding in diagnosis.faults]
    # Severities are listed from the least to the most severe.
    threshold = SEVERITIES.index(arguments.fail_on)
    # The severity is None for a verdict that reports no fault.
    is_severe = [severity is not None and SEVERITIES.index(severity) >= threshold for severity in severities]
    return int(any(is_severe))


def _require_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError for arguments that contradict each other, or name nothing, before anything is measured."""
    if arguments.model is None:
        raise ValueError("name a model, package.module:function; or see what the doctor does: bnlab doctor --demo")
    if arguments.batches is None:
        for name in _WITH_BATCHES:
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} is about batches, and none are given: name them too")
    if arguments.select is not None:
        codes = [cause.code for cause in list_causes()]
        if not _split(arguments.select):
            raise ValueError("--select: names no code; bnlab explain lists them")
        for prefix in _split(arguments.select):
            if not any(code.startswith(prefix) for code in codes):
                raise ValueError(f"--select {prefix}: no code begins so; bnlab explain lists them")
    if arguments.html is not None:
        path = Path(arguments.html)
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"--html {path}: is a folder, or lies in none; give the name of a file")


def _split(select: str) -> tuple[str, ...]:
    """Split what codes may begin with; codes of earlier versions are those that they are part of now."""
    prefixes = [prefix.strip().upper() for prefix in select.split(",") if prefix.strip()]
    return tuple(ALIASES.get(prefix, prefix) for prefix in prefixes)


def _select(diagnosis: Diagnosis, select: str) -> Diagnosis:
    """Keep the findings, and the causes that could not be looked for, whose codes begin as was asked for."""
    prefixes = _split(select)
    selected = [finding for finding in diagnosis.faults if finding.cause.code.startswith(prefixes)]
    left_out = [skipped for skipped in diagnosis.left_out if skipped.cause.code.startswith(prefixes)]
    return dataclasses.replace(diagnosis, faults=selected, left_out=left_out)


def _grade_verdict(verdict: Verdict) -> Severity | None:
    """Say how severe a verdict is where no finding says it; None if it is no fault, or not known to be one."""
    return None if verdict.word in ("healthy", "undecided") else "warning"


def _diagnose(arguments: argparse.Namespace) -> Diagnosis:
    """Load what the words name, and examine it."""
    with report_warnings():
        call = load_arguments(arguments, "doctor")
        require_watchable(call["model"], "doctor")
        before = None if arguments.before is None else read_state_file(Path(arguments.before), "--before")
        with hint_at_forward(call):
            diagnosis = bnlab.diagnose(**call, before=before, expected=arguments.expected, worth=arguments.worth)
    notes = [*diagnosis.notes, *_describe_origins(arguments, call["model"], call["batches"])]
    left_out = [dataclasses.replace(skipped, wanted=name_options(skipped.wanted)) for skipped in diagnosis.left_out]
    return dataclasses.replace(diagnosis, notes=notes, left_out=left_out)


def _describe_origins(arguments: argparse.Namespace, model: Any, batches: Any) -> Iterator[str]:
    """Say what the reader must know of a model and of images that the user's own code has not made."""
    if is_packaged(arguments.model):
        if arguments.weights is None:
            yield f"{arguments.model} has its initial weights; --weights FILE loads trained ones."
        elif getattr(model, "transform_input", False):
            yield (
                f"{arguments.model} transforms its input, as torchvision's own weights want it; if yours were trained "
                "without that, name a function that makes the model."
            )
    if isinstance(batches, ImageFolder):
        yield from batches.describe()
