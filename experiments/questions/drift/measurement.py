"""Table `decomposition`: where the gap of the EMA comes from, term by term."""

from __future__ import annotations

import copy
from typing import ClassVar

import pandas as pd

from bnlab.gaps.decomposition import TERMS, decompose, window
from bnlab.harness.artifacts.run import Run
from bnlab.harness.measurements import Measurement
from bnlab.harness.measurements.estimates import EXACT, draw_population, measure_at, tabulate
from bnlab.harness.measurements.subjects import Subject
from bnlab.harness.schema import Table, common, real, text
from bnlab.harness.statistic_kinds import Exact
from experiments.questions.drift.past import past_weights

_EVERY = 4  # steps between the past weights that are measured; what EMAs of momentum 0.1 hold is ten steps old
_AUGMENTED = Subject(Exact(), "train_augmented")

_ABOUT = """\
Where the gap of the EMA comes from: six terms for each channel, which add up to its distance from the exact statistic.
`contribution` adds up as well: over the terms, to the mean square of the gap over channels. It is negative where a term
makes the gap smaller."""


class Decomposition(Measurement):
    """Table `decomposition`."""

    about_batches: ClassVar[bool] = True
    of_plain_norms: ClassVar[bool] = True
    predicts: ClassVar[bool] = False
    name: ClassVar[str] = "decomposition"
    table: ClassVar[Table] = Table(
        about=_ABOUT,
        key={
            **common("run step"),
            "estimator": text("as in `gaps`; the EMA only"),
            **common("momentum statistics_split layer"),
            "statistic": text("mean or var"),
            "term": text(
                "start (left of 0 and 1), noise (of single batches), lag (older weights), data (augmentation and "
                "the like), weighting (unbiased variances of batches, each with the same weight, against pooled "
                "moments), upstream (layers before that normalize with their batch)"
            ),
        },
        others={
            **common("epoch depth channels"),
            "contribution": real(
                "mean over channels of the term times the gap, in variances of the layer, or (var) in their squares"
            ),
        },
    )

    def scope(self, run: Run, subjects: list[Subject]) -> dict[Subject, list[int]]:
        """Choose the EMA with each momentum, and all steps of `evaluate_at`."""
        averages = [subject for subject in subjects if subject.running_average]
        return {average: run.measured_steps for average in averages if average.label == "ema"}

    def measure(self, run: Run, subjects: list[Subject], steps: list[int]) -> pd.DataFrame:
        """Measure the terms of the gap: a row for each step, momentum, layer, statistic and term.

        The weights of the steps before each step are computed by training again.
        """
        frames = []
        for step in steps:
            frames += _measure_at(run, subjects, step)
        return pd.concat(frames, ignore_index=True)


def _measure_at(run: Run, subjects: list[Subject], step: int) -> list[pd.DataFrame]:
    """Measure the terms at one step: a frame for each subject."""
    momenta = [subject.momentum or 1.0 for subject in subjects]
    # One training serves all momenta: the longest window contains the others.
    longest = max(window(momentum) for momentum in momenta)
    past = past_weights(run, range(max(0, step - longest), step))
    # Truncating changes a trace in place, and the run keeps its own for other measurements.
    trace = copy.deepcopy(run.trace)
    trace.truncate(step)
    # In batches of the training size: terms such as `weighting` are about how images are divided into
    # batches.
    batches = draw_population(run, step, EXACT, run.config.batch_size)
    augmented = None
    if run.batches.augments:
        augmented = draw_population(run, step, _AUGMENTED, run.config.batch_size)

    frames = []
    for subject, momentum in zip(subjects, momenta, strict=True):
        terms = decompose(
            run.model_at(step), trace, past.__getitem__, batches, momentum=momentum, augmented=augmented, every=_EVERY
        )
        about = tabulate([subject], [step], {})
        frames.append(about.merge(_average(run, step, terms), how="cross"))
    return frames


def _average(run: Run, step: int, terms: pd.DataFrame) -> pd.DataFrame:
    """Average rows by channel and columns by term to rows by layer, statistic and term."""
    layout = run.trace.layout
    exact = measure_at(run, step, EXACT)
    _, exact_var = layout.flatten(exact)
    var = (exact_var + layout.channel_eps).numpy()
    units = {"mean": var, "var": var**2}

    frames = []
    for statistic, part in terms.groupby("statistic", sort=False):
        unit = units[str(statistic)]
        for term in TERMS:
            values = part[["layer", "depth"]].copy()
            # Times the whole gap, with its sign: so the terms of a channel add up to the square of its gap.
            values["contribution"] = part[term] * part["gap"] / unit

            by_layer = values.groupby(["layer", "depth"], sort=False)
            means = by_layer.mean()
            means["channels"] = by_layer.size()
            means["statistic"] = statistic
            means["term"] = term
            frames.append(means.reset_index())
    return pd.concat(frames, ignore_index=True)
