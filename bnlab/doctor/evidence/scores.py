"""Values of a metric, one for each image, under several statistics of the same network; and their differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnlab.common.scores import Difference, average_by_image, compare_scores
from bnlab.doctor.evidence.labels import find_counted, find_logits, has_only_shares
from bnlab.doctor.thresholds import LEAST_LIKELIHOOD, NEAR_CHANCE

_OF_SHARES = 1e-3  # by which shares of classes may miss 1, as half precision rounds them
_MANY = 8  # outputs: so many logits are hardly ever all between 0 and 1

Evaluate = Callable[[nn.Module], Any]
"""Called with the model in eval mode; returns a value for each image, higher is better, always in the same order."""


def require_evaluate(evaluate: object, caller: str) -> None:
    """TypeError unless it is None or can be called."""
    if evaluate is not None and not callable(evaluate):
        raise TypeError(f"{caller}: evaluate is a {type(evaluate).__name__}; pass a function of the model")


@dataclass(frozen=True)
class Decisions:
    """How predictions under running averages differ from those under exact statistics, where there are no labels.

    Attributes:
        cost: what the difference costs in accuracy, if the predicted probabilities are right. Value and lower end are
            beyond what chance explains.
        differing: share of the images, or of their positions, that get another class.
        has_positions: whether outputs name a class at each position of an image.
    """

    cost: Difference
    differing: float
    has_positions: bool = False


@dataclass(frozen=True)
class Scores:
    """Values of a metric for each image, under each kind of statistics.

    Attributes:
        values: float64 [images] by kind: "running", "exact", and "batch" where each batch's own were tried.
        are_shares: whether all values lie between 0 and 1, as those of accuracy do; differences are in points then.
        commonest: what always naming the commonest class would score; None without labels.
        by_class: whether labels are of positions, so that each class in an image counts alike.
    """

    values: Mapping[str, Tensor]
    are_shares: bool
    commonest: float | None = None
    by_class: bool = False

    @property
    def metric(self) -> str:
        """Name what the values are."""
        if self.commonest is None or not self.are_shares:
            return "Score"
        return "Mean accuracy of classes" if self.by_class else "Accuracy"

    def mean(self, kind: str) -> float:
        """Average over the images."""
        return float(self.values[kind].mean())

    @property
    def best(self) -> float:
        """The highest mean under any statistics."""
        return max(self.mean(kind) for kind in self.values)

    @property
    def chance(self) -> float | None:
        """The score up to which hardly anything is gained over always naming the commonest label; None without one."""
        commonest = self.commonest
        return None if commonest is None else commonest + NEAR_CHANCE * (1 - commonest)

    @property
    def is_near_chance(self) -> bool:
        """Whether hardly anything is gained over always naming the commonest label, under any statistics."""
        return self.chance is not None and self.best < self.chance

    def compare(self, kind: str, other: str) -> Difference:
        """Estimate how much better `kind` scores than `other`, paired over images."""
        return compare_scores(self.values[kind], self.values[other], self.are_shares)


@dataclass(frozen=True)
class Reading:
    """How outputs are compared with labels.

    It is found once, of all batches: one batch of floating-point labels may be of zeros alone, and one of logits may
    happen to lie between 0 and 1.

    Attributes:
        are_binary: whether all floating-point labels are 0 or 1, so that right ones are counted; of others errors are
            squared.
        are_one_hot: whether floating-point labels [N, classes, ...] are shares of classes that sum to 1: one-hot ones,
            and those of label smoothing, mixup and distillation. The largest names the class.
        least: outputs of two classes above it stand for 1: 0 of logits, 0.5 of shares, as a sigmoid gives them.
    """

    are_binary: bool = True
    are_one_hot: bool = False
    least: float = 0.0


def find_reading(outputs: Sequence[Any], labels: Sequence[Tensor]) -> Reading:
    """Find out how outputs are compared with labels.

    Args:
        outputs: of some batches, as for `score_batch`.
        labels: of all batches.
    """
    numbers = [part for part in labels if part.is_floating_point()]
    are_binary = all(_are_binary(part) for part in numbers)
    are_one_hot = bool(numbers) and all(_are_one_hot(part) for part in numbers)
    return Reading(are_binary, are_one_hot, least=_choose_least(outputs))


def _choose_least(outputs: Sequence[Any]) -> float:
    """Choose the value above which outputs of two classes stand for 1: 0.5 where all are shares, 0 as of logits."""
    logits = [each for each in map(find_logits, outputs) if each is not None]
    are_shares = all(has_only_shares(each) for each in logits)
    are_enough = sum(each.numel() for each in logits) >= _MANY
    return 0.5 if are_shares and are_enough else 0.0


def merge_readings(readings: Sequence[Reading]) -> Reading:
    """Merge the readings of several processes, each of which has found it of its own batches."""
    return Reading(
        are_binary=all(each.are_binary for each in readings),
        are_one_hot=all(each.are_one_hot for each in readings),
        # One logit below 0 or above 1, in any process, shows that all outputs are logits.
        least=min(each.least for each in readings),
    )


def score_batch(output: Any, labels: Tensor | None, reading: Reading) -> Tensor | None:
    """Compute how well an output does on each image; None where labels and output do not say.

    Args:
        output: of the model: a tensor, an object that has `logits`, or a tuple or list that begins with one.
        labels: of the images.
        reading: how the two are compared.

    Returns:
        float64 [N], on the output's device. Where labels are whole numbers, of [N, classes] outputs 0 or 1; of
        [N, classes, ...] outputs with a label for each position see `average_by_class`. Where labels are floating-point
        numbers of the output's shape: of one-hot labels as of classes; if all are 0 or 1, as of two classes where there
        are positions, and otherwise the share of right ones; of other numbers the mean squared error, negative.
    """
    logits = find_logits(output)
    if logits is None or labels is None or len(logits) != len(labels):
        return None
    labels = labels.to(logits.device)

    if labels.is_floating_point():
        return _score_numbers(logits, labels, reading) if labels.shape == logits.shape else None
    if logits.dim() < 2:
        return None
    predicted = _predict_classes(logits, reading)
    if predicted.shape != labels.shape:
        return None
    return average_by_class(predicted == labels, labels, max(2, logits.shape[1]))


def _predict_classes(logits: Tensor, reading: Reading) -> Tensor:
    """Predict the class of each image, or of each position: numbers, or of two classes whether it is the second."""
    if logits.shape[1] == 1:
        # A single column is the logit, or the share, of the second of two classes.
        return logits[:, 0] > reading.least
    return logits.argmax(1)


def measure_likelihood(output: Any, labels: Tensor | None) -> Tensor | None:
    """Measure each image's log-likelihood of its label, at least −10, which sees what the share of right ones does not.

    Args:
        output: as for `score_batch`, logits of classes.
        labels: of the images, whole numbers.

    Returns:
        float64 [N]; where each position has a label see `average_by_class`. None where outputs are no classes.
    """
    logits = find_logits(output)
    if logits is None or labels is None or labels.is_floating_point() or logits.dim() < 2 or logits.shape[1] < 2:
        return None
    labels = labels.to(logits.device)
    classes = logits.shape[1]
    # `gather` needs a class for each label. Those that do not count get any, and are left out of the average.
    chosen = labels.long().where(find_counted(labels), 0).unsqueeze(1)
    if not bool(((chosen >= 0) & (chosen < classes)).all()):
        return None
    likelihoods = logits.double().log_softmax(1).gather(1, chosen).squeeze(1)
    likelihoods = likelihoods.nan_to_num(nan=LEAST_LIKELIHOOD).clamp(min=LEAST_LIKELIHOOD)
    return average_by_class(likelihoods, labels, classes)


def average_by_class(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Average over the positions of each class in an image, then over the classes in it: float64 [N].

    Most positions are background, as a rule, and a network that has lost all else is right in these. The value of an
    image with one label is its average; an image without a label that counts has 0.

    Args:
        values: [N, ...], one for each label.
        labels: [N, ...], whole numbers.
        classes: how many are told apart; labels beyond are one class more.
    """
    counted = find_counted(labels)
    # Labels that do not count need an index as well; `counted` leaves them out of both sums.
    index = labels.long().clamp(0, classes)
    counts = _add_by_class(counted, index, classes + 1)
    sums = _add_by_class(values * counted, index, classes + 1)

    means = sums / counts.clamp(min=1)
    present = (counts > 0).sum(1)
    return means.sum(1) / present.clamp(min=1)


