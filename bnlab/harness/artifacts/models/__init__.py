"""Networks: a small conv net, CIFAR ResNets, an MLP, torchvision's classifiers, and functions of the user's own."""

from bnlab.harness.artifacts.models.base import Model, build_model
from bnlab.harness.components import discover

__all__ = ["Model", "build_model"]

discover(__name__)
