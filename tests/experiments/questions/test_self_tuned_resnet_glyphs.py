"""Effects for the claims of `self_tuned_resnet_glyphs`: those of `self_tuned_resnet`."""

from tests.experiments.questions.test_self_tuned_resnet import EFFECTS

__all__ = ["EFFECTS"]
