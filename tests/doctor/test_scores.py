"""Scores of images: labels, outputs of all shapes, and intervals that hold what they promise."""

import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnlab
from bnlab.common.scores import bound_unchanged, estimate_mean, read_values
from bnlab.doctor.evidence.labels import describe_misfit, find_labels
from bnlab.doctor.evidence.scores import Scores, find_reading, measure_likelihood, score_batch
from tests.references import chance_of_no_change, mean_by_class

LABELS = torch.tensor([1, 0, 2])
LOGITS = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0], [1.0, 0.0, 0.5]])  # right, right, wrong
RIGHT = [1.0, 1.0, 0.0]
POSITIONS = torch.zeros(3, 2, 1, 3).index_fill(1, torch.tensor(1), 1.0)  # class 1 everywhere


def score_alone(output: Any, labels: Tensor | None) -> Tensor | None:
    """Score a batch that is all there is."""
    return score_batch(output, labels, find_reading([output], [] if labels is None else [labels]))


@pytest.mark.parametrize(
    "batch",
    [(LOGITS, LABELS), [LOGITS, LABELS, "more"], {"x": LOGITS, "labels": LABELS}, {"x": LOGITS, "label": LABELS}],
)
def test_labels_are_the_second_part_or_named_so(batch: Any) -> None:
    assert find_labels(batch) is LABELS


@pytest.mark.parametrize(
    "batch", [LOGITS, (LOGITS,), (LOGITS, "cat"), (LOGITS, torch.tensor(3)), {"x": LOGITS}, {"labels": [1, 0, 2]}]
)
def test_what_is_no_tensor_of_labels_is_not_one(batch: Any) -> None:
    assert find_labels(batch) is None


