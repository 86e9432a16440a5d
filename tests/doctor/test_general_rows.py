"""The three general experiments, on models with a planted mistake; most have no batch norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnlab.doctor.diagnose import diagnose
from tests.doctor import digits
from tests.helpers import unchanged

BATCHES = 10
SIZE = 30


class Linear(nn.Module):
    """A classifier that is right wherever its last part changes nothing: class k of k-th unit vectors."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.last = last

    def forward(self, x: Tensor) -> Any:
        return self.last(self.scale * x)


def draw_batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (BATCHES, SIZE), generator=generator)
    noise = torch.randn(BATCHES, SIZE, 5, generator=generator)
    return [(nn.functional.one_hot(each, 5) + 0.3 * more, each) for each, more in zip(labels, noise, strict=True)]


def ask(last: nn.Module, batches: Any = None, **arguments: Any) -> tuple[str | None, list[str], str]:
    model = Linear(last).eval()
    with unchanged(model):
        diagnosis = diagnose(model, draw_batches() if batches is None else batches, **arguments)
    return diagnosis.verdict, diagnosis.causes, str(diagnosis)


def test_a_model_without_batch_norm_may_be_healthy() -> None:
    assert ask(nn.Identity())[:2] == ("healthy", [])


class WorseInEval(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else x.flip(1)


def test_the_one_layer_whose_mode_costs_is_named() -> None:
    last = nn.Sequential(WorseInEval(), nn.Dropout(0.0), nn.ReLU())
    verdict, causes, words = ask(last)
    assert (verdict, causes) == ("mode", ["BN403"])
    assert "WorseInEval 'last.0'" in words


class ByBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 20 * x.softmax(0).roll(1, 0) if len(x) > 1 else x


def test_an_answer_that_depends_on_its_company_is_told() -> None:
    assert ask(ByBatch())[:2] == ("batches", ["BN501"])


class MeanOfAll(nn.Module):
    """A mean over sequences that counts the padding, whose value is another class's."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return tokens.mean(1)


def test_padding_that_counts_is_told() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _, labels in draw_batches():
        lengths = torch.randint(1, 9, (SIZE,), generator=generator)
        mask = (torch.arange(8) < lengths[:, None]).float()
        words = nn.functional.one_hot(labels, 5).float()[:, None] * mask[..., None]
        words[..., 0] += 1 - mask
        batches.append({"tokens": words, "mask": mask, "labels": labels})

    model = MeanOfAll()
    diagnosis = diagnose(model, batches, forward=lambda model, batch: model(batch["tokens"], batch["mask"]))
    assert (diagnosis.verdict, diagnosis.causes) == ("batches", ["BN502"])


def test_labels_that_are_numbered_otherwise_are_told_with_their_numbers() -> None:
    batches = [(x, (labels + 1) % 5) for x, labels in draw_batches()]
    verdict, causes, words = ask(nn.Identity(), batches)
    assert (verdict, causes) == ("labels", ["BN504"])
    assert "0 is 4, 1 is 0" in words


def test_the_module_that_first_gives_nan_is_named() -> None:
    spoiled = nn.Linear(5, 5)
    nn.init.constant_(spoiled.bias, torch.nan)
    verdict, causes, words = ask(nn.Sequential(nn.ReLU(), spoiled, nn.ReLU()))
    assert (verdict, causes) == ("network", ["BN503"])
    assert "Linear 'last.1'" in words


def test_inputs_of_another_range_than_in_training_are_told() -> None:
    batches = [(torch.tensor([1.0, 5.0, 0.2, 1.0, 3.0]) * x + 2, labels) for x, labels in draw_batches()]
    assert ask(nn.Identity(), batches, training_batches=draw_batches())[:2] == ("images", ["BN209"])


class Hidden(nn.Module):
    """A network with a batch norm in a plain list, which eval() does not reach."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.norms = [nn.BatchNorm2d(3)]

    def forward(self, x: Tensor) -> Any:
        return self.inner(self.norms[0](x))


def test_a_batch_norm_that_eval_does_not_reach_is_told() -> None:
    batches = digits.make_batches(size=1, images=300)
    model = Hidden(digits.make_healthy(0)).eval()
    for norm in model.norms:
        images = torch.cat([images for images, _ in batches])
        norm.running_mean, norm.running_var = torch.zeros(3), images.new_ones(3)
    diagnosis = diagnose(model, batches)
    assert (diagnosis.verdict, diagnosis.causes) == ("mode", ["BN402"])
    # A forward of this model averages, one of the doctor's does not.
    assert not model.norms[0].running_mean.any()  # type: ignore[union-attr]


class Boxes(nn.Module):
    """Gives what detectors give: a list of a dictionary for each image."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return [{"boxes": row[None, :4], "scores": row} for row in self.inner(x)]


def score_boxes(output: Any, batch: Any) -> Any:
    return torch.stack([each["scores"] for each in output]).argmax(1) == batch[1]


def test_outputs_that_are_no_tensors_are_scored_by_a_metric() -> None:
    model = digits.make_healthy(0)
    batches = digits.make_batches()
    assert diagnose(Boxes(model).eval(), batches, metric=score_boxes).verdict == "healthy"

    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
    diagnosis = diagnose(Boxes(model).eval(), batches, metric=score_boxes)
    assert (diagnosis.verdict, diagnosis.causes) == ("averages", ["BN002"])


def test_outputs_that_are_no_tensors_are_compared_with_none() -> None:
    with pytest.raises(ValueError, match="these are no tensors but list; pass a metric"):
        diagnose(Boxes(digits.make_healthy(0)).eval(), [images for images, _ in digits.make_batches()])


def test_nothing_is_regrouped_where_images_cannot_be_told_apart() -> None:
    """A whole evaluation, or no labels, leaves no padding and no company to undo."""
    batches = digits.make_batches()

    def evaluate(model: nn.Module) -> Any:
        return torch.cat([model(images).argmax(1) == labels for images, labels in batches])

    for diagnosis in (
        diagnose(digits.make_healthy(0), batches, evaluate=evaluate),
        diagnose(digits.make_healthy(0), [images for images, _ in batches]),
    ):
        assert not {"BN501", "BN502"} & {*diagnosis.table["code"]}


def test_images_that_are_not_finite_are_no_fault_of_the_network() -> None:
    batches = [(x.masked_fill(x == x.max(), torch.nan), labels) for x, labels in draw_batches()]
    verdict, causes, words = ask(nn.Identity(), batches)
    assert (verdict, causes) == ("images", ["BN505"])
    assert f"{BATCHES} of {BATCHES * SIZE} images" in words


class OfLoss(nn.Module):
    """In train mode it wants targets, as detectors do."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("targets should be passed")
        return x


def test_a_model_that_cannot_be_called_in_train_mode_is_diagnosed() -> None:
    assert ask(OfLoss())[:2] == ("healthy", [])
