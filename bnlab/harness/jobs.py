"""The jobs of a sweep: train what is missing, measure, leave the rows in the experiment's folder."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from bnlab.files import digest
from bnlab.harness.artifacts import data, norms
from bnlab.harness.artifacts.folders import describe_environment, write_text
from bnlab.harness.artifacts.freezing import check_momenta
from bnlab.harness.artifacts.producing import ensure_trained, try_training
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config, as_list, flatten, network, total_steps
from bnlab.harness.artifacts.training import peak_lr, steps_per_epoch
from bnlab.harness.errors import JobError, UserError, where_raised
from bnlab.harness.measurements import find_norms
from bnlab.harness.measurements.cache import Failures, complete_rows
from bnlab.harness.measurements.sources import find_sources, try_estimators
from bnlab.harness.reporting import tables
from bnlab.harness.schema import EARLIER_NAMES, TABLES
from bnlab.memory import keep_freed_memory

_ALL_THREADS = torch.get_num_threads()
_UNTRAINED = {"status": "failed", "step": 0, "train_seconds": math.nan, "final_loss": math.nan}


def prepare(planned: list[Config]) -> None:
    """Before the first job: find what would stop them, and forget the failures of earlier sweeps.

    Raises:
        UserError: the results folder cannot be written, data is corrupt, a network cannot take it or fails in its
            first update, an estimator fails on a short stream or takes running averages that are of another momentum, a
            network that is there is another one, or two jobs predict other images with one network.
    """
    _require_writable(Path(planned[0].results))
    try_estimators(source for config in planned for source in find_sources(config))
    tried: list[object] = []
    for config in planned:
        run, kind = Run(config), (config.data, config.model, config.norm, config.freeze_at, config.freeze_with)
        run.check_settings()
        if kind not in tried and not run.finished:
            tried.append(kind)
            try_training(run)
        if run.has_trace and "averaged" in as_list(config.estimator):
            check_momenta(run, run.new_model(), "estimator=averaged", "exact or precise")
    _require_same_test_images(planned)
    for config in planned:
        for path in list_failures(config):
            path.unlink(missing_ok=True)


def _require_same_test_images(planned: list[Config]) -> None:
    """UserError if jobs on one network predict other images: the tables would keep the rows of one of them."""
    first: dict[str, Run] = {}
    for run in map(Run, planned):
        other = first.setdefault(run.id, run)
        roots = other.config.data.root, run.config.data.root
        measured = {*as_list(other.config.measurements), *as_list(run.config.measurements)}
        silent = [name for name in measured if TABLES[name].predicts]  # on which images
        if (roots[0] == roots[1] and not silent) or other.dataset.test.digest == run.dataset.test.digest:
            continue
        if roots[0] != roots[1]:
            raise UserError(
                f"data.root={roots[1]}: has the training images of {roots[0]} with other test images, and the tables "
                "have one row for both; sweep each under its own name=..."
            )
        raise UserError(
            f"data.test_fonts={run.config.data.test_fonts}: are other test images than those of "
            f"{other.config.data.test_fonts}, and the table {silent[0]} has one row for both; sweep each under its own "
            "name=..."
        )


def _require_writable(results: Path) -> None:
    existing = next(path for path in (results, *results.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"results={results}: {existing} is not a folder that can be written")


def list_failures(config: Config) -> list[Path]:
    """Why jobs on this configuration's network failed in the last sweep, a file for each."""
    folder = Path(config.results) / config.name / "failures"
    return sorted(folder.glob(f"{tables.begin_file_name(Run(config).id)}*.txt"))


def attempt(config: Config) -> Path | None:
    """`execute`, but what fails is written down and does not end the sweep: status `failed`, with the reason.

    Returns:
        The file that says why the job failed; another sweep on its network may have removed it by now.

    Raises:
        UserError, OSError: what the other jobs would meet too, such as a full disk.
    """
    try:
        execute(config)
    except JobError as error:
        return _record_failure(config, str(error), "".join(getattr(error, "__notes__", [])))
    except (Exception, SystemExit) as error:  # a user's estimator may raise either
        folder = Run(config).folder
        # What was being written has made the folder again.
        is_missing = isinstance(error, FileNotFoundError) and str(folder) in str(error)
        is_gone = is_missing and not (folder / "config.yaml").exists()
        if isinstance(error, (UserError, OSError)) and not is_gone:
            raise
        reason = "was removed while it was measured; sweep again to train it anew" if is_gone else where_raised(error)
        return _record_failure(config, reason, traceback.format_exc())
    return None


