"""BN002: averages that were never updated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.thresholds import NEARLY_ALL
from bnlab.doctor.undo import EXACT, Undo, write_averages
from bnlab.doctor.words import count_things


class NeverUpdated(Cause):
    """A running mean of 0, or a running variance of 1 or 0, in more than 99% of a layer's channels.

    Averages start at 0 and 1; tools that average again start at 0 and 0, and leave it there if they are given no batch.
    If only one of the two is such a value, a tool copied the other alone: it is undone by exact values of that one.

    With data a layer whose exact statistics are near these values too is no finding: the first layer after standardized
    images, for example, or dead channels. Without data a layer of 0 and 1 that has counted updates is no finding
    either.
    """

    code = "BN002"
    title = "never updated"
    meaning = "The running mean or the running variance is still at its initial value, which no real batch produces."
    remedy = (
        "Train in train(), or load a checkpoint that has both buffers, from before any tool reset them; "
        "bnlab.recalibrate repairs what there is."
    )
    undone_by = (EXACT,)
    severity = "warning"

    def look(self, case: Case) -> Signs | None:
        # Where data reaches a layer, undoing decides: its exact statistics may really be near 0 and 1.
        unseen = [name for name in case.layers if name not in case.seen and _list_starts(case, name)]
        # With updates counted, 0 and 1 may be right, as they are behind standardized images.
        layers = [name for name in unseen if not (case.is_initial(name) and case.count_updates(name))]
        return Signs.of(layers, self.describe(case, layers))

    def predict(self, case: Case) -> Mapping[str, Tensor]:
        return {name: case.buffers[name] for name in case.layers if _list_starts(case, name)}

    def describe(self, case: Case, layers: Sequence[str]) -> str:
        shown = [name for name in layers if _list_starts(case, name)]
        if not shown:
            return ""
        all_counts = [case.count_updates(name) for name in shown]
        counts = [count for count in all_counts if count is not None]
        counted = f"{count_things(max(counts), 'update')} counted" if counts else "no count of updates"
        if any(counts):
            counted = f"although {counted}"
        return f"{' and '.join(_list_starts(case, shown[0]))} in more than 99% of channels, {counted}"

    def propose(self, case: Case) -> Iterator[Undo]:
        averages = {}
        for name in case.fold:
            starts = _list_starts(case, name)
            # If mean and variance are both at their start, the shared undo by exact statistics does the same.
            if len(starts) == 1 and case.clearly_differs(name):
                filled = case.read_fold(name)
                # The one of the two that holds no starting value stays as it is.
                kept = 0 if starts[0].startswith("variance") else 1
                filled[kept] = case.buffers[name][kept]
                averages[name] = filled
        if averages:
            reported = self.describe(case, list(averages))
            # One free number in each channel, because only one of the two rows comes from the images.
            degrees = sum(values.shape[1] for values in averages.values())
            apply = write_averages(case.layers, averages)
            yield Undo(reported, tuple(averages), degrees, apply, explains=case.measure_repaired(averages))


def _list_starts(case: Case, name: str) -> list[str]:
    """List which of a layer's averages hold a starting value, in words."""
    if name not in case.layers:
        return []
    mean, var = case.buffers[name]
    is_start = {"mean 0": mean == 0, "variance 1": var == 1, "variance 0": var == 0}
    return [words for words, channels in is_start.items() if float(channels.double().mean()) > NEARLY_ALL]
