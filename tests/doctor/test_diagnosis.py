"""`diagnose` from end to end: what it prints and returns, what it leaves alone, and which arguments it takes."""

from __future__ import annotations

import json
import math
import traceback
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnlab
from bnlab import assert_healthy, diagnose
from bnlab.doctor import Cause, Signs
from bnlab.doctor.evidence.case import Case
from bnlab.doctor.report.diagnosis import Diagnosis
from tests.doctor.diagnosed import diagnose_healthy, diagnose_spoiled, draw, make_spoiled
from tests.doctor.digits import Batches, build, get_norm, list_images, make_exact, make_healthy
from tests.helpers import unchanged

ALWAYS = ["layer", "depth", "channels", "momentum", "updates", "training"]
WITH_DATA = ["mean_gap", "var_gap", "noise"]


@pytest.fixture(scope="module")
def batches() -> Batches:
    return draw()


class Wide(Cause):
    code = "OWN1"
    title = "wide layers"
    meaning = "They have more than 7 channels."
    remedy = "None."
    severity = "note"

    def look(self, case: Case) -> Signs | None:
        return Signs.of(case.select(lambda name: case.layers[name].num_features > 7), "more than 7 channels")


# What it says


def test_what_was_tried_is_a_table() -> None:
    diagnosis = diagnose_spoiled()

    trials = diagnosis.trials
    columns = ["code", "undone", "layers", "degrees", "score", "gain", "likelihood_gain", "low", "high", "chosen"]
    assert list(trials) == columns
    assert trials["likelihood_gain"].is_monotonic_decreasing
    assert (trials["low"] <= trials["likelihood_gain"]).all() and (trials["likelihood_gain"] <= trials["high"]).all()
    (chosen,) = trials[trials["chosen"]].to_dict("records")
    assert chosen["layers"] == diagnosis.faults[0].layers == ("1",)
    assert chosen["gain"] == pytest.approx(diagnosis.faults[0].cost)
    assert chosen["score"] - chosen["gain"] == pytest.approx(diagnosis.scores["running"])  # of the same 512 images
    assert diagnosis.table["codes"].tolist()[0] == "BN002"
    assert repr(diagnosis) == str(diagnosis)
    assert str(diagnosis).startswith("The averages are at fault (3 batch norms). ")
    assert "\nBN002 error: never updated, in 1\n" in str(diagnosis)


def test_without_signs_nothing_is_tried(batches: Batches) -> None:
    model = make_exact(list_images(batches))

    assert diagnose(model, batches, progress=False).trials.empty
    assert diagnose(model).trials.empty


def test_columns_of_the_table() -> None:
    without = diagnose(make_healthy()).table
    diagnosis = diagnose_healthy()
    table = diagnosis.table

    assert list(without) == [*ALWAYS, "codes"]
    assert list(table) == [*ALWAYS, *WITH_DATA, "codes"]
    assert table["layer"].tolist() == ["1", "4", "7"]
    assert table["depth"].tolist() == [1, 2, 3]
    assert table["updates"].tolist() == [144, 144, 144]
    for row in table.to_dict("records"):
        assert (row["mean_gap"], row["var_gap"]) == diagnosis.case.measure_gap(row["layer"])


def test_json_has_numbers_and_no_nan(batches: Batches) -> None:
    model = nn.ModuleDict({"network": make_healthy(), "unused": nn.BatchNorm2d(3)})  # whose measurements are NaN
    diagnosis = diagnose(model, batches, forward=lambda _, batch: model["network"](batch[0]), progress=False)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    report = json.loads(diagnosis.to_json(), parse_constant=refuse)
    assert report["verdict"] == "healthy"
    assert report["images"] == 512
    assert report["scores"].keys() == {"running", "exact", "batch"}
    assert report["gain"]["low"] <= report["gain"]["value"] <= report["gain"]["high"]
    assert [layer["layer"] for layer in report["layers"]] == ["network.1", "network.4", "network.7", "unused"]
    assert report["layers"][3]["mean_gap"] is None
    assert report["notes"] == ["The batches did not reach 'unused'."]
    assert "BN207" in {skipped["code"] for skipped in report["skipped"]}


def test_findings_and_skipped_rules_are_tables() -> None:
    diagnosis = diagnose(build())

    findings = diagnosis.findings
    assert list(findings) == ["code", "layers", "severity", "cost", "evidence", "meaning", "remedy"]
    never = findings[findings["code"] == "BN002"].iloc[0]
    assert never["layers"] == ("1", "4", "7")
    assert math.isnan(never["cost"])
    assert diagnosis.verdict is None
    assert list(diagnosis.skipped) == ["code", "title", "wanted"]
    assert isinstance(diagnosis.skipped, pd.DataFrame)


