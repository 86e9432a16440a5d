"""Loading networks that a sweep has trained, as PyTorch modules."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from bnlab.common.files import Unreadable, reading
from bnlab.harness.artifacts.job_settings import GROUPS, MOMENTUM, list_own, read_config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.errors import UserError, find_network
from bnlab.harness.measurements.estimates import flat_statistics
from bnlab.harness.measurements.subjects import parse_subjects
from bnlab.harness.reporting.tables import read_tables
from bnlab.harness.settings import require_one_of
from bnlab.harness.user_code import SOURCE


def load_model(
    name: str, run: str, *, step: int | None = None, statistics: str = "running", results: str | Path = "results"
) -> nn.Module:
    """Load a network of a sweep, in eval mode, on the device that its sweep would use here.

    It takes images as training saw them: standardized by mean and standard deviation of the training split, as
    `load_images` gives them.

    Args:
        name: of the sweep, such as "quickstart"; "adhoc" without a name.
        run: as in the table `runs`, "<hash>/seed_<k>", or a beginning that one network of the sweep has.
        step: updates of the weights; by default the last that was kept.
        statistics: what its batch norm layers hold: "running", the averages that training left; or what `estimator=`
            takes, as "exact", "ema(momentum=0.01)", "precise(images=1000)".
        results: the folder of all sweeps.

    Raises:
        UserError: there is no such network, step or estimator, or its code has changed since it was trained.

    >>> run = load("quickstart")["runs"]["run"][0]  # doctest: +SKIP
    >>> model = load_model("quickstart", run, statistics="exact")  # doctest: +SKIP
    >>> model.training  # doctest: +SKIP
    False
    """
    full_name = _find_run(name, run, results)
    return build_network(open_run(full_name, results), step, statistics)


def load_images(name: str, run: str, *, split: str = "test", results: str | Path = "results") -> tuple[Tensor, Tensor]:
    """Load the images that a network of a sweep is measured on, as it takes them, with their labels.

    Args:
        name: of the sweep, as in `load_model`.
        run: as in `load_model`.
        split: "train", "val" or "test".
        results: the folder of all sweeps.

    Returns:
        Images [N, C, H, W], float32, standardized by mean and standard deviation of the training split, and labels
        [N], both on the device that the sweep would use here.

    Raises:
        UserError: there is no such network or split, or its code has changed since it was trained.

    >>> run = load("quickstart")["runs"]["run"][0]  # doctest: +SKIP
    >>> images, labels = load_images("quickstart", run)  # doctest: +SKIP
    >>> images.shape[1:]  # doctest: +SKIP
    torch.Size([1, 8, 8])
    """
    require_one_of("split", split, ("train", "val", "test"))
    full_name = _find_run(name, run, results)
    dataset = open_run(full_name, results).dataset
    chosen = {"train": dataset.train, "val": dataset.val, "test": dataset.test}[split]
    # Copies, because networks of the same process are trained and measured on the images themselves.
    return chosen.images.clone(), chosen.labels.clone()


def open_run(run: str, results: str | Path = "results") -> Run:
    """Find a network by its full name; UserError if it is not there, or code that it needs is gone or has changed."""
    path = Path(results) / "runs" / run / "config.yaml"
    if not path.exists():
        raise UserError(f"{run}: there is no {path}; the network was removed, or lies elsewhere: results=FOLDER")
    with reading(path):
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for group in GROUPS:
        values.get(group, {}).pop(SOURCE, None)  # the digest of the code, which is no setting
    try:
        # Opened by its name, since this version or the code of today may give its settings another one.
        opened = Run(replace(read_config(values), results=str(results)), run)
    except UserError as error:
        raise UserError(f"{run}: cannot be built without what it was made of; {error}") from error
    if Run(opened.config).id != run:
        changed = "your code or bnlab" if list_own(opened.config) else "bnlab"
        raise UserError(f"{run}: {changed} has changed since it was trained; undo that, or sweep it again")
    return opened


def build_network(run: Run, step: int | None = None, statistics: str = "running") -> nn.Module:
    """Build a network of a step and these statistics, see `load_model`."""
    kept = {*run.list_kept(), *run.list_checkpoints()}
    if not kept:
        raise UserError(f"{run.id}: has no checkpoint; the sweep that made it trains it again")
    wanted = max(kept) if step is None else step
    if wanted in kept and not run.checkpoint(wanted).exists():
        raise UserError(f"{run.checkpoint(wanted)}: is missing; the sweep that made it trains it again")
    try:
        model = run.model_at(wanted).eval()
    except Unreadable as error:
        remove = ["bnlab", "runs", "rm", run.id]
        if run.config.results != "results":
            remove.append(f"results={run.config.results}")
        raise UserError(f"{error}; to train it again: {shlex.join(remove)}, then the sweep that made it") from error
    if statistics == "running":
        return model

    if not run.has_trace:
        raise UserError(f"{run.id}: norm={run.config.norm.name} has no statistics to choose; leave statistics out")
    # A single name with one momentum and one population is a single subject.
    (subject,) = parse_subjects([statistics], [MOMENTUM], "train")
    if subject.is_rule:
        raise UserError(f"statistics={statistics}: is computed from the images that are predicted; choose another")
    values = flat_statistics(run, [subject], [wanted])[0, 0]
    chosen = run.trace.layout.unflatten(values)
    chosen.write_to(model)
    return model


def _find_run(name: str, run: str, results: str | Path) -> str:
    """Find the full name of a sweep's network that is called so, or of the only one whose name begins so."""
    known = list(read_tables(name, results)["runs"]["run"])
    some = ", ".join(known[:3])
    return find_network(run, known, f"of {name}; there are {some}, … (the table runs has all)")
