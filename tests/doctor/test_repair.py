"""What `recalibrate` and `Diagnosis.repair` write, where they refuse, and that undoing puts back each bit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnlab
from bnlab.doctor import CAUSES, Cause
from bnlab.doctor.cause import Finding
from bnlab.doctor.patient import Patient
from bnlab.doctor.repair import write_repair
from bnlab.doctor.report import Diagnosis
from bnlab.nn import SelfTuned
from bnlab.statistics.moments import Moments
from bnlab.statistics.network import Statistics, running_statistics
from tests.doctor import digits
from tests.helpers import fingerprint, unchanged


@pytest.fixture
def model() -> nn.Sequential:
    return digits.make_healthy(0)


def list_norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def reset(model: nn.Module) -> nn.Module:
    for norm in list_norms(model):
        norm.reset_running_stats()
    return model


def test_averages_at_fault_are_written_and_nothing_else(model: nn.Module) -> None:
    counts = [norm.num_batches_tracked.clone() for norm in list_norms(reset(model))]
    weights = [parameter.clone() for parameter in model.parameters()]
    batches = digits.make_batches()

    repair = bnlab.recalibrate(model, batches)

    assert repair.written
    assert repair.reason == "the averages were at fault, never updated (BN002)"
    assert str(repair) == f"Recalibrated 3 batch norms: {repair.reason}."
    assert [norm.num_batches_tracked for norm in list_norms(model)] == counts
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), weights, strict=True))
    # Buffers hold what an independent measurement gives, as float32 holds it.
    exact = bnlab.population_statistics(model, batches)
    for name, moments in running_statistics(model).items():
        torch.testing.assert_close(moments.mean.float(), exact[name].mean.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(moments.var.float(), exact[name].var.float(), rtol=1e-5, atol=1e-5)
    bnlab.assert_healthy(model, batches)


def draw_other_batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches of which each is darker or brighter than the others: no averages do for all."""
    shifts = torch.linspace(-3, 3, 20)
    for (images, labels), shift in zip(digits.make_batches(), shifts, strict=True):
        yield images * (1 + shift.abs()) + shift, labels


