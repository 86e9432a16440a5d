"""The benchmarks themselves, without measuring anything."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest

from benchmarks.__main__ import PARTS
from benchmarks.doctor_networks import TrainingSettings, measure_cost, train_network
from benchmarks.doctor_rates import ExaminedNetwork, write_page, write_share
from benchmarks.timing import HEADING, Result
from tests.helpers import plain, plan_network


def test_the_data_of_the_timed_training_can_be_read() -> None:
    network = plan_network("data=benchmarks.training.make_images", "data.shift=4", "data.flip=true")

    assert network.config.data.count_used() == 6000


@pytest.mark.parametrize(("limit", "expected"), [(None, ""), (1.0, "1 ✗"), (2.0, "2")])
def test_a_row_has_its_ratio_and_marks_what_is_above_the_limit(limit: float | None, expected: str) -> None:
    result = Result("training", "bnlab", 3.0, "plain loop", 2.0, limit, "n = 1")

    row = result.write_row()

    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["training", "bnlab", "3", "plain loop", "2", "1.500", expected, "n = 1"]
    assert row.count("|") == HEADING.splitlines()[0].count("|")


def make_outcome(lost: float, first: str, fault: str = "") -> ExaminedNetwork:
    """Make the outcome of a network that loses some accuracy by lag, or by a fault of the images."""
    codes = "BN209" if fault else "BN108"
    settings = "0.1, 64, one-cycle"
    return ExaminedNetwork(0, "patterns", settings, fault, "–", lost, lost, lost, codes, "averages", first)


def test_rates_are_curves_over_what_is_lost() -> None:
    outcomes = [
        make_outcome(-0.01, ""),
        make_outcome(0.0005, "BN202"),
        make_outcome(0.03, "BN108"),
        make_outcome(0.03, "BN101"),
        make_outcome(0.03, "", fault="images not scaled"),
        make_outcome(0.2, "BN209", fault="images not scaled"),
    ]

    lines = write_page(outcomes).splitlines()

    rates = {}
    for line in lines:
        cells = [cell.split(" [")[0].strip() for cell in line.split("|")[1:6]]
        if len(cells) == 5:
            rates[cells[0]] = cells[1:]
    assert rates["at most 0.1"] == ["1 of 2", "", "0 of 0", ""]
    assert rates["2 to 4"] == ["2 of 2", "1 of 2", "0 of 1", "0 of 1"]
    assert rates["above 16"] == ["0 of 0", "0 of 0", "1 of 1", "1 of 1"]
    assert sum(line.startswith("| 0 | patterns |") for line in lines) == 6


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert write_share([True] * 3) == "3 of 3 [44%, 100%]"  # 3 / (3 + 1.96²) = .438
    assert write_share([False] * 10) == "0 of 10 [0%, 28%]"
    assert write_share([]) == "0 of 0"


@pytest.mark.parametrize("part", PARTS)
def test_each_part_has_its_function(part: str) -> None:
    name, _ = PARTS[part]
    if name == "exact":
        pytest.importorskip("fvcore")
    module = importlib.import_module(f"benchmarks.{name}")

    assert callable(getattr(module, f"measure_{part}"))
    assert module.ROUNDS > 0


def test_fvcore_is_run_as_people_call_it_and_in_the_faster_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fvcore")
    exact = importlib.import_module("benchmarks.exact")
    monkeypatch.setattr(exact, "ROUNDS", 1)
    contiguous = exact.Workload("plain", plain, 8, images=16, batch=8, layout="contiguous")

    sides = [result.against for result in exact._compare(contiguous, "cpu")]
    turned = [result.against for result in exact._compare(replace(contiguous, layout="channels_last"), "cpu")]

    assert [side for side in sides if "channels_last" not in side] == turned
    assert turned[1:] == ["fvcore", "update_bn"]
    assert sides[2].startswith("fvcore, ")


@pytest.mark.slow
def test_what_is_lost_is_measured_on_other_images_than_the_doctor_sees() -> None:
    trained = train_network(TrainingSettings(10, "patterns", momentum=0.01, batch_size=64, is_constant=True))

    cost = measure_cost(trained)

    assert not trained.is_near_chance
    assert cost.cause == "lag" and cost.lost.low > 0
    assert cost.lost.images == sum(len(labels) for _, labels in trained.other_batches)
    seen = {image.numpy().tobytes() for images, _ in trained.batches for image in images}
    others = {image.numpy().tobytes() for images, _ in trained.other_batches for image in images}
    assert not seen & others
