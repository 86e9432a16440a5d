"""One layer that serves several populations: calls of a forward that differ, and batches of few images that do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bnlab import diagnose
from bnlab.doctor.calls import Calls, measure_t
from bnlab.doctor.scatter import Scatter
from bnlab.doctor.scores import Evaluate
from bnlab.doctor.verdict import WORTH
from tests.doctor.networks import (
    Batch,
    average,
    change_images,
    find,
    get_norm,
    list_images,
    make_batches,
    make_healthy,
    split,
)

# Calls of a forward


class Pair(nn.Module):
    """Gives a network both images of pairs [N, 2, 3, 8, 8]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pairs: Tensor) -> Tensor:
        return self.network(pairs[:, 0]) + self.network(pairs[:, 1])


def pair(images: Tensor, others: Tensor) -> Tensor:
    return torch.stack((images, others), 1)


@pytest.mark.parametrize(
    ("change", "evidence"),
    [(lambda images: images + 3, "2 calls a forward: their means make up"), (lambda images: 0.3 * images, "-fold")],
)
def test_bn204_two_domains_through_one_layer(
    change: Callable[[Tensor], Tensor], evidence: str, images: list[Tensor]
) -> None:
    pairs = [pair(batch, change(batch)) for batch in images[:8]]

    finding = find("BN204", Pair(make_healthy()), pairs)

    assert finding is not None
    assert finding.signs.layers[0] == "network.1"
    assert evidence in finding.signs.evidence
    assert finding.severity == "warning"


def test_bn204_costs_what_each_calls_own_statistics_gain(batches: list[Batch]) -> None:
    pairs = change_images(batches[:8], lambda images: pair(images, 0.2 * images + 3))
    model = Pair(make_healthy())
    average(model, 5 * pairs)

    diagnosis = diagnose(model, pairs, progress=False)

    costs = diagnosis.findings.set_index("code")["cost"]
    assert costs["BN204"] == pytest.approx(diagnosis.scores["batch"] - diagnosis.scores["running"])
    assert costs["BN204"] > WORTH


@pytest.mark.parametrize(("count", "size"), [(1, 16), (2, 16), (16, 16), (4, 64)])
def test_bn204_is_quiet_on_images_of_the_same_population(count: int, size: int) -> None:
    images = list_images(make_batches(count, size))
    others = list_images(make_batches(count, size, seed=2))

    pairs = [pair(batch, other) for batch, other in zip(images, others, strict=True)]

    assert find("BN204", Pair(make_healthy()), pairs) is None


def test_bn204_is_quiet_on_layers_that_are_called_once(images: list[Tensor]) -> None:
    assert find("BN204", make_healthy(), images) is None


def score_by_mode(model: nn.Module) -> list[float]:
    """Score 1 for 200 images while batch norms normalize by their batches, otherwise 0."""
    model(torch.zeros(2, 2, 3, 8, 8))
    return [float(get_norm(model, "network.1").training)] * 200


def score_alike(model: nn.Module) -> list[float]:
    return [1.0] * 200


def draw_more(batch: Tensor) -> Tensor:
    """Draw as many other images of the same population."""
    return make_batches(1, len(batch), seed=int(batch.abs().sum()))[0][0]


@pytest.mark.parametrize(
    ("change", "evaluate", "is_found"),
    [
        (lambda images: 1.05 * images, score_by_mode, True),
        (lambda images: 1.05 * images, score_alike, False),
        (lambda images: 1.05 * images, None, False),
        (draw_more, score_by_mode, False),
    ],
    ids=["found", "no batch's own are better", "no scores", "one population"],
)
def test_bn204_small_differences_of_calls_count_where_each_calls_own_statistics_are_better(
    change: Callable[[Tensor], Tensor], evaluate: Evaluate | None, is_found: bool, images: list[Tensor]
) -> None:
    """Variances differ by a tenth: less than matters anyway."""
    pairs = [pair(batch, change(batch)) for batch in images[:8]]

    finding = find("BN204", Pair(make_healthy()), pairs, evaluate=evaluate)

    assert (finding is not None) == is_found
    if finding is not None:
        told = re.fullmatch(r"2 calls .* differ 1\.1-fold, by ([\d.]+) standard errors", finding.signs.evidence)
        assert told is not None
        assert float(told[1]) > 4
        assert finding.severity == "error"  # it costs all of the score


@pytest.mark.parametrize("images", [29, 30])
def test_calls_of_few_images_do_not_differ_surely(images: int) -> None:
    calls = Calls(2, images, share=0.0, image_share=0.1, log_ratio=0.0, t=100.0)

    assert calls.differ_surely == (images == 30)
    assert not calls.are_unlike