def reverse_labels() -> list[tuple[Tensor, Tensor]]:
    return [(images, 9 - labels) for images, labels in digits.make_batches()]


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "healthy": (digits.make_batches, {}, "nothing that was tried surely brings back what matters"),
    "images": (
        lambda: digits.make_batches(lambda images: 3 * images + 1),
        {"training_batches": digits.make_training_batches()},
        "the images are at fault, images scaled, shifted, or with reversed channels (BN209)",
    ),
    "batches": (
        lambda: list(draw_other_batches()),
        {},
        "one set of averages does not do for these batches, batches are not alike (BN202)",
    ),
    "network": (digits.make_batches, {"expected": 0.999}, "the network is at fault"),
    "labels": (reverse_labels, {}, "the labels do not mean what the outputs mean, labels in another order (BN504)"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_nothing_is_written_where_something_else_is_at_fault_unless_forced(model: nn.Module, fault: str) -> None:
    make, arguments, reason = REFUSED[fault]
    batches = make()
    if fault == "batches":  # of which the averages are right
        bnlab.population_statistics(model, batches).write_to(model)

    with unchanged(model):
        repair = bnlab.recalibrate(model, batches, **arguments)
    assert not repair.written
    assert repair.before is None
    assert str(repair) == f"Not recalibrated: {reason}; force=True writes anyway."

    with unchanged(model):
        forced = bnlab.recalibrate(model, batches, force=True, **arguments)
        assert forced.written
        assert forced.reason == f"force=True, although {reason}"
        forced.undo()


def make_diagnosis(model: nn.Module, verdict: str, *causes: Cause) -> Diagnosis:
    found = [Finding(cause, "", is_note=False) for cause in causes]
    return Diagnosis(Patient(model, digits.make_batches(images=200)), verdict, found)


@pytest.mark.parametrize(
    ("verdict", "code", "is_written"),
    [
        ("averages", "BN108", True),
        ("averages or images", "BN108", True),
        ("averages or images", "BN209", False),
        ("images", "BN209", False),
        ("batches", "BN204", False),
        ("network", "BN305", False),
        ("network", "BN108", False),  # averages are off, and the network is poor under others as well
        ("mode", "BN402", False),
        ("labels", "BN504", False),
        ("undecided", "", False),
        ("healthy", "", False),
    ],
)
def test_it_is_written_where_averages_are_at_fault_alone(
    model: nn.Module, verdict: str, code: str, is_written: bool
) -> None:
    diagnosis = make_diagnosis(model, verdict, *[cause for cause in CAUSES if cause.code == code][:1])

    assert diagnosis.repair().written == is_written
    assert diagnosis.repair(force=True).written


def test_without_statistics_there_is_nothing_to_write(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"repair: there are no exact statistics; pass batches"):
        bnlab.diagnose(reset(model)).repair(force=True)


def test_statistics_that_buffers_cannot_hold_are_not_written() -> None:
    """A variance of 10⁶ is beyond float16, and the other layer is left as it is too."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1)).half().eval()
    moments = {"0": Moments(9, torch.ones(1), torch.ones(1)), "1": Moments(9, torch.ones(1), torch.tensor([1e6]))}
    with unchanged(model), pytest.raises(ValueError, match=r"layer '1' has a value beyond torch\.float16"):
        write_repair(model, Statistics(moments, eps={"0": 1e-5, "1": 1e-5}), "")


def test_a_model_that_training_has_left_in_train_mode_is_judged_in_eval_mode(model: nn.Sequential) -> None:
    """Its modes come back, also where some modules were in the other one."""
    reset(model)
    model.train()
    model[2].eval()
    model[4].eval()
    modes = [module.training for module in model.modules()]

    repair = bnlab.recalibrate(model, digits.make_batches())

    assert repair.written
    assert "(BN002)" in repair.reason
    assert [module.training for module in model.modules()] == modes


def test_a_healthy_model_in_train_mode_is_left_as_it_is(model: nn.Module) -> None:
    with unchanged(model.train()):
        repair = bnlab.recalibrate(model, digits.make_batches(size=1, images=300))
    assert not repair.written
    # Of images one by one train mode would be worse, and the verdict about that.
    assert repair.reason.startswith("nothing that was tried")


def test_without_labels_too_a_model_in_train_mode_is_judged_in_eval_mode(model: nn.Module) -> None:
    assert bnlab.recalibrate(reset(model).train(), [images for images, _ in digits.make_batches()]).written
    assert model.training


def test_undo_puts_back_each_bit_also_of_nan(model: nn.Module) -> None:
    norm = list_norms(reset(model))[0]
    norm.running_var[3] = torch.nan
    norm.running_mean[5] = -0.0
    before = fingerprint(model)

    repair = bnlab.recalibrate(model, digits.make_batches())
    assert repair.written
    assert fingerprint(model) != before
    repair.undo()

    assert fingerprint(model) == before


def test_undo_comes_too_late_for_no_forward_since(model: nn.Module) -> None:
    """Averages that were moved by training after the repair go back as well, into what the layers have now."""
    reset(model)
    before = running_statistics(model)
    repair = bnlab.recalibrate(model, digits.make_batches())
    model.double().train()(digits.make_batches()[0][0].double())
    repair.undo()

    for name, moments in running_statistics(model).items():
        assert torch.equal(moments.mean, before[name].mean)
        assert torch.equal(moments.var, before[name].var)
    assert [int(norm.num_batches_tracked) for norm in list_norms(model)] == [0, 0, 0]


def train_some(model: nn.Module) -> Sequence[Tensor]:
    """Average the first training batches, and return what the buffers hold then."""
    model.train()
    for images, _ in digits.make_training_batches()[:6]:
        model(images)
    model.eval()
    return [value.clone() for value in model.state_dict().values()]


def test_self_tuned_layers_go_on_after_undo_as_if_nothing_had_been_written(model: nn.Module) -> None:
    SelfTuned.convert(reset(model))
    untouched = SelfTuned.convert(reset(digits.make_healthy(0)))
    train_some(model)
    train_some(untouched)

    repair = bnlab.recalibrate(model, digits.make_batches(), force=True)
    assert repair.written
    repair.undo()

    for one, other in zip(model.state_dict().values(), untouched.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    # Their averages with other momenta have come back as well: the next batches are weighed alike.
    for one, other in zip(train_some(model), train_some(untouched), strict=True):
        assert torch.equal(one, other)


def test_an_undo_file_holds_the_old_statistics_and_knows_their_weights(model: nn.Module, tmp_path: Path) -> None:
    for norm in list_norms(model):
        norm.running_mean += 2 * norm.running_var.sqrt()
    before = fingerprint(model)
    repair = bnlab.recalibrate(model, digits.make_batches())
    assert repair.written
    repair.save_undo(tmp_path / "undo.safetensors")

    Statistics.load(tmp_path / "undo.safetensors").write_to(model)
    assert fingerprint(model) == before

    with pytest.warns(RuntimeWarning, match="measured under other weights"):
        Statistics.load(tmp_path / "undo.safetensors").write_to(digits.make_healthy(1))


def test_where_nothing_was_written_there_is_nothing_to_undo(model: nn.Module, tmp_path: Path) -> None:
    repair = bnlab.recalibrate(model, digits.make_batches())

    with unchanged(model):
        repair.undo()
    with pytest.raises(ValueError, match=r"save_undo: nothing was written"):
        repair.save_undo(tmp_path / "undo.safetensors")
    assert not [*tmp_path.iterdir()]


# -- assert_healthy ----------------------------------------------------------------------------------------------------


def test_a_healthy_model_passes_and_notes_do_not_matter(model: nn.Module) -> None:
    bnlab.assert_healthy(model)
    images, labels = zip(*digits.make_training_batches(), strict=True)
    small_last = [(torch.cat(images)[:128], torch.cat(labels)[:128]), (images[-1][:4], labels[-1][:4])]

    batches = digits.make_batches()
    assert bnlab.diagnose(model, batches, training_batches=small_last).notes == ["BN110"]
    bnlab.assert_healthy(model, batches, training_batches=small_last)


def test_a_fault_is_raised_with_the_whole_diagnosis(model: nn.Module) -> None:
    batches = digits.make_batches()
    words = str(bnlab.diagnose(reset(model), batches))
    for given in (batches, None):
        with pytest.raises(AssertionError, match=r"BN002"):
            bnlab.assert_healthy(model, given)
    with pytest.raises(AssertionError, match=f"^{re.escape(words)}$"):
        bnlab.assert_healthy(model, batches)


def test_undecided_is_not_healthy(model: nn.Module) -> None:
    """Of so few images three are named wrongly, which may be chance."""
    norm = nn.BatchNorm1d(1)
    norm.running_mean = torch.tensor([0.5])
    norm.running_var = torch.tensor([1.2])
    last = nn.Linear(1, 2, bias=False)
    last.weight.data = torch.tensor([[-1.0], [1.0]])
    values = torch.tensor([-1.0] * 10 + [1.5] * 7 + [0.25] * 3)

    with pytest.raises(AssertionError, match="Undecided"):
        bnlab.assert_healthy(nn.Sequential(norm, last).eval(), [(values[:, None], (values > 0).long())])
