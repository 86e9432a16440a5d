"""Plans of sweeps: how many networks, how long they train on this machine, and the disk space."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from bnlab.common.printing import format_seconds
from bnlab.harness.artifacts.job_settings import Config
from bnlab.harness.artifacts.run import Run
from bnlab.harness.done import count_jobs
from bnlab.harness.jobs import estimate_training
from bnlab.harness.trial import TrialResult
from bnlab.harness.updates import ADVICE, count_last


def outline(configs: list[Config], untrained: Collection[Run]) -> list[str]:
    """Say how many jobs and networks there are, how many are trained, and which small last batches others have."""
    networks = {Run(config).id for config in configs}
    # Their checkpoints of some steps were not kept, or are gone.
    again = sum(run.finished for run in untrained)
    trained = len(networks) - len(untrained) + again
    if trained == len(networks):
        state = "all trained already"
    elif trained == 0:
        state = "none trained yet"
    else:
        state = f"{trained} trained already"
    if again:
        state += f", {again} of them again now, for checkpoints of steps that are not there"
    lines = [f"{count_jobs(configs)}, {state}"]

    for run in untrained:
        config = run.config
        left = count_last(config.data.count_training(), config.batch_size, run.steps)
        if left is not None and config.last_batch == "keep" and config.norm.uses_batch:
            lines.append(f"the last batch of an epoch has {left:,} images of {config.batch_size:,}, {ADVICE}")
    return list(dict.fromkeys(lines))  # each size once


def plan(
    first: Config, untrained: Mapping[Run, set[int]], trials: Mapping[Run, TrialResult], processes: int
) -> Iterable[str]:
    """Say how long networks train, and how much disk space they take.

    Args:
        first: a job of the sweep.
        untrained: the networks that are not trained, with the steps of checkpoints that jobs read.
        trials: what was found out about each of these.
        processes: how many networks are trained at a time.
    """
    times = estimate_training(trials).values()
    at_a_time = "1 network at a time" if processes == 1 else f"{processes} networks at a time"
    if any(math.isnan(time) for time in times):
        yield "training   takes a time that is not known, as a loss is not finite in the first updates"
    else:
        # Nothing is shorter than its longest part.
        seconds = max([sum(times) / processes, *times])
        yield f"training   about {format_seconds(seconds)}, {at_a_time}, on this machine as busy as it is now"
    yield "measuring  comes on top: the sweep's bar says what is left once the first networks are measured"

    disk = sum(_count_bytes(run, trials[run], steps) for run, steps in untrained.items())
    decimals = 1 if disk < 1e7 else 0
    yield f"disk       about {disk / 1e6:,.{decimals}f} MB in {first.results}/runs"


def _count_bytes(run: Run, trial: TrialResult, checkpoints: set[int]) -> float:
    """Count the bytes of a network's batch moments, and of its checkpoints at these steps."""
    copies = 1 + len(run.config.decays)
    recorded = run.frozen_from or run.steps  # frozen batch norms take no more batches
    # The checkpoint of the last step is always kept.
    return recorded * trial.moments + len({*checkpoints, run.steps}) * copies * trial.network