def score_constants(labels: Sequence[Tensor]) -> dict[int, float]:
    """Compute what always naming a class would score, summed over images: by class, of the labels of all batches."""
    flat = torch.cat([part.flatten() for part in labels])
    classes, indices = flat.unique(return_inverse=True)  # of all batches: nobody waits for a device after each
    sizes = [part.numel() for part in labels]

    scores = torch.zeros(len(classes), dtype=torch.float64, device=flat.device)
    for part, flat_index in zip(labels, indices.split(sizes), strict=True):
        index = flat_index.view(part.shape)
        counts = _add_by_class(find_counted(part), index, len(classes))
        are_there = (counts > 0).double()
        present = are_there.sum(1, keepdim=True)
        # Naming one class everywhere scores 1 in that class and 0 in the others that an image has.
        shares = are_there / present.clamp(min=1)
        scores += shares.sum(0)

    by_class = {}
    for number, value in zip(classes.tolist(), scores.tolist(), strict=True):
        if value > 0:  # not of a label that is ignored
            by_class[number] = value
    return by_class


def _add_by_class(values: Tensor, index: Tensor, classes: int) -> Tensor:
    """Add up values [N, ...] by image and by the number of their class: float64 [N, classes]."""
    images = len(index)
    positions = index[0].numel()
    # Image and class make one index, so that one addition serves all images.
    first = classes * torch.arange(images, device=index.device)
    place = first.repeat_interleave(positions) + index.flatten()

    sums = torch.zeros(images * classes, dtype=torch.float64, device=index.device)
    sums.index_add_(0, place, values.double().flatten())
    return sums.view(images, classes)


