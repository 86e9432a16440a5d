"""Errors of running averages within an epoch, against averages written out batch by batch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bnlab.harness.artifacts.data import DataConfig
from bnlab.harness.artifacts.producing import ensure_trained
from bnlab.harness.artifacts.runs import Run
from bnlab.harness.artifacts.settings import Config
from bnlab.harness.measurements import find_measurement, find_scope
from bnlab.harness.measurements.sources import parse_sources
from bnlab.harness.measurements.within_epoch import EPOCHS
from tests.references import batch_norms, float64_copy, inputs_of, running_ema_debiased


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = str(tmp_path_factory.mktemp("results"))
    # 90 training images: batches of 32, 32 and 26.
    config = Config(batch_size=32, steps=7, results=folder, evaluate_at="final", threads=1, data=DataConfig(images=100))
    ensure_trained(Run(config))
    return Run(config)


def first_layers_batches(run: Run) -> tuple[str, list[Tensor]]:
    """The first layer's name and its inputs in 26 epochs after the third, which training has not finished."""
    model = run.model_at(7).train()
    wide = float64_copy(model)
    name, layer = next(iter(batch_norms(wide).items()))
    found: list[Tensor] = []
    for epoch in range(3, 3 + 2 + EPOCHS):
        for index in run.batches.epoch_order(epoch).split(32):
            found += inputs_of(layer, lambda at=index: wide(run.dataset.train.images[at].double()))
    return name, found


def test_errors_batch_by_batch(run: Run) -> None:
    sources = parse_sources(["ema_debiased", "exact"], [0.1, 0.5], "train")
    ((subject, (step,)), (other, _)) = find_scope("within_epoch")(run, sources).items()
    found = find_measurement("within_epoch")(run, [subject, other], [step])
    assert len(found) == 2 * len(batch_norms(run.model_at(7))) * (3 + 2) and step == 7
    name, inputs = first_layers_batches(run)
    for last, per_epoch, share in (("kept", 3, 26 / 32), ("dropped", 2, 1.0)):
        kept = [x for place, x in enumerate(inputs) if place % 3 < per_epoch]
        means = torch.stack([x.mean((0, 2, 3)) for x in kept])
        var = torch.stack([x.var((0, 2, 3)) for x in kept]).mean(0) + 1e-5
        averages = torch.stack([mean for mean, _ in running_ema_debiased(kept, 0.5)])[2 * per_epoch :]
        squares = ((averages - means.mean(0)).square() / var).mean(1).view(EPOCHS, per_epoch).mean(0)
        spread = (means.view(-1, per_epoch, means.shape[1])[:, :2].var(1).mean(0) / var).mean()
        rows = found[(found["layer"] == name) & (found["last_batch"] == last) & (found["momentum"] == 0.5)]
        assert rows["position"].to_list() == list(range(1, per_epoch + 1))
        assert set(rows["batches"]) == {per_epoch} and set(rows["last_share"]) == {share}
        assert rows["noise"].to_list() == pytest.approx(squares.tolist(), rel=1e-3)
        assert rows["spread"].to_list() == pytest.approx([float(spread)] * per_epoch, rel=1e-3)
