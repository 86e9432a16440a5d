"""Which jobs of a sweep are done, by the files that earlier ones have left: no torch, and no user's code, is imported.

A sweep of which all jobs are done ends here, before it has waited for torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bnlab.common.files import Unreadable, digest
from bnlab.harness.artifacts.job_settings import Config, as_list
from bnlab.harness.artifacts.run_folder import RunFolder
from bnlab.harness.records import VERSION, locate_failure, locate_rows, read_record
from bnlab.harness.settings import leave_off_defaults, list_names
from bnlab.harness.user_code import digest_path


def list_waiting(configs: Iterable[Config]) -> list[Config]:
    """List the jobs that are not done: not trained, failed in the last sweep, or without all rows or checkpoints.

    Rows of an earlier training of a network do not count: on other threads, say, it has other numbers.
    """
    asked: dict[str, str] = {}
    waiting = []
    for config in configs:
        run = RunFolder(config)
        kind = repr(replace(config, seed=0))  # jobs that differ in the seed alone ask for the same
        if kind not in asked:
            asked[kind] = digest_asked(config)
        is_done = is_trained(run) and _has_asked(run, asked[kind])
        if not is_done or locate_failure_of(run).exists():
            waiting.append(config)
    return waiting


def count_jobs(configs: Sequence[Config]) -> str:
    """Count jobs and their networks: `2 jobs on 1 network`."""
    networks = {RunFolder(config).id for config in configs}
    return f"{_count(len(configs), 'job')} on {_count(len(networks), 'network')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def is_trained(run: RunFolder, checkpoints: Iterable[int] = ()) -> bool:
    """Return whether a network is trained and has these checkpoints, and all that were kept; none of them is read."""
    try:
        return run.is_complete(checkpoints)
    except Unreadable:  # the job sets it aside
        return False


def locate_failure_of(run: RunFolder) -> Path:
    """Locate the file that says why a job on this network failed in the last sweep, if one has."""
    return locate_failure(run.config.folder, run.id)


def digest_asked(config: Config) -> str:
    """Digest what a job asks for: what is measured, and by which code."""
    # Without defaults: a setting that is added later leaves jobs done.
    settings = leave_off_defaults(config, list_names(Config, "measuring"))
    # When the user's code changes, the same settings ask for other rows.
    estimators = [str(name).partition("(")[0] for name in as_list(config.estimator)]
    code = [digest_path(path) for path in (*estimators, *as_list(config.measurements))]
    data = asdict(config.data)  # also where the files are, so that moved files are recorded again
    return digest(json.dumps([settings, data, code, VERSION], sort_keys=True), digits=10)


def _has_asked(run: RunFolder, asked: str) -> bool:
    """Return whether the rows that a job asks for are there, of the network as it was trained last."""
    record = read_record(run.config.folder, run.id)
    if record is None or asked not in record.asked:
        return False
    results = Path(run.config.results)
    training = _read_training(run)
    for table, parts in record.parts.items():
        has_rows = any(any(part.keys.values()) for part in parts.values())
        if has_rows and not any(locate_rows(results, run.id, table).glob("*.parquet")):
            return False
    return record.newest is None or record.newest.training == training


def _read_training(run: RunFolder) -> str:
    """Read which training a trained network is of."""
    status = run.status
    return status["training"] if status else ""
