"""What training costs: read from networks that were trained before, or from a short trial where there are none."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from bnlab.files import Unreadable, reading
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run, describe_environment
from bnlab.harness.jobs import prepare_process

_WARM_UP = 5  # updates of a trial that are not timed
_SECONDS = 1.0  # about so long those take that are
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that of libyaml, six times as fast, where there is one


@dataclass(frozen=True)
class Cost:
    """What a trained network has cost.

    Attributes:
        update: seconds of an update.
        moments: bytes of the batch moments of an update.
        checkpoint: bytes of a checkpoint.
    """

    update: float
    moments: float
    checkpoint: float


def read_costs(results: Path) -> dict[str, list[Cost]]:
    """Read what the networks in a folder of results have cost, by kind; damaged ones are left out."""
    costs: dict[str, list[Cost]] = {}
    for path in sorted(results.glob("runs/*/seed_*/status.json")):
        folder = path.parent
        with contextlib.suppress(Unreadable), reading(folder):
            settings = yaml.load((folder / "config.yaml").read_text(), _LOADER)
            environment = json.loads((folder / "environment.json").read_text())
            kind = _describe_kind(settings, environment)
            costs.setdefault(kind, []).append(_read_cost(folder))
    return costs


def find_cost(run: Run, costs: dict[str, list[Cost]]) -> Cost:
    """Find what a network costs, as the median of those of its kind; without any, make a trial and add it to them."""
    prepare_process(run.config)
    kind = _describe_kind(asdict(run.config), describe_environment(run.device))
    if kind not in costs:
        costs[kind] = [_try_training(run)]
    alike = costs[kind]
    return Cost(
        update=median(cost.update for cost in alike),
        moments=median(cost.moments for cost in alike),
        checkpoint=median(cost.checkpoint for cost in alike),
    )


def _describe_kind(settings: dict[str, Any], environment: dict[str, Any]) -> str:
    """Describe all that the time of an update depends on."""
    network = [settings[key] for key in ("data", "model", "norm", "batch_size")]
    machine = [environment[key] for key in ("device", "threads")]
    return json.dumps([network, machine])


def _try_training(run: Run) -> Cost:
    """Train a network of the same kind for about a second, in a folder that is removed, and read what it has cost."""
    with tempfile.TemporaryDirectory(prefix="bnlab-trial-") as folder, contextlib.redirect_stdout(io.StringIO()):
        first = _train(run, f"{folder}/first", _WARM_UP)
        updates = round(_SECONDS / first.update)
        return _train(run, f"{folder}/second", max(updates, _WARM_UP))


def _train(run: Run, results: str, steps: int) -> Cost:
    """Make so many updates, as a job does."""
    optimizer = replace(run.config.optimizer, lr=0.0)  # cannot diverge
    config = replace(
        run.config, results=results, steps=steps, optimizer=optimizer, freeze_at=None, evaluate_at="final", log="none"
    )
    short = Run(config)
    short.dataset = run.dataset  # has been read
    ensure_trained(short)
    return _read_cost(short.folder)


def _read_cost(folder: Path) -> Cost:
    """Read what a trained network has cost; one may have diverged before its first update or checkpoint."""
    status = json.loads((folder / "status.json").read_text())
    steps = max(1, status["step"])
    moments = [path.stat().st_size for path in folder.glob("trace/*")]
    checkpoints = [path.stat().st_size for path in folder.glob("checkpoints/*")]
    return Cost(
        update=status["train_seconds"] / steps,
        moments=sum(moments) / steps,
        checkpoint=max(checkpoints, default=0),
    )
