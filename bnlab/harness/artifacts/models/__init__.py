"""Networks: a small conv net, CIFAR ResNets, an MLP, torchvision's classifiers, and functions of the user's."""

from bnlab.harness.artifacts.models.base import InputShape, Model, build_model
from bnlab.harness.artifacts.models.layered import Cnn, Layered, Mlp, Resnet
from bnlab.harness.artifacts.models.torchvision_models import Torchvision
from bnlab.harness.components import discover

__all__ = ["Cnn", "InputShape", "Layered", "Mlp", "Model", "Resnet", "Torchvision", "build_model"]

discover(__name__)
