"""Changed weights, against weights that are changed one by one, and statistics of float64 networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnlab import running_statistics
from bnlab.harness.artifacts.training import Seeds
from bnlab.harness.measurements.estimates import in_batches
from bnlab.harness.reporting.frames import select
from experiments.questions.changed_weights import changed
from experiments.questions.changed_weights.changed import ChangedWeights, train_second
from tests.helpers import Run, rise_and_fall
from tests.references import (
    Descent,
    accuracy_under,
    batch_norms,
    batch_upstream_population,
    float64_copy,
    full_batch_population,
    gap,
)

STEP, START = 40, 20


def build(run: Run) -> dict[str, nn.Module]:
    """Build the networks with changed weights, by name."""
    return dict(ChangedWeights().build_models(run, STEP))


def list_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of convolutions and linear layers by name."""
    layers = dict(model.named_modules())
    found = {}
    for name, layer in layers.items():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            found[name] = layer.weight.detach()
    return found


def test_the_second_network_goes_on_from_half_way_in_another_order(trained: Run) -> None:
    """Against a plain loop in float64: 20 updates of float32 sums, 1e-7 each, through a network that amplifies them."""
    config = trained.config
    model = float64_copy(trained.model_at(START)).train()
    descent = Descent(model)
    orders = [trained.batches.epoch_order(epoch) for epoch in (1, 2, 3)]
    drawn = []
    for epoch in (1, 2, 3):  # of 12 batches; update 21 is the ninth of the second epoch
        generator = torch.Generator().manual_seed(Seeds.of(0).order + 2**31 + epoch)
        drawn.append(torch.randperm(360, generator=generator))

    for step in range(START, STEP):
        epoch, place = divmod(step, 12)
        chosen = drawn[epoch - 1][32 * place : 32 * place + 32]
        images = trained.dataset.train.images[chosen].double()
        loss = F.cross_entropy(model(images), trained.dataset.train.labels[chosen])
        descent.step(loss, config.optimizer.peak_lr(32) * rise_and_fall(step, STEP))

    second = train_second(trained, STEP)

    assert not any(torch.equal(order, other) for order, other in zip(orders, drawn, strict=True))
    for found, expected in zip(second.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-3, atol=1e-4)

    average = build(trained)["averaged"].state_dict()
    last = trained.load_checkpoint(STEP)
    for name, values in second.state_dict().items():
        if values.is_floating_point():
            torch.testing.assert_close(average[name], (last[name] + values) / 2)


def test_the_smallest_third_of_all_weights_is_pruned(trained: Run) -> None:
    before = list_weights(trained.model_at(STEP))
    magnitudes = sorted(abs(value) for weight in before.values() for value in weight.flatten().tolist())
    largest_pruned = magnitudes[round(len(magnitudes) / 3) - 1]

    found = build(trained)["pruned"]

    for name, weight in list_weights(found).items():
        expected = [0.0 if abs(w) <= largest_pruned else w for w in before[name].flatten().tolist()]
        assert weight.flatten().tolist() == expected
    assert found.state_dict().keys() == trained.model_at(STEP).state_dict().keys()


@pytest.mark.parametrize(("bits", "most"), [(8, 127), (4, 7)])
def test_weights_are_rounded(bits: int, most: int, trained: Run) -> None:
    before = list_weights(trained.model_at(STEP))

    found = list_weights(build(trained)[f"rounded:{bits}"])

    for name, weight in found.items():
        unit = before[name].abs().max().item() / most
        for value, old in zip(weight.flatten().tolist(), before[name].flatten().tolist(), strict=True):
            multiple = value / unit
            assert multiple == pytest.approx(round(multiple), abs=1e-4)
            assert abs(value - old) <= unit * 0.5001
    biases = [name for name, _ in trained.model_at(STEP).named_parameters() if name.endswith("bias")]
    changed = build(trained)[f"rounded:{bits}"].state_dict()
    assert all(torch.equal(changed[name], trained.load_checkpoint(STEP)[name]) for name in biases)


def test_rows(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed, "SAMPLES", (48, 1000))  # fewer and more than there are
    train = trained.dataset.train.images
    test = trained.dataset.test
    image = 1.5 / len(test.labels)  # one image may lie on the border

    assert ChangedWeights().scope(trained, []) == {None: [STEP]}
    assert ChangedWeights().reads(trained, []) == [START, STEP]

    frame = ChangedWeights().measure(trained, [None], [STEP])
    assert frame["change"].unique().tolist() == ["none", "averaged", "pruned", "rounded:8", "rounded:4"]
    for change in build(trained):
        for kind in ("exact", "precise", "stale"):
            images = select(frame, change=change, statistics=kind)["images"].tolist()
            assert images == ([0] if kind == "stale" else [360, 48])

    for change, model in build(trained).items():
        exact = full_batch_population(model, train)
        precise = batch_upstream_population(model, [train[part] for part in in_batches(360, 32)])
        expected: dict[str, Any] = {"exact": exact, "precise": precise, "stale": running_statistics(model)}
        accuracies = {kind: accuracy_under(model, each, test.images, test.labels) for kind, each in expected.items()}
        *_, last = exact  # the only deeper layer
        for kind, accuracy in accuracies.items():
            found = expected[kind][last]
            gaps = gap(exact[last][1:], (found.mean, found.var), batch_norms(model)[last].eps)

            row = select(frame, change=change, statistics=kind).iloc[0]
            assert row["accuracy"] == pytest.approx(accuracy, abs=image)
            assert row["accuracy_lost"] == pytest.approx(accuracies["exact"] - accuracy, abs=2 * image)
            assert row["mean_gap"] == pytest.approx(gaps["mean_gap"], rel=1e-3, abs=1e-5)
            assert row["var_gap"] == pytest.approx(gaps["var_gap"], rel=1e-3, abs=1e-5)