def _record_failure(config: Config, reason: str, details: str) -> Path:
    """Print why a job failed, keep it with the details in a file, and write the run's row as failed."""
    run, folder = Run(config), Path(config.results) / config.name
    settings = digest(json.dumps(asdict(config), sort_keys=True), digits=10)
    path = folder / "failures" / f"{tables.begin_file_name(run.id)}{settings}.txt"
    print(f"{run.id}: failed, {reason}\n  more in {path}", file=sys.stderr)
    write_text(path, f"{reason}\n\n{details}")
    _write_row(run)
    return path


def execute(config: Config) -> None:
    """Train the configuration's network unless it is there, measure it, write the parts of the tables.

    Raises:
        JobError: an estimator fails, or the network cannot be had; the rows of all other estimators are written.
    """
    prepare_process(config)
    run = Run(config)
    ensure_trained(run)
    folder = Path(config.results) / config.name
    sources = find_sources(config)
    described = [[s.estimator, s.momentum, s.split] for s in sources]
    identity = json.dumps([described, as_list(config.population), run.wanted, config.accuracy_at, run.predictions])
    failed: Failures = {}
    for name in _choose_measurements(run):
        rows = complete_rows(run, name, sources, failed)
        tables.write_part(folder, name, run.id, identity, rows)
    _write_row(run)
    if failed:
        error = JobError("; ".join(f"{name}: {reason}" for name, (reason, _) in failed.items()))
        for _, details in failed.values():
            error.add_note(details)
        raise error


def _choose_measurements(run: Run) -> list[str]:
    """Those of the configuration that this network has rows of; says which are left out."""
    names = as_list(run.config.measurements)
    left_out = [name for name in names if run.config.norm.name not in find_norms(name)]
    if left_out:
        print(f"{run.id}: norm.name={run.config.norm.name}, so not measured: {', '.join(left_out)}", flush=True)
    return [name for name in names if name not in left_out]


def prepare_process(config: Config) -> None:
    """Set torch's threads, explicitly, because an earlier job of this process may have set others; malloc; tqdm's lock.

    tqdm's own is one for several processes. Where this one is killed it is left behind, and Python warns of it.
    """
    torch.set_num_threads(config.threads or _ALL_THREADS)
    keep_freed_memory()
    tqdm.set_lock(threading.RLock())


def _write_row(run: Run) -> None:
    """The run's row of the table `runs`; `failed` as long as one of this sweep's jobs on it has."""
    # Two jobs on one network may end at once, and the second has to see what the first has left.
    with run.lock:
        row = _build_row(run, (run.status if run.finished else None) or _UNTRAINED)
        row["training"] = row["training_set"] = None
        with contextlib.suppress(FileNotFoundError, ValueError):  # not trained, or not readable, as the job has said
            row["training"] = run.training if run.finished else None
            row["training_set"] = run.environment.get("training_images")
        if list_failures(run.config):
            row["status"] = "failed"
        tables.write_part(Path(run.config.results) / run.config.name, "runs", run.id, "", row)


def _build_row(run: Run, status: dict[str, Any]) -> pd.DataFrame:
    """The row of the table `runs`; settings that have an earlier name are in both columns."""
    config, images = run.config, data.check(run.config.data)
    steps = total_steps(config, images)
    try:
        described = run.environment
    except (FileNotFoundError, ValueError):  # the job failed before it was trained
        described = describe_environment(run.device)
    settings = flatten({key: asdict(getattr(config, key)) for key in ("data", "model", "norm", "optimizer")})
    row = {
        "run": run.id,
        "seed": config.seed,
        **settings,
        **{earlier: settings[name] for name, earlier in EARLIER_NAMES.items()},
        "batch_size": config.batch_size,
        "norm_batch_size": norms.count_images(config.norm, config.batch_size),
        "data.images": data.images_used(config.data),
        "lr_effective": peak_lr(config.optimizer, config.batch_size),
        "order": config.order,
        "averaging": config.averaging,
        "freeze_at": 1.0 if config.freeze_at is None else config.freeze_at,
        "freeze_with": "none" if config.freeze_at is None else config.freeze_with,
        "epochs": steps / steps_per_epoch(images, config.batch_size),
        "steps": steps,
        "status": status["status"],
        "last_step": status["step"],
        "train_seconds": status["train_seconds"],
        "final_loss": status["final_loss"],
        "settings": json.dumps(network(config), sort_keys=True),
        "versions": json.dumps(described["versions"], sort_keys=True),
        "device": described["device"],
        "threads": described["threads"],
    }
    return pd.DataFrame([row])
