"""The base of all norms, which says what is asked of them, and torch's own norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from bnlab.harness.settings import Component, component, setting

if TYPE_CHECKING:
    from torch import nn

    from bnlab.estimators import EMA
    from bnlab.harness.artifacts.norms.layers.site import Site


# Hashable, because caches take norms as keys; not frozen, because a user's arguments are set as attributes.
@dataclass(unsafe_hash=True)
class Norm(Component):
    """A norm: it normalizes activations after each convolution or linear layer but the last.

    Attributes:
        uses_batch: whether it trains with statistics of the batch, which are recorded.
        takes_batch_whole: whether it normalizes all images of a batch together, and so updates its running averages
            once for each batch.
        is_plain: whether it is torch's batch norm. This one alone can be frozen, and normalizes frozen weights as in
            training.
        has_shift: whether it adds a shift, which takes the place of a bias before it.
        sets_scale: whether it sets the scale of activations; otherwise the weights before it are initialized to keep
            it.
        needs_maps: whether it takes statistics of each image's pixels, which a unit of an mlp does not have.
    """

    group: ClassVar[str] = "norm"
    uses_batch: ClassVar[bool] = False
    takes_batch_whole: ClassVar[bool] = False
    is_plain: ClassVar[bool] = False
    has_shift: ClassVar[bool] = True
    sets_scale: ClassVar[bool] = True
    needs_maps: ClassVar[bool] = False

    @property
    def divisor(self) -> int:
        """The number that has to divide a network's channels."""
        return 1

    def check(self, batch_size: int) -> None:
        """Raise UserError if it cannot be trained with batches of this size."""

    def count_images(self, batch_size: int) -> int | None:
        """Count the images that are normalized together, as far as a batch can be divided so; None: each alone."""
        return batch_size if self.uses_batch else None

    def get_training_average(self) -> EMA | None:
        """Return the running average that the network reads while it is trained, if there is one."""
        return None

    def place(self, channels: int) -> Self:
        """Place it in a network whose first norm has so many channels."""
        return self

    def build(self, site: Site) -> nn.Module:
        """Build the layer for a place in a network."""
        raise NotImplementedError


@dataclass(frozen=True)
class NormBuilder:
    """A builder of one network's norms; `steps` are updates in the whole training."""

    kind: Norm
    of_images: bool
    steps: int

    @property
    def allows_in_place(self) -> bool:
        """True if what follows a norm may write into its output, which one of the user's may need for its gradient."""
        return not self.kind.is_own

    def build(self, channels: int, number: int = 1) -> nn.Module:
        """Build the norm after the layer of this number in a network or a block, counted from 1."""
        from bnlab.harness.artifacts.norms.layers.site import Site

        site = Site(channels, number, self.of_images, self.steps)
        return self.kind.build(site)


@component
@dataclass(unsafe_hash=True)
class Batch(Norm):
    """Batch norm, as torch has it."""

    uses_batch: ClassVar[bool] = True
    takes_batch_whole: ClassVar[bool] = True
    is_plain: ClassVar[bool] = True
    name: str = "batch"
    every_second: str = setting(
        "none",
        "what takes the place of every second batch norm, in a resnet of the second in each block",
        choices=("none", "group"),
    )
    groups: int = setting(8, "groups of channels of the group norms that take their place", at_least=1)

    @property
    def divisor(self) -> int:
        return self.groups if self.every_second == "group" else 1

    def build(self, site: Site) -> nn.Module:
        if self.every_second == "group" and site.number % 2 == 0:
            return site.group_norm(self.groups)
        return site.batch_norm()


@component
@dataclass(unsafe_hash=True)
class Group(Norm):
    """Group norm (Wu & He 2018): groups of channels of each image."""

    name: str = "group"
    groups: int = setting(8, "groups of channels", at_least=1)

    @property
    def divisor(self) -> int:
        return self.groups

    def build(self, site: Site) -> nn.Module:
        return site.group_norm(self.groups)


@component
@dataclass(unsafe_hash=True)
class Layer(Norm):
    """Layer norm (Ba et al. 2016): all channels of each image together."""

    name: str = "layer"

    def build(self, site: Site) -> nn.Module:
        return site.layer_norm()


@component
@dataclass(unsafe_hash=True)
class Instance(Norm):
    """Instance norm (Ulyanov et al. 2016): each channel of each image."""

    needs_maps: ClassVar[bool] = True
    name: str = "instance"

    def build(self, site: Site) -> nn.Module:
        return site.instance_norm()


@component
@dataclass(unsafe_hash=True)
class NoNorm(Norm):
    """No norm: layers have biases, initial weights keep the variance (He et al. 2015), residual branches start at 0."""

    has_shift: ClassVar[bool] = False
    sets_scale: ClassVar[bool] = False
    name: str = "none"

    def build(self, site: Site) -> nn.Module:
        return site.no_norm()
