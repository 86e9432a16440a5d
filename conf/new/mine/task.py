"""A task: the loss that a network is trained with, and the metric of its predictions. Without task= it classifies."""

from torch import Tensor
from torch.nn import functional as F


class Radius:
    """Regression of one number for each image."""

    name = "radius error"
    unit = "pixels"
    larger_is_better = False

    def loss(self, output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Compute a number, whose gradients train the network."""
        _images, radii = batch
        return F.mse_loss(output.squeeze(1), radii)

    def metric(self, output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Compute a value of each image, [N]; tables have their mean."""
        _images, radii = batch
        return (output.squeeze(1) - radii).abs()
