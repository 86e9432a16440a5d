"""A user's functions as choices of Hydra's: a dotted name in a group is looked up like a file of settings.

Hydra asks all sources of settings for `model=mine.make_model` on the command line, and for
`- override /model: mine.make_model` in a file. This source imports the function, and gives its arguments with their
defaults.
"""

from __future__ import annotations

from dataclasses import asdict

from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from bnlab.harness.own import OWN_CLASSES, make_own

SEARCHED = "own://"
"""What is added to `hydra.searchpath` for it."""


def register_own_choices() -> None:
    """Make this source of settings known to Hydra."""
    Plugins.instance().register(OwnChoices)


class OwnChoices(ConfigSource):
    """The functions of the user's that can be imported; what each method does, Hydra says."""

    @staticmethod
    def scheme() -> str:
        return "own"

    def available(self) -> bool:
        return True

    def is_config(self, config_path: str) -> bool:
        group, _, name = config_path.rpartition("/")
        return group in OWN_CLASSES and "." in name

    def is_group(self, config_path: str) -> bool:
        return False

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return []

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.rpartition("/")
        settings = OmegaConf.create(asdict(make_own(group, name)))
        return ConfigResult(self.provider, f"{SEARCHED}{config_path}", settings, header={"package": None})
