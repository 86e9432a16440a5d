"""Fine-tuned copies of a network, against a plain loop in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnlab import running_statistics
from bnlab.harness.measurements.estimates import seed_by
from bnlab.harness.reporting.frames import select
from experiments.questions.fine_tuning import measurement
from experiments.questions.fine_tuning.measurement import MODES, FineTuning, TuningImages, find_new_fonts, tune
from tests.conftest import small_config
from tests.helpers import Run, measure, train_network
from tests.references import Descent, accuracy_under, batch_norms, float64_copy, full_batch_population

STEP = 12
TABLE = "experiments.questions.fine_tuning.measurement.FineTuning"


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network that was trained for 12 updates on characters in half of the fonts."""
    words = ["data=glyphs", "data.classes=10", "data.fonts=dejavu"]
    config = small_config(tmp_path_factory.mktemp("glyphs"), *words, steps=STEP, evaluate_at=[STEP])
    return train_network(Run(config))


def tune_slowly(run: Run, mode: str, batch: int, rate: float, updates: int) -> nn.Module:
    """SGD with momentum in float64, one weight after the other."""
    few = TuningImages.of(run).few
    model = float64_copy(run.model_at(STEP))
    if mode == "eval_exact":
        for name, moments in full_batch_population(model, few.images).items():
            model.get_buffer(f"{name}.running_mean").copy_(moments.mean)
            model.get_buffer(f"{name}.running_var").copy_(moments.var)
    model.train()
    for layer in batch_norms(model).values():
        layer.train(mode == "train")

    generator = seed_by(f"{run.id} {STEP} tuning {batch}")
    descent = Descent(model, decay=0.0, is_nesterov=False)
    for _ in range(updates):
        chosen = torch.randperm(len(few.labels), generator=generator)[:batch]
        loss = F.cross_entropy(model(few.images[chosen].double()), few.labels[chosen])
        descent.step(loss, rate)
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
    start = glyphs.model_at(STEP)
    old, new = ((part.images, part.labels) for part in (images.old, images.new))
    before = running_statistics(start)
    old_before, new_before = (accuracy_under(start, before, *part) for part in (old, new))
    for mode in MODES:
        model = tune_slowly(glyphs, mode, 4, 0.01, 3)
        exact = full_batch_population(model, images.few.images)
        candidates: dict[str, Any] = {"held": running_statistics(model), "recalibrated": exact}
        for name, statistics in candidates.items():
            row = select(frame, mode=mode, tuning_steps=3, statistics=name).iloc[0]
            of_old, of_new = (accuracy_under(model, statistics, *part) for part in (old, new))
            assert row["new_accuracy"] == pytest.approx(of_new, abs=image)
            assert row["old_accuracy"] == pytest.approx(of_old, abs=image)
            assert row["gained"] == pytest.approx(of_new - new_before, abs=2 * image)
            assert row["forgotten"] == pytest.approx(old_before - of_old, abs=2 * image)


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