def test_a_change_of_the_calls_is_measured_in_standard_errors() -> None:
    """Of 400 images of two channels, whose mean changes by 3 and 1 of them: the root mean square is sqrt(5)."""
    rows = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = torch.tensor([3.0, 1.0], dtype=torch.float64) / 20
    rows = (rows - rows.mean(0)) / rows.std(0) + steps
    still = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    changes = Scatter.empty(4, torch.device("cpu"))
    changes.add_all(torch.cat((rows, still - still.mean(0)), 1))

    assert measure_t(changes) == pytest.approx(5**0.5)


# Batches of few images


def draw_masks(count: int, seed: int, exposures: int | None = None) -> Batch:
    """Draw images [N, 1, 8, 8] whose bright half is 1 and whose other half -1, and that half as a mask [N, 8, 8].

    Each has some noise, and a gain and an exposure of its own; or images in succession share one of so many exposures.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 8, 8, generator=generator) < 0.5
    images = 2 * masks.float() - 1 + 0.3 * torch.randn(count, 8, 8, generator=generator)
    groups = count if exposures is None else exposures
    gains = torch.randn(groups, 1, 1, generator=generator).exp()
    shifts = 2 * torch.randn(groups, 1, 1, generator=generator)
    each = count // groups
    images = gains.repeat_interleave(each, 0) * (images + shifts.repeat_interleave(each, 0))
    return images.unsqueeze(1), masks.long()


def build_reader() -> nn.Sequential:
    """Build a network of two batch norms, "0" and "3", that finds the pixels above the average of an image."""
    model = nn.Sequential(
        nn.BatchNorm2d(1, momentum=None),
        nn.Conv2d(1, 2, 1, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(2, momentum=None),
        nn.Conv2d(2, 1, 1, bias=False),
    )
    for number in (1, 4):
        conv = model[number]
        assert isinstance(conv, nn.Conv2d)
        with torch.no_grad():
            conv.weight.flatten().copy_(torch.tensor([1.0, -1.0]))
    return model


def make_reader(batch_size: int) -> nn.Sequential:
    """Make a network whose averages are those of 128 images in batches of this size."""
    model = build_reader()
    average(model, split(*draw_masks(128, seed=-1), batch_size))
    return model


def test_bn204_batches_of_one_image() -> None:
    diagnosis = diagnose(make_reader(1), split(*draw_masks(64, seed=0), 1), progress=False)

    findings = diagnosis.findings.set_index("code")
    assert diagnosis.judged is not None
    assert diagnosis.judged.word == "not the averages"
    assert diagnosis.judged.sentence.endswith("Look at BN204 (one layer, several populations).")
    assert findings["layers"]["BN204"] == ("0", "3")
    assert findings["cost"]["BN204"] == pytest.approx(diagnosis.scores["batch"] - diagnosis.scores["running"])
    assert findings["severity"]["BN204"] == "error"
    assert findings["evidence"]["BN204"].startswith(
        "these batches have 1 image, which makes train mode instance norm: "
    )
    assert findings["evidence"]["BN204"].endswith("while each batch normalizes itself, as in training")
    assert "BN108" not in findings.index


def test_bn204_does_not_know_training_by_batches_that_averages_do_not_fit() -> None:
    finding = find("BN204", make_reader(32), split(*draw_masks(64, seed=0), 1))

    assert finding is not None
    assert finding.signs.evidence.endswith("; whether training's were as small is not known")


def test_bn204_finds_small_batches_of_training() -> None:
    """Without labels too, and where those at hand are larger."""
    batches = list_images(split(*draw_masks(64, seed=0), 32))
    training = {size: split(*draw_masks(64, seed=-2), size) for size in (1, 32)}

    finding = find("BN204", make_reader(1), batches, training_batches=training[1])

    assert finding is not None
    assert finding.signs.evidence.startswith("training's batches have 1 image")
    assert find("BN204", make_reader(32), batches, training_batches=training[32]) is None


def test_bn204_is_quiet_where_batches_that_differ_are_no_better() -> None:
    """Which pixels are above 0 depends on an image's exposure, which its own average takes away."""
    images, _ = draw_masks(64, seed=0)
    are_bright = (images[:, 0] > 0).long()

    assert find("BN204", make_reader(32), split(images, are_bright, 1)) is None


@pytest.mark.parametrize("size", [1, 4])
def test_bn204_is_quiet_on_a_healthy_network_whatever_the_batches(size: int) -> None:
    batches = make_batches(64 // size, size)

    assert find("BN204", make_healthy(), batches) is None
    assert find("BN204", make_healthy(), list_images(batches)) is None


def test_bn204_gives_way_to_batches_that_were_not_shuffled() -> None:
    model = build_reader()
    average(model, split(*draw_masks(256, seed=-1, exposures=8), 32))

    diagnosis = diagnose(model, split(*draw_masks(256, seed=0, exposures=8), 32), progress=False)

    codes = [finding.rule.code for finding in diagnosis.faults]
    assert diagnosis.verdict == "not the averages"
    assert "BN202" in codes
    assert "BN204" not in codes
