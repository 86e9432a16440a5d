"""How often the doctor is right: python -m benchmarks.doctor_rates. It is run once for each design of the doctor.

Eighty networks are trained. What the averages of each cost is measured without the doctor, on images that the doctor
does not see, and so is what causes it. Then the network is given exact statistics of its training images, and one fault
at three strengths, one after the other. What the doctor says first is counted, by what is lost on those other images.
The rows in doctor_rates.csv beside this file, from which a run continues, and the tables in doctor_rates.md are written
again after each network.
"""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed

from benchmarks.doctor_networks import (
    Trained,
    TrainingSettings,
    make_healthy,
    measure_cost,
    measure_lost,
    train_network,
)
from benchmarks.gallery import FAULTS
from bnlab import diagnose
from bnlab.common.scores import Difference
from bnlab.doctor.report import Diagnosis
from bnlab.memory import keep_freed_memory

_SEEDS = range(1000, 1080)
_ROWS = Path(__file__).with_name("doctor_rates.csv")
_NEAR_CHANCE = "near chance"
_CODES = {"start": ("BN101",), "noise": ("BN201", "BN203"), "lag": ("BN108",)}
"""Codes that name what makes the averages of a network cost something that nobody has broken."""
_EDGES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
"""Ends of the ranges of what is lost. Below half a point, .005, a finding above a note is a false alarm."""


@dataclass(frozen=True)
class ExaminedNetwork:
    """What the doctor says of a network, beside what was measured.

    Attributes:
        seed: of the network.
        network: its architecture.
        settings: momentum, batch size and schedule.
        fault: what was done to it, with the strength; "" if nothing.
        given: what the doctor was given beside images with labels.
        lost, low, high: accuracy that is lost on other images than the doctor sees, with its interval.
        codes: those that name the cause, with spaces between.
        verdict: the doctor's.
        first: the first code above a note; "" if there is none.
    """

    seed: int
    network: str
    settings: str
    fault: str
    given: str
    lost: float
    low: float
    high: float
    codes: str
    verdict: str
    first: str

    @property
    def is_named(self) -> bool:
        """Whether the first code names the cause."""
        return self.first in self.codes.split()

    def write_row(self) -> str:
        """Write a row of the table of networks."""
        lost, low, high = (f"{100 * part:.1f}" for part in (self.lost, self.low, self.high))
        cells = [
            str(self.seed),
            self.network,
            self.settings,
            self.fault or "–",
            self.given,
            f"{lost} [{low}, {high}]",
            self.codes,
            self.verdict,
            self.first or "–",
        ]
        return f"| {' | '.join(cells)} |"


_EXPLANATION = """\
Made by `python -m benchmarks.doctor_rates`. *Lost*: points of accuracy on 3,072 images that the doctor does not see; it
is given 1,024 others. Of networks that nobody has broken, running averages lose this against exact statistics; of those
with a fault, the fault does, against the same network without it, whose averages are exact ones of its training images.
*Found*: there is a code above a note. *Named*: the first such code is that of the cause. Below half a point what is
found is a false alarm. Networks near chance are left out: their best accuracy is less than twice that of always naming
the commonest class. Intervals are of 95%, of rates Wilson's."""

_CURVE = """\
| lost, points | unbroken networks: found | named | faults: found | named |
|---|---|---|---|---|"""

_NETWORKS = """\
| seed | network | momentum, batch, rate | fault | given beside images | lost | cause | verdict | first code |
|--:|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Train the networks, ask the doctor, and write the tables."""
    outcomes = read_outcomes()
    done = {outcome.seed for outcome in outcomes}
    missing = [seed for seed in _SEEDS if seed not in done]
    examine = delayed(examine_seed)
    for examined in Parallel(n_jobs=-1, return_as="generator_unordered")(examine(seed) for seed in missing):
        outcomes += examined
        outcomes.sort(key=lambda outcome: outcome.seed)
        pd.DataFrame([asdict(outcome) for outcome in outcomes]).to_csv(_ROWS, index=False)
        _ROWS.with_suffix(".md").write_text(write_page(outcomes), encoding="utf-8")
        print(f"seed {examined[0].seed} is done", file=sys.stderr, flush=True)


def read_outcomes() -> list[ExaminedNetwork]:
    """Read what was found before; nothing where there is no such file."""
    if not _ROWS.exists():
        return []
    # Empty texts are values here, such as that of no fault, and pandas would read them as NaN.
    rows = pd.read_csv(_ROWS, keep_default_na=False).to_dict("records")
    return [ExaminedNetwork(**{str(key): value for key, value in row.items()}) for row in rows]


def examine_seed(seed: int) -> list[ExaminedNetwork]:
    """Train the network of a seed, and ask the doctor about it, unless it is near chance."""
    # Settings of a process: each worker has to make them for itself.
    keep_freed_memory()
    torch.set_num_threads(1)
    trained = train_network(TrainingSettings.choose(seed))
    if trained.is_near_chance:
        nothing = Difference(0.0, 0.0, 0.0, 0)
        return [_note(trained.training, _NEAR_CHANCE, "–", nothing, (), None)]
    return [*examine_unbroken(trained), *examine_faults(trained)]


