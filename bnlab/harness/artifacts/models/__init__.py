"""Networks: a small conv net, CIFAR ResNets, an MLP, and functions of the user's."""

from bnlab.harness.artifacts.models.base import InputShape, Model, build_model
from bnlab.harness.artifacts.models.layered import Cnn, Layered, Mlp, Resnet
from bnlab.harness.components import discover

__all__ = ["Cnn", "InputShape", "Layered", "Mlp", "Model", "Resnet", "build_model"]

discover(__name__)