@pytest.mark.parametrize(
    ("output", "labels", "expected"),
    [
        # Where logits are found
        (LOGITS, LABELS, RIGHT),
        (SimpleNamespace(logits=LOGITS), LABELS, RIGHT),
        ({"logits": LOGITS}, LABELS, RIGHT),
        ((LOGITS, "features"), LABELS, RIGHT),
        ([LOGITS], LABELS, RIGHT),
        # One-hot labels; all logits are above 0, so that each alone would be taken for a yes
        (LOGITS + 1, F.one_hot(LABELS, 3).float(), RIGHT),
        # One output: a logit, or a share where all are between 0 and 1, and they are not too few to tell
        (torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([1, 0, 0]), [1, 1, 0]),
        (torch.tensor([0.1, 0.4, 0.6, 0.9] * 2)[:, None], torch.tensor([0, 0, 1, 1] * 2), [1] * 8),
        (torch.tensor([-0.1, 0.4, 0.6, 0.9] * 2)[:, None], torch.tensor([0, 0, 1, 1] * 2), [1, 0, 1, 1] * 2),
        (torch.tensor([0.1, 0.4, 0.6, 0.9])[:, None], torch.tensor([0, 0, 1, 1]), [0, 0, 1, 1]),
        # Floating-point labels of 0 and 1, the same
        (torch.tensor([-3.0, 0.3, 2.0]), torch.tensor([0.0, 0.0, 1.0]), [1, 0, 1]),
        (torch.tensor([0.1, 0.3, 0.9] * 3), torch.tensor([0.0, 0.0, 1.0] * 3), [1] * 9),
        # Several labels of an image count by their share
        (torch.tensor([[2.0, -1.0], [-1.0, -2.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]), [0.5, 1]),
        # Positions that losses ignore do not count
        (POSITIONS, torch.tensor([[[1, 0, 255]], [[1, 1, 255]], [[255] * 3]]), [0.5, 1, 0]),
        (POSITIONS, torch.tensor([[[1, 0, -100]], [[1, 1, -100]], [[-100] * 3]]), [0.5, 1, 0]),
        # Other numbers by their squared error
        (torch.tensor([2.0, 2.5]), torch.full((2,), 2.0), [0, -0.25]),
        (torch.tensor([2.0, 2.5])[:, None], torch.full((2, 1), 2.0), [0, -0.25]),
        (torch.full((1, 3, 4), 2.5), torch.full((1, 3, 4), 2.0), [-0.25]),
        # What does not fit
        (LOGITS, None, None),
        (LOGITS, LABELS[:2], None),
        (LOGITS, LABELS[:, None], None),
        (LOGITS[:, 0], LABELS, None),
        (LOGITS, torch.tensor([0.1, 0.2, 0.3]), None),
        ("text", LABELS, None),
        ((), LABELS, None),
        (torch.tensor(1.0), LABELS, None),
    ],
)
def test_scores_of_images(output: Any, labels: Tensor | None, expected: list[float] | None) -> None:
    values = score_alone(output, labels)

    assert (values is None) == (expected is None)
    if values is not None:
        assert values.dtype == torch.float64
        assert values.tolist() == expected


class Named(NamedTuple):
    image: Tensor
    site: Tensor
    label: Tensor


def test_labels_of_a_named_tuple_are_found_by_their_name() -> None:
    assert find_labels(Named(LOGITS, torch.zeros(3).long(), LABELS)) is LABELS


def make_values() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Outputs, labels and scores of 24 images: of a sigmoid, counts, maps half of which are empty, several labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(24, 1, generator=generator)
    is_one = logits > 0.3
    counts = torch.poisson(torch.full((24, 1), 0.7), generator=generator)
    maps = torch.rand(24, 1, 4, 4, generator=generator)
    heat = maps.flip(0).clone()
    heat[::2] = 0
    several = torch.randn(24, 6, generator=generator)
    true = torch.rand(24, 6, generator=generator) < 1 / 6
    return {
        "shares": (logits.sigmoid(), is_one[:, 0].long(), (logits > 0) == is_one),
        "logits": (logits, is_one.float(), (logits > 0) == is_one),
        "counts": (logits, counts, -(logits - counts).square()),
        "maps": (maps, heat, -(maps - heat).square()),
        "several": (several, true.float(), (several > 0) == true),
    }


@pytest.mark.parametrize("name", make_values())
@pytest.mark.parametrize("size", [1, 3, 24])
def test_the_score_does_not_depend_on_the_batch_size(name: str, size: int) -> None:
    """One batch of counts may be of zeros and ones alone, and one of logits may lie between 0 and 1."""
    outputs, labels, expected = make_values()[name]
    batches = list(zip(outputs.split(size), labels.split(size), strict=True))
    reading = find_reading(outputs.split(size), labels.split(size))

    values = torch.cat([each for batch in batches if (each := score_batch(*batch, reading)) is not None])

    assert values.tolist() == pytest.approx(expected.double().flatten(1).mean(1).tolist())


@pytest.mark.parametrize("kind", ["numbers", "one-hot"])
def test_each_class_in_an_image_counts_alike(kind: str) -> None:
    """Class 1 is named everywhere: all of one class of two are right, and all of one of three."""
    logits = torch.zeros(2, 3, 2, 2)
    logits[:, 1] = 1.0
    labels = torch.tensor([[[1, 1], [1, 0]], [[0, 0], [2, 1]]])
    if kind == "one-hot":
        labels = F.one_hot(labels, 3).movedim(-1, 1).float()

    values = score_alone(logits, labels)

    assert values is not None
    assert values.tolist() == [1 / 2, 1 / 3]


def test_a_mask_that_is_all_background_scores_half() -> None:
    """Both kinds of labels of a mask: 0 and 1 as whole numbers for two outputs, or as floating-point ones for one."""
    labels = torch.zeros(1, 8, 8).long()
    labels[0, 3:5, 3:5] = 1
    outputs = torch.full((1, 1, 8, 8), -2.0)

    as_classes = score_alone(torch.cat((-outputs, outputs), 1), labels)
    as_numbers = score_alone(outputs, labels[:, None].float())

    assert as_classes is not None and as_numbers is not None
    assert as_classes.tolist() == as_numbers.tolist() == [0.5]


@pytest.mark.parametrize("shape", [(9, 7), (50,)], ids=["images", "sequences"])
def test_scores_and_likelihoods_of_positions_are_those_of_a_plain_loop(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, *shape, generator=generator)
    labels = torch.randint(-1, 4, (6, *shape), generator=generator)
    labels[0, :3] = 255
    labels[1] = 2

    scores = score_alone(logits, labels)
    likelihoods = measure_likelihood(logits, labels)

    assert scores is not None and likelihoods is not None
    each = F.log_softmax(logits.double(), 1).gather(1, labels.clamp(0, 3)[:, None])[:, 0]
    right = (logits.argmax(1) == labels).numpy()
    assert scores.tolist() == pytest.approx(mean_by_class(right, labels.numpy()))
    assert likelihoods.tolist() == pytest.approx(mean_by_class(each.numpy(), labels.numpy()))


def test_a_network_that_has_lost_all_foreground_is_not_healthy() -> None:
    """It names class 0 everywhere, right in 98% of the pixels; images have one, two or three classes, and pixels of
    none, which are ignored.
    """
    model: Any = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 1))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.tensor([1.0, 0.0, 0.0])
    images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(60, 8, 8).long()
    labels[20:, 0, 0] = 1
    labels[40:, 1, 1] = 2
    labels[:, 7] = 255
    bnlab.recalibrate(model.eval(), [images])

    diagnosis = bnlab.diagnose(model, list(zip(images.split(20), labels.split(20), strict=True)), progress=False)

    assert diagnosis.scores["running"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert diagnosis.verdict == "network"
    assert "Mean accuracy of classes: 61.1% under running averages" in str(diagnosis)


@pytest.mark.parametrize(
    ("output", "reported"), [(LOGITS[:, 0], "outputs [3] of float32"), ({"out": LOGITS}, "outputs a dict")]
)
def test_labels_that_do_not_fit_are_described(output: Any, reported: str) -> None:
    misfit = describe_misfit(output, LABELS)

    assert misfit == f"Labels [3] of int64 cannot be compared with {reported}: pass evaluate=."


def compare(running: list[float], exact: list[float], are_shares: bool = True) -> Any:
    values = {"running": torch.tensor(running).double(), "exact": torch.tensor(exact).double()}
    return Scores(values, are_shares).compare("exact", "running")


def test_interval_of_right_and_wrong_by_hand() -> None:
    """Of ten images three are gained and one is lost: with one more of each sign 12 images, 4 + 2 discordant.

    Mean 2/12; sum of squared deviations 6 − 12·(2/12)² = 17/3, of which 11 are free: variance 17/33.
    """
    gain = compare([0, 0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 1, 1, 1, 1])

    half = 1.959964 * (17 / 33 / 12) ** 0.5
    assert (gain.images, gain.value) == (10, pytest.approx(0.2))
    assert (gain.low, gain.high) == pytest.approx((2 / 12 - half, 2 / 12 + half))


def test_equal_predictions_prove_little() -> None:
    """Two discordant images in N + 2: the interval is ±1.96·sqrt(2/(N+1)/(N+2)), 2.8/N for many."""
    gain = compare([1.0] * 98, [1.0] * 98)

    assert gain.value == 0.0
    assert (gain.low, gain.high) == pytest.approx((-gain.high, 1.959964 * (2 / 99 / 100) ** 0.5))


def test_few_values() -> None:
    """Values between 0 and 1 get no further pairs; one value has no interval."""
    gain = compare([0.5, 0.25], [1.0, 0.75])
    alone = estimate_mean(torch.tensor([0.25], dtype=torch.float64))

    assert (gain.value, gain.low, gain.high) == (0.5, 0.5, 0.5)
    assert (alone.value, alone.low, alone.high) == (0.25, -math.inf, math.inf)


@pytest.mark.parametrize("images", [2, 6, 500])
@pytest.mark.parametrize(
    ("low", "high", "are_shares", "spread"), [(0.9, 1.0, True, 1.0), (0.0, 0.5, True, 1.0), (-7.0, -3.0, False, 4.0)]
)
def test_equal_values_prove_that_few_images_change(
    images: int, low: float, high: float, are_shares: bool, spread: float
) -> None:
    """A share of images that would have shown itself in 95% of samples, each by as much as scores can differ."""
    values = torch.linspace(low, high, images).tolist()
    gain = compare(values, values, are_shares)

    assert (gain.value, gain.images, gain.low) == (0.0, images, -gain.high)
    assert chance_of_no_change(gain.high / spread, images) == pytest.approx(0.05)
    assert bound_unchanged(500, spread=1.0).high == pytest.approx(3 / 500, rel=0.01)  # the rule of three


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ([True, False, True], [1.0, 0.0, 1.0]),
        (torch.tensor([[1.0], [2.0]]), [1.0, 2.0]),
        (np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), [2.0, 5.0]),  # of two images, such as of three pixels
        (torch.tensor([[1.0, 2.0]]), [1.0, 2.0]),
        ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),  # of two batches
        (0.9, "TypeError: f: evaluate returned one number, 0.9; return a value for each image"),
        ("good", "TypeError: f: evaluate returned a str"),
        (None, "TypeError: f: evaluate returned a NoneType"),
        (torch.tensor(0.9), "ValueError: f: evaluate returned 1 value(s) without an axis of images"),
        ([], "ValueError: f: evaluate returned 0 value(s)"),
        ([1.0, math.nan], "ValueError: f: evaluate returned values that are not finite"),
    ],
)
def test_values_of_evaluate(returned: Any, expected: list[float] | str) -> None:
    if isinstance(expected, list):
        assert read_values(returned, "f").tolist() == expected
        return
    with pytest.raises((TypeError, ValueError)) as caught:
        read_values(returned, "f")
    assert f"{caught.type.__name__}: {caught.value}".startswith(expected)


def test_an_interval_of_shares_ends_where_shares_do() -> None:
    """Of two images that are both lost, the interval of normal distributions would go beyond all that can be lost."""
    lost = Scores({"running": torch.ones(2).double(), "exact": torch.zeros(2).double()}, are_shares=True)

    assert lost.compare("exact", "running").low == -1.0
    assert lost.compare("running", "exact").high == 1.0