def examine_unbroken(trained: Trained) -> Iterator[ExaminedNetwork]:
    """Ask the doctor about a network as it was trained, with images alone and with all that there is."""
    cost = measure_cost(trained)
    history: dict[str, Any] = {"training_batches": trained.training_batches, "before": trained.before}
    for given, arguments in (("–", {}), ("training batches, a checkpoint", history)):
        diagnosis = diagnose(trained.model, trained.batches, **arguments)
        yield _note(trained.training, "", given, cost.lost, _CODES[cost.cause], diagnosis)


def examine_faults(trained: Trained) -> Iterator[ExaminedNetwork]:
    """Ask the doctor about a network with a fault, which its seed chooses, at each of its strengths."""
    faults = [fault for fault in FAULTS.values() if fault.strengths and fault.is_portable]
    seed = trained.training.seed
    turn = seed + seed // len(faults)  # architectures take turns too: each of them with each fault
    fault = faults[turn % len(faults)]
    seen = make_healthy(trained, trained.batches)
    others = make_healthy(trained, trained.other_batches)
    for strength in fault.strengths:
        specimen = fault.spoil(seen, strength)
        lost = measure_lost(others, fault.spoil(others, strength))
        diagnosis = diagnose(specimen.model, specimen.batches, **specimen.arguments)
        given = ", ".join(name.replace("_", " ") for name in specimen.arguments) or "–"
        yield _note(trained.training, f"{fault.name}, {strength:g}", given, lost, (fault.code,), diagnosis)


def _note(
    training: TrainingSettings,
    fault: str,
    given: str,
    lost: Difference,
    codes: Sequence[str],
    diagnosis: Diagnosis | None,
) -> ExaminedNetwork:
    verdict = ""
    above: list[str] = []
    if diagnosis is not None:
        verdict = diagnosis.verdict or ""
        above = diagnosis.causes
    rate = "constant" if training.is_constant else "one-cycle"
    return ExaminedNetwork(
        training.seed,
        training.architecture,
        f"{training.momentum:g}, {training.batch_size}, {rate}",
        fault,
        given,
        lost.value,
        lost.low,
        lost.high,
        " ".join(codes),
        verdict,
        above[0] if above else "",
    )


def write_page(outcomes: Sequence[ExaminedNetwork]) -> str:
    """Write the curves and the table of networks."""
    examined = [outcome for outcome in outcomes if outcome.fault != _NEAR_CHANCE]
    near_chance = len(outcomes) - len(examined)
    seeds = {outcome.seed for outcome in outcomes}
    about = (
        f"{len(seeds)} networks, seeds {min(seeds)} to {max(seeds)}; {near_chance} left out near chance; "
        f"Python {platform.python_version()}, torch {version('torch')}, one thread each."
    )
    curve = "\n".join([_CURVE, *_write_curve(examined)])
    rows = "\n".join([_NETWORKS, *(outcome.write_row() for outcome in examined)])
    return "\n\n".join(["# How often the doctor is right", about, _EXPLANATION, curve, rows]) + "\n"


def _write_curve(outcomes: Sequence[ExaminedNetwork]) -> Iterator[str]:
    """Write a row for each range of what is lost."""
    lows = (-math.inf, *_EDGES)
    highs = (*_EDGES, math.inf)
    for low, high in zip(lows, highs, strict=True):
        chosen = [outcome for outcome in outcomes if low < outcome.lost <= high]
        cells = [_name_range(low, high)]
        for is_broken in (False, True):
            of_kind = [outcome for outcome in chosen if bool(outcome.fault) == is_broken]
            cells.append(_count(of_kind, lambda outcome: bool(outcome.first)))
            # Below half a point nothing has to be found, and so there is no cause to name.
            cells.append(_count(of_kind, lambda outcome: outcome.is_named) if low >= 0.005 else "")
        yield f"| {' | '.join(cells)} |"


def _name_range(low: float, high: float) -> str:
    if math.isinf(low):
        return f"at most {100 * high:g}"
    return f"above {100 * low:g}" if math.isinf(high) else f"{100 * low:g} to {100 * high:g}"


def _count(outcomes: Sequence[ExaminedNetwork], shows: Callable[[ExaminedNetwork], bool]) -> str:
    return write_share([shows(outcome) for outcome in outcomes])


def write_share(outcomes: Sequence[bool]) -> str:
    """Write how many of so many, and the 95% interval of that share (Wilson 1927)."""
    count = len(outcomes)
    if not count:
        return "0 of 0"
    right = sum(outcomes)
    share = right / count
    square = 1.96**2
    width = 1 + square / count
    center = share + square / (2 * count)
    half = math.sqrt(square * (share * (1 - share) / count + square / (2 * count) ** 2))
    low = (center - half) / width
    high = (center + half) / width
    return f"{right} of {count} [{100 * low:.0f}%, {100 * high:.0f}%]"


if __name__ == "__main__":
    main()
