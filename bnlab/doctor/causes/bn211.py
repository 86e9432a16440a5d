"""BN211: predictions in eval mode are random."""

from __future__ import annotations

from bnlab.doctor.case import Case
from bnlab.doctor.cause import Cause, Signs
from bnlab.doctor.probe import DIFFERENT


class RandomPredictions(Cause):
    """Outputs of the same batch, run twice in eval mode, that differ by more than 2% of their spread.

    Both are root mean squares; rounding makes less. A forward that calls F.dropout without training=self.training does
    it, or one that adds noise or draws in any mode. At most 16 images are run.

    A false alarm where outputs are drawn on purpose, as of a variational autoencoder, or where the model keeps a state
    from call to call.
    """

    code = "BN211"
    title = "predictions in eval mode are random"
    meaning = "Something in the forward draws random numbers in eval mode too, such as F.dropout without training=."
    remedy = "Pass training=self.training to F.dropout, or use nn.Dropout, which eval() turns off."
    kind = "network"
    severity = "warning"
    needs = ("data",)

    def look(self, case: Case) -> Signs | None:
        twice = case.data.probe.twice
        shown = [""] if twice > DIFFERENT else []
        return Signs.of(shown, f"two runs of the same batch differ by {twice:.2g} of the outputs' spread")
