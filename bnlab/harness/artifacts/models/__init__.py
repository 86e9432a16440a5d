"""Networks: a small conv net, CIFAR ResNets, an MLP, and functions of the user's."""

from bnlab.harness.artifacts.models.base import InputShape, Model
from bnlab.harness.artifacts.models.layered import Cnn, Layered, Mlp, Resnet
from bnlab.harness.settings import discover

__all__ = ["Cnn", "InputShape", "Layered", "Mlp", "Model", "Resnet"]

discover(__name__)
