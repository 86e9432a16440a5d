"""The gap of a whole network: the one definition of an average over layers.

The first layer's input is standardized by hand: its means stay near 0 while the weights move, so that it hardly lags,
and a mean over all layers would hide that the others do. Therefore a network's gap is the root mean square over its
deeper layers, and the first layer stands beside it. A network with a single layer has the gap of that one.

Rows of some tables hold gaps that were averaged when they were measured (`average_one`). With another definition raise
`records.VERSION`, or rows of both stand in one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

FIRST = "first layer"
DEEPER = "deeper layers"


def average_layers(frame: pd.DataFrame, value: str, keys: Sequence[str]) -> pd.DataFrame:
    """Average a gap over the deeper layers of each network, and keep that of the first.

    Args:
        frame: a row for each layer (or channel of a layer), with `depth` counted from 1.
        value: the column with the gap.
        keys: the columns that tell networks, steps and statistics apart; null keys are kept.

    Returns:
        Two rows for each of `keys`, told apart by the new column `layers`: `DEEPER` with the root mean square over the
        deeper layers, the squares divided by their number, and `FIRST` with the gap of the first layer. It is NaN where
        that of a layer is. Other columns are those of one of the layers.
    """
    is_first = frame["depth"] == 1
    averaged = frame.assign(layers=np.where(is_first, FIRST, DEEPER))
    averaged[value] = frame[value] ** 2

    groups = averaged.groupby([*keys, "layers"], dropna=False, sort=False)
    mean_squares = groups[value].transform("mean")
    # pandas leaves out NaN, and with it the worst of the layers.
    is_missing = averaged[value].isna().groupby([averaged[key] for key in (*keys, "layers")], dropna=False)
    averaged[value] = np.sqrt(mean_squares.mask(is_missing.transform("any")))
    return averaged.drop_duplicates([*keys, "layers"])


def average_networks(frame: pd.DataFrame, value: str, keys: Sequence[str]) -> pd.DataFrame:
    """Average a gap over layers to one row for each of `keys`, in the order of the frame; see `average_layers`.

    It is the row of the deeper layers, or that of the first layer where there is no other.
    """
    # The new index numbers the rows of the frame; sorting by it at the end restores their order.
    averaged = average_layers(frame.reset_index(drop=True), value, keys)
    deeper_before_first = averaged.sort_values("layers", key=lambda layers: layers == FIRST, kind="stable")
    return deeper_before_first.drop_duplicates(keys).sort_index()


def average_one(gaps: Iterable[float]) -> float:
    """Average the gaps of one network's layers, in the order of depth.

    >>> average_one([0.5, 3.0, 4.0]), average_one([0.5])
    (3.5355339059327378, 0.5)
    """
    # A formula of its own would be shorter, but the average over layers is to be defined in one place.
    frame = pd.DataFrame({"network": 0, "gap": [*gaps]})
    frame["depth"] = frame.index + 1
    return float(average_networks(frame, "gap", ["network"])["gap"].item())
