"""How often the doctor is right about networks that nobody has broken: python -m benchmarks.doctor_rates.

Forty networks are trained. What their running averages cost is measured without the doctor, and what causes it. Then
the doctor is to find those that cost more than half a point, with the right cause, and to say nothing above a note of
the others. The tables, in doctor_rates.md beside this file, are written again after each network.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.doctor_networks import Cost, Training, measure_cost, train_network
from bnlab import diagnose
from bnlab.doctor.diagnosis import Diagnosis
from bnlab.doctor.scores import Difference
from bnlab.doctor.verdict import WORTH
from bnlab.memory import keep_freed_memory

NETWORKS = 40
_TABLE = Path(__file__).with_name("doctor_rates.md")
_CODES = {"start": ("BN101",), "noise": ("BN201", "BN203"), "lag": ("BN108",)}
"""Codes that name each cause."""


@dataclass(frozen=True)
class Outcome:
    """What the doctor says of a network, beside what was measured.

    Attributes:
        training: its settings.
        cost: what running averages cost.
        gain: what exact statistics gain, with its interval.
        alone: the codes above a note that the doctor finds on test images alone.
        informed: those that it finds with training batches and an earlier checkpoint besides.
    """

    training: Training
    cost: Cost
    gain: Difference
    alone: tuple[str, ...]
    informed: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Say "harmless" (at most half a point), "costly" (more, interval above 0), or "unclear"."""
        if self.gain.value <= WORTH:
            return "harmless"
        return "costly" if self.gain.low > 0 else "unclear"

    def write_row(self) -> str:
        """Write a row of the table of networks."""
        training = self.training
        low, value, high = (f"{100 * part:.1f}" for part in (self.gain.low, self.gain.value, self.gain.high))
        shares = ", ".join(f"{name} {100 * share:.1f}" for name, share in self.cost.shares.items())
        cells = [
            str(training.seed),
            training.architecture,
            f"{training.momentum:g}",
            str(training.batch_size),
            "constant" if training.is_constant else "one-cycle",
            str(training.steps),
            f"{100 * self.cost.scores.mean('running'):.1f}",
            f"{100 * self.cost.scores.mean('exact'):.1f}",
            f"{value} [{low}, {high}]",
            shares,
            self.kind,
            " ".join(self.alone) or "–",
            " ".join(self.informed) or "–",
        ]
        return f"| {' | '.join(cells)} |"


_EXPLANATION = """\
Made by `python -m benchmarks.doctor_rates`. Nobody has broken these networks; what their running averages cost was
measured without the doctor. *harmless*: exact statistics gain at most half a point; a finding above a note is a false
alarm. *costly*: they gain more, with the interval above 0; a hit is a finding above a note, and it names the cause if
its code is that of what costs most: BN101 for the start at 0 and 1, BN201 or BN203 for noise, BN108 for lag, which is
the rest. *unclear*: more than half a point, with 0 in the interval; not counted. Intervals are of 95%, of rates
Wilson's."""

_RATES_HEADING = """\
| the doctor was given | false alarms | hits | cause named |
|---|---|---|---|"""

_HEADING = """\
| seed | network | momentum | batch | rate | steps | running, % | exact, % | cost, points | due to | averages | found | found with training batches and a checkpoint |
|--:|---|--:|--:|---|--:|--:|--:|---|---|---|---|---|"""  # noqa: E501


def main() -> None:
    """Train the networks, ask the doctor, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=NETWORKS, help="how many; their seeds are 0, 1, 2, ...")
    networks = parser.parse_args().networks
    keep_freed_memory()
    torch.set_num_threads(1)

    results: list[Outcome] = []
    for seed in range(networks):
        began = time.perf_counter()
        results.append(examine(Training.choose(seed)))
        _TABLE.write_text(write_page(results))
        print(f"{results[-1].write_row()} {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def examine(training: Training) -> Outcome:
    """Train a network, measure the cost of its averages, and ask the doctor."""
    trained = train_network(training)
    cost = measure_cost(trained)
    alone = diagnose(trained.model, trained.batches, progress=False)
    informed = diagnose(
        trained.model,
        trained.batches,
        training_batches=trained.training_batches,
        before=trained.before,
        progress=False,
    )
    gain = cost.scores.compare("exact", "running")
    return Outcome(training, cost, gain, _list_codes(alone), _list_codes(informed))


def _list_codes(diagnosis: Diagnosis) -> tuple[str, ...]:
    """List the codes above a note."""
    return tuple(finding.rule.code for finding in diagnosis.faults if finding.severity != "note")


def write_page(results: Sequence[Outcome]) -> str:
    """Write the table of rates and that of networks."""
    alone = [(result, result.alone) for result in results]
    informed = [(result, result.informed) for result in results]
    rates = [
        _RATES_HEADING,
        _write_rates("test images", alone),
        _write_rates("training batches and a checkpoint besides", informed),
    ]
    rows = [result.write_row() for result in results]
    parts = ["# How often the doctor is right", _EXPLANATION, *_describe(results)]
    return "\n\n".join([*parts, "\n".join(rates), "\n".join([_HEADING, *rows])]) + "\n"


def _describe(results: Sequence[Outcome]) -> list[str]:
    """Describe what ran where, and which codes were false alarms."""
    software = f"Python {platform.python_version()}, torch {version('torch')}, one thread"
    seeds = f"{len(results)} networks, seeds 0 to {len(results) - 1}; {software}."
    false = Counter[str]()
    for result in results:
        if result.kind == "harmless":
            false.update({*result.alone, *result.informed})
    told = ", ".join(f"{code} of {count}" for code, count in sorted(false.items()))
    return [seeds, f"Codes that were false alarms, by number of networks: {told or 'none'}."]


def _write_rates(given: str, found: Sequence[tuple[Outcome, tuple[str, ...]]]) -> str:
    """Write a row of the table of rates."""
    alarms = [bool(codes) for result, codes in found if result.kind == "harmless"]
    hits = [bool(codes) for result, codes in found if result.kind == "costly"]
    causes = [names_cause(result.cost, codes) for result, codes in found if result.kind == "costly"]
    return f"| {given} | {write_share(alarms)} | {write_share(hits)} | {write_share(causes)} |"


def names_cause(cost: Cost, codes: Sequence[str]) -> bool:
    """Return whether one of the codes names the cause that costs most."""
    return any(code in _CODES[cost.cause] for code in codes)


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