def test_assert_healthy_raises_with_the_diagnosis(batches: Batches) -> None:
    assert_healthy(make_healthy(), batches, progress=False)
    with pytest.raises(AssertionError, match="BN002 error: never updated"):
        assert_healthy(make_spoiled(), batches, progress=False)


# What it leaves alone


def test_a_model_comes_back_as_it_was_and_its_hooks_are_called(batches: Batches) -> None:
    model = nn.Sequential(*make_spoiled(), nn.Dropout(0.2)).eval()
    get_norm(model, "4").train()
    model.get_submodule("0").get_parameter("weight").requires_grad_(False)
    calls = []
    model.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    before = make_healthy(2)

    with unchanged(model):
        diagnosis = diagnose(model, batches, training_batches=batches[:4], before=before, progress=False)

    assert diagnosis.verdict == "averages"
    assert calls.count(32) >= 6 * len(batches)


def test_a_model_whose_forward_fails_comes_back_as_it_was(batches: Batches) -> None:
    def fail_later(model: nn.Module, batch: Any) -> Any:
        output = model(batch[0])
        if len(batch[0]) == 31:
            raise OSError("no more data")
        return output

    model = make_healthy()
    images, labels = batches[1]
    with unchanged(model), pytest.raises(OSError, match="no more data"):
        diagnose(model, [batches[0], (images[:31], labels[:31])], forward=fail_later, progress=False)


# Which arguments it takes


def test_labels_may_be_in_dictionaries(batches: Batches) -> None:
    dictionaries = [UserDict(pixels=images, labels=labels) for images, labels in batches]

    def forward(model: nn.Module, batch: Any) -> Any:
        return {"logits": model(batch["pixels"])}

    diagnosis = diagnose(make_healthy(), dictionaries, forward=forward, progress=False)

    assert diagnosis.scores == diagnose_healthy().scores


def test_without_labels_and_outputs_of_images_there_is_no_verdict(batches: Batches) -> None:
    def forward(model: nn.Module, images: Any) -> Any:
        return model(images).sum()

    diagnosis = diagnose(make_healthy(), list_images(batches), forward=forward, progress=False)

    assert diagnosis.verdict is None
    assert diagnosis.scores == {}
    assert str(diagnosis).startswith("No warnings or errors in 3 batch norms (no labels, no evaluate=, and ")


@pytest.mark.parametrize("number", [0, 1])
def test_labels_of_one_class_judge_nothing(number: int, batches: Batches) -> None:
    """Whatever moves the predictions towards that class would score more, right or wrong."""
    dummy = [(images, torch.full_like(labels, number)) for images, labels in batches]

    diagnosis = diagnose(make_healthy(), dummy, progress=False)
    recalibration = bnlab.recalibrate(make_healthy(), dummy, progress=False)

    assert f"All labels are class {number}, by which nothing can be judged" in " ".join(str(diagnosis).split())
    assert not diagnosis.scores
    assert diagnosis.judged is None or diagnosis.judged.word != "network"
    assert not recalibration.written
    assert recalibration.reason == f"all labels are class {number}; pass shuffled batches, or all of them"


def smooth(labels: Tensor) -> Tensor:
    return 0.9 * F.one_hot(labels, 10).float() + 0.01


@pytest.mark.parametrize(
    ("convert", "make", "give_expected"),
    [
        (lambda labels: F.one_hot(labels, 10).float(), make_healthy, diagnose_healthy),
        (smooth, make_spoiled, diagnose_spoiled),
    ],
)
def test_shares_of_classes_are_scored_by_the_largest(
    convert: Callable[[Tensor], Tensor],
    make: Callable[[], nn.Module],
    give_expected: Callable[[], Diagnosis],
    batches: Batches,
) -> None:
    """One-hot labels, and those of label smoothing: squared errors would prefer logits that are small."""
    shares = [(images, convert(labels)) for images, labels in batches]

    found = diagnose(make(), shares, progress=False)

    expected = give_expected()
    assert found.verdict == expected.verdict
    assert found.scores == expected.scores


