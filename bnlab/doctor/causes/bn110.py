"""BN110: a small last batch of each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Severity, Signs
from bnlab.layers import match_names
from bnlab.nn.self_tuned import SelfTuned
from bnlab.recording.trace import LayerTrace

_SMALL = 0.5  # of a full batch, at most
_FEWEST = 4  # batches in an epoch: where small ones come more often, they are no last batches
_LARGE = 0.05  # share of the averages, which such a batch has for six updates of momentum .1


class SmallLastBatch(Cause):
    """The last batch of an epoch has at most half as many images as a full one: by the lengths of a DataLoader, by the
    sizes of other training batches, or by few small batches among full ones in a trace.

    With momentum m such a batch makes up a share m of the averages right after it, and m·(1−m)^k after k more updates.
    It harms weights more: in batches of 64 or 256 at a constant rate, accuracy under exact statistics fell by more than
    half in 13 of 14 networks right after a batch of 1/32. What half a batch does is undecided (`last_batch`).

    It is a warning where exact statistics score better, or where a twentieth of the averages is of such a batch.

    A false alarm where the training leaves such a batch out and training_batches= does not, or where the averages were
    computed again afterwards.
    """

    code = "BN110"
    title = "a small last batch"
    meaning = (
        "Its update is made at the full learning rate, on few images, so that right after it the weights can be worse."
    )
    remedy = "Pass drop_last=True to the DataLoader; new statistics do not repair the weights, more updates do."
    needs = ("sizes",)

    def look(self, case: Case) -> Signs | None:
        recorded = _list_recorded(case)
        last, full = case.training_sizes or (0, 0)
        if 0 < last <= _SMALL * full:
            layers = list(case.layers)
            evidence = f"the last batch of an epoch has {last:,} images of {full:,}"
        elif recorded:
            layers = list(recorded)
            size = min(min(entries.counts) / max(entries.counts) for entries in recorded.values())
            evidence = f"the last batch of an epoch has {100 * size:.2g}% of the values of a full one"
        else:
            return None

        share = max((_find_share(case, name, entries) for name, entries in recorded.items()), default=0.0)
        if share > 0:
            evidence = f"{evidence}; it makes up {100 * share:.2g}% of the averages"
        severity: Severity = "warning" if case.is_costly or share > _LARGE else "note"
        return Signs.of(layers, evidence, severity)


def _list_recorded(case: Case) -> dict[str, LayerTrace]:
    """List the layers whose trace has a small last batch in each epoch."""
    if case.trace is None:
        return {}
    traces = case.trace.layers
    names = match_names(case.layers, traces)
    return {name: traces[other] for name, other in names.items() if _recur(traces[other].counts)}


def _recur(counts: Sequence[int]) -> bool:
    """Return whether all batches are full but for few small ones of one size."""
    if len(set(counts)) != 2 or min(counts) > _SMALL * max(counts):
        return False
    starts = _list_starts(counts)
    return 0 < _FEWEST * len(starts) <= len(counts)


def _list_starts(counts: Sequence[int]) -> list[int]:
    """List the places at which a small batch follows a full one; a layer may be called twice with the same batch."""
    pairs = enumerate(pairwise(counts), start=1)
    return [place for place, (before, count) in pairs if count < before]


def _find_share(case: Case, name: str, entries: LayerTrace) -> float:
    """Find the share of the averages that is of the latest small batch; 0 where it is forgotten, or not known."""
    layer = case.layers[name]
    momentum = layer.momentum
    if not momentum or isinstance(layer, SelfTuned) or entries.end is None:
        return 0.0
    if not torch.equal(entries.end.cpu().double(), case.buffers[name]):
        return 0.0  # trained or recalibrated since

    latest = entries.counts[_list_starts(entries.counts)[-1] :]
    small = latest.count(min(latest))
    after = len(latest) - small
    if after > 1 / momentum:
        return 0.0
    kept = (1 - momentum) ** after
    return kept * (1 - (1 - momentum) ** small)
