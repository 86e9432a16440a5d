"""Scores of images, by closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bnlab.doctor.scores import Scores, compare_outputs, score_labels


def test_labels_of_images_are_named_or_not() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    scores = score_labels(logits, (None, torch.tensor([1, 1])))
    assert scores.values.tolist() == [1.0, 0.0]  # of equal outputs the first class is named
    torch.testing.assert_close(scores.likelihoods, torch.tensor([0.75, 0.5]).double().log())


def test_pixels_count_by_class() -> None:
    """One pixel in four is foreground; background alone is named."""
    labels = torch.tensor([[[0, 0], [0, 1]]])
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 0] = 5
    scores = score_labels({"logits": logits}, {"labels": labels})
    assert scores.values.tolist() == [0.5]


def test_pixels_without_a_label_do_not_count() -> None:
    labels = torch.tensor([[[0, 255], [-100, 0]]])
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 0] = 5
    assert score_labels(logits, (None, labels)).values.tolist() == [1.0]


def test_numbers_are_scored_by_their_distance() -> None:
    scores = score_labels(torch.tensor([[1.0], [3.0]]), (None, torch.tensor([0.0, 1.5])))
    assert scores.values.tolist() == [-1.0, -2.25]


def test_outputs_that_are_not_finite_are_no_better_than_the_worst() -> None:
    scores = score_labels(torch.tensor([[math.nan, 0.0]]), (None, torch.tensor([1])))
    assert scores.likelihoods.tolist() == [-10.0]


def test_values_of_a_metric_that_are_not_numbers_are_the_worst() -> None:
    values = Scores.of_metric([math.nan, -1e30, -math.inf, 0.5]).values
    assert values[0] == values[2] == torch.finfo(torch.float32).min
    assert bool((values[[1, 3]] > values[0]).all())


def test_labels_that_do_not_belong_to_the_output_show_a_metric_to_pass() -> None:
    with pytest.raises(
        ValueError, match=r"metric=lambda output, batch: \(output.argmax\(1\) == batch\[1\]\).float\(\)"
    ):
        score_labels(torch.zeros(4, 10), (None, [{"boxes": torch.zeros(2, 4)}] * 4))


def test_numbers_are_compared_in_the_variance_of_the_reference() -> None:
    reference = torch.tensor([[0.0], [2.0]])  # of variance 1
    assert compare_outputs(reference, reference).values.tolist() == [1.0, 1.0]
    off = compare_outputs(reference + 0.5, reference)
    assert (off.values.tolist(), off.likelihoods.tolist()) == ([0.75, 0.75], [-0.25, -0.25])
    assert compare_outputs(reference + 2, reference).values.tolist() == [0.0, 0.0]


def test_naming_another_class_costs_what_the_reference_believes() -> None:
    reference = torch.tensor([[0.75, 0.25]]).log()
    assert compare_outputs(reference, reference).values.tolist() == [1.0]
    other = compare_outputs(torch.tensor([[0.0, 1.0]]), reference)
    assert other.values.tolist() == pytest.approx([0.5])
    assert float(other.likelihoods) < float(compare_outputs(reference, reference).likelihoods)


@pytest.mark.parametrize(
    ("output", "labels", "words"),
    [
        (torch.zeros(4, 1), torch.tensor([0.0, 1.0, 1.0, 0.0]), "are yes or no"),
        (torch.zeros(4, 3), torch.tensor([1, 2, 3, 1]), "go from 1 to 3"),
        (torch.zeros(4, 3), torch.tensor([0, -100, 2, 1]), "go from -100 to 2"),
        (torch.zeros(4, 3), torch.zeros(4, 3), "do not name classes"),
    ],
)
def test_labels_of_which_it_is_not_known_what_is_right_are_asked_about(
    output: Tensor, labels: Tensor, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        score_labels(output, (None, labels))
