"""Fine-tuned copies of a network, against a plain loop in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnlab.harness.measurements.estimates import seed_by
from bnlab.harness.reporting.frames import select
from experiments.questions.fine_tuning import measurement
from experiments.questions.fine_tuning.measurement import MODES, FineTuning, TuningImages, find_new_fonts, tune
from tests.conftest import small_config
from tests.helpers import Run, measure, train_network
from tests.references import batch_norms, float64_copy, full_batch_population

STEP = 12
TABLE = "experiments.questions.fine_tuning.measurement.FineTuning"


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network that was trained for 12 updates on characters in half of the fonts."""
    words = ["data=glyphs", "data.classes=10", "data.fonts=dejavu"]
    config = small_config(tmp_path_factory.mktemp("glyphs"), *words, steps=STEP, evaluate_at=[STEP])
    return train_network(Run(config))


def write(model: nn.Module, images: torch.Tensor) -> None:
    """Write exact statistics of images into a float64 network."""
    exact = full_batch_population(model, images)
    for name, layer in batch_norms(model).items():
        layer.running_mean = exact[name].mean
        layer.running_var = exact[name].var


def tune_slowly(run: Run, mode: str, batch: int, rate: float, updates: int) -> nn.Module:
    """SGD with momentum in float64, one weight after the other."""
    few = TuningImages.of(run).few
    model = float64_copy(run.model_at(STEP))
    if mode == "eval_exact":
        write(model, few.images)
    model.train()
    for layer in batch_norms(model).values():
        layer.train(mode == "train")

    generator = seed_by(f"{run.id} {STEP} tuning {batch}")
    weights = list(model.parameters())
    velocities = [torch.zeros_like(weight) for weight in weights]
    for _ in range(updates):
        chosen = torch.randperm(len(few.labels), generator=generator)[:batch]
        loss = F.cross_entropy(model(few.images[chosen].double()), few.labels[chosen])
        gradients = torch.autograd.grad(loss, weights)
        for weight, gradient, velocity in zip(weights, gradients, velocities, strict=True):
            velocity.mul_(0.9).add_(gradient)
            weight.data -= rate * velocity
    return model.eval()


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_tuned(mode: str, glyphs: Run) -> None:
    """What float32 sums of a few updates leave, relative to weights and buffers of about 0.1 to 1."""
    expected = tune_slowly(glyphs, mode, 4, 0.01, 3)

    model = glyphs.model_at(STEP)
    few = TuningImages.of(glyphs).few
    generator = seed_by(f"{glyphs.id} {STEP} tuning 4")
    assert list(tune(model, few, mode, 4, 0.01, (1, 3), generator)) == [1, 3]

    for name, values in model.state_dict().items():
        if values.is_floating_point():
            torch.testing.assert_close(values.double(), expected.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_rows(glyphs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "BATCHES", (4,))
    monkeypatch.setattr(measurement, "RATES", (0.01,))
    monkeypatch.setattr(measurement, "STEPS", (1, 3))
    images = TuningImages.of(glyphs)
    image = 1.5 / len(images.new.labels)  # one image may lie on the border

    frame = measure(glyphs.config, TABLE)

    assert len(frame) == 3 * 2 * 2
    before = float64_copy(glyphs.model_at(STEP))
    for mode in MODES:
        model = tune_slowly(glyphs, mode, 4, 0.01, 3)
        for statistics in ("held", "recalibrated"):
            if statistics == "recalibrated":
                write(model, images.few.images)
            row = select(frame, mode=mode, tuning_steps=3, statistics=statistics).iloc[0]
            accuracies = {}
            for part in (images.new, images.old):
                for network in (model, before):
                    with torch.no_grad():
                        is_right = network(part.images.double()).argmax(1) == part.labels
                    accuracies[part is images.new, network is model] = is_right.double().mean().item()

            assert row["new_accuracy"] == pytest.approx(accuracies[True, True], abs=image)
            assert row["old_accuracy"] == pytest.approx(accuracies[False, True], abs=image)
            assert row["gained"] == pytest.approx(accuracies[True, True] - accuracies[True, False], abs=2 * image)
            assert row["forgotten"] == pytest.approx(accuracies[False, False] - accuracies[False, True], abs=2 * image)


def test_images_to_learn_from_are_not_predicted(glyphs: Run) -> None:
    few, new, old = TuningImages.of(glyphs)
    every = glyphs.images_of("test", "fonts:stix_cm")

    assert torch.equal(torch.cat([few.images, new.images]), every.images)
    assert len(few.labels) == 50
    assert torch.equal(old.images, glyphs.dataset.test.images)
    assert not torch.equal(old.images, every.images)


def test_a_tuning_that_diverges_ends(glyphs: Run) -> None:
    few = TuningImages.of(glyphs).few
    generator = torch.Generator().manual_seed(0)

    assert list(tune(glyphs.model_at(STEP), few, "eval", 4, 1e30, (4, 5), generator)) == []


def test_networks_that_have_seen_all_fonts_have_no_rows(glyphs: Run, trained: Run, tmp_path: Path) -> None:
    assert find_new_fonts(glyphs) == "fonts:stix_cm"
    assert FineTuning().scope(glyphs, []) == {None: [STEP]}

    assert FineTuning().scope(trained, []) == {}, "digits"
    of_all_fonts = Run(small_config(tmp_path, "data=glyphs"))
    assert FineTuning().scope(of_all_fonts, []) == {}