def test_training_labels_may_be_of_another_kind(batches: Batches) -> None:
    smoothed = [(images, smooth(labels)) for images, labels in batches]
    mixed = [(images, 0.7 * smooth(labels) + 0.3 * smooth(labels.roll(1))) for images, labels in batches]

    plain, found, of_mixed = (
        diagnose(make_healthy(), batches, training_batches=training, progress=False).case.training_score
        for training in (batches, smoothed, mixed)
    )

    assert found == plain
    assert of_mixed is None, "mixed images are no test"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda labels: labels[:, None].expand(-1, 3),
            "Labels [32, 3] of int64 cannot be compared with outputs [32, 10] of float32",
        ),
        (lambda labels: labels.tolist(), "Labels were not read, as they are a list: pass a tensor of class numbers."),
    ],
)
def test_labels_that_do_not_fit_are_named(spoil: Callable[[Tensor], Any], says: str, batches: Batches) -> None:
    unfit = [(images, spoil(labels)) for images, labels in batches[:4]]

    diagnosis = diagnose(make_healthy(), unfit, progress=False)

    text = " ".join(str(diagnosis).split())
    assert diagnosis.verdict == "healthy"
    assert "Without labels: exact statistics change the predicted class of 0.8% of 128 images." in text
    assert says in text


def test_labels_that_are_no_classes_are_named(batches: Batches) -> None:
    counted_from_one = [(images, labels + 1) for images, labels in batches[:4]]
    strange = sum(int((labels == 10).sum()) for _, labels in counted_from_one)

    diagnosis = diagnose(make_healthy(), counted_from_one, progress=False)

    assert diagnosis.verdict == "network"
    assert f"The labels of {strange} of 128 images are no class" in " ".join(str(diagnosis).split())


def test_a_model_without_running_averages_is_told_so(batches: Batches) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))

    text = " ".join(str(diagnose(model, batches[:2], progress=False)).split())

    assert text == (
        "No running averages in 1 batch norm: each batch is normalized by its own statistics, also in eval mode. "
        "Notes: BN402 (normalizes by the batch) (see .findings, or --html)."
    )


def test_max_images_stops_early(batches: Batches) -> None:
    diagnosis = diagnose(make_healthy(), iter(batches), max_images=65, progress=False)

    assert json.loads(diagnosis.to_json())["images"] == 96  # the batch that completes 65 is the third


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batches": torch.zeros(4, 3, 8, 8)}, TypeError, "batches is a Tensor"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"training_batches": 3}, TypeError, "training_batches is a int"),
        ({"evaluate": 0.9}, TypeError, "evaluate is a float; pass a function of the model"),
        ({"trace": "trace.pt"}, TypeError, "trace is a str; pass a MomentTrace"),
        ({"forward": "f"}, TypeError, "forward is a str"),
        ({"worth": 0}, ValueError, "worth=0; pass a positive difference"),
        ({"expected": "90%"}, TypeError, "expected='90%'; pass a mean score"),
        ({"max_images": 0}, ValueError, "max_images=0; pass at least 1"),
        ({"causes": [Wide]}, TypeError, "causes has a ABCMeta"),
        ({"before": 3}, TypeError, "before is a int; pass a module"),
        ({"before": "missing.pt"}, ValueError, "no such file"),
        ({"before": {"weight": torch.ones(1)}}, ValueError, "before= has no running statistics"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    model = make_healthy()
    with unchanged(model), pytest.raises(error, match=message) as raised:
        diagnose(model, **arguments)
    assert str(raised.value).startswith("diagnose: ")


def test_a_file_with_code_is_refused_and_no_traceback_advises_to_run_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")

    with pytest.raises(ValueError, match="holds Python objects") as raised:
        diagnose(make_healthy(), before=tmp_path / "module.pt")

    assert "weights_only" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (str, TypeError, r"expected a torch\.nn\.Module, found str"),
        (lambda: nn.Linear(1, 1), ValueError, "no BatchNorm layer with running statistics in Linear"),
    ],
)
def test_what_has_no_batch_norm_is_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"diagnose: {message}"):
        diagnose(make())


def test_constant_norms_are_named(batches: Batches) -> None:
    """By the name of their class, as torchvision's; a batch norm of torch's is examined whatever it is called."""
    constant: Any = type("FrozenNorm", (nn.Identity,), {})()
    constant.register_buffer("running_mean", torch.zeros(1))
    own: Any = type("FrozenBatchNorm", (nn.BatchNorm1d,), {})(10)

    diagnosis = diagnose(nn.Sequential(constant, make_healthy(), own).eval(), batches, progress=False)

    assert diagnosis.notes == ["Not examined, as their statistics are constants: '0'."]
