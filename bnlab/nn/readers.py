"""Momenta that self-tuned layers have chosen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn

from bnlab.estimators.bank import MOMENTA, Bank
from bnlab.nn.self_tuned import list_self_tuned

if TYPE_CHECKING:
    import pandas as pd


def momenta(model: nn.Module, *, errors: bool = False) -> pd.DataFrame:
    """List the momentum that each self-tuned layer of `model` has chosen for its mean and for its variance.

    Args:
        errors: a row for each of the 50 momenta, with the error of its forecasts, instead of the chosen one alone.

    Returns:
        A row for each layer and statistic, in the model's order, with these columns.

        - layer, depth (from 1), statistic ("mean" or "var");
        - batches: how many the averages are of, since they began; 0 before the first one, and where something else has
          written the buffers since (`load_state_dict`, `update_bn`, averaged weights);
        - momentum: the chosen one (before the third batch the smallest, before the first NaN); with `errors` all of
          them, and `chosen` says which;
        - memory: 1/momentum, about how many of the latest batches it averages; never more than `batches` in effect;
        - error (with `errors`): the mean square of the forecasts' errors over the last tenth of the batches, of the
          mean in variances, of the variance as a logarithm, noise of single batches included; NaN before the third.

    Raises:
        TypeError: not a module.
        ValueError: the model has no self-tuned layer.

    >>> import torch
    >>> from bnlab.nn import SelfTuned
    >>> model = SelfTuned.convert(nn.Sequential(nn.BatchNorm1d(1)))
    >>> for batch in torch.arange(24.0).reshape(6, 4, 1):  # the mean moves fast, the variance stays
    ...     output = model(batch)
    >>> momenta(model)[["layer", "statistic", "batches", "momentum"]].round(3)
      layer statistic  batches  momentum
    0     0      mean        6     1.000
    1     0       var        6     0.001
    """
    import pandas as pd

    frames = []
    for depth, (name, layer) in enumerate(list_self_tuned(model, "momenta").items(), start=1):
        layer.settle()
        bank = None if layer.averages is None else layer.averages.advance()
        batches = 0 if bank is None else bank.count
        for row, statistic in enumerate(("mean", "var")):
            frame = _list_momenta(bank, row)
            frames.append(frame.assign(layer=name, depth=depth, statistic=statistic, batches=batches))

    frame = pd.concat(frames, ignore_index=True)
    if not errors:
        frame = frame[frame["chosen"]].reset_index(drop=True)
        frame["momentum"] = frame["momentum"].where(frame["batches"] > 0)
    frame = frame.assign(memory=1 / frame["momentum"])

    columns = ["layer", "depth", "statistic", "batches", "momentum", "memory"]
    if errors:
        columns += ["error", "chosen"]
    return frame[columns]


def _list_momenta(bank: Bank | None, row: int) -> pd.DataFrame:
    """List `momentum`, `error`, `chosen` of all momenta; `row`: 0 for the mean, 1 for the variance."""
    import pandas as pd

    frame = pd.DataFrame({"momentum": MOMENTA.numpy()})
    if bank is None:
        return frame.assign(error=math.nan, chosen=frame.index == 0)
    chosen = int(bank.chosen[row, 0])
    errors = bank.errors[:, row].cpu()
    return frame.assign(error=errors.numpy(), chosen=frame.index == chosen)
