"""The stream of the estimators' docstrings."""

import torch

from bnlab.estimators.base import Estimator, Stream
from bnlab.estimators.folding import fold

# Batches of mean 1 and unbiased variance 2, then 3 and 8, two values each; start 0 and 1.
EXAMPLE = Stream(
    start=torch.tensor([[0.0], [1.0]], dtype=torch.float64, device="cpu"),
    batches=torch.tensor([[[1.0], [2.0]], [[3.0], [8.0]]], dtype=torch.float64, device="cpu"),
    counts=torch.full((2, 1), 2.0, dtype=torch.float64, device="cpu"),
)


def after(estimator: Estimator, *positions: int) -> list[list[float]]:
    """Compute mean and variance after so many batches of the example."""
    states = fold([estimator], EXAMPLE, positions)[0, :, :, 0]
    return states.round(decimals=4).tolist()  # type: ignore[no-any-return]