def _score_numbers(outputs: Tensor, labels: Tensor, reading: Reading) -> Tensor:
    """Score outputs against floating-point labels of the same shape [N, ...]."""
    if reading.are_one_hot:
        named = labels.argmax(1)
        right = outputs.argmax(1) == named
        return average_by_class(right, named, labels.shape[1])
    if not reading.are_binary:
        errors = (outputs - labels).double()
        return average_by_image(-errors.square())

    predicted = outputs > reading.least
    right = predicted == labels
    # In masks both classes count alike, as with whole-number labels, because most positions are background.
    if labels.dim() > 2:
        return average_by_class(right, labels, 2)
    return average_by_image(right)


def _are_binary(labels: Tensor) -> bool:
    """Return whether all labels are 0 or 1."""
    return bool(((labels == 0) | (labels == 1)).all())


def _are_one_hot(labels: Tensor) -> bool:
    """Return whether labels [N, classes, ...] are shares of at least two classes, which sum to 1."""
    if labels.dim() < 2 or labels.shape[1] < 2:
        return False
    is_whole = (labels.double().sum(1) - 1).abs() < _OF_SHARES
    return bool(is_whole.all() and (labels >= 0).all())


def are_mixed(labels: Tensor) -> bool:
    """Return whether some labels [N, classes] are shares of several images, as mixup makes them.

    Those of label smoothing differ in one class only.
    """
    if not labels.is_floating_point() or not _are_one_hot(labels):
        return False
    rest = labels.sort(1).values[:, :-1]  # without the largest
    return bool((rest.amax(1) - rest.amin(1) > _OF_SHARES).any())
